"""A differential self-check of a module and a loss: is what each record contributes its own (THEORY §4.1)?

Records are perturbed, left out, reordered and made non-finite one at a time; the module runs in training mode, the
loss's backward pass goes through the production capture, and the others' per-record contributions may not move. It
finds what a look at the module alone cannot: a loss that is normalised over the batch or compares records, a loss
reduction that is not the declared one, an autograd function whose backward pass mixes records.

It is a test, not a proof: it sees dependences above TOLERANCE on random records.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from privacy.protocols import Contributions, PrivateModule

RECORDS = 4
# Relative to the largest contribution to the same parameter: rounding depends on the batch's shape, below these.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        findings: one line each: what was done to a record, and what moved by how much. Empty for a sound pair.
        notes: what could not be tried.
    """

    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()

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
            "no record was seen in another's contribution"
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
        inputs: some records, first in every tensor; random ones by default. They should not be private.
        targets: theirs; by default classes, or numbers of the output's shape where the loss takes no classes.
    Raises:
        UsageError: the module is not aligned, the loss takes neither kind of default targets, or nothing repeats.
    """
    if not isinstance(module, PrivateModule):
        raise UsageError(
            f"module is a {type(module).__name__}; give the aligned module that the training loop uses"
        )
    twin, criterion = copy.deepcopy(module), copy.deepcopy(loss) if isinstance(loss, nn.Module) else loss
    findings = list(_loss_parameters(criterion))
    try:
        capture = twin.start_capture()
    except UsageError as refusal:  # what make_private would say
        return Validation((*findings, str(refusal)))
    records = _records(twin, capture, criterion, inputs, targets)
    check = _Check(twin, capture, criterion, *records)
    with _untouched(module, findings):
        check.run()
    return Validation((*findings, *check.findings), tuple(check.notes))


class _Check:
    """Passes over variants of one batch; compares what the records not concerned contribute."""

    def __init__(
        self,
        module: Any,
        capture: Contributions,
        loss: Loss,
        inputs: list[Tensor],
        targets: Tensor,
    ) -> None:
        self.module, self.capture, self.loss = module, capture, loss
        self.inputs, self.targets = inputs, targets
        self.records = len(targets)
        self.generator = torch.Generator().manual_seed(2)
        # No two records, and no record and its absence, can cancel in a sum with these weights.
        self.weights = torch.rand(self.records, generator=self.generator, dtype=torch.float64) + 0.5
        first = next(iter(capture.parameters.values()))
        self.tolerance = TOLERANCE[first.dtype]
        self.findings: list[str] = []
        self.notes: list[str] = []
        self.worst: dict[str, tuple[float, str]] = {}

    def run(self) -> None:
        self.module.train()
        before = self._state()
        everyone = list(range(self.records))
        base = self._sum(self.inputs, self.targets, everyone)
        if not bool(base.isfinite().all()):
            raise UsageError("these records contribute no finite numbers; give inputs= and targets= that do")
        if not torch.equal(base, self._sum(self.inputs, self.targets, everyone)):
            raise UsageError(
                "the same pass twice gives other contributions, so nothing can be compared: validate on a device "
                "without noise (backend digital), with random masks from torch's generator and a loss without state"
            )
        masked = not torch.equal(base, self._sum(self.inputs, self.targets, everyone, seed=1))
        for i in everyone:
            self._perturb(i)
        if masked:  # masks depend on the batch's shape; evaluation mode has none
            self.notes.append("random masks: records were left out and reordered in evaluation mode only")
            self.module.eval()
        for i in everyone:
            self._leave_out(i)
        self._reorder()
        self._empty()
        self.findings += [text for _, text in self.worst.values()]
        self.findings += [
            f"{name} changes in a training pass: it would keep un-noised statistics of records"
            for (name, old), (_, new) in zip(before, self._state(), strict=True)
            if not torch.equal(old, new)
        ]

    def _perturb(self, i: int) -> None:
        others = [j for j in range(self.records) if j != i]
        kept = self._sum(self.inputs, self.targets, others)
        for scale in (1.0, -100.0):
            changed = [_changed(x, i, scale, self.generator) for x in self.inputs]
            self._compare("changing one record's input", kept, self._sum(changed, self.targets, others))
        for value in self._other_targets(i):
            labels = self.targets.clone()
            labels[i] = value
            self._compare("changing one record's target", kept, self._sum(self.inputs, labels, others))
        for value in (torch.nan, torch.inf):
            if any(x.is_floating_point() for x in self.inputs):
                broken = [_filled(x, i, value) for x in self.inputs]
                self._compare("a record that is not finite", kept, self._sum(broken, self.targets, others))

    def _other_targets(self, i: int) -> Iterator[Any]:
        """Targets that other records have, and the class that the loss leaves out."""
        for j in range(self.records):
            if not torch.equal(self.targets[j], self.targets[i]):
                yield self.targets[j].clone()
        ignored = getattr(self.loss, "ignore_index", -1)
        if not self.targets.is_floating_point() and ignored >= 0:
            yield ignored

    def _leave_out(self, i: int) -> None:
        others = [j for j in range(self.records) if j != i]
        kept = self._sum(self.inputs, self.targets, others)
        alone = self._sum([x[others] for x in self.inputs], self.targets[others], others, rows=others)
        self._compare(
            "leaving one record out (a loss divided by the batch size that loss_reduction does not name?)",
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
                f"an empty Poisson batch cannot be stepped on ({type(error).__name__}: {_line(error)}); skipping it "
                "would be a release"
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
        self.capture.mask_seed = lambda: seed
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
                    f"{action} moves what the others contribute to {name} {amount}",
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
) -> tuple[list[Tensor], Tensor]:
    """A batch of a few records, at most as many as were given."""
    if inputs is None:
        given: list[Tensor] = module.example(RECORDS)
    else:
        given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    count = min(RECORDS, *(len(x) for x in given))
    if count < 2:
        raise UsageError(f"validation compares records and was given {count}; give at least 2")
    given = [x[:count].detach().clone() for x in given]
    if targets is not None:
        if len(targets) < count:
            raise UsageError(f"there are {len(targets)} targets for {count} records; give one each")
        return given, targets[:count].detach().clone()
    with torch.no_grad():
        output = module(*given)
    generator = torch.Generator().manual_seed(1)
    classes = output.shape[-1]
    shape = output.shape[:-1]
    tried = (
        (torch.arange(shape.numel()) % classes).reshape(shape).to(output.device),
        torch.rand(output.shape, generator=generator).to(output),
    )
    for candidate in tried if output.ndim > 1 and classes > 1 else tried[1:]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a loss that broadcasts warns
                loss(output.clone(), candidate)
        except Exception:  # it takes other targets
            continue
        return given, candidate
    raise UsageError("the loss takes neither classes nor numbers of the output's shape; give targets=")


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


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:120]
