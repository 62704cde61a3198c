"""Rules of operations that move axes, take parts of a tensor or put tensors together."""

from __future__ import annotations

from torch import Tensor

from optical_dfa.capture.operations.call import OVER, Call, MixingError
from optical_dfa.capture.operations.rules import Placed, Rules, across, axes_of, axis_of, free_of_last
from optical_dfa.capture.rows import reshaped

RULES = Rules()


@RULES.of("view", "_unsafe_view", "reshape", "unflatten", "flatten")
def view(call: Call) -> Placed:
    x, rows = call.only()
    if not isinstance(call.out, Tensor) or x.element_size() != call.out.element_size():
        raise MixingError("by a view of another type")
    found = reshaped(x.shape, rows, call.out.shape, call.records)
    if found is None:
        raise MixingError("by a reshape that takes the axis of the records apart")
    return found


@RULES.of("permute")
def permute(call: Call) -> Placed:
    x, rows = call.only()
    return rows.moved(axes_of(call.get("dims"), x.ndim).index(rows.axis))


@RULES.of("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Placed:
    x, rows = call.only()
    a, b = axis_of(call.get("dim0"), x.ndim), axis_of(call.get("dim1"), x.ndim)
    return rows.moved({a: b, b: a}.get(rows.axis, rows.axis))


@RULES.of("t", "numpy_T", "mT", "adjoint", "matrix_H")
def matrix_transpose(call: Call) -> Placed:
    x, rows = call.only()
    return (
        rows.moved({x.ndim - 1: x.ndim - 2, x.ndim - 2: x.ndim - 1}.get(rows.axis, rows.axis))
        if x.ndim > 1
        else rows
    )


@RULES.of("unsqueeze")
def unsqueeze(call: Call) -> Placed:
    x, rows = call.only()
    return rows.moved(rows.axis + (axis_of(call.get("dim"), x.ndim + 1) <= rows.axis))


@RULES.of("squeeze")
def squeeze(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dim")
    asked = range(x.ndim) if dims is None else axes_of(dims, x.ndim)
    gone = {axis for axis in asked if x.shape[axis] == 1}
    if rows.axis in gone:  # of records to come with none of them: a pass has two or more
        raise MixingError(OVER)
    return rows.moved(rows.axis - sum(axis < rows.axis for axis in gone))


@RULES.of("expand")
def expand(call: Call) -> Placed:
    x, rows = call.only()
    moved = rows.moved(rows.axis + call.out.ndim - x.ndim)
    if call.out.shape[moved.axis] != x.shape[rows.axis]:
        raise MixingError(OVER)
    return moved


@RULES.of("repeat")
def repeat(call: Call) -> Placed:
    x, rows = call.only()
    repeats = list(call.get("repeats"))
    moved = rows.moved(rows.axis + len(repeats) - x.ndim)
    if repeats[moved.axis] != 1:
        raise MixingError(OVER)
    return moved


@RULES.of("unfold")
def unfold(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, call.get("dimension"), x.ndim)


@RULES.of("diagonal")
def diagonal(call: Call) -> Placed:
    x, rows = call.only()
    a, b = axis_of(call.get("dim1", 0), x.ndim), axis_of(call.get("dim2", 1), x.ndim)
    if rows.axis in (a, b):
        raise MixingError(OVER)
    return rows.moved(rows.axis - (a < rows.axis) - (b < rows.axis))


@RULES.of("diag_embed")
def diag_embed(call: Call) -> Placed:
    x, rows = call.only()
    across(rows, -1, x.ndim)
    made = axes_of([call.get("dim1", -2), call.get("dim2", -1)], x.ndim + 1)
    return rows.moved([axis for axis in range(x.ndim + 1) if axis not in made][rows.axis])


@RULES.of("select")
def select(call: Call) -> Placed:
    x, rows = call.only()
    axis = axis_of(call.get("dim"), x.ndim)
    across(rows, axis, x.ndim)
    return rows.moved(rows.axis - (axis < rows.axis))


@RULES.of("slice", "narrow")
def slice_(call: Call) -> Placed:
    x, rows = call.only()
    axis = axis_of(call.get("dim", 0), x.ndim)
    if axis == rows.axis and (call.out.shape[axis] != x.shape[axis] or call.get("step", 1) != 1):
        raise MixingError("by a part of the batch")
    return rows


@RULES.of(
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "chunk",
    "unsafe_chunk",
    "tensor_split",
)
def split(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, call.get("dim", 0), x.ndim)


@RULES.of("unbind")
def unbind(call: Call) -> Placed:
    x, rows = call.only()
    axis = axis_of(call.get("dim", 0), x.ndim)
    across(rows, axis, x.ndim)
    return rows.moved(rows.axis - (axis < rows.axis))


@RULES.of("cat", "concat", "concatenate")
def cat(call: Call) -> Placed:
    tensors = list(call.get("tensors"))
    ndim = max(x.ndim for x in tensors)
    rows = call.together(tensors, ndim)
    return across(rows, call.get("dim", 0), ndim)


@RULES.of("stack")
def stack(call: Call) -> Placed:
    tensors = list(call.get("tensors"))
    rows = call.together(tensors, tensors[0].ndim)
    return rows.moved(rows.axis + (axis_of(call.get("dim", 0), tensors[0].ndim + 1) <= rows.axis))


@RULES.of("flip", "roll", "rot90")
def flip(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dims")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        raise MixingError(OVER)
    for dim in axes_of(dims, x.ndim):
        across(rows, dim, x.ndim)
    return rows


@RULES.of("tril", "triu")
def triangle(call: Call) -> Placed:
    x, rows = call.only()
    return free_of_last(x, rows, 2)


@RULES.of("constant_pad_nd")
def constant_pad(call: Call) -> Placed:
    x, rows = call.only()
    pads = list(call.get("pad"))
    place = 2 * (x.ndim - 1 - rows.axis)
    if any(pads[place : place + 2]):
        raise MixingError(OVER)
    return rows
