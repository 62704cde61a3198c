"""How each operation of a forward pass treats the records' axis: one rule an operation, anything else is refused.

A rule is told where the records are in each of the operation's tensors and says where they are in what it returns. It
looks at shapes and arguments alone, never at values, so that what it accepts is separate on ALL data. The operations
are PyTorch's own (ATen), as a dispatch mode sees them below autograd; composite ones arrive taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from optical_dfa.capture.rows import CONSTANT, FIRST, Rows, places, reshaped


class MixingError(Exception):
    """The operation mixes records, or cannot be followed; the words say how."""


OVER = "over the axis of the records"


class Call:
    """One call of an operation on tensors of which at least one holds records.

    Attributes:
        name: of the operation, without overload.
        args, kwargs: as given.
        records: how many, 2 or more.
        out: what it returned; None before a call that writes to its arguments.
    """

    __slots__ = ("_names", "_rows", "_uniform", "args", "kwargs", "name", "out", "records")

    def __init__(
        self,
        func: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Any,
        records: int,
        rows: Callable[[Tensor], Rows | None],
        uniform: Callable[[Tensor, Rows], bool],
    ) -> None:
        """
        Args:
            rows: where a tensor holds records; None for a constant.
            uniform: whether a constant is the same for every record, were it to hold records there.
        """
        self.name, self._names = _signature(func)
        self.args, self.kwargs, self.out, self.records = args, kwargs, out, records
        self._rows, self._uniform = rows, uniform

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by the name of the operation's schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        place, own = self._names.get(name, (len(self.args), None))
        return self.args[place] if place < len(self.args) else default if own is None else own

    def rows(self, x: Any) -> Rows | None:
        return self._rows(x) if isinstance(x, Tensor) else None

    def only(self, name: str = "self") -> tuple[Tensor, Rows]:
        """The tensor of that name, which alone may hold records; every other tensor must be a constant."""
        x = self.get(name)
        for other in self.tensors():
            if other is not x and self.rows(other) is not None:
                raise MixingError("with records in an operand that must be a constant")
        rows = self.rows(x)
        if rows is None:
            raise MixingError("with records in an operand that must be a constant")
        return x, rows

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(entry for entry in value if isinstance(entry, Tensor))
        return found

    def together(self, tensors: Sequence[Tensor], ndim: int, broadcast: bool = True) -> Rows:
        """Where the records are, counted from the last axis, of operands that are broadcast to `ndim` axes.

        Args:
            broadcast: whether the operation repeats an axis of size 1.
        Raises:
            MixingError: they are not in one place, or a constant differs from record to record.
        """
        place: Rows | None = None
        for x in tensors:
            rows = self.rows(x)
            if rows is None:
                continue
            moved = rows.moved(rows.axis + ndim - x.ndim)
            if place is None:
                place = moved
            elif place != moved:
                raise MixingError("between tensors that keep the records in different places")
        assert place is not None  # asked for calls with records only
        for x in tensors:
            if self.rows(x) is not None:
                continue
            axis = place.axis - (ndim - x.ndim)
            if axis < 0 or (broadcast and x.shape[axis] == 1):
                continue
            if not self._uniform(x, place.moved(axis)):
                raise MixingError(
                    "with a constant that differs from record to record (a count of the records?)"
                )
        return place

    def constants(self, *names: str) -> None:
        """These arguments may not hold records."""
        for name in names:
            value = self.get(name)
            for x in value if isinstance(value, list | tuple) else (value,):
                if self.rows(x) is not None:
                    raise MixingError("with records in an operand that must be a constant")


# What may take the places of the records; other names of them may be made.
COUNTED = frozenset({"index", "_embedding_bag", "_embedding_bag_forward_only", "detach", "alias"})
Placed = Rows | tuple[Rows | None, ...]
Rule = Callable[[Call], Placed]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of these operations."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@cache
def _signature(func: OpOverload) -> tuple[str, dict[str, tuple[int, Any]]]:
    """Its name, and by name of an argument its place and default."""
    arguments = func._schema.arguments
    return base_name(func), {a.name: (place, a.default_value) for place, a in enumerate(arguments)}


def base_name(func: OpOverload) -> str:
    """`add` of `aten.add_.Tensor`; operations of other libraries keep their namespace."""
    space, _, name = func._schema.name.partition("::")
    name = name.removesuffix("_") if not name.startswith("__") else name
    return name if space == "aten" else f"{space}::{name}"


def rule_of(func: OpOverload) -> Rule | None:
    """The rule of an operation; None where there is none."""
    found = RULES.get(base_name(func))
    tagged = func.namespace == "aten" and torch.Tag.pointwise in func.tags  # others may say so and not be
    return pointwise if found is None and tagged else found


def _axis(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _axes(dims: Any, ndim: int) -> list[int]:
    return [_axis(dim, ndim) for dim in (dims if isinstance(dims, list | tuple) else [dims])]


def _across(rows: Rows, dim: int, ndim: int) -> Rows:
    """Along axis `dim` something is done that must stay within a record."""
    if _axis(dim, ndim) == rows.axis:
        raise MixingError(OVER)
    return rows


def _free_of_last(x: Tensor, rows: Rows, axes: int) -> Rows:
    """The last `axes` axes are mixed."""
    if rows.axis >= x.ndim - axes:
        raise MixingError(OVER)
    return rows


# ---- element by element


@rule("where", "clone", "detach", "alias", "_to_copy", "copy", "masked_fill", "fill", "zero", "lift_fresh", "dropout",
      "isnan", "nan_to_num", "contiguous", "bernoulli", "uniform", "normal", "exponential", "bucketize", "to",
      "_conj", "isin", "native_dropout", "hardswish", "complex", "polar", "log_sigmoid_forward")  # fmt: skip
def pointwise(call: Call) -> Placed:
    if call.name == "where" and len(call.args) == 1:
        raise MixingError("by an output whose size depends on them")
    if call.name == "bucketize":
        return call.only("self")[1]
    if call.name == "isin":
        return call.only("elements")[1]
    tensors = call.tensors()
    ndim = max(x.ndim for x in tensors)
    first = call.get("self")
    if call.out is None and isinstance(first, Tensor):
        ndim = first.ndim
    return call.together(tensors, ndim)


@rule("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
def like(call: Call) -> Placed:
    return call.only()[1]


@rule("searchsorted")
def searchsorted(call: Call) -> Placed:
    """Where each value stands in a sequence, along the last axis of both; one sequence for all has one axis."""
    call.constants("sorter")
    sequence, x, sorter = call.get("sorted_sequence"), call.get("self"), call.get("sorter")
    if sequence.ndim == 1:
        return call.only("self")[1]
    operands = [sequence, x, *([sorter] if isinstance(sorter, Tensor) else [])]
    return _across(call.together(operands, x.ndim, broadcast=False), -1, x.ndim)


_EACH = ("abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac "
         "lerp lgamma log log10 log1p log2 maximum minimum mul neg reciprocal round rsqrt sigmoid sign sin sinh sqrt "
         "sub tan tanh trunc")  # fmt: skip


@rule(*(f"_foreach_{name}" for name in _EACH.split()))
def each(call: Call) -> Placed:
    """Element by element in each tensor of a list."""
    if call.out is None:
        raise MixingError("in place, which is not followed for lists; use the operation without _")
    values = (*call.args, *call.kwargs.values())
    if any(call.rows(value) is not None for value in values):
        raise MixingError("with records in an operand that must be a constant")
    lists = [value for value in values if isinstance(value, list | tuple) and isinstance(value[0], Tensor)]
    found = []
    for operands in zip(*lists, strict=True):
        held = any(call.rows(x) is not None for x in operands)
        found.append(call.together(operands, max(x.ndim for x in operands)) if held else CONSTANT)
    return tuple(found)


@rule("_is_all_true", "_is_any_true")
def checked(call: Call) -> Placed:
    raise MixingError(
        "by a check of all values, which raises by what they are; give torch.distributions validate_args=False"
    )


@rule("_nested_tensor_from_mask_left_aligned", "_nested_tensor_from_mask")
def nested(call: Call) -> Placed:
    raise MixingError(
        "by what it reads of their mask; build nn.TransformerEncoder with enable_nested_tensor=False"
    )


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
def loss(call: Call) -> Placed:
    """Element by element where nothing is added up."""
    if call.get("reduction"):
        raise MixingError(OVER + "; give the loss reduction='none'")
    tensors = call.tensors()
    return call.together(tensors, max(x.ndim for x in tensors))


@rule("rrelu_with_noise")
def rrelu(call: Call) -> Placed:
    return call.together([call.get("self"), call.get("noise")], call.get("self").ndim)


@rule("_prelu_kernel", "prelu")
def prelu(call: Call) -> Placed:
    return call.together([call.get("self"), call.get("weight")], call.get("self").ndim)


@rule("view_as_real", "view_as_complex")
def complex_view(call: Call) -> Placed:
    x, rows = call.only()
    return rows if call.name == "view_as_real" else _free_of_last(x, rows, 1)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(call: Call) -> Placed:
    x, rows = call.only()
    for dim in _axes(call.get("dim"), x.ndim):
        _across(rows, dim, x.ndim)
    return rows


@rule("glu")
def glu(call: Call) -> Placed:
    x, rows = call.only()
    return _across(rows, call.get("dim", -1), x.ndim)


# ---- axes


@rule("view", "_unsafe_view", "reshape", "unflatten", "flatten")
def view(call: Call) -> Placed:
    x, rows = call.only()
    if not isinstance(call.out, Tensor) or x.element_size() != call.out.element_size():
        raise MixingError("by a view of another type")
    found = reshaped(x.shape, rows, call.out.shape, call.records)
    if found is None:
        raise MixingError("by a reshape that takes the axis of the records apart")
    return found


@rule("permute")
def permute(call: Call) -> Placed:
    x, rows = call.only()
    return rows.moved(_axes(call.get("dims"), x.ndim).index(rows.axis))


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Placed:
    x, rows = call.only()
    a, b = _axis(call.get("dim0"), x.ndim), _axis(call.get("dim1"), x.ndim)
    return rows.moved({a: b, b: a}.get(rows.axis, rows.axis))


@rule("t", "numpy_T", "mT", "adjoint", "matrix_H")
def matrix_transpose(call: Call) -> Placed:
    x, rows = call.only()
    return (
        rows.moved({x.ndim - 1: x.ndim - 2, x.ndim - 2: x.ndim - 1}.get(rows.axis, rows.axis))
        if x.ndim > 1
        else rows
    )


@rule("unsqueeze")
def unsqueeze(call: Call) -> Placed:
    x, rows = call.only()
    return rows.moved(rows.axis + (_axis(call.get("dim"), x.ndim + 1) <= rows.axis))


@rule("squeeze")
def squeeze(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dim")
    asked = range(x.ndim) if dims is None else _axes(dims, x.ndim)
    gone = {axis for axis in asked if x.shape[axis] == 1}
    if rows.axis in gone:  # of records to come with none of them: a pass has two or more
        raise MixingError(OVER)
    return rows.moved(rows.axis - sum(axis < rows.axis for axis in gone))


@rule("expand")
def expand(call: Call) -> Placed:
    x, rows = call.only()
    moved = rows.moved(rows.axis + call.out.ndim - x.ndim)
    if call.out.shape[moved.axis] != x.shape[rows.axis]:
        raise MixingError(OVER)
    return moved


@rule("repeat")
def repeat(call: Call) -> Placed:
    x, rows = call.only()
    repeats = list(call.get("repeats"))
    moved = rows.moved(rows.axis + len(repeats) - x.ndim)
    if repeats[moved.axis] != 1:
        raise MixingError(OVER)
    return moved


@rule("unfold")
def unfold(call: Call) -> Placed:
    x, rows = call.only()
    return _across(rows, call.get("dimension"), x.ndim)


@rule("diagonal")
def diagonal(call: Call) -> Placed:
    x, rows = call.only()
    a, b = _axis(call.get("dim1", 0), x.ndim), _axis(call.get("dim2", 1), x.ndim)
    if rows.axis in (a, b):
        raise MixingError(OVER)
    return rows.moved(rows.axis - (a < rows.axis) - (b < rows.axis))


@rule("diag_embed")
def diag_embed(call: Call) -> Placed:
    x, rows = call.only()
    _across(rows, -1, x.ndim)
    made = _axes([call.get("dim1", -2), call.get("dim2", -1)], x.ndim + 1)
    return rows.moved([axis for axis in range(x.ndim + 1) if axis not in made][rows.axis])


# ---- parts


@rule("select")
def select(call: Call) -> Placed:
    x, rows = call.only()
    axis = _axis(call.get("dim"), x.ndim)
    _across(rows, axis, x.ndim)
    return rows.moved(rows.axis - (axis < rows.axis))


@rule("slice", "narrow")
def slice_(call: Call) -> Placed:
    x, rows = call.only()
    axis = _axis(call.get("dim", 0), x.ndim)
    if axis == rows.axis and (call.out.shape[axis] != x.shape[axis] or call.get("step", 1) != 1):
        raise MixingError("by a part of the batch")
    return rows


@rule(
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
    return _across(rows, call.get("dim", 0), x.ndim)


@rule("unbind")
def unbind(call: Call) -> Placed:
    x, rows = call.only()
    axis = _axis(call.get("dim", 0), x.ndim)
    _across(rows, axis, x.ndim)
    return rows.moved(rows.axis - (axis < rows.axis))


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Placed:
    tensors = list(call.get("tensors"))
    ndim = max(x.ndim for x in tensors)
    rows = call.together(tensors, ndim)
    return _across(rows, call.get("dim", 0), ndim)


@rule("stack")
def stack(call: Call) -> Placed:
    tensors = list(call.get("tensors"))
    rows = call.together(tensors, tensors[0].ndim)
    return rows.moved(rows.axis + (_axis(call.get("dim", 0), tensors[0].ndim + 1) <= rows.axis))


@rule("index_select")
def index_select(call: Call) -> Placed:
    x, rows = call.only()
    return _across(rows, call.get("dim"), x.ndim)


@rule("gather", "take_along_dim")
def gather(call: Call) -> Placed:
    x = call.get("self")
    return _across(call.together([x, call.get("index")], x.ndim, broadcast=False), call.get("dim"), x.ndim)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> Placed:
    x, source = call.get("self"), call.get("src")
    operands = [x, call.get("index"), *([source] if isinstance(source, Tensor) else [])]
    return _across(call.together(operands, x.ndim, broadcast=False), call.get("dim"), x.ndim)


@rule("index_copy", "index_add", "index_fill")
def index_write(call: Call) -> Placed:
    x, source = call.get("self"), call.get("source")
    call.constants("index")
    operands = [x, *([source] if isinstance(source, Tensor) else [])]
    return _across(call.together(operands, x.ndim), call.get("dim"), x.ndim)


@rule("index", "_unsafe_index")
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


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
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
            raise MixingError("between tensors that keep the records in different places")
        if call.rows(mask) is None and rows.axis < mask.ndim and not call._uniform(mask, rows):
            raise MixingError("with a constant that differs from record to record (a count of the records?)")
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
            raise MixingError("between tensors that keep the records in different places")
    elif values.ndim and values.numel() > 1:
        ndim = x.ndim - len(given) + max(indices[axis].ndim for axis in given)
        if rows.axis >= ndim - values.ndim and values.shape[rows.axis - (ndim - values.ndim)] > 1:
            raise MixingError("with a constant that differs from record to record (a count of the records?)")
    return rows


@rule("select_scatter", "slice_scatter", "diagonal_scatter")
def part_write(call: Call) -> Placed:
    """A copy in which a part is replaced by `src`, whose axes are those of the part."""
    x, source = call.get("self"), call.get("src")
    if call.name == "diagonal_scatter":
        mixed = _axes([call.get("dim1", 0), call.get("dim2", 1)], x.ndim)
    else:
        mixed = _axes(call.get("dim", 0), x.ndim)
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
        if held is None and not call._uniform(other, place):
            raise MixingError("with a constant that differs from record to record (a count of the records?)")
        if held not in (None, place):
            raise MixingError("between tensors that keep the records in different places")
    return rows


@rule("flip", "roll", "rot90")
def flip(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dims")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        raise MixingError(OVER)
    for dim in _axes(dims, x.ndim):
        _across(rows, dim, x.ndim)
    return rows


@rule("tril", "triu")
def triangle(call: Call) -> Placed:
    x, rows = call.only()
    return _free_of_last(x, rows, 2)


@rule("masked_scatter", "masked_select", "nonzero", "unique_dim", "_unique2", "unique_consecutive", "nonzero_static",
      "bincount", "histc")  # fmt: skip
def by_value(call: Call) -> Placed:
    raise MixingError("by an output whose size or order depends on values")


@rule("constant_pad_nd")
def constant_pad(call: Call) -> Placed:
    x, rows = call.only()
    pads = list(call.get("pad"))
    place = 2 * (x.ndim - 1 - rows.axis)
    if any(pads[place : place + 2]):
        raise MixingError(OVER)
    return rows


# ---- within an axis


_KEEPS = ("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp",
          "cummax", "cummin", "sort", "topk", "argsort", "renorm")  # fmt: skip


@rule(*_KEEPS)
def along(call: Call) -> Placed:
    x, rows = call.only()
    if call.name == "renorm":  # vectors of one index of `dim` are shrunk each by itself
        if _axis(call.get("dim"), x.ndim) != rows.axis or not rows.alone:
            raise MixingError(OVER)
        return rows
    return _across(rows, call.get("dim", -1), x.ndim)


@rule("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "prod", "var", "std", "var_mean",
      "std_mean", "linalg_vector_norm", "norm", "any", "all", "median", "nanmedian", "kthvalue", "mode", "nansum",
      "nanmean", "count_nonzero", "aminmax", "_safe_norm")  # fmt: skip
def reduction(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        raise MixingError(OVER)
    gone = set(_axes(dims, x.ndim))
    if rows.axis in gone:
        raise MixingError(OVER)
    return rows if call.get("keepdim", False) else rows.moved(rows.axis - sum(a < rows.axis for a in gone))


@rule("_cdist_forward", "_euclidean_dist")
def cdist(call: Call) -> Placed:
    x, y = call.get("x1"), call.get("x2")
    ndim = max(x.ndim, y.ndim)
    for one, other, axis in ((x, y, ndim - 2), (y, x, ndim - 1)):
        rows = call.rows(one)
        if rows is not None and call.rows(other) is None and rows.axis == one.ndim - 2:
            if call.name == "_cdist_forward" and call.get("p") == 2 and not call.get("compute_mode"):
                raise MixingError("by an algorithm that depends on how many rows there are; call torch.cdist")
            return rows.moved(axis)
    return _batched(call, [x, y])


# ---- products


def _product(call: Call, left: Tensor, right: Tensor) -> Rows:
    """Of matrices (..., n, k) and (..., k, m), broadcast over what comes before."""
    a, b = call.rows(left), call.rows(right)
    for rows, summed in ((a, left.ndim - 1), (b, right.ndim - 2)):
        if rows is not None and rows.axis == summed:
            raise MixingError("by a matrix product " + OVER)
    ndim = max(left.ndim, right.ndim)
    outer = [x for x, rows in ((left, a), (right, b)) if rows is not None and rows.axis >= x.ndim - 2]
    if outer:
        if a is not None and b is not None:
            raise MixingError("by a matrix product between records")
        x = outer[0]
        rows = a if x is left else b
        assert rows is not None
        return rows.moved(rows.axis + ndim - x.ndim)
    batched = [x for x in (left, right) if x.ndim > 2]
    return call.together(batched, ndim)


@rule("mm", "bmm", "matmul")
def product(call: Call) -> Placed:
    left, right = call.get("self"), call.get("mat2")
    return _product(call, left, call.get("other") if right is None else right)


@rule("addmm", "baddbmm", "_addmm_activation")
def sum_and_product(call: Call) -> Placed:
    left = call.get("mat1") if call.get("mat1") is not None else call.get("batch1")
    right = call.get("mat2") if call.get("mat2") is not None else call.get("batch2")
    added = call.get("self")
    if call.rows(left) is None and call.rows(right) is None:
        raise MixingError("with records in an operand that must be a constant")
    rows = _product(call, left, right)
    return _added(call, rows, added, left.ndim)


def _added(call: Call, rows: Rows, added: Any, ndim: int) -> Rows:
    """What is added to rows that are there already."""
    if not isinstance(added, Tensor):
        return rows
    other, axis = call.rows(added), rows.axis - (ndim - added.ndim)
    if other is not None:
        if other.moved(other.axis + ndim - added.ndim) != rows:
            raise MixingError("between tensors that keep the records in different places")
    elif axis >= 0 and added.shape[axis] != 1 and not call._uniform(added, rows.moved(axis)):
        raise MixingError("with a constant that differs from record to record (a count of the records?)")
    return rows


@rule("mv")
def matrix_vector(call: Call) -> Placed:
    x, rows = call.only()
    return _across(rows, -1, x.ndim)


@rule("addmv")
def sum_and_matrix_vector(call: Call) -> Placed:
    call.constants("vec")
    matrix = call.get("mat")
    rows = call.rows(matrix)
    if rows is None:
        raise MixingError("with records in an operand that must be a constant")
    return _added(call, _across(rows, -1, 2), call.get("self"), 1)


@rule("linear")
def linear(call: Call) -> Placed:
    x, rows = call.only("input")
    return _across(rows, -1, x.ndim)


@rule("_trilinear")
def trilinear(call: Call) -> Placed:
    """Three tensors get axes of size 1 where `expand` says so, are multiplied, and axes are summed."""
    summed, place = list(call.get("sumdim")), None
    ndim = call.get("i1").ndim + len(call.get("expand1"))
    operands = [(call.get(f"i{n}"), sorted(call.get(f"expand{n}"))) for n in (1, 2, 3)]
    own = [[axis for axis in range(ndim) if axis not in made] for _, made in operands]
    for (x, _), axes in zip(operands, own, strict=True):
        rows = call.rows(x)
        if rows is not None:
            moved = rows.moved(axes[rows.axis])
            if place not in (None, moved):
                raise MixingError("between tensors that keep the records in different places")
            place = moved
    assert place is not None  # asked for calls with records only
    for (x, _), axes in zip(operands, own, strict=True):
        if call.rows(x) is None and place.axis in axes:
            axis = axes.index(place.axis)
            if x.shape[axis] != 1 and not call._uniform(x, place.moved(axis)):
                raise MixingError(
                    "with a constant that differs from record to record (a count of the records?)"
                )
    if place.axis in summed:
        raise MixingError(OVER)
    return place.moved(place.axis - sum(axis < place.axis for axis in summed))


# ---- linear algebra: matrices along the last two axes, one for each index of the axes before


def _batched(call: Call, matrices: Sequence[Tensor]) -> Rows:
    """Matrices that are broadcast over what comes before."""
    ndim = max(x.ndim for x in matrices)
    rows = call.together(matrices, ndim)
    if rows.axis >= ndim - 2:
        raise MixingError(OVER)
    return rows


@rule("linalg_inv_ex", "linalg_cholesky_ex", "linalg_lu_factor_ex", "linalg_lu", "_linalg_det", "_linalg_slogdet",
      "linalg_qr")  # fmt: skip
def of_matrices(call: Call) -> Placed:
    x, rows = call.only("self" if call.name == "linalg_cholesky_ex" else "A")
    _without_errors(call)
    _free_of_last(x, rows, 2)
    return (None, rows) if call.get("mode") == "r" else rows


@rule("_linalg_solve_ex")
def solve(call: Call) -> Placed:
    a, b = call.get("A"), call.get("B")
    _without_errors(call)
    if b.ndim > 1 and b.shape != a.shape[:-1]:
        rows = _systems(call, a, b)
    else:  # a vector for each matrix, or for all
        if b.ndim == 1:
            call.constants("B")
        rows = call.rows(a) or _some(call.rows(b))
        _free_of_last(a, rows, 2)
        for x in (a, b) if b.ndim > 1 else ():
            _added(call, rows, x, x.ndim)
    return (
        rows,
        *[call.rows(a) or CONSTANT] * 3,
    )  # and what its backward pass reads, made of the matrices alone


@rule("linalg_solve_triangular")
def solve_triangular(call: Call) -> Placed:
    return _systems(call, call.get("self"), call.get("B"))


@rule("cholesky_solve")
def cholesky_solve(call: Call) -> Placed:
    return _systems(call, call.get("input2"), call.get("self"))


def _systems(call: Call, a: Tensor, b: Tensor) -> Rows:
    """Right-hand sides that are matrices; of those with a constant each column (row, to the right) is by itself."""
    rows = call.rows(b)
    free = b.ndim - (1 if call.get("left", True) else 2)
    if rows is not None and call.rows(a) is None and rows.axis == free:
        return rows.moved(rows.axis + max(a.ndim, b.ndim) - b.ndim)
    return _batched(call, [a, b])


def _some(rows: Rows | None) -> Rows:
    if rows is None:
        raise MixingError("with records in an operand that must be a constant")
    return rows


def _without_errors(call: Call) -> None:
    if call.get("check_errors", False):
        raise MixingError("by an error that depends on what they are; leave check_errors out")


@rule("_linalg_check_errors")
def errors(call: Call) -> Placed:
    raise MixingError(
        "by an error that depends on what they are; use torch.linalg.solve_ex, inv_ex, cholesky_ex or lu_factor_ex, "
        "which raise none"
    )


@rule(
    "_linalg_svd",
    "_linalg_eigh",
    "linalg_eig",
    "_linalg_eigvals",
    "linalg_eigvals",
    "linalg_pinv",
    "linalg_lstsq",
)
def decomposition(call: Call) -> Placed:
    raise MixingError(
        "by an error that depends on what they are (nan does not converge); use qr, det, solve_ex or cholesky_ex, "
        "or decompose constants alone"
    )


@rule("linalg_cross")
def cross(call: Call) -> Placed:
    operands = [call.get("self"), call.get("other")]
    return _across(call.together(operands, operands[0].ndim), call.get("dim", -1), operands[0].ndim)


# ---- layers


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution")
def convolution(call: Call) -> Placed:
    _, rows = call.only("input") if call.get("input") is not None else call.only()
    if rows.axis != 0:
        raise MixingError("by a convolution " + OVER)
    return rows


@rule("embedding")
def embedding(call: Call) -> Placed:
    _, rows = call.only("indices")
    return rows


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Placed:
    """Bags of one size: that of each record starts at its place times the size."""
    call.constants("weight")
    indices, rows = call.get("indices"), call.rows(call.get("indices"))
    if rows is None or rows.axis or rows.outer != 1 or call.get("include_last_offset"):
        raise MixingError("by bags that are not those of a record each")
    if call.rows(call.get("offsets")) != places(rows.inner):
        raise MixingError(
            "by bags that are not those of a record each; give indices of shape (records, size)"
        )
    _added(call, rows, call.get("per_sample_weights"), indices.ndim)
    return (FIRST, None, None, None)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Placed:
    x, rows = call.only("input")
    return _free_of_last(x, rows, len(call.get("normalized_shape")))


@rule("native_group_norm")
def group_norm(call: Call) -> Placed:
    _, rows = call.only("input")
    if rows.axis != 0:
        raise MixingError("by a normalisation " + OVER)
    return (rows, rows if rows.alone else None, rows if rows.alone else None)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm")  # fmt: skip
def batch_norm(call: Call) -> Placed:
    """In evaluation, constants along the channels; in training each channel by itself (instance_norm's use of it)."""
    x = call.get("input")
    rows = call.rows(x)
    training = bool(call.get("training", "no_training" not in call.name and "no_update" not in call.name))
    held = [call.get(name) for name in ("running_mean", "running_var")]
    if rows is None:
        raise MixingError("with records in an operand that must be a constant")
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.get(name)
        if not isinstance(value, Tensor) or not value.numel():
            continue
        other = call.rows(value)
        if other is not None and other.moved(1) != rows:
            raise MixingError("between tensors that keep the records in different places")
        if other is None and rows.axis == 1 and not call._uniform(value, rows.moved(0)):
            raise MixingError("with a constant that differs from record to record (a count of the records?)")
    if training and (rows.axis != 1 or any(isinstance(value, Tensor) for value in held)):
        raise MixingError("by a normalisation " + OVER)
    channel = rows.moved(0) if rows.axis == 1 else None
    return (rows, channel, channel)


def _spatial(axes: int) -> Rule:
    def of_images(call: Call) -> Placed:
        first = "self" if call.get("self") is not None else "input"
        x, rows = call.only(first)
        return _free_of_last(x, rows, axes)

    return of_images


for _axes_mixed, _names in {
    1: ("avg_pool1d", "adaptive_avg_pool1d", "reflection_pad1d", "replication_pad1d", "upsample_nearest1d",
        "_upsample_nearest_exact1d", "upsample_linear1d"),
    2: ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "reflection_pad2d",
        "replication_pad2d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
        "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d"),
    3: ("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "reflection_pad3d",
        "replication_pad3d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d",
        "pixel_shuffle", "pixel_unshuffle", "im2col"),
}.items():  # fmt: skip
    rule(*_names)(_spatial(_axes_mixed))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Placed:
    x, rows = call.only()
    return _across(rows, 1, x.ndim)


@rule("col2im")
def col2im(call: Call) -> Placed:
    x, rows = call.only()
    return _free_of_last(x, rows, 2)


@rule("affine_grid_generator")
def affine_grid(call: Call) -> Placed:
    x, rows = call.only("theta")
    return _free_of_last(x, rows, 2)


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Placed:
    x, grid = call.get("input"), call.get("grid")
    rows = call.together([x, grid], x.ndim)
    if rows.axis != 0:
        raise MixingError(OVER)
    return rows


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
      "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention")  # fmt: skip
def attention(call: Call) -> Placed:
    if call.get("dropout_p", 0.0):
        raise MixingError("with masks of its own generator, which is not secret")
    query, key, value = call.get("query"), call.get("key"), call.get("value")
    rows = _free_of_last(query, call.together([query, key, value], query.ndim), 2)
    for name in ("attn_mask", "attn_bias"):
        mask = call.get(name)
        if isinstance(mask, Tensor):
            _added(call, rows, mask, query.ndim)
    outputs = len(call.out) if isinstance(call.out, tuple | list) else 1
    if outputs == 1:
        return rows
    return (rows, rows, *[None] * (outputs - 2))


@rule("mkldnn_rnn_layer")
def recurrent_layer(call: Call) -> Placed:
    """Sequences of shape (T, records, units), states of shape (records, units)."""
    x = call.get("input")
    rows = call.rows(x)
    if rows is None or rows.axis != 1 or not rows.alone:
        raise MixingError("by a recurrent layer " + OVER)
    for name in ("hx_", "cx_"):
        state = call.get(name)
        other = call.rows(state)
        if other is not None and other != FIRST:
            raise MixingError("between tensors that keep the records in different places")
        if other is None and not call._uniform(state, FIRST):
            raise MixingError("with a constant that differs from record to record (a count of the records?)")
    return (rows, FIRST, FIRST, None)
