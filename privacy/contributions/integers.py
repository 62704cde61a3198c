"""Per-record contributions as exact integers of bounded norm (THEORY T11).

A record's contribution to a weight is an outer product; scaled to a grid, BOTH factors are rounded to whole numbers
by coins, so it is an outer product of integers, whose squared norm and whose sum over records come out exactly, in any
order. What comes before (scaling, clipping, rounding) is floating-point arithmetic on one record alone: any random
function of record i is allowed there (T3), so that nothing about it enters the guarantee, except that a record above
the bound contributes nothing.

The coins are the record's own. They come from a secret generator, because a record that joins shifts which coins those
after it get. Numbers that are no product, n of them, share one coin a record where the sqrt(n)/2 by which that may
lengthen or turn a record is little beside D. Stochastic rounding: Agarwal, Kairouz, Liu 2021, section 4, without their
flattening: a norm above the bound is rounded again from a smaller scale, as in their conditional rounding, but checked
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.positions import bounds_of_sums, norms_of_sums
from privacy.contributions.products import EXACT_FLOAT32, MOST_INT8, MOST_INT32, add_products, multiplies_int8
from privacy.contributions.rounding import Rounding, Task
from privacy.workers import Workers

LEAST_BOUND = 1 << 15  # at which a record at the clip keeps 98 % of it
_ATTEMPTS = 4
_MOST_NARROW = 1 << 18  # grids above this have entries that seldom fit int8
_ALIKE = 1 / 128  # of the bound: what one coin for all of a record's numbers may add to it
_FACTORED = (
    4  # times the work on a number of a sum is that on one of its factors, norms and products included
)
_GROWTH = 1 / 16  # of the squared bound: what rounding may add to a sum that is rounded product by product
_AT_A_TIME = 1 << 16  # numbers of the sum that are turned into floating point
_PLAIN = 1e-15, 1e15  # float32 norms whose squares are far from the ends of the range


# Estimates of the norms of rows and of columns, shapes (m, t), and of contributions, shape (m,); all float64.
_Sizes = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Factors:
    """Some records' contributions to one parameter, or to a weight and its bias.

    Attributes:
        offset: the parameter's first coordinate in the flat stack.
        rows: shape (m, n); without columns the contributions themselves. Of t positions, shape (m, t, n).
        cols: shape (m, d): the contributions are `rows_i cols_i^T`. None where they are `rows_i`. Of t positions, shape
            (m, t, d): the contributions are `sum_t rows_it cols_it^T`.
        bias: first coordinate of a bias, whose contributions are `rows_i`; None where there is none, or no columns.
        tokens: of an embedding, shape (m, t): `rows` are what lands in the tokens' entries, shape (m, t · width), and
            each token of a record stands once, wherever its rows are not zero.
        entries: of the embedding.
        norms: of contributions that are sums over positions, shape (m,), float64, estimates; taken from a batch whose
            length does not depend on how many records there are.
    """

    offset: int
    rows: Tensor
    cols: Tensor | None = None
    bias: int | None = None
    tokens: Tensor | None = None
    entries: int = 0
    norms: Tensor | None = None

    @classmethod
    def summed(cls, offset: int, rows: Tensor, cols: Tensor) -> Self:
        """Sums over positions of products, of a batch whose length does not depend on how many records there are."""
        return cls(offset, rows, cols, norms=norms_of_sums(rows, cols))

    @property
    def positions(self) -> int:
        """Products that are added up in a record's contribution."""
        return 1 if self.norms is None else self.rows.shape[1]

    @property
    def cols_width(self) -> int:
        """Entries of a row of the parameter, a product."""
        return 1 if self.cols is None else self.cols.shape[-1]

    @property
    def numel(self) -> int:
        """Coordinates of the parameter."""
        if self.tokens is not None:
            return self.entries * (self.rows.shape[1] // max(1, self.tokens.shape[1]))
        return self.rows.shape[-1] * self.cols_width

    def part(self, chosen: Tensor | slice) -> Factors:
        """The contributions of some records only."""
        cols, tokens, norms = (None if x is None else x[chosen] for x in (self.cols, self.tokens, self.norms))
        return replace(self, rows=self.rows[chosen], cols=cols, tokens=tokens, norms=norms)


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

    def alone(self) -> Whole:
        """Of what they stand for the shapes and places only: the numbers themselves are needed no more."""
        stated = self.stated
        cols = None if stated.cols is None else stated.cols.to("meta")
        return replace(self, stated=replace(stated, rows=stated.rows.to("meta"), cols=cols))

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
                kept = y if but is None else y.masked_fill(but.view(-1, *[1] * (y.ndim - 1)), 0)
                x[records] = kept.to(x.dtype)
        if but is not None:
            other.silence(~but)


def least_bound(shapes: Sequence[Sequence[int]], least: int = LEAST_BOUND, share: float = 1 / 64) -> int:
    """The least power of two D at which rounding adds a small share to the squared norm of a record at the clip.

    Args:
        shapes: of the parameters; a matrix is taken for the product of two factors, which is its worst case.
        least: D is that or more.
        share: of the square.
    """
    bound = least
    while bound_growth(bound, shapes) > bound**2 * share:
        bound *= 2
    return bound


def bound_growth(bound: int, shapes: Sequence[Sequence[int]]) -> float:
    """What rounding adds on average to the squared norm of a record at the bound, at most.

    A coin's variance is 1/6 over evenly spread fractions, and factors of equal norm a coordinate take the least harm:
    `|r|² |c|²` becomes `(|r|² + n/6)(|c|² + d/6)` with |r||c| = norm and |c|² / |r|² = d / n. Parts of norms c_k, whose
    squares add up to D², grow by c_k sqrt(n_k d_k)/3 + n_k d_k/36, so that together they grow most where c_k is as
    sqrt(n_k d_k). A sum over t positions grows by what each of its products does: by up to sqrt(t) times as much where
    these are orthogonal, and more where they cancel.
    """
    products = sum(shape[0] * (shape[1] + 1) for shape in shapes if len(shape) == 2)  # with a bias
    others = sum(math.prod(shape) for shape in shapes if len(shape) != 2)
    return bound * math.sqrt(products) / 3 + products / 36 + others / 6


def leaves_half(bound: int, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a record at the clip keeps half of its norm, and not rounding alone."""
    return bound_growth(bound, shapes) <= (_room(bound) - 1 / 4) * bound**2


class WholeSum:
    """`sum_i X_i` in whole numbers, each record's norm at most `bound`, exactly and in any order.

    Factors whose entries fit are multiplied in int8 with sums in int32, where the machine has a unit for it; others in
    float32, in blocks whose partial sums stay below 2^24.

    Attributes:
        total: the flat sum, shape (dimension,), int32, or int64 where int32 could overflow; empty after `in_units`.
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
        self.dimension = dimension
        self._device = torch.device(device)
        self.total = _zeros(dimension, self._device)
        self._grid, self._bound = grid, bound
        self._records = 0
        self._round = Rounding(coins, self._device)

    def clear(self) -> None:
        """Forget the sum, and begin one."""
        self._records = 0
        self.total.zero_()
        if len(self.total) < self.dimension:
            self.total = _zeros(self.dimension, self._device)

    def keeps_factors(self, positions: int, n: int, d: int) -> bool:
        """Whether a sum of so many products, of n rows and d columns, is rounded product by product: where that is less
        work, and adds little to a record at the bound whose products are orthogonal (see `bound_growth`)."""
        grown = self._bound * math.sqrt(positions * n * d) / 3 + positions * n * d / 36
        return (
            _FACTORED * positions * (n + d) < n * d
            and grown <= self._bound**2 * _GROWTH
            and self._bound <= _MOST_NARROW
            and multiplies_int8(self._device, n, d)
        )

    def wipe(self) -> None:
        """Overwrite what was worked on; the sum stays."""
        self._round.wipe()

    def add(self, stack: list[Factors]) -> None:
        """Add some records' contributions to every parameter, floating point.

        A record that is not finite, or that no attempt brought below the bound, adds nothing.

        Args:
            stack: emptied once it is rounded, so that its memory is free for the sum.
        """
        if not stack:
            return
        self._hold(self._records + len(stack[0].rows))
        found = [whole.alone() for whole in self.whole(stack)]
        stack.clear()
        for whole in found:
            self._add(whole)

    def _hold(self, records: int) -> None:
        self._records = records
        if records > MOST_INT32 // self._bound:
            self.total = self.total.to(torch.int64)

    def in_units(self, unit: float, dtype: torch.dtype) -> Tensor:
        """The sum times `unit`, in the sum's own memory where one type is as wide as the other; it is the caller's now.

        Returns:
            shape (dimension,), of type `dtype`.
        """
        total, self.total = self.total, self.total.new_zeros(0)
        if total.element_size() != dtype.itemsize:
            return total.to(dtype).mul_(unit)
        found = total.view(dtype)
        for whole, real in zip(torch.split(total, _AT_A_TIME), torch.split(found, _AT_A_TIME), strict=True):
            real.copy_(whole.to(dtype).mul_(unit))
        return found

    def add_up(self, workers: Workers, records: int) -> None:
        """Let the first worker's sum be that of all workers' records, of whom there are so many."""
        self._hold(records)
        self.total = workers.add_up(self.total)

    def whole(self, stack: Sequence[Factors]) -> list[Whole]:
        """Whole-number factors whose joint norm is at most the bound, for every record, in memory that is used again.

        Records whose entries do not fit int8 are zero in the first that stand for a parameter, and in further ones all
        others are.
        """
        sizes = [_sizes(part) for part in stack]
        norms, shrink = self._aim(stack, sizes)
        chosen = torch.empty(0, dtype=torch.int64)
        found: list[Whole] = []
        # Whatever the records are: how one is rounded may not depend on the others (T3).
        if self._bound <= _MOST_NARROW and all(
            multiplies_int8(self._device, *_widths(part)) for part in stack if part.cols is not None
        ):
            found, total, wide = self._rounded(stack, sizes, shrink, torch.int8)
            again = (~(total <= self._bound**2) & norms.isfinite()) | wide
            if not bool(again.any()):
                return found
            chosen = torch.nonzero(again).flatten()
            # Of a wide record int8 holds nothing that tells its norm.
            over = torch.where((total > self._bound**2) & ~wide, self._lower(total), 1.0)[chosen]
            shrink, norms = shrink[chosen] * over, norms[chosen]
            stack = [part.part(chosen) for part in stack]
            sizes = _chosen(sizes, chosen)
        others, wide = self._in_float32(stack, sizes, norms, shrink)
        if not found:
            return others
        for whole, other in zip(found, others, strict=True):
            whole.put(chosen, other, wide)
        return [*found, *others] if bool(wide.any()) else found

    def _aim(self, stack: Sequence[Factors], sizes: Sequence[_Sizes]) -> tuple[Tensor, Tensor]:
        """The records' norms in grid steps, infinite where they are not finite, and what they are scaled down by."""
        bound = self._bound
        squares = torch.zeros_like(sizes[0][2])
        for _, _, whole in sizes:  # one after the other, for any number of records
            squares += whole.square()
        norms = torch.where(squares.isfinite(), squares.sqrt() * self._grid, math.inf)
        # Expected squared norm after rounding: shrink² norms² + shrink · linear + least, to be within the room.
        linear, least = torch.zeros_like(norms), 0.0
        for part, (rows, cols, _) in zip(stack, sizes, strict=True):
            n, d = _widths(part)
            if part.cols is None:
                least += n / 6
            else:
                linear += (rows * cols).sum(1) * (self._grid * math.sqrt(n * d) / 3)
                least += part.positions * n * d / 36
        room = max(0.0, _room(bound) * bound**2 - least)
        shrink = 2 * room / (linear + torch.hypot(linear, 2 * math.sqrt(room) * norms))
        return norms, shrink.clamp_max(1.0)

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
                _chosen(sizes, again),
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
        found, tasks = [], []
        entries = sum(part.rows.shape[1] for part in stack if part.cols is None)
        alike = math.sqrt(entries) / 2 <= self._bound * _ALIKE  # a matter of shapes
        for number, (part, (rows, cols, _)) in enumerate(zip(stack, sizes, strict=True)):
            place, m = (number, dtype, use), len(part.rows)
            if part.cols is None:  # a sum of records, without products
                out = self._round.memory((*place, 2), (m, part.rows.shape[1]), torch.float32)
                tasks.append(Task(part.rows, shrink * self._grid, out, alike=alike, factor=False))
                found.append(Whole(part, out, None))
                continue
            n, d = _widths(part)
            # |cols · scale|² = |cols| |rows| grid shrink · sqrt(d / n): both factors grow alike by rounding.
            scale = (rows * (self._grid * math.sqrt(d / max(1, n))) * shrink.unsqueeze(1) / cols).sqrt()
            other = (shrink * self._grid).unsqueeze(1) / scale
            nothing = ~(scale.isfinite() & other.isfinite() & (scale > 0))  # a factor that is zero
            if bool(nothing.any()):
                scale, other = scale.masked_fill(nothing, 0.0), other.masked_fill(nothing, 0.0)
            out, across = (
                self._round.memory((*place, i), (m * part.positions, width), dtype)
                for i, width in enumerate((n, d))
            )
            tasks += [
                Task(part.rows.flatten(0, -2), other.flatten(), out),
                Task(part.cols.flatten(0, -2), scale.flatten(), across, one=part.bias is not None),
            ]
            if part.norms is not None:
                out, across = (x.view(m, part.positions, -1) for x in (out, across))
            found.append(Whole(part, out, across))
        squares, wide = self._round(len(shrink), tasks)
        total, done = torch.zeros_like(shrink), iter(squares)
        for whole in found:
            square = next(done)
            if whole.cols is not None:
                across = next(done)
                square = (
                    square * across if whole.stated.norms is None else bounds_of_sums(whole.rows, whole.cols)
                )
            total += square
        return found, total, wide

    def _add(self, part: Whole) -> None:
        stated = part.stated
        into = self.total[stated.offset : stated.offset + stated.numel]
        if not part.rows.numel():
            return
        if stated.tokens is not None:
            width = part.rows.shape[1] // stated.tokens.shape[1]
            into.view(-1, width).index_add_(
                0, stated.tokens.flatten(), part.rows.reshape(-1, width).to(into.dtype)
            )
            return
        if part.cols is None:
            for rows in torch.split(part.rows, max(1, EXACT_FLOAT32 // self._bound)):
                into += rows.sum(0).to(into.dtype)
            return
        n = stated.rows.shape[-1]
        bias = None if stated.bias is None else self.total[stated.bias : stated.bias + n]
        rows, cols, bound = part.rows, part.cols, self._bound
        if stated.norms is not None:
            # Of a position's products, whose sum may be far below them.
            rows, cols = rows.flatten(0, 1), cols.flatten(0, 1)
            bound = MOST_INT8**2 if rows.dtype is torch.int8 else _most(rows, cols)
        add_products(rows, cols, into.view(n, stated.cols_width), bias, bound)

    def __getstate__(self) -> dict[str, object]:
        """A copy holds no sum and no record."""
        return {**self.__dict__, "total": torch.zeros_like(self.total), "_records": 0}


def _zeros(size: int, device: torch.device) -> Tensor:
    """In memory that is taken page by page as it is written to, where the system can."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=torch.int32, device=device)
    return torch.from_numpy(np.zeros(size, dtype=np.int32))


def _widths(part: Factors) -> tuple[int, int]:
    return part.rows.shape[-1], part.cols_width + (part.bias is not None)


def _chosen(sizes: Sequence[_Sizes], records: Tensor) -> list[_Sizes]:
    return [(rows[records], cols[records], whole[records]) for rows, cols, whole in sizes]


def _most(rows: Tensor, cols: Tensor) -> int:
    """A bound of all products of whole-number rows and columns that belong together."""
    largest = (torch.linalg.vector_norm(x, ord=torch.inf, dim=1).double() for x in (rows, cols))
    return math.ceil(math.prod(largest, start=torch.ones((), dtype=torch.float64)).max().item())


def _sizes(part: Factors) -> _Sizes:
    """Norms of a record's rows and of its columns, a bias's one among them, position by position, and of its whole."""
    rows = _norms(part.rows)
    if part.cols is None:
        return rows, torch.ones_like(rows), rows.squeeze(1)
    cols = _norms(part.cols)
    if part.bias is not None:
        cols = (cols.square() + 1).sqrt()
    return rows, cols, (rows * cols).squeeze(1) if part.norms is None else part.norms


def _norms(x: Tensor) -> Tensor:
    """Of each row, shape (m, t), float64."""
    shape = (len(x), 1) if x.ndim == 2 else x.shape[:2]
    # A row is summed alike, whatever stands beside it.
    x = (x if x.ndim == 2 else x.flatten(0, 1)).contiguous()
    found: Tensor = torch.linalg.vector_norm(x, dim=1).double()
    least, most = _PLAIN
    odd = ~((found > least) & (found < most))
    if bool(odd.any()):
        found[odd] = torch.linalg.vector_norm(x[odd], dim=1, dtype=torch.float64)
    return found.view(shape)


def _room(bound: int) -> float:
    """Share of the squared bound that is aimed at, so that few records are rounded twice.

    Either factor's squared norm, sqrt(D) squared at the bound, has a relative standard deviation of 2 sqrt(1/6 / D) by
    rounding: this is about two and a half of the product's.
    """
    return 1 - 3 / math.sqrt(bound) if bound >= 64 else 0.5
