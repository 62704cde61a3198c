"""Rounded Gaussian noise: round(Z), Z ~ N(0, s²), drawn from its exact law (THEORY T11).

`p(k) = P(round(Z) = k)` is written as a mixture of two laws.

- The bulk, all but a few millionths: a function f below p that is linear between the points of a grid of spacing g,
  which is a mixture of triangular laws ("tents") around these points, with weights that are multiples of 2^-31. The
  alias method draws a tent; the place in it is the difference of two uniform numbers below g.
- The rest, p − f: rejection under strips of a constant height, in whole numbers of 256 bits.

Bits of a cryptographic generator are compared with whole numbers: no floating-point number decides about a draw, and
the two parts add up to p whatever f is, as long as it is below p.
"""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from math import ceil
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK, NoiseGenerator
from noise_models.randomness.integer_sampler import alias

# Total variation of one draw from round(N(0, s²)): what lies beyond 14 s (1.56e-44 = 2^-145.5) and is never drawn.
# That p − f is rounded to 2^-256 costs less than 2^-220.
TAIL_MASS: Final = 2.0**-145
_REACH: Final = 14

LEAST_STD: Final = 1  # of the table; below it a finer one is rounded once more
MOST_STD: Final = 10**7

# Of a draw's first 32 bits 12 name the cell, 19 are compared with its threshold and one is not used.
_CELL_BITS: Final = 12
_PLACE_BITS: Final = 19
_PLACE: Final = ((1 << _PLACE_BITS) - 1) << _CELL_BITS
_UNIT_BITS: Final = _CELL_BITS + _PLACE_BITS  # f's weights are multiples of 2^-31
_ALIAS_BITS: Final = 160  # `alias` counts in 2^-160 of a cell

# A cell's index is the tent's, −2047 to 2047, in two's complement; −2048 is p − f.
_CELL: Final = (1 << _CELL_BITS) - 1
_TENTS: Final = _CELL // 2
_REST: Final = -_TENTS - 1

# The tents reach to at least so many s; 4e-8 of the mass is beyond. There strips are wide: almost nothing is drawn.
_BULK: Final = 5.5
_WIDE: Final = 64

_HEIGHT_BITS: Final = 256
_DRAW_DIGITS: Final = 90
_TABLE_DIGITS: Final = 30
# A thousand times the relative error of what is computed with _TABLE_DIGITS digits: taken off f, added to strips.
_MARGIN: Final = Decimal("1e-18")
_ROOT_TWO_PI: Final = Decimal(
    "2.506628274631000502415765284811045253006986740609938316629923576342293654607841974946595838378057266116009972665"
    "2038796448663236181"
)
_EXACT_FLOAT32: Final = 1 << 24


def rounded_mass(k: int, variance: Fraction, digits: int) -> Decimal:
    """P(round(Z) = k), Z ~ N(0, variance), to a relative error below 10^(9 - digits).

    With x = k/s and h = 1/(2s) it is `φ(x)/s · Σ_n He_2n(x) h^2n / (2n + 1)!`: the density's Taylor series about k,
    integrated from k − ½ to k + ½. `a_m = He_m(x) h^m / m!` obeys `(m + 1) a_(m+1) = x h a_m − h² a_(m−1)`, so once
    m + 1 ≥ 2 (|x| h + h²) the larger of two neighbours halves every second term: what is left out is at most four
    times the larger of the last two.

    Args:
        k: at most 20 s in magnitude.
        variance: s² >= 1.
        digits: to compute with, 20 to 125.
    """
    with localcontext() as context:
        context.prec = digits
        square = Decimal(variance.denominator) / (4 * variance.numerator)  # h²
        slope = 2 * abs(k) * square  # |x| h
        least = Decimal(10) ** -digits
        before, term, total, m = Decimal(0), Decimal(1), Decimal(1), 0
        while m + 1 < 2 * (slope + square) or max(abs(before), abs(term)) > least:
            before, term = term, (slope * term - square * before) / (m + 1)
            m += 1
            if m % 2 == 0:
                total += term / (m + 1)
        return total * (-abs(k) * slope).exp() * (4 * square).sqrt() / _ROOT_TWO_PI


class Mixture:
    """p as f and p − f, for one s: what draws are compared with, in whole numbers.

    Attributes:
        bits: g = 2^bits.
        weights: of the tents around 0, g, …, 2047 g and of one beyond, in 2^-31; those around −g, −2g, … have the same.
        starts: where the strips begin, in magnitude; the last is where they end.
        heights: of the strips, in 2^-256: no less than p − f on them.
    """

    def __init__(self, std: Fraction) -> None:
        self._variance = std**2
        self.bits = 0
        while _TENTS << self.bits < _BULK * std:
            self.bits += 1
        g, end = 1 << self.bits, ceil(_REACH * std) + 1
        last = min(_TENTS, (end - 1) // g)
        with localcontext() as context:
            context.prec = _TABLE_DIGITS
            variance = Decimal(self._variance.numerator) / self._variance.denominator
            p = [rounded_mass(j * g, self._variance, _TABLE_DIGITS) for j in range(last + 2)]
            # Between two points of the grid p is off its chord by at most i (g − i)/2 times its second derivative,
            # which is (z²/s² − 1)/s² times p for a z within half a step of the interval, and p falls.
            sag, rise = [], []
            for j in range(last + 1):
                bow = p[j] * ((g // 2) * (g - g // 2)) / (2 * variance)
                nearest = (2 * j * g - 1) ** 2 / (4 * variance) if j else Decimal(0)
                farthest = (2 * (j + 1) * g + 1) ** 2 / (4 * variance)
                sag.append(bow * max(farthest - 1, Decimal(0)))
                rise.append(bow * max(1 - nearest, Decimal(0)))
            lowered = [p[j] * (1 - _MARGIN) - max(sag[max(j - 1, 0)], sag[j]) for j in range(last + 1)]
            tents = [int((g << _UNIT_BITS) * value) for value in lowered]
            left = [p[j] - Decimal(w) / (g << _UNIT_BITS) for j, w in enumerate([*tents, 0])]
            tops = [max(left[j], left[j + 1]) + rise[j] + p[j] * _MARGIN for j in range(last + 1)]
            self.weights = [*tents, *[0] * (_TENTS + 1 - last)]
            self.starts = [j * g for j in range(last + 2)]
            while self.starts[-1] < end:
                tops.append(rounded_mass(self.starts[-1], self._variance, _TABLE_DIGITS) * (1 + _MARGIN))
                self.starts.append(self.starts[-1] + _WIDE * g)
        self.heights = [ceil(Fraction(top) * 2**_HEIGHT_BITS) for top in tops]

    @property
    def largest(self) -> int:
        return self.starts[-1] - 1

    def bulk(self, k: int) -> int:
        """f(k) in 2^-256, k >= 0."""
        j, i = k >> self.bits, k & ((1 << self.bits) - 1)
        if j > _TENTS:
            return 0
        inside = self.weights[j] * ((1 << self.bits) - i) + self.weights[j + 1] * i
        return inside << (_HEIGHT_BITS - _UNIT_BITS - 2 * self.bits)

    def rest(self, k: int) -> int:
        """p(k) − f(k) in 2^-256, off by less than 2, k >= 0."""
        with localcontext() as context:
            context.prec = _DRAW_DIGITS
            mass = int(rounded_mass(k, self._variance, _DRAW_DIGITS) * 2**_HEIGHT_BITS)
        return mass - self.bulk(k)

    def cells(self) -> npt.NDArray[np.int32]:
        """The alias table of the tents and of p − f.

        A cell is `(threshold − 1) 2^12 + (own index xor the other's)`: below `place 2^12` where threshold ≤ place.
        """
        half = self.weights[: _TENTS + 1]
        rest = (1 << _UNIT_BITS) - 2 * sum(half) + half[0]
        masses = [*half, rest, *half[:0:-1]]
        unit = _ALIAS_BITS - _PLACE_BITS
        thresholds, others = alias([mass << unit for mass in masses], len(masses))
        packed = (
            (((threshold >> unit) - 1) << _CELL_BITS) + (own ^ other)
            for own, (threshold, other) in enumerate(zip(thresholds, others, strict=True))
        )
        return np.fromiter(packed, np.int32, len(masses))


class RoundedGaussianSampler:
    """Draws round(Z), Z ~ N(0, std²): whole numbers, each with its exact probability up to TAIL_MASS altogether.

    A draw takes 48 bits of the generator up to s = 47,000 and 64 beyond; one in several hundred thousand takes some
    hundreds more. Nothing is assumed of a machine's arithmetic but that whole numbers and decimals are right.

    Attributes:
        std: s, as the rational number it is.
        largest: the greatest magnitude that can be drawn, at least 14 s.
    """

    def __init__(self, std: Fraction | float) -> None:
        """
        Args:
            std: s, from 0 to MOST_STD.
        Raises:
            UsageError: out of that range.
        """
        if not 0 <= std <= MOST_STD:
            raise UsageError(
                f"rounded Gaussian noise has a standard deviation of {std} grid steps; it must lie between 0 and "
                f"{MOST_STD}: take a coarser grid"
            )
        self.std = Fraction(std)
        # round(round(p Z) / p) = round(Z) for p odd: halves of 1 are halves of 1/p. Below 1/28 |Z| reaches 1/2 with
        # less than TAIL_MASS, and nothing is drawn.
        self._nothing = 2 * _REACH * self.std <= 1
        self._parts = 1 if self._nothing or std >= LEAST_STD else 2 * ceil(1 / (2 * self.std)) + 1
        self._mixture = Mixture(self.std * self._parts if not self._nothing else Fraction(LEAST_STD))
        self.largest = self._mixture.largest
        self._bits = self._mixture.bits
        # Two numbers of so many bits, and their difference, fit into it.
        self._number: type[np.signedinteger[Any]] = np.int8 if self._bits < 8 else np.int16
        self._cells = self._mixture.cells()
        self._areas = [0]
        for j, height in enumerate(self._mixture.heights):
            width = self._mixture.starts[j + 1] - self._mixture.starts[j]
            self._areas.append(self._areas[-1] + width * height)

    def sample(self, n: int, generator: NoiseGenerator) -> npt.NDArray[np.int32]:
        """`n` independent draws, shape (n,).

        Raises:
            UsageError: n is negative.
        """
        if n < 0:
            raise UsageError(f"number of random draws is {n}; it must not be negative")
        out = np.zeros(n, dtype=np.int32)
        self._add(out, generator)
        return out

    def add_(self, total: Tensor, generator: NoiseGenerator) -> Tensor:
        """`total += draws`, one for each element, and return it; the same draws that `sample` would give.

        A float32 sum is exact below 2^24; beyond, it is the exact sum, rounded. An int32 sum wraps at 2^31. Either is a
        function of the exact sum, which is what privacy asks for.

        Args:
            total: whole numbers; a contiguous int32, int64, float32 or float64 tensor on the CPU.
        Raises:
            UsageError: another kind of tensor, or float32 for noise that may reach 2^24.
        """
        right_type = total.dtype in (torch.int32, torch.int64, torch.float32, torch.float64)
        if not right_type or total.device.type != "cpu" or not total.is_contiguous():
            raise UsageError(
                "rounded Gaussian noise needs a contiguous int32, int64, float32 or float64 CPU tensor, not "
                f"{total.dtype} on {total.device} with strides {tuple(total.stride())}; add it to a copy"
            )
        if total.dtype is torch.float32 and self.largest >= _EXACT_FLOAT32:
            raise UsageError(
                f"rounded Gaussian noise of standard deviation {float(self.std):g} reaches {self.largest} and float32 "
                f"is exact below {_EXACT_FLOAT32}; add it to a float64 tensor"
            )
        self._add(total.detach().view(-1).numpy(), generator)
        return total

    def _add(self, out: npt.NDArray[Any], generator: NoiseGenerator) -> None:
        if self._nothing:
            return
        if self._parts > 1:
            finer = np.zeros(len(out), dtype=np.int32)
            self._add_whole(finer, generator)
            np.add(out, (finer + self._parts // 2) // self._parts, out=out, casting="unsafe")
            return
        self._add_whole(out, generator)

    def _add_whole(self, out: npt.NDArray[Any], generator: NoiseGenerator) -> None:
        # On one thread: two would wait for each other's turns at the interpreter, operation by operation.
        scratch = _Scratch(min(len(out), BLOCK), np.dtype(self._number), out.dtype)
        for start in range(0, len(out), BLOCK):
            self._block(out[start : start + BLOCK], generator, scratch)

    def _block(self, out: npt.NDArray[Any], generator: NoiseGenerator, scratch: _Scratch) -> None:
        n = len(out)
        index, symbol = scratch.index[:n], scratch.symbol[:n]
        cell, place = scratch.cell[:n], scratch.place[:n]
        numbers, within, drawn = scratch.numbers[: 2 * n], scratch.within[:n], scratch.drawn[:n]
        generator.fill(scratch.words, -(-(4 * n + numbers.nbytes) // 8))
        words = scratch.words.view(np.int32)[:n]
        np.bitwise_and(words, _CELL, out=symbol)
        np.copyto(index, symbol)
        np.take(self._cells, index, out=cell, mode="wrap")  # skips the bounds check; every index is inside
        # Negative where the place is not below the cell's threshold: there it is the other index.
        np.bitwise_and(words, _PLACE, out=place)
        np.subtract(cell, place, out=place)
        np.right_shift(place, 31, out=place)
        np.bitwise_and(cell, place, out=cell)
        np.bitwise_and(cell, _CELL, out=cell)
        np.bitwise_xor(symbol, cell, out=symbol)
        np.left_shift(symbol, 32 - _CELL_BITS, out=symbol)
        np.right_shift(symbol, 32 - _CELL_BITS - self._bits, out=symbol)
        mark = _REST << self._bits
        rest = np.flatnonzero(symbol == mark) if symbol.min() == mark else ()
        raw = scratch.words.view(np.uint8)[4 * n :].view(self._number)[: 2 * n]
        np.bitwise_and(raw, (1 << self._bits) - 1, out=numbers)
        np.subtract(numbers[:n], numbers[n:], out=within)
        np.add(symbol, within, out=symbol)
        for draw in rest:
            symbol[draw] = self._rest(generator)
        np.copyto(drawn, symbol, casting="unsafe")  # exact: float32 is refused where it is not
        np.add(out, drawn, out=out)

    def _rest(self, generator: NoiseGenerator) -> int:
        """A draw from p − f, normalised: the place of a uniform point under the strips that lies below p − f."""
        starts, heights = self._mixture.starts, self._mixture.heights
        while True:
            point = _below(2 * self._areas[-1], generator)
            minus, area = point & 1, point >> 1
            strip = bisect_right(self._areas, area) - 1
            step, height = divmod(area - self._areas[strip], heights[strip])
            k: int = starts[strip] + step
            if height < self._mixture.rest(k) and not (minus and k == 0):
                return -k if minus else k


class _Scratch:
    """One call's buffers: a block's working set stays in the second-level cache."""

    def __init__(self, n: int, number: np.dtype[Any], out: np.dtype[Any]) -> None:
        self.words = np.empty(n + 2, dtype=np.uint64)
        self.index = np.empty(n, dtype=np.int64)
        self.symbol = np.empty(n, dtype=np.int32)
        self.cell = np.empty(n, dtype=np.int32)
        self.place = np.empty(n, dtype=np.int32)
        self.numbers = np.empty(2 * n, dtype=number)
        self.within = np.empty(n, dtype=number)
        self.drawn = np.empty(n, dtype=out)


def _below(limit: int, generator: NoiseGenerator) -> int:
    """A uniform whole number below `limit`."""
    bits = limit.bit_length()
    words = -(-bits // 64)
    while True:
        drawn = int.from_bytes(generator.uint64(words).tobytes(), "little") >> (64 * words - bits)
        if drawn < limit:
            return drawn
