"""What the noise of dark frames is worth: its Gaussian part at the lower limit (THEORY, Noise credit, T8)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from noise_models.calibration.document import Interval
from noise_models.calibration.frame_statistics import DarkMoments
from noise_models.calibration.line_fit import limits_of

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
        non_gaussian: variance of what is not Gaussian, if it were random telegraph noise alike in all pixels, in DN².
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
    excess_kurtosis: Interval
    non_gaussian: Interval
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
    moments: DarkMoments, dark_shot: Interval, own_shot: npt.NDArray[np.float64], top: int, beta: float
) -> NoiseCredit:
    """Credit of the camera that took these dark frames.

    Per pixel, (K − 1) V / σ² has a chi-square law (its degrees of freedom are divided by 1 + kurtosis/2 where the
    fourth cumulant may be positive). Off it come rounding (1/12), the shot noise of the pixel's own dark current, what
    correlation takes off the smallest eigenvalue under the declared model, and the non-Gaussian part. The credit is
    the SMALLEST of all pixels' lower limits, each at beta's share: the pixel of the smallest true Gaussian part is
    one of them, its own limits fail with that probability, and the minimum is not above its limit. So it holds for
    all pixels at once without dividing beta by their number. The non-Gaussian part is that of random telegraph
    noise (`telegraph_variance`) whose third and fourth cumulant are the root mean squares over pixels of the pixels'
    own: mixtures do not cancel. Products of independent groups of frames give the squares, so that no sampling
    variance is in them. They and the correlations are pooled over pixels, at their own limits.

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
    fourth, fourth_error = float(k4.mean()) - ROUNDING_K4, float(k4.std()) / sqrt(pixels)
    kurtosis, kurtosis_error = (fourth / pooled**2, fourth_error / pooled**2) if pooled > 0 else (0.0, 0.0)
    thirds, fourths = moments.grouped_cumulants()
    third_square, fourth_square = _mean_square(thirds, z), _mean_square(fourths - ROUNDING_K4, z)
    # Where all pixels are alike, their mean shows it first.
    alike = limits_of(abs(fourth), fourth_error, z)
    least = max(alike.lower, sqrt(fourth_square.lower), 0.0)
    seen = max(alike.value if alike.lower > 0 else 0.0, sqrt(fourth_square.value))
    largest = sqrt(fourth_square.upper)
    non_gaussian = Interval(
        telegraph_variance(third_square.value, -seen),
        telegraph_variance(third_square.lower, -least),
        telegraph_variance(third_square.upper, -largest),
    )
    heavy = largest / pooled**2 if pooled > 0 else 0.0

    free = (moments.frames - 1) / (1 + heavy / 2)
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
        excess_kurtosis=Interval(kurtosis, kurtosis - z * kurtosis_error, kurtosis + z * kurtosis_error),
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


def telegraph_variance(third_square: float, fourth: float) -> float:
    """Variance of random telegraph noise from its cumulants k3² and k4: the largest root of 2 v³ + k4 v − k3² = 0.

    Two levels, a apart, the upper one occupied with probability p, q = 1 − p: v = a² p q, k3² = a² v² (1 − 4 p q) and
    k4 = a² v (1 − 6 p q), of which that is an identity. It grows with k3² and falls with k4.

    Args:
        third_square, fourth: k3², 0 or more, in DN⁶, and k4 in DN⁴.
    """
    if third_square < 1e-100:  # its cube root's square would leave the range of numbers
        return sqrt(max(0.0, -fourth) / 2)
    # From above, Newton's steps on the convex branch fall to the root.
    v: float = sqrt(max(0.0, -fourth) / 2) + (third_square / 2) ** (1 / 3)
    for _ in range(100):
        v -= (2 * v**3 + fourth * v - third_square) / (6 * v**2 + fourth)
    return v


def _mean_square(estimates: npt.NDArray[np.float64], z: float) -> Interval:
    """Mean over pixels of a squared quantity from independent estimates of it, shape (groups, pixels); its value is
    0 where its lower limit is."""
    groups, pixels = estimates.shape
    products = np.square(estimates.sum(0)) - np.square(estimates).sum(0)
    products /= groups * (groups - 1)
    value, slack = float(products.mean()), z * float(products.std()) / sqrt(pixels)
    seen = value > slack
    return Interval(value if seen else 0.0, value - slack if seen else 0.0, max(0.0, value + slack))


def _unlike(k4: np.ndarray, variance: float, frames: int) -> int:
    """Pixels whose fourth cumulant is beyond what chance gives one of all pixels with probability 1e-3."""
    limit = float(stats.norm.isf(1e-3 / len(k4))) * sqrt(24 / frames) * variance**2
    # A k-statistic of 1000 frames has heavier tails than a normal one.
    return int(np.count_nonzero(np.abs(k4 - np.median(k4)) > 2 * limit))
