"""What the noise of dark frames is worth: its Gaussian part at the lower limit (THEORY §1, T8)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from noise_models.calibration import Limits
from noise_models.frame_statistics import DarkMoments

# A uniform rounding error of one code: its second and fourth cumulant, in DN² and DN⁴.
ROUNDING_VARIANCE: Final = 1 / 12
ROUNDING_K4: Final = -1 / 120

# Events that could make the credit wrong; each gets an equal share of beta.
_SHARES: Final = 12


@dataclass(frozen=True)
class NoiseCredit:
    """The Gaussian part of a dark pixel's noise, and what was taken off to get there.

    All limits hold together except with probability beta.

    Attributes:
        std, lower: its standard deviation, pooled and at the lower limit of the worst pixel, in DN.
        pixel_variance: of the noisiest and quietest pixel: lower and upper limits of all pixels, in DN².
        excess_kurtosis: pooled fourth cumulant (rounding's taken off) over the squared variance.
        non_gaussian: variance of what is not Gaussian, if it were random telegraph noise, in DN².
        correlation: upper limit of the sum of all correlations of a pixel with its neighbours and with its own next
            and previous frame; λ_min is at least 1 minus this (Gershgorin).
        correlated: the same at its lower limit.
        dark_shot: variance of the dark current's electrons, in DN², at its upper limit.
        clipped_mass: upper limit of the probability that a pixel is clipped.
        clearance: distance of the worst pixel's mean from the nearer end, in pooled standard deviations.
        unlike: pixels whose own fourth cumulant stands out of the others'.
    """

    std: float
    lower: float
    pixel_variance: tuple[float, float]
    excess_kurtosis: Limits
    non_gaussian: Limits
    correlation: float
    correlated: float
    dark_shot: float
    clipped_mass: float
    clearance: float
    unlike: int


def normal_quantile(beta: float) -> float:
    """Two-sided quantile of a normal estimate at beta's share of one event."""
    return float(-special.ndtri(beta / _SHARES / 2))


def noise_credit(
    moments: DarkMoments, dark_shot: Limits, own_shot: npt.NDArray[np.float64], top: int, beta: float
) -> NoiseCredit:
    """Credit of the camera that took these dark frames.

    Per pixel, (K − 1) V / σ² has a chi-square law (its degrees of freedom are divided by 1 + kurtosis/2 where the
    fourth cumulant is positive). Off it come rounding (1/12), the shot noise of the pixel's own dark current, what
    correlation takes off the smallest eigenvalue under the declared model, and the non-Gaussian part. The credit is
    the SMALLEST of all pixels' lower limits, each at beta's share: the pixel of the smallest true Gaussian part is
    one of them, its own limits fail with that probability, and the minimum is not above its limit. So it holds for
    all pixels at once without dividing beta by their number. The non-Gaussian part is sqrt(|k4|/2): exact for
    symmetric random telegraph noise of levels ±a, whose fourth cumulant is −2a⁴ and variance a². Fourth cumulant and
    correlations are pooled over pixels, at their own limits.

    Args:
        moments: of the dark frames, 8 or more.
        dark_shot: shot noise of the dark current in DN², pooled.
        own_shot: upper limit of each pixel's own, in DN², shape (pixels,), at `normal_quantile(beta)`.
        top: largest code.
        beta: probability that the answer is wrong.
    """
    share, z = beta / _SHARES, normal_quantile(beta)
    variance, k4 = moments.cumulants()
    pixels, pooled = len(variance), float(variance.mean())
    fourth = float(k4.mean()) - ROUNDING_K4
    fourth_error = float(k4.std()) / sqrt(pixels)
    kurtosis, kurtosis_error = (fourth / pooled**2, fourth_error / pooled**2) if pooled > 0 else (0.0, 0.0)
    largest = abs(fourth) + z * fourth_error
    seen = abs(fourth) if abs(fourth) > z * fourth_error else 0.0
    non_gaussian = Limits(
        sqrt(seen / 2), 0.0 if not seen else sqrt((seen - z * fourth_error) / 2), sqrt(largest / 2)
    )

    free = (moments.frames - 1) / (1 + max(0.0, kurtosis + z * kurtosis_error) / 2)
    at_least = variance * (free / float(stats.chi2.isf(share, free)))
    highest = float(variance.max()) * free / float(stats.chi2.ppf(share, free))

    along, error = moments.neighbours()
    after, after_error = moments.successive()
    tests = len(along) + 1
    z_each = float(-special.ndtri(share / (2 * tests)))
    size, slack = np.append(np.abs(along), abs(after)), z_each * np.append(error + 0 * along, after_error)
    correlation = 2 * float((size + slack).sum())
    correlated = 2 * float(np.maximum(0.0, size - slack).sum())

    gaussian = pooled - ROUNDING_VARIANCE - dark_shot.value - non_gaussian.value
    quietest = float((at_least * max(0.0, 1 - correlation) - own_shot).min())
    lower = quietest - ROUNDING_VARIANCE - non_gaussian.upper
    std, upper_std = sqrt(max(0.0, gaussian)), sqrt(highest)
    image = moments.image
    level_error = z * sqrt(max(pooled, 0.0) / moments.frames)
    bottom, height = float(image.min()) - level_error, top - float(image.max()) - level_error
    return NoiseCredit(
        std=std,
        lower=sqrt(max(0.0, lower)),
        pixel_variance=(float(at_least.min()), highest),
        excess_kurtosis=Limits(kurtosis, kurtosis - z * kurtosis_error, kurtosis + z * kurtosis_error),
        non_gaussian=non_gaussian,
        correlation=correlation,
        correlated=correlated,
        dark_shot=dark_shot.upper,
        clipped_mass=float(
            special.ndtr(-(bottom + 0.5) / upper_std) + special.ndtr(-(height + 0.5) / upper_std)
        )
        if upper_std > 0
        else 1.0,
        clearance=min(float(image.min()), top - float(image.max())) / std if std > 0 else 0.0,
        unlike=_unlike(k4, pooled, moments.frames),
    )


def _unlike(k4: np.ndarray, variance: float, frames: int) -> int:
    """Pixels whose fourth cumulant is beyond what chance gives one of all pixels with probability 1e-3."""
    limit = float(stats.norm.isf(1e-3 / len(k4))) * sqrt(24 / frames) * variance**2
    # A k-statistic of 1000 frames has heavier tails than a normal one.
    return int(np.count_nonzero(np.abs(k4 - np.median(k4)) > 2 * limit))
