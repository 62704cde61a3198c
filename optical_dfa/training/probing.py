"""Probing a module before it is trained privately, on copies and random records: is its update a sum over records?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noise_models.base import NoNoise
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator
from optical_dfa.backends import create
from privacy.validation import large_batch

if TYPE_CHECKING:
    from optical_dfa.feedback.aligned import AlignedModule
    from optical_dfa.training.capture import Capture

RECORDS = 3
# What every nn.Module keeps itself: its parts and hooks, which are looked at elsewhere.
_OWN = frozenset(vars(nn.Module()))


def check_records_apart(capture: Capture, example: Callable[[int], Sequence[Tensor]]) -> None:
    """Change each record of a random batch in turn, and leave one out: no other record's row may move.

    No buffer may change either. The module is probed in the mode it is in, in training and in evaluation mode.

    Args:
        capture: what records the layers' inputs.
        example: random inputs for a number of records.
    Raises:
        UsageError: naming the layer or buffer.
    """
    inputs = example(RECORDS)
    for training in (None, True, False):
        before = _probe(capture, inputs, training)
        for name, seen in before:
            if seen.shape[0] != RECORDS:
                raise UsageError(
                    f"{name} sees {seen.shape[0]} rows for {RECORDS} records; in a private run every layer keeps the "
                    "records in its first dimension"
                )
        for record in range(RECORDS):  # each, because a maximum moves with one of them only
            others = [i for i in range(RECORDS) if i != record]
            after = _probe(capture, [_changed(x, record) for x in inputs], training)
            for (name, seen), (_, moved) in zip(before, after, strict=True):
                _refuse_moved(name, seen[others], moved[others], "changing one record of the batch")
        if not _same(before, _probe(capture, inputs, training, seed=1)):
            continue  # random masks depend on the shape of the batch; evaluation mode has none
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


class _Step:
    """One captured forward and backward pass of a copy, under a linear loss: record i has the i-th error of a table."""

    def __init__(self, aligned: AlignedModule, training: bool, fresh: bool = True) -> None:
        """
        Args:
            aligned: the original, which shares its parameters with the copies.
            training: mode.
            fresh: a new copy for each step.
        """
        self._shared: dict[int, Any] = {id(p): p for p in aligned.parameters()}
        device = aligned.backend
        if device is not None and not isinstance(device.noise, NoNoise):
            self._shared[id(device)] = create(
                "digital",
                in_features=device.in_features,
                out_features=device.out_features,
                seed=0,
                noise=NoiseGenerator.seeded(0, "probe"),
            )
        elif device is not None:
            self._shared[id(device)] = device
        self._aligned, self._training, self._fresh = aligned, training, fresh
        self._twin = self._copy()

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
        twin = self._copy() if self._fresh else self._twin
        capture = twin.capture
        records = len(inputs[0])
        capture.expected_records = lambda: records
        capture.mask_seed = lambda: seed
        with torch.enable_grad():
            output = twin(*[x.clone() for x in inputs])
            errors = _errors(output, changed)
            divisor = records if twin.loss_reduction == "mean" else 1
            torch.autograd.backward((output * errors).sum() / divisor)
        found = [(use.layer, part) for use in capture.uses for part in (use.x, use.delta)]
        capture.clear()
        return found


def _errors(output: Tensor, changed: int | None) -> Tensor:
    """Root errors like those of a cross entropy, below 0 at the target alone: record i's is the i-th of a table.

    Args:
        output: shape (m, ..., components).
        changed: a record whose error is that of another target.
    """
    table = torch.Generator().manual_seed(0)
    logits = torch.stack([torch.randn(output.shape[1:], generator=table) for _ in output])
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


def changeable(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Buffers and attributes of a module's parts: each in a form that shows a change, and itself, so that it lives."""
    attributes = {
        f"{name}.{key}" if name else key: value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OWN
    }
    kept = {**attributes, **dict(module.named_buffers())}
    return {name: (_token(value), value) for name, value in kept.items()}


def refuse_changed(module: nn.Module, before: Mapping[str, tuple[Any, Any]]) -> None:
    """
    Args:
        before: `changeable(module)` before a forward pass.
    Raises:
        UsageError: naming what is another one now.
    """
    for name, (token, _) in changeable(module).items():
        if name not in before or before[name][0] != token:
            raise UsageError(
                f"{name} changes in a forward pass: it would keep un-noised statistics of records; set it before "
                "make_private, or compute it anew in every pass"
            )


def _token(value: Any) -> Any:
    """Equal for what is the same still: numbers by value, tensors by identity and version, containers by entries."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(_token(entry) for entry in value)
    if isinstance(value, dict):
        return tuple((repr(key), _token(entry)) for key, entry in value.items())
    return id(value)


def check_uses(
    capture: Capture, example: Callable[[int], Sequence[Tensor]], graph_uses: Mapping[str, int]
) -> int:
    """Every use of a parameter in autograd's graph must be one that its layer records.

    Args:
        capture, example: as above.
        graph_uses: how often autograd's graph uses each parameter in one forward pass.
    Returns:
        the most positions of a record at which one parameter is used.
    Raises:
        UsageError: naming the parameter.
    """
    twin = copy.deepcopy(capture)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        twin.active = True
        twin.module(*example(2))
    for name, p in twin.parameters.items():
        recorded = sum(
            any(q is p for q in twin.layers[layer].parameters(recurse=False)) for layer, _, _ in twin.calls
        )
        if graph_uses.get(name, 0) > recorded:
            raise UsageError(
                f"parameter {name} is used outside its own layer ({graph_uses[name]} uses, {recorded} of them in a "
                "layer's forward); call the layer, so that the whole of its gradient is clipped"
            )
    return max(part.positions for part in twin.replay().values())


def _probe(
    capture: Capture, inputs: Sequence[Tensor], training: bool | None, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """What each trained layer and the output see, from one forward pass of a copy; None is its mode as it is."""
    twin = copy.deepcopy(capture)
    if training is not None:
        twin.module.train(training)
    state = {name: value.detach().clone() for name, value in twin.module.named_parameters()}
    kept = changeable(twin.module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same dropout masks every time
        twin.active = True
        output = twin.module(*[x.clone() for x in inputs])
    for name, value in twin.module.named_parameters():
        if not torch.equal(value, state[name]):
            raise UsageError(
                f"parameter {name} changes in a forward pass: it would keep un-noised statistics of records"
            )
    refuse_changed(twin.module, kept)
    return [*((name, x) for name, x, _ in twin.calls), ("the output", output)]


def _changed(x: Tensor, record: int | slice) -> Tensor:
    """`x` with one record (or some) replaced."""
    changed = x.clone()
    changed[record] = x[record] + 1.0 if x.is_floating_point() else 1 - x[record].clamp(0, 1)
    return changed
