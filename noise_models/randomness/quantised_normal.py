"""The law of a rounded, clipped normal, sampled directly: what an ideal camera reads in the dark."""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cached_property
from math import ceil, floor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator

# Pixels a block: table, 16-bit draws and codes stay in the second-level cache.
_BLOCK: Final = 1 << 15
_COARSE: Final = 16

# Beyond this many standard deviations (1.1e-21) a threshold, in units of 2^-64, rounds to 0 or to 1.
_REACH: Final = 9.5

# Fractions of a code that a shift is resolved to.
LEVELS: Final = 16


def _normal_below(z: Decimal) -> Decimal:
    """P(N(0,1) < z) to about 50 digits absolute (series of Abramowitz and Stegun 26.2.11)."""
    if abs(z) > _REACH:
        return Decimal(0) if z < 0 else Decimal(1)
    term = total = z
    k = 1
    while abs(term) > Decimal("1e-55"):
        k += 2
        term = term * z * z / k
        total += term
    density = (-z * z / 2).exp() / Decimal(
        "6.28318530717958647692528676655900576839433879875021164195"
    ).sqrt()
    return Decimal("0.5") + density * total


class QuantisedNormal:
    """Integers `clip(round(N(mean, std²)), 0, top)`, at 16 bits of generator output each (64 for one in 800).

    A 64-bit uniform is looked up in the cumulative probabilities. Its upper 16 bits decide nearly always, by
    one table; only the others draw the remaining 48. Every code's cumulative probability is within 2^-65.

    Attributes:
        error: bound on the total-variation distance from the exact law, for one draw.
    """

    def __init__(self, mean: float, std: float, top: int) -> None:
        """
        Raises:
            UsageError: std is not positive and finite, or the range is empty or above 16 bits.
        """
        if not 0.0 < std < float("inf"):
            raise UsageError(f"standard deviation of the readout is {std} DN; it must be positive and finite")
        if not 1 <= top < 2**16:
            raise UsageError(f"largest code of the converter is {top}; it must lie between 1 and 65535")
        lowest = min(max(1, floor(mean - _REACH * std)), top + 1)
        highest = min(max(lowest - 1, ceil(mean + _REACH * std) + 1), top)
        with localcontext() as context:
            context.prec = 80
            scaled = (
                2**64 * _normal_below((c - Decimal("0.5") - Decimal(mean)) / Decimal(std))
                for c in range(lowest, highest + 1)
            )
            below = [0] * (lowest - 1) + [int(value.to_integral_value()) for value in scaled]
            below += [2**64] * (top - highest)
        self.top = top
        self.error = sum(1 for t in below if 0 < t < 2**64) * 2.0**-65
        # A threshold of 2^64 is never reached. The list is monotone, so only trailing codes are dropped.
        self._below = np.array([t for t in below if t < 2**64], dtype=np.uint64)
        codes = np.arange(2**_COARSE, dtype=np.uint64) << np.uint64(64 - _COARSE)
        first = np.searchsorted(self._below, codes, side="right")
        last = np.searchsorted(self._below, codes | np.uint64(2 ** (64 - _COARSE) - 1), side="right")
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if top < 2**8 else np.uint16)
        self._undecided = self._unused_code(first[first == last])
        self._table = np.where(first == last, first, self._undecided).astype(self.dtype)

    def _unused_code(self, decided: npt.NDArray[np.intp]) -> int:
        """A value of the code type that no decided entry has: it marks those that need more bits."""
        free = np.setdiff1d(np.arange(np.iinfo(self.dtype).max + 1), decided)
        if len(free) == 0:
            raise UsageError("the readout's noise covers every code of the converter; lower the gain")
        return int(free[-1])

    def sample(self, n: int, generator: NoiseGenerator) -> npt.NDArray[Any]:
        """`n` independent codes, shape (n,), unsigned integers of the smallest sufficient type."""
        out = np.empty(n, dtype=self.dtype)
        for start in range(0, n, _BLOCK):
            block = out[start : start + _BLOCK]
            upper = generator.uint64((len(block) + 3) // 4).view(np.uint16)[: len(block)]
            # take's clip mode skips the bounds check; a 16-bit index is always inside the table.
            np.take(self._table, upper, out=block, mode="clip")
            rest = np.flatnonzero(block == self._undecided)
            lower = generator.uint64(len(rest)) >> np.uint64(_COARSE)
            uniform = (upper[rest].astype(np.uint64) << np.uint64(64 - _COARSE)) | lower
            block[rest] = np.searchsorted(self._below, uniform, side="right")
        return out

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probability of each code 0 … top as it is sampled, shape (top + 1,)."""
        edges = np.full(self.top + 2, 2.0**64, dtype=np.float64)
        edges[0] = 0.0
        edges[1 : len(self._below) + 1] = self._below
        return np.diff(edges) / 2.0**64


class ShiftedQuantisedNormal:
    """Integers `clip(round(N(mean + shift, std²)), 0, top)`, each draw with a shift of its own.

    Shifts are whole multiples of 1/LEVELS of a code. Whole codes are added after the draw; for the rest there
    is one QuantisedNormal a level, made when it is first met, so the law is exact in every case but one: a
    normal that is clipped before its whole shift is added, which belongs to the clipped probability.

    Attributes:
        error: bound on the total-variation distance from the exact law, for one draw.
    """

    def __init__(self, mean: float, std: float, top: int) -> None:
        """
        Raises:
            UsageError: as QuantisedNormal.
        """
        self._mean, self._std, self._top = mean, std, top
        # Thresholds farther than 9.5 sigma from the mean are exactly 0 or 1.
        self.error = min(top, 19 * std + 2) * 2.0**-65
        self._laws: dict[int, QuantisedNormal] = {0: QuantisedNormal(mean, std, top)}

    def _law(self, level: int) -> QuantisedNormal:
        if level not in self._laws:
            self._laws[level] = QuantisedNormal(self._mean + level / LEVELS, self._std, self._top)
        return self._laws[level]

    @cached_property
    def _tables(self) -> tuple[npt.NDArray[Any], int]:
        """Every level's table in one array, with one mark for the undecided."""
        laws = [self._law(level) for level in range(LEVELS)]
        tables = np.stack([law._table for law in laws])
        open_ = np.stack([law._table == law._undecided for law in laws])
        mark = int(np.setdiff1d(np.arange(np.iinfo(tables.dtype).max + 1), tables[~open_])[-1])
        tables[open_] = mark
        return tables.reshape(-1), mark

    def sample(
        self, n: int, generator: NoiseGenerator, shift: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[Any]:
        """`n` independent codes, shape (n,), unsigned integers of the smallest sufficient type.

        Args:
            shift: shape (n,), in 1/LEVELS of a code; None is none.
        """
        if shift is None:
            return self._laws[0].sample(n, generator)
        out = np.empty(n, dtype=self._laws[0].dtype)
        for start in range(0, n, _BLOCK):
            self._block(out[start : start + _BLOCK], shift[start : start + _BLOCK], generator)
        return out

    def _block(
        self, block: npt.NDArray[Any], shift: npt.NDArray[np.int32], generator: NoiseGenerator
    ) -> None:
        tables, mark = self._tables
        upper = generator.uint64((len(block) + 3) // 4).view(np.uint16)[: len(block)]
        level = shift & (LEVELS - 1)
        codes = np.take(tables, (level << _COARSE) | upper, mode="clip").astype(np.int32)
        rest = np.flatnonzero(codes == mark)
        uniform = (upper[rest].astype(np.uint64) << np.uint64(64 - _COARSE)) | (
            generator.uint64(len(rest)) >> np.uint64(_COARSE)
        )
        for each in np.unique(level[rest]):
            here = level[rest] == each
            codes[rest[here]] = np.searchsorted(self._laws[int(each)]._below, uniform[here], side="right")
        codes += shift >> (LEVELS.bit_length() - 1)
        block[:] = np.clip(codes, 0, self._top)
