"""Rules of operations that read or write at indices, or where a mask is set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from optical_dfa.capture.operations.call import DIFFERS, ELSEWHERE, OVER, Call, MixingError
from optical_dfa.capture.operations.rules import Placed, Rules, across, axes_of
from optical_dfa.capture.rows import FIRST, Rows, places

RULES = Rules()


@RULES.of("index_select")
def index_select(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, call.get("dim"), x.ndim)


@RULES.of("gather", "take_along_dim")
def gather(call: Call) -> Placed:
    x = call.get("self")
    return across(call.together([x, call.get("index")], x.ndim, broadcast=False), call.get("dim"), x.ndim)


@RULES.of("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Placed:
    x, source = call.get("self"), call.get("src")
    operands = [x, call.get("index"), *([source] if isinstance(source, Tensor) else [])]
    return across(call.together(operands, x.ndim, broadcast=False), call.get("dim"), x.ndim)


@RULES.of("index_copy", "index_add", "index_fill")
def index_write(call: Call) -> Placed:
    x, source = call.get("self"), call.get("source")
    call.constants("index")
    operands = [x, *([source] if isinstance(source, Tensor) else [])]
    return across(call.together(operands, x.ndim), call.get("dim"), x.ndim)


@RULES.of("index", "_unsafe_index")
def index(call: Call) -> Placed:
    x, own = call.get("self"), [entry for entry in call.get("indices") if entry is not None]
    rows = call.rows(x)
    given: list[int] = []  # axes of `x` that are indexed
    axis = selected = 0
    for entry in call.get("indices"):
        if entry is None:
            axis += 1
            continue
        mask = entry.dtype in (torch.bool, torch.uint8)
        if mask and (rows is None or call.rows(entry) is not None or not entry.ndim):
            raise MixingError("by an output whose size depends on values")
        given += range(axis, axis + (entry.ndim if mask else 1))
        axis = given[-1] + 1
        selected = max(selected, 1 if mask else entry.ndim)
    apart = given != list(range(given[0], given[-1] + 1))  # then what is selected comes first
    if rows is None:  # a table that each record looks up
        place = call.together(own, selected)
        return place.moved(place.axis + (0 if apart else given[0]))
    if any((call.rows(entry) or FIRST).counted for entry in own):
        _refuse_but_own_place(call, rows, dict(zip(given, own, strict=False)))
        return FIRST.moved(0 if apart else given[0])
    call.only()
    if rows.axis in given:
        raise MixingError("by an index " + OVER)
    before = sum(axis < rows.axis for axis in given)
    return rows.moved(rows.axis - before + selected) if before or apart else rows


def _refuse_but_own_place(call: Call, rows: Rows, given: dict[int, Tensor]) -> None:
    """`x[torch.arange(records), steps]`: each record is asked for what stands at a step of its own.

    Args:
        rows: of what is indexed.
        given: by axis what indexes it.
    """
    for axis, entry in given.items():
        own = call.rows(entry)
        if not rows.alone or (own == places(1)) is not (axis == rows.axis):
            raise MixingError("by an index " + OVER)
        alike = own is None and entry.numel() == 1
        if entry.dtype == torch.bool or entry.ndim > 1 or not (alike or own in (FIRST, places(1))):
            raise MixingError("by an index of other shape than the places of the records")


@RULES.of("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(call: Call) -> Placed:
    """A boolean mask of the same rows, or constant indices that leave the records' axis alone."""
    x, values = call.get("self"), call.get("values")
    indices = list(call.get("indices"))
    rows = call.rows(x)
    if rows is None:
        raise MixingError("into a tensor without records")
    masks = [entry for entry in indices if entry is not None]
    if len(masks) == 1 and indices[0] is not None and masks[0].dtype == torch.bool:
        if call.rows(values) is not None or values.numel() != 1:
            raise MixingError("by values whose number depends on them")
        mask = masks[0]
        if call.rows(mask) is not None and (rows.axis >= mask.ndim or call.rows(mask) != rows):
            raise MixingError(ELSEWHERE)
        if call.rows(mask) is None and rows.axis < mask.ndim and not call.uniform(mask, rows):
            raise MixingError(DIFFERS)
        return rows
    call.constants("indices")
    given = [axis for axis, entry in enumerate(indices) if entry is not None]
    if rows.axis in given or rows.axis > given[0]:
        raise MixingError("by an index " + OVER)
    if call.rows(values) is not None:
        shape = (*x.shape[: given[0]], *np.broadcast_shapes(*(tuple(indices[axis].shape) for axis in given)))
        shape = (*shape, *x.shape[given[-1] + 1 :])
        moved = call.together([values], len(shape))
        if moved != rows:
            raise MixingError(ELSEWHERE)
    elif values.ndim and values.numel() > 1:
        ndim = x.ndim - len(given) + max(indices[axis].ndim for axis in given)
        if rows.axis >= ndim - values.ndim and values.shape[rows.axis - (ndim - values.ndim)] > 1:
            raise MixingError(DIFFERS)
    return rows


@RULES.of("select_scatter", "slice_scatter", "diagonal_scatter")
def part_write(call: Call) -> Placed:
    """A copy in which a part is replaced by `src`, whose axes are those of the part."""
    x, source = call.get("self"), call.get("src")
    if call.name == "diagonal_scatter":
        mixed = axes_of([call.get("dim1", 0), call.get("dim2", 1)], x.ndim)
    else:
        mixed = axes_of(call.get("dim", 0), x.ndim)
    own = [axis for axis in range(x.ndim) if axis not in mixed]  # the diagonal is the last axis of `src`
    of = list(range(x.ndim)) if call.name == "slice_scatter" else own
    found = call.rows(source)
    if found is not None and found.axis >= len(of):
        raise MixingError(OVER)
    rows = call.rows(x) or (found and found.moved(of[found.axis]))
    assert rows is not None  # asked for calls with records only
    if rows.axis not in own:
        raise MixingError(OVER)
    for other, place in ((x, rows), (source, rows.moved(of.index(rows.axis)))):
        held = call.rows(other)
        if held is None and not call.uniform(other, place):
            raise MixingError(DIFFERS)
        if held not in (None, place):
            raise MixingError(ELSEWHERE)
    return rows


@RULES.of("masked_scatter", "masked_select", "nonzero", "unique_dim", "_unique2", "unique_consecutive",
          "nonzero_static", "bincount", "histc")  # fmt: skip
def by_value(call: Call) -> Placed:
    raise MixingError("by an output whose size or order depends on values")
