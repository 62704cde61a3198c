"""What single mirrors show of their macro-pixels: departures from its mean, and their share of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from scipy import stats

from noise_models.calibration.electrons import ALARM
from noise_models.calibration.probed_light import Reals
from noise_models.errors import DeviceError

MOST_SHARE: Final = 0.05  # by which single mirrors may show more or less than their part of a macro-pixel


@dataclass(frozen=True)
class Departures:
    """What the mirrors of one sign showed.

    Attributes:
        shares: a single mirror's field over its part of its macro-pixel's, mean over mirrors: least and largest.
        mirrors: K.
        largest: |s| of each macro-pixel's mirrors, shape (p,).
        length: largest norm of a mirror's s over macro-pixels.
        errors: standard deviation of a complex s, of the light's noise, shape (p,).
        repeats: frames of a mirror.
        reach: standard deviations that no error exceeds.
        inverse: norm of the columns' pseudo-inverse.
        noise: norm of the columns' noise, limit.
        left, free: squares of what no factor of a macro-pixel's field explains, over their variance, and their number.
    """

    shares: tuple[float, float]
    mirrors: int
    largest: Reals
    length: float
    errors: Reals
    repeats: int
    reach: float
    inverse: float
    noise: float
    left: float
    free: int

    def refuse_modes(self) -> None:
        """Each mirror's field must be its macro-pixel's times a number: what is left is noise.

        Raises:
            DeviceError: it is not.
        """
        if self.free > 0 and self.left > 1.05 * float(stats.chi2.isf(ALARM, self.free)):
            raise DeviceError(
                "the mirrors of a macro-pixel do not excite one and the same mode (what is left of their fields is "
                f"{self.left / self.free:.3g} of the noise): close the aperture that makes one amplitude of each"
            )

    def limits(
        self, slow: float, fast: float, averaged: float, moved: float, whole: float
    ) -> tuple[float, float]:
        """The largest |s| of a mirror's amplitude 1 + s over the mean of its macro-pixel, and the largest share;
        upper limits.

        Args:
            slow, fast: of `Fields`.
            averaged: what is left of `fast` in the columns, upper limit.
            moved: largest relative change of brightness over the measurement.
            whole: norm of all columns.
        Raises:
            DeviceError: macro-pixels cannot be told apart, or mirrors show more or less by themselves than together.
        """
        noise = self.inverse * self.noise
        blur = noise + self.inverse * 2 * (slow + averaged) * whole
        if blur > 0.5:
            raise DeviceError(
                f"macro-pixels cannot be told apart by the pixels (what is solved for is off by {blur:.2g} of itself): "
                "read more pixels, or take more frames"
            )
        errors = np.sqrt(self.errors**2 + 2 * fast**2 / self.repeats)
        # Moduli: phases do not count.
        wrong = self.reach * float(errors.max()) / sqrt(self.mirrors) + noise / (1 - noise) + 2 * moved
        least, most = self.shares[0] * (1 + wrong), self.shares[1] * (1 - wrong)
        if least < 1 - MOST_SHARE or most > 1 + MOST_SHARE:
            raise DeviceError(
                f"single mirrors show {least if least < 1 - MOST_SHARE else most:.3g} of what they show among all of "
                f"their macro-pixel; allowed is {1 - MOST_SHARE:g} to {1 + MOST_SHARE:g}: keep mirrors from moving one "
                "another"
            )
        departure = float(
            (self.largest + self.reach * errors).max() + blur / (1 - blur) * self.length + 2 * slow
        )
        return departure, self.shares[1] * (1 + wrong)
