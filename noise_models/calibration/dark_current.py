"""Dark current from light-less exposures: its rate, what the setting's own exposure gathers, and its shot noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Final

import numpy as np
import numpy.typing as npt

from noise_models.calibration.document import Interval
from noise_models.calibration.frame_statistics import DarkMoments, Level
from noise_models.calibration.line_fit import fit_line

Reals = npt.NDArray[np.float64]

FEWEST_LEVELS: Final = 3
# Responses are no straighter than this fraction of what an exposure adds to the level.
_STRAIGHT: Final = 1e-3


@dataclass(frozen=True)
class DarkCurrent:
    """Dark current of the dark setting: estimates and standard errors.

    Attributes:
        rate: mean over pixels, in DN a second.
        offset: what the setting's own exposure gathers, mean over pixels, in DN.
        exposure: the setting's own exposure in seconds, as the camera declares it; None where it does not.
        p_value: of the levels lying on a straight line over exposure time, by a chi-square test.
        times: exposure times in seconds, shape (levels,), the setting's own last where it is declared.
        images: mean code of each pixel at each, shape (levels, pixels), in DN.
        frames: frames of each, shape (levels,).
        common: standard error that all pixels of a level share at most, in DN, shape (levels,).
        dark: the setting's own mean code of each pixel, shape (pixels,), and its number of frames.
    """

    rate: tuple[float, float]
    offset: tuple[float, float]
    exposure: float | None
    p_value: float
    times: Reals
    images: Reals
    frames: Reals
    common: Reals
    dark: tuple[Reals, int]

    def shot(self, gain: float, upper_gain: float, z: float) -> Interval:
        """Pooled variance of the electrons that the dark setting's exposure gathers, in DN².

        The upper limit is that of the level's rise and, where the exposure is declared, not below what it gathers.
        """
        offset, error = self.offset
        gathered = (self.rate[0] + z * self.rate[1]) * (self.exposure or 0.0)
        return Interval(
            gain * max(0.0, offset) if offset > z * error else 0.0,
            0.0,
            max(0.0, upper_gain) * max(0.0, offset + z * error, gathered),
        )

    def own_shot(self, variance: Reals, upper_gain: float, z: float) -> Reals:
        """Upper limit of each pixel's own shot noise, shape (pixels,), in DN²; each holds at `z` on its own.

        A pixel's rate comes from its own means. What its exposure gathers is rate times exposure time, where that
        is declared. Where it is not, the pooled rise over the pooled rate bounds it; the pixel's rise over its own
        intercept bounds it too, and the smaller one counts.

        Args:
            variance: of each pixel in dark frames, in DN², shape (pixels,).
            upper_gain: in DN per electron.
            z: quantile of a normal estimate.
        """
        # A pixel of strong dark current is noisier in long exposures.
        dark, dark_frames = self.dark
        gain = max(0.0, upper_gain)
        noise = variance + gain * np.maximum(0.0, self.images - dark)
        error = noise / self.frames[:, None] + self.common[:, None] ** 2
        weight = self.frames / self.frames.sum()
        centre = float(weight @ self.times)
        to_rate = weight * (self.times - centre) / float(weight @ (self.times - centre) ** 2)
        rate = to_rate @ self.images + z * np.sqrt(to_rate**2 @ error)
        if self.exposure is not None:
            declared: Reals = gain * np.maximum(0.0, rate * self.exposure)
            return declared
        to_intercept = weight - centre * to_rate
        rise = dark - to_intercept @ self.images
        rise += z * np.sqrt(to_intercept**2 @ error + variance / dark_frames)
        slowest = self.rate[0] - z * self.rate[1]
        if slowest > 0:
            longest = max(0.0, self.offset[0] + z * self.offset[1]) / slowest
            rise = np.minimum(rise, rate * longest)
        shown: Reals = gain * np.maximum(0.0, rise)
        return shown


def dark_current(
    shutter: tuple[Level, ...], dark: DarkMoments, level: float, level_error: float, exposure: float | None
) -> DarkCurrent | None:
    """Fit it.

    Args:
        shutter: light-less levels at known exposure times, none near an end of the range.
        dark: frames of the setting's own exposure.
        level, level_error: their mean code, in DN.
        exposure: their exposure in seconds; None where the camera does not declare it.

    Returns:
        None where fewer than three levels were left.
    """
    if len(shutter) < FEWEST_LEVELS:
        return None
    times = np.array([one.seconds or 0.0 for one in shutter])
    means = np.array([one.mean for one in shutter])
    errors = np.array([one.mean_error for one in shutter])
    errors = np.hypot(errors, _STRAIGHT * np.abs(means - min(level, means.min())))
    line = fit_line(times, means, errors)
    offset = level - line.intercept, hypot(level_error, line.intercept_error)
    images = np.stack([one.image for one in shutter])
    frames = np.array([float(one.frames) for one in shutter])
    image = dark.image
    if exposure is not None:
        times, means = np.append(times, exposure), np.append(means, level)
        errors = np.append(errors, hypot(level_error, _STRAIGHT * offset[0]))
        images, frames = np.vstack((images, image)), np.append(frames, dark.frames)
        line = fit_line(times, means, errors)
    return DarkCurrent(
        rate=(line.slope, line.slope_error),
        offset=offset,
        exposure=exposure,
        p_value=line.p_value,
        times=times,
        images=images,
        frames=frames,
        common=errors,
        dark=(image, dark.frames),
    )
