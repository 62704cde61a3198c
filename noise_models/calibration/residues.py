"""Whether each pixel's codes fall on all residues of a small modulus: a digital gain behind an offset map does not.

Over all pixels the offsets of a fixed-pattern correction hide the comb that a digital gain leaves in a histogram; a
pixel's own codes keep it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lcm, pi
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

MODULI: Final = tuple(range(2, 9))
PIXELS: Final = 2048
_PERIOD: Final = lcm(*MODULI)


@dataclass(frozen=True)
class Comb:
    """The modulus that stands out most.

    Attributes:
        modulus: in codes.
        share: mean over pixels of |E exp(2 pi i code / modulus)|², unbiased; 1 where a pixel's codes share one residue.
        smooth: the largest that a Gaussian of the noise's lower limit leaves.
        p_value: of no comb at any modulus, corrected for their number.
    """

    modulus: int
    share: float
    smooth: float
    p_value: float


class Residues:
    """Codes modulo 840 of a random few of a frame's pixels."""

    def __init__(self, pixels: int) -> None:
        """
        Args:
            pixels: of a frame.
        """
        chosen = min(pixels, PIXELS)
        # Strides would keep to some of a sensor's columns, and converters.
        self._chosen = np.sort(np.random.default_rng(0).choice(pixels, chosen, replace=False))
        self._first = np.arange(chosen) * _PERIOD
        self._counts = np.zeros(chosen * _PERIOD, dtype=np.int32)

    def add(self, codes: npt.NDArray[Any]) -> None:
        """Frames, shape (n, pixels), non-negative integers."""
        cells = codes[:, self._chosen].astype(np.int64) % _PERIOD + self._first
        self._counts += np.bincount(cells.ravel(), minlength=len(self._counts)).astype(np.int32)

    def comb(self, variance: float) -> Comb:
        """The most significant modulus.

        With K codes of a pixel of independent noise, |sum exp(2 pi i code/m)|² / K has mean 1 + (K − 1) |phi|², where
        a rounded Gaussian's |phi|² is at most (4/pi)² exp(−4 pi² variance/m²), the factor being rounding's images at
        m = 2; other noise makes it smaller. Without the latter it is exponential, and its
        sum over pixels a gamma variate; with it, normal.

        Args:
            variance: lower limit of the Gaussian part of any pixel's noise, in DN².
        """
        counts = self._counts.reshape(-1, _PERIOD)
        frames, pixels = int(counts[0].sum()), len(counts)
        found = []
        for m in MODULI:
            turns = np.exp(2j * pi / m * np.arange(m))
            folded = counts.reshape(pixels, -1, m).sum(1)
            power = np.square(np.abs(folded @ turns)) / frames
            smooth = min(1.0, (4 / pi) ** 2 * exp(-4 * pi**2 * variance / m**2))
            share = (float(power.mean()) - 1) / (frames - 1)
            # A noncentral chi-square of two degrees of freedom, halved, has variance 1 + 2 K |phi|².
            excess = (frames - 1) * smooth
            scale = (1 + 2 * excess) / (1 + excess)
            shape = pixels * (1 + excess) / scale
            p_value = float(stats.gamma.sf(float(power.sum()) / scale, shape))
            found.append(Comb(m, share, smooth, min(1.0, len(MODULI) * p_value)))
        return min(found, key=lambda comb: (comb.p_value, -comb.share))
