"""A differential self-check of a module and a loss: is what each record contributes its own (docs/threat-model.md)?

Records are perturbed, left out, reordered and made non-finite one at a time; the module runs in training mode, the
loss's backward pass goes through the production capture, and the others' per-record contributions may not move. It
finds what a look at the module alone cannot: a loss that is normalised over the batch or compares records, a loss
reduction that is not the declared one, an autograd function whose backward pass mixes records.

Records of a batch of SMALL and of a larger one are tried, and parts of the larger one by halves: hard-example mining,
normalisation in groups or a divisor may begin at a size only.

It is a test, not a proof: it sees dependences above TOLERANCE, on these records and in batches of these sizes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.protocols import Contributions, PrivateModule

SMALL, LARGE = 4, 256  # records in the batches drawn by default
MOST = 512  # given records that are looked at
LARGEST_INPUT = 1 << 18  # components of all inputs drawn; wider records make the larger batch smaller,
LEAST = 16  # down to so many
TRIED = 3  # records of the larger batch that are changed or left out
# Relative to the largest contribution to the same parameter: rounding depends on the batch's shape, below these.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        findings: one line each: what was done to a record, and what moved by how much. Empty for a sound pair.
        notes: what could not be tried.
        sizes: of the batches whose records were changed and left out.
    """

    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def raise_if_broken(self) -> None:
        """
        Raises:
            UsageError: there are findings; with the first of them.
        """
        if self.findings:
            more = f" ({len(self.findings) - 1} more findings)" if len(self.findings) > 1 else ""
            raise UsageError(f"module and loss cannot be trained privately: {self.findings[0]}{more}")

    def __str__(self) -> str:
        lines = [f"finding: {text}" for text in self.findings] or [
            f"no record was seen in another's contribution (batches of {' and '.join(map(str, self.sizes))})"
        ]
        return "\n".join([*lines, *(f"note: {text}" for text in self.notes)])


def validate(
    module: nn.Module,
    loss: Loss,
    *,
    inputs: Tensor | Sequence[Tensor] | None = None,
    targets: Tensor | None = None,
) -> Validation:
    """Try whether `module` and `loss` keep records apart. Both are left as they are.

    Args:
        module: an aligned module that is not private yet, on a device without noise.
        loss: as in the training loop, `loss(output, targets)`, a scalar.
        inputs: some records, first in every tensor, of which the first MOST are used; random ones by default, LARGE
            where they are not very wide. They should not be private.
        targets: theirs; by default classes, or numbers of the output's shape where the loss takes no classes.
    Raises:
        UsageError: the module is not aligned, module or loss cannot take these records, the loss takes neither kind
            of default targets, or nothing repeats.
    """
    if not isinstance(module, PrivateModule):
        raise UsageError(
            f"module is a {type(module).__name__}; give the aligned module that the training loop uses"
        )
    if not callable(loss):
        raise UsageError(f"loss is {loss!r}; give what the training loop calls, loss(output, targets)")
    twin, criterion = copy.deepcopy(module), copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    findings = list(_loss_parameters(criterion))
    try:
        capture = twin.start_capture()
    except UsageError as refusal:  # what make_private would say
        return Validation((*findings, str(refusal)))
    given, labels, notes = _records(twin, capture, criterion, inputs, targets)
    sizes = tuple(sorted({min(SMALL, len(labels)), len(labels)}))
    worst: dict[str, tuple[float, str]] = {}
    with _untouched(module, findings):
        for size in sizes:
            check = _Check(twin, capture, criterion, [x[:size] for x in given], labels[:size], worst)
            try:
                check.run()
            except UsageError as refusal:
                if not (findings or worst):
                    raise
                findings.append(f"{refusal} (batch of {size})")
            findings += check.findings
            notes += check.notes
    findings += [text for _, text in worst.values()]
    return Validation(tuple(dict.fromkeys(findings)), tuple(dict.fromkeys(notes)), sizes)


def large_batch(width: int) -> int:
    """Records in the larger batch of a check; of so many components each."""
    return max(LEAST, min(LARGE, LARGEST_INPUT // max(width, 1)))


class _Check:
    """Passes over variants of one batch; compares what the records not concerned contribute."""

    def __init__(
        self,
        module: Any,
        capture: Contributions,
        loss: Loss,
        inputs: list[Tensor],
        targets: Tensor,
        worst: dict[str, tuple[float, str]],
    ) -> None:
        self.module, self.capture, self.loss = module, capture, loss
        self.inputs, self.targets = inputs, targets
        self.records = len(targets)
        step = max(1, (self.records - 1) // (TRIED - 1)) if self.records > SMALL else 1
        self.tried = range(0, self.records, step)  # the first and the last are among them
        self.generator = torch.Generator().manual_seed(2)
        # No two records, and no record and its absence, can cancel in a sum with these weights.
        self.weights = torch.rand(self.records, generator=self.generator, dtype=torch.float64) + 0.5
        first = next(iter(capture.parameters.values()))
        self.tolerance = TOLERANCE[first.dtype]
        self.findings: list[str] = []
        self.notes: list[str] = []
        self.worst = worst

    def run(self) -> None:
        self.module.train()
        before = self._state()
        everyone = list(range(self.records))
        try:
            base = self._sum(self.inputs, self.targets, everyone)
        except (UsageError, DeviceError):
            raise
        except Exception as error:  # whatever module and loss make of these records
            raise UsageError(
                f"module and loss fail on these {self.records} records ({_named(error)}); give inputs= and targets= as "
                "in the training loop"
            ) from error
        if not bool(base.isfinite().all()):
            raise UsageError("these records contribute no finite numbers; give inputs= and targets= that do")
        if not torch.equal(base, self._sum(self.inputs, self.targets, everyone)):
            raise UsageError(
                "the same pass twice gives other contributions, so nothing can be compared: validate on a device "
                "without noise (backend digital), with random masks from torch's generator and a loss without state"
            )
        masked = not torch.equal(base, self._sum(self.inputs, self.targets, everyone, seed=1))
        for i in self.tried:
            with self._stepped_on("a changed record"):
                self._perturb(i)
        if masked:  # masks depend on the batch's shape; evaluation mode has none
            self.notes.append("random masks: records were left out and reordered in evaluation mode only")
            self.module.eval()
        for i in self.tried:
            with self._stepped_on("a batch without one of its records"):
                self._leave_out([j for j in everyone if j != i], "one record")
        size = self.records // 2 if self.records > SMALL else 0
        while size:
            with self._stepped_on(f"a batch of {size}"):
                self._leave_out(everyone[:size], "some records")
            size //= 2
        with self._stepped_on("another order of the records"):
            self._reorder()
        self._empty()
        self.findings += [
            f"{name} changes in a training pass: it would keep un-noised statistics of records"
            for (name, old), (_, new) in zip(before, self._state(), strict=True)
            if not torch.equal(old, new)
        ]

    @contextmanager
    def _stepped_on(self, what: str) -> Iterator[None]:
        """Poisson batches have any size: where module or loss fails on one, that is found."""
        try:
            yield
        except DeviceError:
            raise
        except Exception as error:  # whatever module and loss make of it
            self.findings.append(
                f"{what} cannot be stepped on ({_named(error)}); skipping it would be a release"
            )

    def _perturb(self, i: int) -> None:
        others = [j for j in range(self.records) if j != i]
        kept = self._sum(self.inputs, self.targets, others)
        for scale in (1.0, -100.0):
            changed = [_changed(x, i, scale, self.generator) for x in self.inputs]
            self._compare("changing one record's input", kept, self._sum(changed, self.targets, others))
        for value in islice(self._other_targets(i), SMALL):
            labels = self.targets.clone()
            labels[i] = value
            self._compare("changing one record's target", kept, self._sum(self.inputs, labels, others))
        for value in (torch.nan, torch.inf):
            if any(x.is_floating_point() for x in self.inputs):
                broken = [_filled(x, i, value) for x in self.inputs]
                self._compare("a record that is not finite", kept, self._sum(broken, self.targets, others))

    def _other_targets(self, i: int) -> Iterator[Any]:
        """The class that the loss leaves out, and targets that other records have."""
        ignored = getattr(self.loss, "ignore_index", -1)
        if not self.targets.is_floating_point() and ignored >= 0:
            yield ignored
        for j in range(self.records):
            if not torch.equal(self.targets[j], self.targets[i]):
                yield self.targets[j].clone()

    def _leave_out(self, others: list[int], left: str) -> None:
        kept = self._sum(self.inputs, self.targets, others)
        alone = self._sum([x[others] for x in self.inputs], self.targets[others], others, rows=others)
        self._compare(
            f"leaving {left} out (a loss divided by the batch size that loss_reduction does not name?)",
            kept,
            alone,
        )

    def _reorder(self) -> None:
        order = [*range(1, self.records), 0]
        kept = self._sum(self.inputs, self.targets, order)
        turned = self._sum([x[order] for x in self.inputs], self.targets[order], order, rows=order)
        self._compare("putting the records in another order", kept, turned)

    def _empty(self) -> None:
        try:
            found = self._sum([x[:0] for x in self.inputs], self.targets[:0], [], rows=[])
        except Exception as error:  # whatever module and loss make of no records
            self.findings.append(
                f"an empty Poisson batch cannot be stepped on ({_named(error)}); skipping it would be a release"
            )
            return
        if bool(found.any()):
            self.findings.append("an empty batch contributes: something is added that belongs to no record")

    def _sum(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor,
        chosen: Sequence[int],
        *,
        rows: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """The weighted sum of the chosen records' contributions, shape (dimension,), float64.

        Args:
            chosen: which records.
            rows: which record each row of the batch is; by default row i is record i.
        """
        batch = list(range(self.records)) if rows is None else list(rows)
        self.capture.clear()
        self.capture.expected_records = lambda: len(batch)
        self.capture.masks = NoiseGenerator.seeded(seed, "masks of a check")
        value = self.loss(self.module(*[x.clone() for x in inputs]), targets)
        if value.ndim:
            raise UsageError(
                f"the loss has shape {list(value.shape)}; give it as it is backpropagated, one number"
            )
        value.backward()  # type: ignore[no-untyped-call]
        factors = torch.tensor([float(self.weights[i]) if i in chosen else 0.0 for i in batch])
        first = next(iter(self.capture.parameters.values()))
        out = torch.zeros(self.capture.dimension, dtype=first.dtype, device=first.device)
        self.capture.norms()
        self.capture.add_clipped(factors.double().to(first.device), out)
        self.capture.clear()
        return out.double()

    def _compare(self, action: str, kept: Tensor, found: Tensor) -> None:
        """Note the parameter that moved most, once for each thing that was done."""
        start = 0
        for name, p in self.capture.parameters.items():
            part = slice(start, start + p.numel())
            start += p.numel()
            size = float(kept[part].abs().max())
            moved = (found[part] - kept[part]).abs()
            by = float(moved.max()) / max(size, 1e-300) if bool(moved.isfinite().all()) else float("inf")
            if by > self.tolerance and by > self.worst.get(action, (0.0, ""))[0]:
                amount = f"by {by:.2g} of its size" if by < float("inf") else "to no finite number"
                self.worst[action] = (
                    by,
                    f"{action} moves what the others contribute to {name} {amount}, in a batch of {self.records}",
                )

    def _state(self) -> list[tuple[str, Tensor]]:
        state = [*self.module.named_parameters(), *self.module.named_buffers()]
        if isinstance(self.loss, nn.Module):
            state += [(f"the loss's {name}", x) for name, x in self.loss.named_buffers()]
        return [(name, x.detach().clone()) for name, x in state]


def _records(
    module: Any,
    capture: Contributions,
    loss: Loss,
    inputs: Tensor | Sequence[Tensor] | None,
    targets: Tensor | None,
) -> tuple[list[Tensor], Tensor, list[str]]:
    """The records, at most MOST of those that were given, and what is to be said about it."""
    if targets is not None and not isinstance(targets, Tensor):
        raise UsageError(f"targets is a {type(targets).__name__}; give a tensor, one target a record")
    if inputs is None:
        given = _drawn(module, None if targets is None else len(targets))
    else:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if not given or not all(isinstance(x, Tensor) and x.ndim for x in given):
            raise UsageError("inputs holds no tensors of records; give one for each input of the module")
    lengths = {len(x) for x in given} | ({len(targets)} if targets is not None else set())
    if len(lengths) > 1:
        counts = f"{len(given[0])} records" + (f" and {len(targets)} targets" if targets is not None else "")
        raise UsageError(f"inputs= and targets= hold {counts}; give as many of each")
    count = min(MOST, *lengths, len(given[0]))
    if count < 2:
        raise UsageError(f"validation compares records and was given {count}; give at least 2")
    notes = [f"of {len(given[0])} records the first {count} were tried"] if len(given[0]) > count else []
    given = [x[:count].detach().clone() for x in given]
    try:
        with torch.no_grad():
            output = module(*(x[:SMALL] for x in given))
    except (UsageError, DeviceError):
        raise
    except Exception as error:  # whatever the module makes of them
        raise UsageError(
            f"the module cannot take these inputs ({_named(error)}); give inputs= as in the training loop"
        ) from error
    if targets is not None:
        return given, targets[:count].detach().clone(), notes
    generator = torch.Generator().manual_seed(1)
    shape, classes = torch.Size((count, *output.shape[1:-1])), output.shape[-1]
    tried = (
        (torch.arange(shape.numel()) % classes).reshape(shape).to(output.device),
        torch.rand((count, *output.shape[1:]), generator=generator).to(output),
    )
    for candidate in tried if output.ndim > 1 and classes > 1 else tried[1:]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a loss that broadcasts warns
                loss(output.clone(), candidate[:SMALL])
        except Exception:  # it takes other targets
            continue
        return given, candidate, notes
    raise UsageError("the loss takes neither classes nor numbers of the output's shape; give targets=")


def _drawn(module: Any, count: int | None) -> list[Tensor]:
    """Random records, by default as many as LARGE where they are not very wide."""
    if count is None:
        count = large_batch(sum(x[0].numel() for x in module.example(1)))
    drawn: list[Tensor] = module.example(min(count, MOST))
    return drawn


def _loss_parameters(loss: Loss) -> Iterable[str]:
    """A loss that learns is released nowhere."""
    if isinstance(loss, nn.Module):
        for name, p in loss.named_parameters():
            if p.requires_grad:
                yield (
                    f"the loss has a parameter {name} of its own, which would be trained without clip and noise; put "
                    "it into the module, or freeze it"
                )


@contextmanager
def _untouched(module: nn.Module, findings: list[str]) -> Iterator[None]:
    """The module itself, which a loss may refer to, gets no gradient from the passes of its copy."""
    before = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    yield
    for name, p in module.named_parameters():
        old = before[name]
        same = p.grad is None if old is None else p.grad is not None and torch.equal(p.grad, old)
        if not same:
            p.grad = old
            findings.append(
                f"the loss forms a gradient of {name} by itself (a penalty on the weights?), outside clip and noise; "
                "use weight_decay"
            )


def _changed(x: Tensor, i: int, scale: float, generator: torch.Generator) -> Tensor:
    """`x` with record i replaced by another one."""
    changed = x.clone()
    if x.is_floating_point():
        changed[i] = scale * (1 + torch.rand(x.shape[1:], generator=generator).to(x))
    else:
        changed[i] = x[(i + (1 if scale > 0 else 2)) % len(x)]
    return changed


def _filled(x: Tensor, i: int, value: float) -> Tensor:
    filled = x.clone()
    if x.is_floating_point():
        filled[i] = value
    return filled


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:120]}"
