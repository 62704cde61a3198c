"""Probing a module before it is trained privately, on copies and random records: is its update a sum over records?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.capture.following import Following
from optical_dfa.capture.layers import uses
from optical_dfa.capture.records import Capture, capture_of
from optical_dfa.capture.state import Attributes, same
from optical_dfa.capture.trying import MASKS, named_failure, stand_in
from optical_dfa.feedback.aligned import AlignedModule
from privacy.validation import large_batch

RECORDS = 3
_BLOCK = 64  # rows whose digests are taken at a time
AGREEMENT = {
    torch.float32: 1e-3,
    torch.float64: 1e-8,
}  # of two ways to the same gradient, relative to its largest


def check_records_apart(capture: Capture) -> None:
    """Change each record of a random batch in turn, and leave one out: no other record's row may move.

    No buffer may change either. The module is probed in the mode it is in, in training and in evaluation mode.

    Args:
        capture: what records the layers' inputs.
    Raises:
        UsageError: naming the layer or buffer.
    """
    inputs = capture.aligned.example(RECORDS)
    mixed = len({part.training for part in capture.module.modules()}) > 1  # a mode of its own
    for training in (None, True, False) if mixed else (True, False):
        before = _probe(capture, inputs, training)
        for name, seen in before:
            if seen.shape[0] != RECORDS:
                raise UsageError(
                    f"{name} sees {seen.shape[0]} rows for {RECORDS} records; in a private run every layer keeps the "
                    "records in its first dimension (batch_first=True)"
                )
        if not _same(before, _probe(capture, inputs, training, seed=1)):
            continue  # random masks may depend on the batch; whole steps have masks that do not
        for record in range(RECORDS):  # each, because a maximum moves with one of them only
            others = [i for i in range(RECORDS) if i != record]
            after = _probe(capture, [_changed(x, record) for x in inputs], training)
            for (name, seen), (_, moved) in zip(before, after, strict=True):
                _refuse_moved(name, seen[others], moved[others], "changing one record of the batch")
        fewer = _probe(capture, [x[: RECORDS - 1] for x in inputs], training)
        for (name, seen), (_, moved) in zip(before, fewer, strict=True):
            _refuse_moved(name, seen[: RECORDS - 1], moved, "leaving one record out")


def _same(first: list[tuple[str, Tensor]], second: list[tuple[str, Tensor]]) -> bool:
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def _refuse_moved(
    name: str, kept: Tensor, found: Tensor, why: str, allowed: int = 0, tolerance: float = 1e-6
) -> None:
    if int(_moved(kept, found, tolerance).sum()) > allowed:
        raise UsageError(
            f"{name} mixes records: {why} moves the others; a private update must be a sum over records (normalise "
            "over features, not over the batch or its size)"
        )


def _moved(kept: Tensor, found: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Which records differ, shape (m,)."""
    kept, found = (x.double().reshape(len(x), -1) for x in (kept, found))
    # Relative to what is there: a forward pass may scale its rows down to almost nothing.
    slack = tolerance * float(kept.abs().nan_to_num(0.0, 0.0, 0.0).max()) if kept.numel() else 0.0
    return ~torch.isclose(kept, found, rtol=10 * tolerance, atol=slack, equal_nan=True).all(1)


def check_steps_apart(aligned: AlignedModule) -> None:
    """Take whole steps on random records and errors, in small batches in both modes, in large ones in training mode.

    No record may move what another contributes, in the forward pass or in the backward pass, and no batch may move what
    the next one contributes.

    Args:
        aligned: records already. Its device is left alone: where it has noise, a digital one stands in.
    Raises:
        UsageError: naming the layer.
    """
    large = large_batch(sum(x[0].numel() for x in aligned.example(1)))
    for records, training in ((RECORDS, True), (RECORDS, False), (large, True)):
        inputs = [x.clone() for x in aligned.example(records)]
        step, lasting = _Step(aligned, training), _Step(aligned, training, fresh=False)
        base = step(inputs)
        lasting([_changed(x, slice(None)) for x in inputs])
        for (name, seen), (_, found) in zip(base, lasting(inputs), strict=True):
            if bool(_moved(seen, found).any()):
                raise UsageError(
                    f"what {name} sees or is taught depends on the batch before: it would keep un-noised statistics of "
                    "records; normalise over the features of the record alone"
                )
        for i in range(RECORDS) if records == RECORDS else (0, records - 1):
            others = [j for j in range(records) if j != i]
            changed = step([_changed(x, i) for x in inputs], i)
            for (name, seen), (_, found) in zip(base, changed, strict=True):
                _refuse_moved(name, seen[others], found[others], "changing one record of the batch")
        if not _same(base, step(inputs, seed=1)):
            continue  # random masks depend on the shape of the batch
        size = records - 1
        while size:
            for (name, seen), (_, found) in zip(base, step([x[:size] for x in inputs]), strict=True):
                # Rounding, too, depends on that shape, and may take a record across a kink of its activation.
                _refuse_moved(name, seen[:size], found, "leaving records out", size // 64, 1e-5)
            size //= 2


def check_places(aligned: AlignedModule, rows: int, like: Sequence[Tensor] | None = None) -> None:
    """Take whole steps on one block of random records: each one's numbers are the same to the bit wherever it stands.

    Every record goes one place on, which compares every place with the next; in a second block all are shuffled, and
    half are exchanged for padding. No kernel may treat one otherwise (an incomplete tile, a remainder, another thread's
    share), in training and in evaluation mode. Random masks are constant meanwhile: theirs do depend on the place.

    Args:
        aligned: records already; its device is left alone, as in `check_steps_apart`.
        rows: of a block.
        like: what the module is called with; by default `align`'s example.
    Raises:
        UsageError: naming the layer.
    """
    inputs = aligned.example(rows) if like is None else aligned.inputs_like(like, rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    half = order < rows // 2
    padded = [torch.where(half.view(-1, *[1] * (x.ndim - 1)).to(x.device), x[order], 0).to(x) for x in inputs]
    on = torch.arange(rows).roll(1)
    for training in (True, False):
        step = _Step(aligned, training, rows=rows)
        base = step.digests(inputs)
        for moved, places, kept in (
            ([x[on] for x in inputs], on, torch.ones(rows, dtype=torch.bool)),
            (padded, order, half),
        ):
            for name, found in step.digests(moved, places).items():
                if not torch.equal(base[name][places][kept], found[kept]):
                    raise UsageError(
                        f"{name} computes a record's numbers by its place among {rows} rows, so that a record that "
                        "joins would move the others'; import optical_dfa before torch multiplies matrices, or try "
                        "torch.set_num_threads(1), another max_physical_batch_size, or another kind of layer"
                    )


class _Constant(NoiseGenerator):
    """Masks that are the same everywhere, and drop nothing that is dropped with a probability below three quarters."""

    def _fill(self, buffer: Any, count: int) -> None:
        buffer.view(np.uint32)[: count * buffer.itemsize // 4] = 0x3FFFFFFF


class _Step:
    """One captured forward and backward pass of a copy, under a linear loss: record i has the i-th error of a table."""

    def __init__(
        self, aligned: AlignedModule, training: bool, fresh: bool = True, rows: int | None = None
    ) -> None:
        """
        Args:
            aligned: the original, which shares its parameters with the copies.
            training: mode.
            fresh: a new copy for each step.
            rows: of a block.
        """
        self._rows = rows
        self._shared: dict[int, Any] = {id(p): p for p in aligned.parameters()}
        self._shared[id(capture_of(aligned).programs)] = capture_of(aligned).programs
        self._shared.update(stand_in(aligned))
        self._aligned, self._training = aligned, training
        self._twin = None if fresh else self._copy()

    def _copy(self) -> AlignedModule:
        twin = copy.deepcopy(self._aligned, dict(self._shared))
        twin.train(self._training)
        return twin

    def __call__(
        self, inputs: Sequence[Tensor], changed: int | None = None, seed: int = 0
    ) -> list[tuple[str, Tensor]]:
        """What every use of a trained layer sees and is taught, records first.

        Args:
            inputs: records first.
            changed: a record whose error is another one.
            seed: of random masks.
        """
        capture, _ = self._taken(inputs, NoiseGenerator.seeded(seed, MASKS), changed=changed)
        found = [(use.layer, part[: len(inputs[0])]) for use in capture.uses for part in (use.x, use.delta)]
        capture.clear()
        return found

    def digests(self, inputs: Sequence[Tensor], order: Tensor | None = None) -> dict[str, Tensor]:
        """Digests of what every layer sees and is taught, of the output, and of what is handed to a release, shape (m,)
        each, by name.

        Args:
            inputs: records first.
            order: the i-th record has the error of this place in the table.
        """
        capture, output = self._taken(inputs, _Constant.seeded(0, MASKS), order=order)
        found = {
            f"call {number} of a layer, {use.layer}": _digests(
                [use.x, use.delta, *(one for one in use.rest if isinstance(one, Tensor))]
            )
            for number, use in enumerate(capture.uses)
        }
        found["the module"] = _digests([output])  # the loss makes a record's error of it
        uses = capture.uses
        for what, kept in (("the sum over a record's positions", False), ("the factors of that sum", True)):
            capture.uses = uses  # they are handed out once
            runs = [
                _digests(
                    [
                        x
                        for part in run
                        for x in (part.rows, part.cols, part.tokens, part.norms)
                        if x is not None
                    ]
                )
                for run in capture.factors(lambda *_, kept=kept: kept)
            ]
            found[what] = torch.cat(runs)
        capture.clear()
        return found

    def _taken(
        self,
        inputs: Sequence[Tensor],
        masks: NoiseGenerator,
        changed: int | None = None,
        order: Tensor | None = None,
    ) -> tuple[Capture, Tensor]:
        """What was captured, and the module's output."""
        twin = self._twin or self._copy()
        capture = capture_of(twin)
        capture.expected_records = lambda: len(inputs[0])
        capture.rows = self._rows
        capture.masks = masks
        return capture, _pass(twin, inputs, changed, order=order)


def _digests(parts: Sequence[Tensor]) -> Tensor:
    """A whole number a record, of all the bits of its rows, shape (m,); other bits have another one, almost surely."""
    total = torch.zeros(len(parts[0]), dtype=torch.int64)
    weights = torch.Generator().manual_seed(0)
    for part in parts:
        rows = on_cpu(part.reshape(len(part), -1))
        if rows.element_size() < 4:
            rows = rows.float() if rows.is_floating_point() else rows.to(torch.int32)
        words = rows.view(torch.int32)
        odd = torch.randint(-(2**30), 2**30, (words.shape[1],), generator=weights, dtype=torch.int32)
        odd.mul_(2).add_(1)
        for block, into in zip(torch.split(words, _BLOCK), torch.split(total, _BLOCK), strict=True):
            into += (block * odd).sum(1)
    return total


def _pass(
    twin: AlignedModule,
    inputs: Sequence[Tensor],
    changed: int | None = None,
    masks: AbstractContextManager[None] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """One forward and backward pass under a linear loss; the output, without its history."""
    with torch.enable_grad(), named_failure():
        with masks or nullcontext():
            output = twin(*[x.clone() for x in inputs])
        errors = _errors(output, changed)
        errors = errors if order is None else errors[order]
        divisor = len(inputs[0]) if twin.loss_reduction == "mean" else 1
        torch.autograd.backward((output * errors).sum() / divisor)
    found: Tensor = output.detach()
    return found


def check_sums(aligned: AlignedModule) -> None:
    """What is recorded layer by layer must add up to the gradient that the module has without being recorded.

    So that a layer whose call does something else than its type says, or which is called where no hook sees it, is
    found whatever the reason.

    Args:
        aligned: records already.
    Raises:
        UsageError: naming the parameter.
    """
    inputs = aligned.example(RECORDS)
    for training in (True, False):
        twin = copy.deepcopy(
            aligned, {id(p): p for p in aligned.parameters()} | stand_in(aligned, exact=True)
        )
        twin.train(training)
        capture = capture_of(twin)
        capture.expected_records = lambda: RECORDS
        capture.masks = NoiseGenerator.seeded(0, MASKS)
        _pass(twin, inputs)
        first = next(iter(capture.parameters.values()))
        stack = torch.zeros(capture.dimension, dtype=first.dtype, device=first.device)
        capture.norms()
        capture.add_clipped(torch.ones(RECORDS, dtype=torch.float64, device=first.device), stack)
        recorded = capture.unpack(stack)
        plain = copy.deepcopy(aligned, stand_in(aligned, exact=True))
        plain.train(training)
        plain.stop_capture()
        plain.zero_grad()
        if aligned.rule.teaches_hidden:
            _refuse_without_gradients(plain.module)
        following = Following(plain.module, RECORDS, NoiseGenerator.seeded(0, MASKS), None)
        _pass(plain, inputs, masks=following.on(()))
        factor = RECORDS if aligned.loss_reduction == "mean" else 1
        parameters, start = dict(plain.module.named_parameters()), 0
        overall = float(recorded.abs().max())
        for name, p in capture.parameters.items():
            found, grad = recorded[start : start + p.numel()], parameters[name].grad
            start += p.numel()
            wanted = torch.zeros_like(found) if grad is None else grad.reshape(-1) * factor
            largest = float(wanted.abs().max()) if wanted.numel() else 0.0
            if not math.isfinite(largest):
                continue
            slack = AGREEMENT[p.dtype] * max(largest, 0.01 * overall)
            if bool(((found - wanted).abs() > slack).any()):
                raise UsageError(
                    f"what {name} is recorded to learn is not its gradient: its layer does something else than its "
                    "type says (a replaced forward, a hook?); use torch's layers as they are"
                )


def _refuse_without_gradients(module: nn.Module) -> None:
    """A layer that is to learn but is called under no_grad learns nothing: hooks on a copy that refuse such a call.

    Raises:
        UsageError: when it is called, naming the layer.
    """
    for name, part in module.named_modules():
        if any(p.requires_grad for p in part.parameters(recurse=False)):
            part.register_forward_pre_hook(partial(_refuse_call_without_gradients, name))


def _refuse_call_without_gradients(name: str, layer: nn.Module, args: Any) -> None:
    if not torch.is_grad_enabled():
        raise UsageError(
            f"{name or 'the module'} is called without gradients (torch.no_grad, or checkpointing with "
            "use_reentrant=True), so it would never be trained; call it with gradients, or freeze it"
        )


def _errors(output: Tensor, changed: int | None) -> Tensor:
    """Root errors like those of a cross entropy, below 0 at the target alone: record i's is the i-th of a table.

    Args:
        output: shape (m, ..., components).
        changed: a record whose error is that of another target.
    """
    # numpy fills row by row, so that the table of fewer records is the beginning of this one.
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal(output.shape, dtype=np.float32))
    if output.ndim < 2 or output.shape[-1] < 2:  # one number a record
        if changed is not None:
            logits[changed] *= -100.0
        return logits.to(output)
    target = torch.zeros_like(logits)
    target[..., 0] = 1
    if changed is not None:
        target[changed] = target[changed].flip(-1)
        logits[changed] *= -1.0
    return (logits.softmax(-1) - target).to(output)


def check_uses(capture: Capture) -> tuple[int, int, int]:
    """Every use of a parameter in autograd's graph must be one that its layer records.

    Returns:
        the most positions of a record at which one parameter is used; entries of the trained layers' inputs and
        outputs, a record; calls of these layers.
    Raises:
        UsageError: naming the parameter.
    """
    graph_uses = capture.aligned.uses
    twin = copy.deepcopy(capture)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), named_failure():
        twin.active = True
        twin.module(*capture.aligned.example(2))
    calls = [uses(twin.layers[layer], x, rest) for layer, x, _, rest in twin.calls]
    for name, p in twin.parameters.items():
        recorded = sum(call[id(p)] for call in calls)
        if graph_uses.get(name, 0) > recorded:
            raise UsageError(
                f"parameter {name} is used outside its own layer ({graph_uses[name]} uses, {recorded} of them in a "
                "layer's forward); call the layer, so that the whole of its gradient is clipped"
            )
    entries = sum(x[0].numel() + math.prod(shape[1:]) for _, x, (shape, _), _ in twin.calls)
    return max(part.positions for part in twin.replay().values()), entries, len(calls)


def _probe(
    capture: Capture, inputs: Sequence[Tensor], training: bool | None, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """What each trained layer and the output see, from one forward pass of a copy; None is its mode as it is."""
    twin = copy.deepcopy(capture)
    if training is not None:
        twin.module.train(training)
    twin.hold()
    state = {name: value.detach().clone() for name, value in _released(twin.module)}
    kept = Attributes.of(twin.module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), named_failure():
        torch.manual_seed(seed)  # the same dropout masks every time
        twin.active = True
        output = twin.module(*[x.clone() for x in inputs])
    for name, value in _released(twin.module):
        if not same(value, state[name]):
            raise UsageError(
                f"{name} changes in a forward pass: it would keep un-noised statistics of records; set it before "
                "make_private, or compute it anew in every pass"
            )
    kept.refuse_changed(twin.module)
    return [*((name, x) for name, x, *_ in twin.calls), ("the output", output)]


def _released(module: nn.Module) -> list[tuple[str, Tensor]]:
    """All that a checkpoint of the module holds."""
    return [*module.named_parameters(), *module.named_buffers()]


def _changed(x: Tensor, record: int | slice) -> Tensor:
    """`x` with one record (or some) replaced."""
    changed = x.clone()
    changed[record] = x[record] + 1.0 if x.is_floating_point() else 1 - x[record].clamp(0, 1)
    return changed
