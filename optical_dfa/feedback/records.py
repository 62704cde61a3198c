"""The record axis of what a module keeps at its feedback points, found by batches of different sizes, not guessed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.feedback.cuts import run
from optical_dfa.feedback.points import Tape, install

COUNTS = (2, 3, 7)


def check_record_axis(
    module: nn.Module, names: Sequence[str], example: Callable[[int], Sequence[Tensor]]
) -> None:
    """Every call of a feedback point, and the output, must have one row a record, whatever the number of records.

    A tensor without them (`pos(torch.arange(T))`, a class token before it is expanded) would have its row t taught by
    record t alone, where their numbers happen to be equal.

    Args:
        module: the plain module; copies are run.
        names: of its feedback points.
        example: random inputs for a number of records.
    Raises:
        UsageError: naming the point, and the shape it has instead; or a module that takes batches of one size alone.
    """
    seen = {count: _shapes(module, names, example(count)) for count in COUNTS}
    calls = [[name for name, _ in found] for found in seen.values()]
    if any(called != calls[0] for called in calls):
        raise UsageError(
            "the feedback points are called differently for batches of different sizes "
            f"({', '.join(f'{n} records: {len(called)} calls' for n, called in zip(COUNTS, calls, strict=True))}); "
            "each must be called as often for any number of records"
        )
    for index, name in enumerate(calls[0]):
        shapes = {count: found[index][1] for count, found in seen.items()}
        if (
            all(shape[:1] == (count,) for count, shape in shapes.items())
            and len({shape[1:] for shape in shapes.values()}) == 1
        ):
            continue
        raise UsageError(_complaint(name, module.get_submodule(name), shapes))


def _complaint(name: str, part: nn.Module, shapes: dict[int, tuple[int, ...]]) -> str:
    what = "the output" if not name else f"feedback point {name}"
    few, many = COUNTS[0], COUNTS[-1]
    shown = f"{what} has shape {list(shapes[few])} for {few} records and {list(shapes[many])} for {many}"
    if len(set(shapes.values())) == 1:
        if not name:
            return f"{shown}: one output for the whole batch; return one row a record"
        length = shapes[few][0] if shapes[few] else 1
        fix = (
            f"self.{name}(torch.arange({length}).expand(len(x), {length}))"
            if isinstance(part, nn.Embedding)
            else f"self.{name}(p.expand(len(x), *p.shape[1:])) of a parameter p with a first dimension of 1"
        )
        return (
            f"{shown}, the same for any number of records, so that nobody can tell which record teaches what; give "
            f"it a row a record before the point: {fix}"
        )
    axis = next(
        (
            axis
            for axis in range(1, min(map(len, shapes.values())))
            if all(shape[axis] == count for count, shape in shapes.items())
        ),
        None,
    )
    if axis is not None:
        fix = f"x.transpose(0, {axis}), batch_first=True"
        return f"{shown}: its records are in dimension {axis}; put them first ({fix})"
    ratio = {shape[0] / count for count, shape in shapes.items() if shape}
    if len(ratio) == 1 and next(iter(ratio)) > 1:
        rows = int(next(iter(ratio)))
        return (
            f"{shown}: {rows} rows a record in its first dimension; keep the records apart from the positions, as in "
            f"x.unflatten(0, (-1, {rows})) before the point"
        )
    return f"{shown}; it must have one row a record in its first dimension, and the same shape otherwise"


def _shapes(
    module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor]
) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every call of a point, in call order; the output last, without a name."""
    twin = copy.deepcopy(module)
    tape = Tape()
    install(twin, names, tape)
    tape.kept = []
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        output = run(twin, [x.clone() for x in inputs])
    return [*((names[index], tuple(h.shape)) for index, h in tape.kept), ("", tuple(output.shape))]
