"""The arithmetic between a record's contribution and its bound, safe at both ends of the floating-point range.

A contribution is a product of factors, a layer's input and a teaching signal. If one is 1e-170 and the other 1e+160,
squares underflow, and a norm of 1e-10 comes out as 0; a clip factor below the normal range is rounded UP among
subnormals, or its product with a tiny row is, before a huge column meets it. Both move a sum beyond the clip (THEORY
T3). So the range is restricted, by a rule on each record alone: a record one of whose factors is beyond `limit`, or
whose clip factor is at the end of the normal range, counts as not finite and contributes nothing. For all others,
whatever is lost to underflow is at most `floor` per parameter, in any mode of the processor (a thread may or may not
flush subnormals to zero), and `floor` is far below the rounding of the least clipping norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import CPU

LEAST_NORM, MOST_NORM = 1e-12, 1e12  # of clipping norms
_UNIT = torch.finfo(torch.float64).eps / 2
_CACHED = 1 << 17  # numbers converted at a time
_SPARE = 64  # parts of one rounding error of the least clipping norm: 1024 parameters lose less together
_MOST_FACTOR = 2.0**200  # (the product of two)² and sums of 2^200 such are float64 numbers


def refuse_norm(given: float) -> None:
    """
    Raises:
        UsageError: a clipping norm out of range, NaN included.
    """
    if not LEAST_NORM <= given <= MOST_NORM:
        raise UsageError(
            f"max_grad_norm is {given}; it must be a number from {LEAST_NORM:g} to {MOST_NORM:g}"
        )


def vector_norms(vectors: Tensor) -> Tensor:
    """Norms along the last axis, float64, rounded up: a sum of n squares errs by n units at most (Higham, §3.1).

    Squares of components below 2^-511 underflow, and a float32 subnormal may be read as zero: see `limit`.
    """
    n = vectors.shape[-1]
    if vectors.ndim == 2 and vectors.dtype == torch.float32 and vectors.device == CPU:
        # In blocks whose copies in float64 stay in the cache, which takes half the time.
        blocks = torch.split(vectors, max(1, _CACHED // max(1, n)))
        norms = torch.cat([_plain(block) for block in blocks])
    else:
        norms = _plain(vectors)
    return norms.mul_(1 + (n + 4) * _UNIT)


def _plain(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return norms


def limit(dtype: torch.dtype, width: int) -> float:
    """Largest norm of a factor that meets another of `width` entries a record.

    Flushing the other one's subnormals, or the products of its entries with the clip factor, changes it by at most
    sqrt(width)·tiny; times this limit, that is 1/64 of the rounding of LEAST_NORM.
    """
    info = torch.finfo(dtype)
    return min(_MOST_FACTOR, LEAST_NORM * info.eps / 2 / _SPARE / info.tiny / math.sqrt(max(1, width)))


def floor(dtype: torch.dtype) -> float:
    """What underflow changes a contribution to one parameter by, at most: two factors' shares."""
    return LEAST_NORM * torch.finfo(dtype).eps / _SPARE


def share(norms: Tensor, most: float) -> Tensor:
    """What a record with a factor of this norm keeps: 1 up to half of `most`, 0 from there on.

    In between it falls evenly: were it silenced at a point, a rounding that differs could decide about all of it.
    """
    return (2 - (2 / most) * norms).clamp(0.0, 1.0)


def within(norms: Tensor, most: float) -> Tensor:
    """Norms over their `share`, so that a clipped record keeps no more than that: infinite from `most` on."""
    return norms / share(norms, most)


def joint_norms(norms: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Upper bounds on records' norms over several parameters.

    Args:
        norms: of each parameter, shape (m,), float64, each too small by `floor` at most.
        dtype: of the contributions.
    Returns:
        shape (m,), float64; infinite for a record that must contribute nothing.
    """
    joint = vector_norms(torch.stack(list(norms), dim=1)).add_(math.sqrt(len(norms)) * floor(dtype))
    return torch.where(joint.isfinite(), joint, math.inf)


def rounded_down(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Clip factors in the precision of a sum: never above what was given, and 0 near the end of the normal range.

    They fall to 0 evenly (see `share`), at 1/eps times the least normal number: what the last step takes from a clipped
    record is one rounding of the clip.

    Args:
        factors: shape (m,), float64, in [0, 1].
    """
    info = torch.finfo(dtype)
    fallen = torch.minimum(factors, 2 * (factors - info.tiny / info.eps))
    rounded = fallen.to(dtype)
    rounded = torch.where(
        rounded.double() > fallen, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded
    )
    return torch.where(rounded >= info.tiny, rounded, 0.0)
