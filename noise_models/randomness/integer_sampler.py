"""Exact integer noise from cryptographic bits: the Skellam law as a table of integers, read by the alias method.

Noise on integers has no floating-point attack surface (Mironov 2012): what is released lies on the integers
whatever the data are, and every integer's probability is the stated one up to TABLE_MASS, because it is computed in
whole numbers of arbitrary length and drawn by comparing whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK, NoiseGenerator

# Total variation of one draw from the Skellam law: the tail beyond the table (2^-140), the rounding of each
# probability (2^-160 altogether) and of the recurrence (2^-150) are all below it.
TABLE_MASS: Final = 2.0**-120
_TAIL_BITS: Final = 140
_FRACTION_BITS: Final = (
    160  # of a cell; the first 32 are compared at once, the others only where those are equal
)
_FIRST_BITS: Final = 32
_MOST_CELLS: Final = 1 << 22  # a table of 100 MB
_PRECISION: Final = 192  # bits that the recurrence starts with


class SymmetricSampler:
    """Draws integers of a symmetric law, exactly: a cell, a side of its threshold and a sign from one 64-bit word.

    Walker's alias method (1977), built in whole numbers (Vose 1991): 2^b cells of equal probability, each split
    between its own magnitude and one other. A word's first b bits name the cell, then comes the sign, then 32 bits
    that are compared with the threshold; where they are equal, 128 further bits decide.

    Attributes:
        largest: the greatest magnitude that can be drawn.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """
        Args:
            weights: of the magnitudes 0, 1, ...; whole numbers, not all 0. Magnitude 0 takes up what rounding leaves.
        Raises:
            UsageError: no or negative weights, or too many of them.
        """
        if len(weights) > _MOST_CELLS:
            raise UsageError(
                f"the noise has {len(weights)} magnitudes and a table holds {_MOST_CELLS}; take a coarser grid or less "
                "noise"
            )
        self.largest = len(weights) - 1
        cells = cells_for(weights)
        self._bits = cells.bit_length() - 1
        thresholds, others = alias(masses(weights), cells)
        late = _FRACTION_BITS - _FIRST_BITS
        first = np.array([threshold >> late for threshold in thresholds], dtype=np.uint64)
        # A full cell's threshold does not fit into 32 bits; both its sides are its own magnitude.
        first[first == 1 << _FIRST_BITS] = 0
        self._cells = (np.array(others, dtype=np.uint64) << np.uint64(_FIRST_BITS)) | first
        words = ((threshold >> half) & (2**64 - 1) for threshold in thresholds for half in (64, 0))
        self._late = np.fromiter(words, np.uint64, 2 << self._bits).reshape(-1, 2)

    def sample(self, n: int, generator: NoiseGenerator) -> npt.NDArray[np.int64]:
        """`n` independent draws, shape (n,).

        Raises:
            UsageError: n is negative.
        """
        out = np.empty(max(n, 0), dtype=np.int64)
        if n <= 0:
            generator.uint64(n)  # refuses a negative number
        for start in range(0, n, BLOCK):
            self._block(out[start : start + BLOCK], generator)
        return out

    def _block(self, out: npt.NDArray[np.int64], generator: NoiseGenerator) -> None:
        words = generator.uint64(len(out))
        index = words >> np.uint64(64 - self._bits)
        cell = np.take(self._cells, index.view(np.int64))
        place = (words >> np.uint64(31 - self._bits)).astype(np.uint32)  # the 32 bits after cell and sign
        first = cell.astype(np.uint32)
        own = place < first
        for draw in np.flatnonzero(place == first):
            high, low = (int(word) for word in self._late[int(index[draw])])
            own[draw] = late_bits_below(high << 64 | low, _FRACTION_BITS - _FIRST_BITS, generator)
        magnitude = np.where(own, index, cell >> np.uint64(_FIRST_BITS)).view(np.int64)
        minus = -((words >> np.uint64(63 - self._bits)) & np.uint64(1)).view(np.int64)
        np.bitwise_xor(magnitude, minus, out=out)  # two's complement: x or -x
        out -= minus


def late_bits_below(limit: int, bits: int, generator: NoiseGenerator) -> bool:
    """Whether so many fresh bits are below the threshold's, of a draw whose first ones equal them.

    Args:
        limit: the threshold's last bits.
        bits: how many.
    """
    words = -(-bits // 64)
    drawn = 0
    for word in generator.uint64(words):
        drawn = drawn << 64 | int(word)
    return drawn >> (64 * words - bits) < limit


def cells_for(weights: Sequence[int]) -> int:
    """2^b, b >= 1: the least power of two that gives every magnitude a cell."""
    return 1 << max(1, (len(weights) - 1).bit_length())


def masses(weights: Sequence[int]) -> list[int]:
    """The magnitudes' probabilities in units of `2^-(160 + b)`; they add up to 1.

    Raises:
        UsageError: no or negative weights.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise UsageError("weights of an integer law must be whole numbers >= 0, not all 0")
    whole = cells_for(weights) << _FRACTION_BITS
    found = [weight * whole // total for weight in weights]
    found[0] += whole - sum(found)
    return found


class SkellamSampler(SymmetricSampler):
    """Skellam noise: the difference of two independent Poisson counts of one mean (Skellam 1946).

    Attributes:
        mean: mu of either count; the variance is 2 mu.
    """

    def __init__(self, mean: Fraction | float) -> None:
        """
        Args:
            mean: mu > 0, taken for the rational number it is.
        Raises:
            UsageError: not positive, or so large that the table does not fit.
        """
        table_size(mean)
        self.mean = Fraction(mean)
        super().__init__(skellam_weights(self.mean))


def table_size(mean: Fraction | float) -> int:
    """How many magnitudes a table of Skellam noise has, both Poisson counts of this mean.

    Raises:
        UsageError: not positive, or so large that the table does not fit.
    """
    if not 0 < mean < 1e18:
        raise UsageError(f"the mean of a Poisson count is {float(mean)}; it must lie between 0 and 1e18")
    last = largest_magnitude(float(mean))
    if last >= _MOST_CELLS:
        raise UsageError(
            f"noise of standard deviation {math.sqrt(2 * mean):.3g} grid steps needs a table of {last} magnitudes "
            f"and one holds {_MOST_CELLS}; take a coarser grid or less noise"
        )
    return last + 1


def skellam_weights(mean: Fraction) -> list[int]:
    """Integers proportional to P(|K| = k), k = 0, ..., to a relative error below 2^-150; the tail is left out.

    `P(K = k) = e^(-2 mu) I_k(2 mu)`, and `I_(k-1) = I_(k+1) + (k / mu) I_k` is stable downwards (Miller's algorithm;
    Olver 1964): all terms are positive, so relative errors add up, and a wrong start dies out.
    """
    last = table_size(mean) - 1
    start = (
        largest_magnitude(float(mean), _TAIL_BITS + 90) + 16
    )  # its square is what a wrong start costs at `last`
    reciprocal = (mean.denominator << 2 * _PRECISION) // mean.numerator
    above, here = 0, 1 << _PRECISION
    weights = []
    for k in range(start, 0, -1):
        if k <= last:
            weights.append(2 * here)
        above, here = here, above + ((k * reciprocal * here) >> 2 * _PRECISION)
    weights.append(here)
    return weights[::-1]


def largest_magnitude(mean: float, bits: int = _TAIL_BITS) -> int:
    """A k with P(|K| > k) < 2^-bits, by Chernoff's bound: `log E exp(tK) = 2 mu (cosh t - 1)`, sinh t = k / (2 mu)."""

    def log_tail(k: float) -> float:
        t = math.asinh(k / (2 * mean))
        return math.log(2) + 4 * mean * math.sinh(t / 2) ** 2 - t * k

    low, high = 0, 1
    while log_tail(high) > -bits * math.log(2):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_tail(middle) > -bits * math.log(2) else (low, middle)
    return high


def alias(masses: Sequence[int], cells: int) -> tuple[list[int], list[int]]:
    """Each cell's threshold, in units of `2^-160` of a cell, and the magnitude beyond it (Vose 1991).

    Args:
        masses: whole numbers that add up to `cells · 2^160`.
        cells: how many there are, at least as many as masses.
    """
    full = 1 << _FRACTION_BITS
    thresholds = [*masses, *([0] * (cells - len(masses)))]
    others = list(range(cells))
    small = [j for j in range(cells) if thresholds[j] < full]
    large = [j for j in range(cells) if thresholds[j] > full]
    while small:
        # The sum is exact: what one cell lacks is always there in another.
        lacking, rich = small.pop(), large[-1]
        others[lacking] = rich
        thresholds[rich] -= full - thresholds[lacking]
        if thresholds[rich] <= full:
            large.pop()
            if thresholds[rich] < full:
                small.append(rich)
    return thresholds, others
