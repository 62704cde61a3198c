"""Per-record contributions as exact integers of bounded norm (THEORY T6: the integer path).

A record's contribution to a weight is an outer product; scaled to a grid, BOTH factors are rounded to whole numbers
by coins, so it is an outer product of integers, whose squared norm and whose sum over records come out exactly. What
comes before (scaling, clipping, rounding) is floating-point arithmetic on one record alone: any random function of
record i is allowed there (T3), so that nothing about it enters the guarantee, except that a record above the bound
contributes nothing.

The coins are the record's own. They come from a secret generator, because a record that joins shifts which coins those
after it get. Stochastic rounding: Agarwal, Kairouz, Liu 2021, section 4, without their flattening: a norm above the
bound is rounded again from a smaller scale, as in their conditional rounding, but checked exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from privacy.norms import joint_norms, limit, vector_norms, within

EXACT_FLOAT32 = (
    1 << 24
)  # integers up to here, and so sums that stay below it in any order, are exact in float32
LEAST_BOUND = 1 << 13  # at which a rounded norm is within a few per cent of the one it stands for
_ATTEMPTS = 4


@dataclass(frozen=True)
class Factors:
    """Some records' contributions to one parameter.

    Attributes:
        offset: the parameter's first coordinate in the flat stack.
        rows: shape (m, n); without columns the contributions themselves.
        cols: shape (m, d): the contributions are `rows_i cols_i^T`. None where they are `rows_i`.
    """

    offset: int
    rows: Tensor
    cols: Tensor | None = None

    @property
    def numel(self) -> int:
        return self.rows.shape[1] * (1 if self.cols is None else self.cols.shape[1])

    def squared_norms(self) -> Tensor:
        """Shape (m,), float64: exact for integers as long as it is below 2^53, and not below 2^53 otherwise."""
        rows = self.rows.double().square().sum(1)
        return rows if self.cols is None else rows * self.cols.double().square().sum(1)

    def norms(self) -> Tensor:
        """Shape (m,), float64: rounded up; infinite or NaN where a factor is not finite or out of range."""
        if self.cols is None:
            return vector_norms(self.rows)
        n, d = self.rows.shape[1], self.cols.shape[1]
        rows = within(vector_norms(self.rows), limit(self.rows.dtype, d))
        return rows * within(vector_norms(self.cols), limit(self.rows.dtype, n))

    def part(self, chosen: Tensor) -> Factors:
        """The contributions of some records only."""
        return Factors(self.offset, self.rows[chosen], None if self.cols is None else self.cols[chosen])


def least_bound(shapes: Sequence[Sequence[int]]) -> int:
    """The least power of two D at which rounding adds at most a twentieth to the squared norm of a record at the clip.

    It is LEAST_BOUND or more.

    Args:
        shapes: of the parameters; a matrix is taken for the product of two factors, which is its worst case.
    """
    bound = LEAST_BOUND
    while max(float(_growth(float(bound), *_factors(shape))) for shape in shapes) > bound**2 / 20:
        bound *= 2
    return bound


def _factors(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (math.prod(shape), 1)


def integers(stack: Sequence[Factors], *, grid: float, bound: int, coins: NoiseGenerator) -> list[Factors]:
    """Whole-number factors whose joint norm is at most `bound`, for every record.

    Args:
        stack: the records' contributions to every parameter, floating point.
        grid: grid steps a unit.
        bound: D, in grid steps, below 2^26.
        coins: of the rounding.
    Returns:
        floating-point tensors that hold whole numbers; a record that is not finite, or that no attempt brought below
        the bound, is all zero.
    """
    own = [part.norms() for part in stack]
    norms = joint_norms(own, stack[0].rows.dtype) * grid
    # Expected squared norm after rounding = shrink² norms² + growth, to be within the room.
    clipped = bound / norms.clamp_min(bound)
    growth = torch.zeros_like(norms)
    for part, norm in zip(stack, own, strict=True):
        n, d = part.rows.shape[1], 1 if part.cols is None else part.cols.shape[1]
        growth += _growth(norm * grid * clipped, n, d)
    room = (_room(bound) * bound**2 - growth).clamp_min(0.0).sqrt()
    shrink = torch.minimum(torch.ones_like(norms), room / norms)
    found = _rounded(stack, grid, shrink, coins)
    total = _total(found)
    for _ in range(_ATTEMPTS):
        again = torch.nonzero(~(total <= bound**2) & norms.isfinite()).flatten()
        if not len(again):
            break
        shrink[again] *= _room(bound) * bound / total[again].sqrt()
        redone = _rounded([part.part(again) for part in stack], grid, shrink[again], coins)
        for part, new in zip(found, redone, strict=True):
            part.rows[again] = new.rows
            if part.cols is not None and new.cols is not None:
                part.cols[again] = new.cols
        total[again] = _total(redone)
    _silence(found, ~(total <= bound**2))
    return found


def add_exactly(part: Factors, bound: int, out: Tensor) -> None:
    """`out += sum_i X_i`, exactly: every partial sum of a float32 product stays below 2^24, of `out` below 2^53.

    Args:
        part: whole numbers, each record's norm at most `bound`.
        bound: D, a power of two below 2^24.
        out: the flat sum, float64.
    """
    into = out[part.offset : part.offset + part.numel]
    if part.cols is None:
        into += part.rows.double().sum(0)
        return
    into = into.view(part.rows.shape[1], part.cols.shape[1])
    block = EXACT_FLOAT32 // bound
    for start in range(0, len(part.rows), block):
        rows, cols = (x[start : start + block].float() for x in (part.rows, part.cols))
        into += rows.T @ cols


def _room(bound: int) -> float:
    """Share of the squared bound that is aimed at, so that few records are rounded twice.

    Either factor's squared norm, sqrt(D) squared at the bound, has a relative standard deviation of 2 sqrt(1/6 / D) by
    rounding: this is about two and a half of the product's.
    """
    return 1 - 3 / math.sqrt(bound) if bound >= 64 else 0.5


def _growth(norm: Tensor | float, n: int, d: int) -> Tensor | float:
    """What rounding adds to a squared norm on average, at most.

    A coin's variance is 1/6 over evenly spread fractions, and factors of equal norm a coordinate take the least harm:
    `|r|² |c|²` becomes `(|r|² + n/6)(|c|² + d/6)` with |r||c| = norm and |c|² / |r|² = d / n.
    """
    return n / 6 if d == 1 else norm * math.sqrt(n * d) / 3 + n * d / 36


def _rounded(stack: Sequence[Factors], grid: float, shrink: Tensor, coins: NoiseGenerator) -> list[Factors]:
    found = []
    for part in stack:
        if part.cols is None:
            found.append(Factors(part.offset, _round(part.rows, shrink * grid, coins)))
            continue
        rows, cols = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in (part.rows, part.cols))
        balance = math.sqrt(part.cols.shape[1] / part.rows.shape[1])
        # |cols · scale|² = |cols| |rows| grid shrink · sqrt(d / n): both factors grow alike by rounding.
        scale = (rows * (grid * balance) * shrink / cols).sqrt()
        rows_scale = shrink * grid / scale
        nothing = ~(scale.isfinite() & rows_scale.isfinite() & (scale > 0))  # a factor that is zero
        scale, rows_scale = scale.masked_fill(nothing, 0.0), rows_scale.masked_fill(nothing, 0.0)
        found.append(
            Factors(part.offset, _round(part.rows, rows_scale, coins), _round(part.cols, scale, coins))
        )
    return found


def _round(x: Tensor, scale: Tensor, coins: NoiseGenerator) -> Tensor:
    """`x · scale`, each to one of the two whole numbers beside it, so that the mean is kept (to 2^-24)."""
    words = torch.from_numpy(coins.uint64((x.numel() + 1) // 2)).view(torch.int32)[: x.numel()]
    up = (words.view(x.shape).to(x.device) & (EXACT_FLOAT32 - 1)).to(x.dtype)
    return (x * scale.to(x.dtype).unsqueeze(1)).add_(up, alpha=1 / EXACT_FLOAT32).floor_()


def _total(stack: Sequence[Factors]) -> Tensor:
    return torch.stack([part.squared_norms() for part in stack]).sum(0)


def _silence(stack: Sequence[Factors], gone: Tensor) -> None:
    """Zero the records that are `gone`, and factors whose product is zero, however large one of them is."""
    for part in stack:
        silent = gone | (part.squared_norms() == 0) if part.cols is not None else gone
        if bool(silent.any()):
            part.rows[silent] = 0.0
            if part.cols is not None:
                part.cols[silent] = 0.0
