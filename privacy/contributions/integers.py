"""Per-record contributions as exact integers of bounded norm (THEORY T11).

A record's contribution to a weight is an outer product; scaled to a grid, BOTH factors are rounded to whole numbers
by coins, so it is an outer product of integers, whose squared norm and whose sum over records come out exactly, in any
order. What comes before (scaling, clipping, rounding) is floating-point arithmetic on one record alone: any random
function of record i is allowed there (T3), so that nothing about it enters the guarantee, except that a record above
the bound contributes nothing.

The coins are the record's own. They come from a secret generator, because a record that joins shifts which coins those
after it get. Stochastic rounding: Agarwal, Kairouz, Liu 2021, section 4, without their flattening: a norm above the
bound is rounded again from a smaller scale, as in their conditional rounding, but checked exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from noise_models.randomness.generator import BLOCK, NoiseGenerator

# Integers up to here, and so sums that stay below it in any order, are exact in float32.
EXACT_FLOAT32 = 1 << 24
LEAST_BOUND = 1 << 15  # at which a record at the clip keeps 98 % of it
_ATTEMPTS = 4
_MOST_INT32 = 1 << 30  # of a sum, to which noise of the same size may be added
_INT8 = 127
_MOST_NARROW = 1 << 18  # grids above this have entries that seldom fit int8
_TERMS = 1 << 13  # squares that are added up in float32
_PLAIN = 1e-15, 1e15  # float32 norms whose squares are far from the ends of the range


_Sizes = tuple[Tensor, Tensor]  # estimates of the norms of rows and of columns, shape (m,), float64


@dataclass(frozen=True)
class Factors:
    """Some records' contributions to one parameter, or to a weight and its bias.

    Attributes:
        offset: the parameter's first coordinate in the flat stack.
        rows: shape (m, n); without columns the contributions themselves.
        cols: shape (m, d): the contributions are `rows_i cols_i^T`. None where they are `rows_i`.
        bias: first coordinate of a bias, whose contributions are `rows_i`; None where there is none, or no columns.
        tokens: of an embedding, shape (m, t): `rows` are what lands in the tokens' entries, shape (m, t · width), and
            each token of a record stands once, wherever its rows are not zero.
        numel: of the parameter, where tokens do not tell.
    """

    offset: int
    rows: Tensor
    cols: Tensor | None = None
    bias: int | None = None
    tokens: Tensor | None = None
    entries: int = 0

    @property
    def numel(self) -> int:
        """Coordinates of the parameter."""
        if self.tokens is not None:
            return self.entries * (self.rows.shape[1] // self.tokens.shape[1])
        return self.rows.shape[1] * (1 if self.cols is None else self.cols.shape[1])

    def part(self, chosen: Tensor | slice) -> Factors:
        """The contributions of some records only."""
        cols, tokens = (None if x is None else x[chosen] for x in (self.cols, self.tokens))
        return replace(self, rows=self.rows[chosen], cols=cols, tokens=tokens)


@dataclass(frozen=True)
class Whole:
    """What `Factors` are after rounding, in int8 or float32.

    Attributes:
        stated: what they stand for.
        rows, cols: whole numbers, shaped like those; where there is a bias, one more column that it is taught by.
    """

    stated: Factors
    rows: Tensor
    cols: Tensor | None

    def silence(self, records: Tensor) -> None:
        """Let some records contribute nothing."""
        for x in (self.rows, self.cols):
            if x is not None:
                x[records] = 0

    def put(self, records: Tensor, other: Whole, but: Tensor | None = None) -> None:
        """Let `other` stand for some records, and no longer for itself.

        Args:
            records: which ones, in the order of other's.
            other: of these alone.
            but: those of other's that stay where they are, and are silent here.
        """
        for x, y in ((self.rows, other.rows), (self.cols, other.cols)):
            if x is not None and y is not None:
                x[records] = (y if but is None else y.masked_fill(but.unsqueeze(1), 0)).to(x.dtype)
        if but is not None:
            other.silence(~but)


def least_bound(shapes: Sequence[Sequence[int]], least: int = LEAST_BOUND, share: float = 1 / 80) -> int:
    """The least power of two D at which rounding adds a small share to the squared norm of a record at the clip.

    Args:
        shapes: of the parameters; a matrix is taken for the product of two factors, which is its worst case.
        least: D is that or more.
        share: of the square.
    """
    bound = least
    while max(float(_growth(float(bound), *_factors(shape))) for shape in shapes) > bound**2 * share:
        bound *= 2
    return bound


def _factors(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (math.prod(shape), 1)


class WholeSum:
    """`sum_i X_i` in whole numbers, each record's norm at most `bound`, exactly and in any order.

    Factors whose entries fit are multiplied in int8 with sums in int32, where the machine has a unit for it; others in
    float32, in blocks whose partial sums stay below 2^24.

    Attributes:
        total: the flat sum, shape (dimension,), int32, or int64 where int32 could overflow.
    """

    def __init__(
        self, dimension: int, device: torch.device | str, *, grid: float, bound: int, coins: NoiseGenerator
    ) -> None:
        """
        Args:
            dimension: of the flat stack.
            device: where it lives.
            grid: grid steps a unit.
            bound: D, in grid steps, a power of two up to 2^20.
            coins: of the rounding.
        """
        self.total = torch.zeros(dimension, dtype=torch.int32, device=device)
        self._device = self.total.device
        self._grid, self._bound, self._coins = grid, bound, coins
        self._records = 0
        self._most = max(1, EXACT_FLOAT32 // bound)  # records whose sum is exact in float32 whatever they are
        # Whatever the records are: how one is rounded may not depend on the others (T3).
        self._narrow = bound <= _MOST_NARROW and multiplies_int8(self._device)
        self._memory: dict[tuple[object, ...], Tensor] = {}
        self._words = np.empty(BLOCK + 2, dtype=np.uint64)

    def clear(self) -> None:
        """Forget the sum."""
        self.total.zero_()
        self._records = 0

    def wipe(self) -> None:
        """Overwrite what was worked on; the sum stays."""
        for memory in self._memory.values():
            memory.zero_()

    def add(self, stack: Sequence[Factors]) -> None:
        """Add some records' contributions to every parameter, floating point.

        A record that is not finite, or that no attempt brought below the bound, adds nothing.
        """
        if not stack:
            return
        self._records += len(stack[0].rows)
        if self._records > _MOST_INT32 // self._bound:
            self.total = self.total.to(torch.int64)
        for whole in self.whole(stack):
            self._add(whole)

    def whole(self, stack: Sequence[Factors]) -> list[Whole]:
        """Whole-number factors whose joint norm is at most the bound, for every record, in memory that is used again.

        Records whose entries do not fit int8 are zero in the first that stand for a parameter, and in further ones all
        others are.
        """
        sizes = [_sizes(part) for part in stack]
        norms, shrink = self._aim(stack, sizes)
        chosen = torch.empty(0, dtype=torch.int64)
        found: list[Whole] = []
        if self._narrow:
            found, total, wide = self._rounded(stack, sizes, shrink, torch.int8)
            again = (~(total <= self._bound**2) & norms.isfinite()) | wide
            if not bool(again.any()):
                return found
            chosen = torch.nonzero(again).flatten()
            over = torch.where(total > self._bound**2, self._lower(total), 1.0)[chosen]
            shrink, norms = shrink[chosen] * over, norms[chosen]
            stack = [part.part(chosen) for part in stack]
            sizes = [(rows[chosen], cols[chosen]) for rows, cols in sizes]
        others, wide = self._in_float32(stack, sizes, norms, shrink)
        if not found:
            return others
        for whole, other in zip(found, others, strict=True):
            whole.put(chosen, other, wide)
        return [*found, *others] if bool(wide.any()) else found

    def _aim(self, stack: Sequence[Factors], sizes: Sequence[_Sizes]) -> tuple[Tensor, Tensor]:
        """The records' norms in grid steps, infinite where they are not finite, and what they are scaled down by."""
        bound = self._bound
        squares = torch.stack([(rows * cols).square() for rows, cols in sizes]).sum(0)
        norms = torch.where(squares.isfinite(), squares.sqrt() * self._grid, math.inf)
        # Expected squared norm after rounding = shrink² norms² + growth, to be within the room.
        clipped = bound / norms.clamp_min(bound)
        growth = torch.zeros_like(norms)
        for part, (rows, cols) in zip(stack, sizes, strict=True):
            growth += _growth(rows * cols * (self._grid * clipped), *_widths(part))
        room = (_room(bound) * bound**2 - growth).clamp_min(0.0).sqrt()
        return norms, torch.minimum(torch.ones_like(norms), room / norms)

    def _lower(self, total: Tensor) -> Tensor:
        """What a record of this squared norm is scaled down by besides, before it is rounded again."""
        return _room(self._bound) * self._bound / total.sqrt()

    def _in_float32(
        self, stack: Sequence[Factors], sizes: Sequence[_Sizes], norms: Tensor, shrink: Tensor
    ) -> tuple[list[Whole], Tensor]:
        """As `whole`, in float32, and which records have an entry that does not fit int8."""
        found, total, wide = self._rounded(stack, sizes, shrink, torch.float32)
        for _ in range(_ATTEMPTS):
            again = torch.nonzero(~(total <= self._bound**2) & norms.isfinite()).flatten()
            if not len(again):
                break
            shrink[again] *= self._lower(total[again])
            redone, total[again], wide[again] = self._rounded(
                [part.part(again) for part in stack],
                [(rows[again], cols[again]) for rows, cols in sizes],
                shrink[again],
                torch.float32,
                "redone",
            )
            for old, new in zip(found, redone, strict=True):
                old.put(again, new)
        gone = ~(total <= self._bound**2)
        if bool(gone.any()):
            for whole in found:
                whole.silence(gone)
        return found, wide

    def _rounded(
        self,
        stack: Sequence[Factors],
        sizes: Sequence[_Sizes],
        shrink: Tensor,
        dtype: torch.dtype,
        use: str = "first",
    ) -> tuple[list[Whole], Tensor, Tensor]:
        """Whole numbers, bounds on the records' squared norms, and whether an entry of a factor was out of range."""
        found, total, wide = [], torch.zeros_like(shrink), torch.zeros_like(shrink, dtype=torch.bool)
        for number, (part, (rows, cols)) in enumerate(zip(stack, sizes, strict=True)):
            place = (number, dtype, use)
            if part.cols is None:  # a sum of records, without products
                whole, square, _ = self._round(part.rows, shrink * self._grid, torch.float32, (*place, 2))
                found.append(Whole(part, whole, None))
                total += square
                continue
            n, d = _widths(part)
            # |cols · scale|² = |cols| |rows| grid shrink · sqrt(d / n): both factors grow alike by rounding.
            scale = (rows * (self._grid * math.sqrt(d / n)) * shrink / cols).sqrt()
            other = shrink * self._grid / scale
            nothing = ~(scale.isfinite() & other.isfinite() & (scale > 0))  # a factor that is zero
            if bool(nothing.any()):
                scale, other = scale.masked_fill(nothing, 0.0), other.masked_fill(nothing, 0.0)
            whole, square, out = self._round(part.rows, other, dtype, (*place, 0))
            whole_cols, across, out_across = self._round(
                part.cols, scale, dtype, (*place, 1), part.bias is not None
            )
            found.append(Whole(part, whole, whole_cols))
            total += torch.where(square == 0, 0.0, square * across)
            wide |= out | out_across
        return found, total, wide

    def _round(
        self, x: Tensor, scale: Tensor, dtype: torch.dtype, place: tuple[object, ...], one: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x · scale`, each to one of the two whole numbers beside it, so that the mean is kept (to 2^-17).

        Args:
            x: shape (m, k).
            scale: shape (m,).
            dtype: of the whole numbers; int8 keeps what is at most 127 in size.
            place: of the memory to put them in.
            one: append a column of ones.
        Returns:
            them, bounds on their sums of squares, and whether a number did not fit, of each record.
        """
        (m, k), width = x.shape, x.shape[1] + one
        out = self._kept(place, (m, width), dtype)
        square = torch.empty(m, dtype=torch.float64, device=self._device)
        wide = torch.zeros(m, dtype=torch.bool, device=self._device)
        scale = scale.to(x.dtype).unsqueeze(1)
        silent = ~(scale > 0)
        any_silent = bool(silent.any())
        step = max(1, 4 * BLOCK // max(1, width))
        for start in range(0, m, step):
            block = slice(start, min(start + step, m))
            own = scale[block]
            work = self._kept(("work",), (len(own), width), torch.float32)
            torch.mul(x[block], own, out=work[:, :k])
            if one:
                work[:, k:] = own
            work.add_(self._drawn((len(own), width)), alpha=2.0**-16).round_()
            if any_silent:
                work.masked_fill_(silent[block], 0.0)  # whatever the record holds
            norms = _bounds(work)
            square[block] = norms.square()
            if float(norms.max()) > _INT8 and not _fits(work):
                wide[block] = ~(torch.maximum(work.amax(1), -work.amin(1)) <= _INT8)
            out[block] = work
        return out, square, wide

    def _kept(self, place: tuple[object, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Memory of that place, with anything in it."""
        size = shape[0] * shape[1]
        memory = self._memory.get(place)
        if memory is None or memory.numel() < size:
            memory = self._memory[place] = torch.zeros(size, dtype=dtype, device=self._device)
        return memory[:size].view(shape)

    def _drawn(self, shape: tuple[int, int]) -> Tensor:
        """Coins, whole numbers from -2^15 to 2^15 - 1 with equal probabilities, as float32."""
        drawn = self._kept(("coins",), shape, torch.float32)
        flat, count = drawn.view(-1), drawn.numel()
        for start in range(0, count, 4 * BLOCK):  # once, unless a record alone is longer
            size = min(4 * BLOCK, count - start)
            self._coins.fill(self._words, (size + 3) // 4)
            flat[start : start + size] = torch.from_numpy(self._words.view(np.int16)[:size])
        return drawn

    def _add(self, part: Whole) -> None:
        stated = part.stated
        into = self.total[stated.offset : stated.offset + stated.numel]
        if stated.tokens is not None:
            width = part.rows.shape[1] // stated.tokens.shape[1]
            into.view(-1, width).index_add_(
                0, stated.tokens.flatten(), part.rows.reshape(-1, width).to(into.dtype)
            )
            return
        if part.cols is None:
            for rows in torch.split(part.rows, self._most):
                into += rows.sum(0).to(into.dtype)
            return
        n, d = stated.rows.shape[1], into.numel() // stated.rows.shape[1]
        step = _MOST_INT32 // self._bound if part.rows.dtype is torch.int8 else self._most
        for rows, cols in zip(torch.split(part.rows, step), torch.split(part.cols, step), strict=True):
            product = torch._int_mm(rows.T, cols) if rows.dtype is torch.int8 else (rows.T @ cols)
            into.view(n, d).add_(product[:, :d].to(into.dtype))
            if stated.bias is not None:
                self.total[stated.bias : stated.bias + n] += product[:, d].to(into.dtype)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": {}}


@cache
def multiplies_int8(device: torch.device) -> bool:
    """Whether the machine has a unit for products of int8 with sums in int32, and these come out exact.

    Processors without one may add pairs of products in 16 bits, which saturate.
    """
    if device.type != "cpu" or not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    signs = torch.tensor([[1], [-1]], dtype=torch.int8).repeat(32, 67)
    for rows, cols in (
        (signs * 127, signs * 127),
        (signs * 127, signs.flip(0) * 127),
        (signs.abs() * 127,) * 2,
    ):
        try:
            found = torch._int_mm(rows.T, cols)
        except RuntimeError:
            return False
        if not torch.equal(found.double(), rows.T.double() @ cols.double()):
            return False
    return True


def _widths(part: Factors) -> tuple[int, int]:
    return part.rows.shape[1], 1 if part.cols is None else part.cols.shape[1] + (part.bias is not None)


def _sizes(part: Factors) -> _Sizes:
    """Norms of a record's rows and of its columns, a bias's one among them; float64, estimates."""
    rows = _norms(part.rows)
    if part.cols is None:
        return rows, torch.ones_like(rows)
    cols = _norms(part.cols)
    return rows, cols if part.bias is None else torch.hypot(cols, torch.ones_like(cols))


def _norms(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, dim=1).double()
    least, most = _PLAIN
    odd = ~((found > least) & (found < most))
    if bool(odd.any()):
        found[odd] = torch.linalg.vector_norm(x[odd], dim=1, dtype=torch.float64)
    return found


def _fits(whole: Tensor) -> bool:
    """Whether all numbers are at most 127 in size; those that are none are not."""
    return float(whole.amax()) <= _INT8 and float(whole.amin()) >= -_INT8


def _bounds(whole: Tensor) -> Tensor:
    """Upper bounds on norms of whole numbers, shape (m,), float64: a sum of k squares errs by k roundings at most."""
    k = whole.shape[1]
    dtype, unit = (torch.float64, 2.0**-53) if k > _TERMS else (torch.float32, 2.0**-24)
    found: Tensor = torch.linalg.vector_norm(whole, dim=1, dtype=dtype)
    return found.double().mul_(1 + (k + 4) * unit)


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
