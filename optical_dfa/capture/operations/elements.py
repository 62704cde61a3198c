"""Rules of operations element by element, and of those along an axis that must stay within a record."""

from __future__ import annotations

from torch import Tensor

from optical_dfa.capture.operations.call import NO_CONSTANT, OVER, Call, MixingError
from optical_dfa.capture.operations.rules import Placed, Rules, across, axes_of, axis_of, free_of_last
from optical_dfa.capture.rows import CONSTANT

RULES = Rules()


@RULES.of("where", "clone", "detach", "alias", "_to_copy", "copy", "masked_fill", "fill", "zero", "lift_fresh",
          "dropout", "isnan", "nan_to_num", "contiguous", "bernoulli", "uniform", "normal", "exponential", "bucketize",
          "to", "_conj", "isin", "native_dropout", "hardswish", "complex", "polar", "log_sigmoid_forward")  # fmt: skip
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


@RULES.of("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
def like(call: Call) -> Placed:
    return call.only()[1]


@RULES.of("searchsorted")
def searchsorted(call: Call) -> Placed:
    """Where each value stands in a sequence, along the last axis of both; one sequence for all has one axis."""
    call.constants("sorter")
    sequence, x, sorter = call.get("sorted_sequence"), call.get("self"), call.get("sorter")
    if sequence.ndim == 1:
        return call.only("self")[1]
    operands = [sequence, x, *([sorter] if isinstance(sorter, Tensor) else [])]
    return across(call.together(operands, x.ndim, broadcast=False), -1, x.ndim)


_EACH = ("abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac "
         "lerp lgamma log log10 log1p log2 maximum minimum mul neg reciprocal round rsqrt sigmoid sign sin sinh sqrt "
         "sub tan tanh trunc")  # fmt: skip


@RULES.of(*(f"_foreach_{name}" for name in _EACH.split()))
def each(call: Call) -> Placed:
    """Element by element in each tensor of a list."""
    if call.out is None:
        raise MixingError("in place, which is not followed for lists; use the operation without _")
    values = (*call.args, *call.kwargs.values())
    if any(call.rows(value) is not None for value in values):
        raise MixingError(NO_CONSTANT)
    lists = [value for value in values if isinstance(value, list | tuple) and isinstance(value[0], Tensor)]
    found = []
    for operands in zip(*lists, strict=True):
        held = any(call.rows(x) is not None for x in operands)
        found.append(call.together(operands, max(x.ndim for x in operands)) if held else CONSTANT)
    return tuple(found)


@RULES.of("_is_all_true", "_is_any_true")
def checked(call: Call) -> Placed:
    raise MixingError(
        "by a check of all values, which raises by what they are; give torch.distributions validate_args=False"
    )


@RULES.of("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
def loss(call: Call) -> Placed:
    """Element by element where nothing is added up."""
    if call.get("reduction"):
        raise MixingError(OVER + "; give the loss reduction='none'")
    tensors = call.tensors()
    return call.together(tensors, max(x.ndim for x in tensors))


@RULES.of("rrelu_with_noise")
def rrelu(call: Call) -> Placed:
    return call.together([call.get("self"), call.get("noise")], call.get("self").ndim)


@RULES.of("_prelu_kernel", "prelu")
def prelu(call: Call) -> Placed:
    return call.together([call.get("self"), call.get("weight")], call.get("self").ndim)


@RULES.of("view_as_real", "view_as_complex")
def complex_view(call: Call) -> Placed:
    x, rows = call.only()
    return rows if call.name == "view_as_real" else free_of_last(x, rows, 1)


@RULES.of("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(call: Call) -> Placed:
    x, rows = call.only()
    for dim in axes_of(call.get("dim"), x.ndim):
        across(rows, dim, x.ndim)
    return rows


@RULES.of("glu")
def glu(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, call.get("dim", -1), x.ndim)


_KEEPS = ("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp",
          "cummax", "cummin", "sort", "topk", "argsort", "renorm")  # fmt: skip


@RULES.of(*_KEEPS)
def along(call: Call) -> Placed:
    x, rows = call.only()
    if call.name == "renorm":  # vectors of one index of `dim` are shrunk each by itself
        if axis_of(call.get("dim"), x.ndim) != rows.axis or not rows.alone:
            raise MixingError(OVER)
        return rows
    return across(rows, call.get("dim", -1), x.ndim)


@RULES.of("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "prod", "var", "std",
          "var_mean", "std_mean", "linalg_vector_norm", "norm", "any", "all", "median", "nanmedian", "kthvalue", "mode",
          "nansum", "nanmean", "count_nonzero", "aminmax", "_safe_norm")  # fmt: skip
def reduction(call: Call) -> Placed:
    x, rows = call.only()
    dims = call.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        raise MixingError(OVER)
    gone = set(axes_of(dims, x.ndim))
    if rows.axis in gone:
        raise MixingError(OVER)
    return rows if call.get("keepdim", False) else rows.moved(rows.axis - sum(a < rows.axis for a in gone))
