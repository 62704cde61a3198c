"""Probing a module before it is trained privately, on copies and random records: is its update a sum over records?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError

if TYPE_CHECKING:
    from optical_dfa.training.capture import Capture

RECORDS = 3


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


def _refuse_moved(name: str, kept: Tensor, found: Tensor, why: str) -> None:
    kept, found = kept.double(), found.double()
    # Relative to what is there: a forward pass may scale its rows down to almost nothing.
    slack = 1e-6 * float(kept.abs().nan_to_num(0.0, 0.0).max())
    if not torch.allclose(kept, found, rtol=1e-5, atol=slack, equal_nan=True):
        raise UsageError(
            f"{name} mixes records: {why} moves the others; a private update must be a sum over records (normalise "
            "over features, not over the batch or its size)"
        )


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
    state = {name: value.detach().clone() for name, value in _state(twin.module)}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same dropout masks every time
        twin.active = True
        output = twin.module(*[x.clone() for x in inputs])
    for name, value in _state(twin.module):
        if name not in state or not torch.equal(value, state[name]):
            raise UsageError(
                f"buffer or parameter {name} changes in a forward pass: it would keep un-noised statistics of records"
            )
    return [*((name, x) for name, x, _ in twin.calls), ("the output", output)]


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _changed(x: Tensor, record: int) -> Tensor:
    """`x` with one record replaced."""
    changed = x.clone()
    changed[record] = x[record] + 1.0 if x.is_floating_point() else 1 - x[record].clamp(0, 1)
    return changed
