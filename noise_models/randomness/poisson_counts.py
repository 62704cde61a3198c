"""Poisson counts of any means, exactly: sums of counts of fixed means, each read from a table of whole numbers.

A simulated device whose shot noise is to carry a guarantee (THEORY T10) may not draw from a law that is nearly
Poisson's. Independent Poisson counts add up, and a mean is a sum of digits to the base 64 and a rest below 1/64:

    mean = 4096 c_2 + 64 c_1 + c_0 + c_{-1} / 64 + r / 64,    0 <= r < 1,

so that one count is the sum of a draw from each digit's own table (Walker's alias method in whole numbers,
`integer_sampler`) and of Poisson(1/64) points that are kept with probability r each.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK, NoiseGenerator
from noise_models.randomness.integer_sampler import alias, late_bits_below

# Total variation of one draw: tails and roundings of the tables (below 2^-130 each), and r in units of 2^-64, which
# matters with the probability of a point.
COUNT_MASS: Final = 2.0**-69
MOST_MEAN: Final = float(1 << 18)

_BASE: Final = 64
_LEVELS: Final = (Fraction(4096), Fraction(64), Fraction(1), Fraction(1, 64))  # a digit's worth
_FRACTION: Final = 160  # bits of a cell, `alias`'s own
_WORD: Final = 32  # bits that a draw takes at first
_PRECISION: Final = 256
_TAIL: Final = 150  # outcomes less likely than 2^-150 times the likeliest are left out
_DRAWS: Final = BLOCK // 4  # at a time: five tables' working sets stay in the second-level cache


class _Tables:
    """The tables of one level: for each digit its law's cells, all of 2^bits cells.

    Attributes:
        bits: of a word that name a cell.
    """

    def __init__(self, worth: Fraction, digits: int = _BASE) -> None:
        self._worth = worth
        largest, _ = poisson_weights(worth * (digits - 1))
        self.bits = max(1, (len(largest) - 1).bit_length())
        cells = 1 << self.bits
        self._thresholds = np.zeros((digits, cells), np.uint32)
        self._own = np.zeros((digits, cells), np.int32)
        self._other = np.zeros((digits, cells), np.int32)
        self._late: dict[int, list[int]] = {}
        self._made = np.zeros(digits, np.bool_)
        self._make(0)

    def _make(self, digit: int) -> None:
        cells = 1 << self.bits
        weights, least = poisson_weights(self._worth * digit)
        whole, total = cells << _FRACTION, sum(weights)
        masses = [weight * whole // total for weight in weights]
        masses[max(range(len(weights)), key=weights.__getitem__)] += whole - sum(masses)
        thresholds, others = alias(masses, cells)
        late = _FRACTION - (_WORD - self.bits)
        # A full cell's threshold is one more than the bits hold: both its sides are its own outcome.
        first = [threshold >> late for threshold in thresholds]
        full = 1 << (_WORD - self.bits)
        own = np.arange(cells) + least
        other = np.array([index if first[index] >= full else others[index] for index in range(cells)]) + least
        self._thresholds[digit] = np.minimum(first, full - 1)
        self._own[digit], self._other[digit] = own, other
        last = (1 << late) - 1
        self._late[digit] = [last if threshold >> _FRACTION else threshold & last for threshold in thresholds]
        self._made[digit] = True

    def add(
        self, out: npt.NDArray[np.int64], digits: npt.NDArray[np.int64], generator: NoiseGenerator
    ) -> None:
        """`out += Poisson(worth · digit)` for each digit."""
        for digit in np.flatnonzero(np.bincount(digits, minlength=len(self._made)) > 0):
            if not self._made[digit]:
                self._make(int(digit))
        words = generator.uint64((len(out) + 1) // 2).view(np.uint32)[: len(out)]
        index = (words >> np.uint32(_WORD - self.bits)).astype(np.int64)
        index += digits << self.bits
        threshold = np.take(self._thresholds, index)
        place = words & np.uint32((1 << (_WORD - self.bits)) - 1)
        own = place < threshold
        for draw in np.flatnonzero(place == threshold):
            late = self._late[int(digits[draw])][int(index[draw]) & ((1 << self.bits) - 1)]
            own[draw] = late_bits_below(late, _FRACTION - (_WORD - self.bits), generator)
        out += np.where(own, np.take(self._own, index), np.take(self._other, index))


def poisson_weights(mean: Fraction) -> tuple[list[int], int]:
    """Whole numbers proportional to Poisson(mean)'s probabilities, to 2^-100 of each, and the first one's count."""
    mode = int(mean)
    here, up = 1 << _PRECISION, [1 << _PRECISION]
    numerator, denominator = mean.numerator, mean.denominator
    least = here >> _TAIL
    count = mode
    while here > least:
        count += 1
        here = here * numerator // (denominator * count)
        up.append(here)
    down: list[int] = []
    here, count = 1 << _PRECISION, mode
    while count > 0 and here > least:
        here = here * denominator * count // numerator
        down.append(here)
        count -= 1
    return [*reversed(down), *up], count


@lru_cache(maxsize=1)
def _tables() -> tuple[tuple[_Tables, ...], _Tables]:
    return tuple(_Tables(worth) for worth in _LEVELS), _Tables(Fraction(1, 64), 2)


def exact_poisson(mean: npt.NDArray[np.float64], generator: NoiseGenerator) -> npt.NDArray[np.int64]:
    """Independent Poisson counts, each within `COUNT_MASS` of its law in total variation.

    Args:
        mean: expected counts, float64, taken for the numbers they are, 0 to MOST_MEAN, any shape.
        generator: of every bit.
    Returns:
        counts of mean's shape.
    Raises:
        UsageError: a mean out of range or not a number.
    """
    flat = np.ascontiguousarray(mean, dtype=np.float64).reshape(-1)
    if flat.size and not (flat.min() >= 0 and flat.max() < MOST_MEAN):
        raise UsageError(f"a mean count is outside 0 … {MOST_MEAN:g} photo-electrons; take less light")
    counts = np.empty(np.shape(mean), np.int64)
    into = counts.reshape(-1)
    for start in range(0, len(flat), _DRAWS):
        _block(flat[start : start + _DRAWS], into[start : start + _DRAWS], generator)
    return counts


def _block(mean: npt.NDArray[np.float64], out: npt.NDArray[np.int64], generator: NoiseGenerator) -> None:
    levels, points = _tables()
    scaled = mean * _BASE  # exact: a power of two
    digits = scaled.astype(np.int64)
    rest = scaled - digits
    out[:] = 0
    for place, tables in enumerate(levels):
        tables.add(out, (digits >> (6 * (len(levels) - 1 - place))) & (_BASE - 1), generator)
    found = np.zeros(len(out), np.int64)
    points.add(found, np.ones(len(out), np.int64), generator)
    drawn = np.flatnonzero(found)
    if len(drawn):
        each = np.repeat(drawn, found[drawn])
        kept = generator.uint64(len(each)) < (rest[each] * 2.0**64).astype(np.uint64)
        np.add.at(out, each[kept], 1)
