"""What healthy frames look like, and the limits that they pass with a stated probability at most (its false alarm).

A healthy dark pixel reads `round(N(level, std²))`, independently of all others; a healthy difference of two frames
is normal up to that rounding. Variances and counts have exact laws then; a serial correlation over n pixels has
lighter tails than its limiting N(0, 1/n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from noise_models.base import Credit

if TYPE_CHECKING:
    from noise_models.calibration.document import Calibration

# What a calibrated device may do between calibrations, as a fraction; a device known by construction does not.
# A calibration's credit allows for a loss of DRIFT_ALLOWANCE. The tests take DRIFT for healthy, so much less that a
# device which lost all of the allowance fails every look but with probability 1e-6: the rest is for the error of a
# variance of 65536 differences, once for false alarms and once for those misses.
DRIFT: Final = 0.02  # of the noise's standard deviation, downwards
RISE: Final = 0.05  # upwards
LEVEL_DRIFT: Final = 0.5  # of the dark level, in standard deviations of the noise
_REACH: Final = (
    9.5  # standard deviations: dark levels keep 10 from both ends, so whatever lies beyond was clipped
)
_NORMAL_EXCESS: Final = 1e-3  # variance beyond the credited one's that leaves the law normal to every test
_LEAST_EXPECTED: Final = 100.0  # pixels in a bin of the code law's test
_UNEVEN: Final = 1.25  # a calibrated converter's widest code over the ideal one


@dataclass(frozen=True)
class Reference:
    """What a healthy camera's frames look like, in DN. A fixed pattern may come on top of it.

    Attributes:
        credited: standard deviation of the Gaussian noise that is counted on; less of it is a failure.
        expected: that of all noise before the converter, as estimated.
        level: mean of dark frames.
        step: distance between two codes.
        drift, rise: how far, relatively, the standard deviation may be below and above `expected`.
        level_drift: how far the mean may be from `level`.
        light: mean of lit frames; None takes the start-up's own.
        ideal_converter: whether all codes are equally wide.
        normal: whether the codes' law is a rounded normal one, with nothing else in it but a fixed pattern.
    """

    credited: float
    expected: float
    level: float
    step: float
    drift: float = 0.0
    level_drift: float = 0.0
    light: float | None = None
    ideal_converter: bool = True
    normal: bool = True
    rise: float = 0.0

    @classmethod
    def of_credit(cls, credit: Credit, variance: float) -> Reference:
        """Of a device whose law is known by construction.

        Args:
            credit: of its dark frames; what `variance` has beyond it may drift away, and as much again be added.
            variance: of its dark codes over frames, in DN².
        """
        rounding = credit.step**2 / 12
        expected = math.sqrt(max(credit.std**2, variance - rounding))
        drift = 2 * (1 - credit.std / expected)
        return cls(
            credit.std,
            expected,
            credit.level,
            credit.step,
            drift=drift,
            rise=drift,
            normal=expected**2 <= (1 + _NORMAL_EXCESS) * credit.std**2,
        )

    @classmethod
    def of_calibration(cls, calibration: Calibration) -> Reference:
        """Of a calibrated device: one-sided against its credit, within DRIFT and RISE of the estimate."""
        expected = max(calibration.credit_dn, calibration.credit_lower_dn)
        return cls(
            calibration.credit().std,
            expected,
            calibration.dark_level_dn,
            calibration.step_dn,
            DRIFT,
            LEVEL_DRIFT * expected,
            calibration.light_level_dn,
            ideal_converter=False,
            normal=False,
            rise=RISE,
        )


def code_law(std: float, level: float, codes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probability of each code under `round(N(level, std²))`, in steps; the last code takes the upper tail."""
    edges = special.ndtr((codes - 0.5 - level) / std)
    return np.diff(edges, append=1.0)


def normal_misfit(histogram: npt.NDArray[np.intp], low: int, level: float) -> tuple[float, int] | None:
    """Pearson's test of codes against a rounded normal of their own mean and variance: the converter's linearity.

    Args:
        histogram: counts of the codes low, low + 1, ...
        low: smallest code.
        level: mean code.
    Returns:
        the statistic and its degrees of freedom; None of codes without noise or too few for five bins.
    """
    codes = np.arange(len(histogram), dtype=np.float64) + low
    total = histogram.sum()
    spread = math.sqrt(max(0.0, histogram @ (codes - level) ** 2 / total - 1 / 12))
    if not spread:
        return None
    expected = code_law(spread, level, codes) * total
    usual = np.flatnonzero(expected >= _LEAST_EXPECTED)
    if len(usual) < 5:
        return None
    starts = np.concatenate(([0], np.arange(usual[0] + 1, usual[-1] + 1)))  # both tails whole
    found, healthy = np.add.reduceat(histogram, starts), np.add.reduceat(expected, starts)
    healthy[0] += total - healthy.sum()  # codes below the lowest one found
    return float((np.square(found - healthy) / healthy).sum()), len(found) - 3  # two parameters were fitted


def largest_probability(std: float) -> float:
    """Of any code, at the worst place of the level between two codes."""
    return float(special.erf(0.5 / (std * math.sqrt(2))))


def repeat_probability(std: float) -> float:
    """That two pixels read the same code, at the worst level: the difference of two normals, rounded."""
    codes = np.arange(-math.ceil(12 * std) - 1, math.ceil(12 * std) + 2, dtype=np.float64)
    return max(float(np.square(code_law(std, level, codes)).sum()) for level in (0.0, 0.5))


def same_probability(ref: Reference) -> float:
    """That a pixel of one frame reads as in another, or less."""
    return min(1.0, (1.0 if ref.ideal_converter else _UNEVEN) * repeat_probability(ref.credited / ref.step))


def count_limit(trials: int, probability: float, false_alarm: float) -> int:
    """So many successes or more are a failure (exact binomial law)."""
    return int(stats.binom.isf(false_alarm, trials, probability)) + 1


def rare_count_limit(trials: int, probability: float, false_alarm: float) -> int:
    """The same where false alarms are so rare that quantiles lose their digits: Chernoff's bound of the tail,
    P(successes >= k) <= exp(-trials * KL(k/trials, probability))."""
    low, high = math.floor(trials * probability), trials + 1
    while high - low > 1:
        middle = (low + high) // 2
        share = middle / trials
        divergence = special.rel_entr(share, probability) + special.rel_entr(1 - share, 1 - probability)
        low, high = (low, middle) if trials * divergence >= -math.log(false_alarm) else (middle, high)
    return high


def run_limit(places: int, probability: float, false_alarm: float) -> int:
    """So many equal codes in a row, or more, are a failure: SP 800-90B's repetition count, over all places."""
    return 1 + math.ceil(math.log(places / false_alarm) / -math.log(probability))


def variance_limits(pixels: int, false_alarm: float) -> tuple[float, float]:
    """Lower and upper limit of a sample variance over the true one, each at this false alarm (chi-square)."""
    low, high = stats.chi2.ppf(false_alarm, pixels), stats.chi2.isf(false_alarm, pixels)
    return float(low) / pixels, float(high) / pixels


@lru_cache
def sum_limit(terms: int, false_alarm: float) -> float:
    """Upper limit of a sum of squares of standard normals (chi-square)."""
    return float(stats.chi2.isf(false_alarm, terms))


def mean_limit(pixels: int, false_alarm: float) -> float:
    """Limit of |mean| of standard normals; also of a serial correlation over as many pixels. Two-sided."""
    return float(-special.ndtri(false_alarm / 2)) / math.sqrt(pixels)


@dataclass(frozen=True)
class HealthLimits:
    """Of the statistics of a number of frames, each at the false alarm of one test."""

    repeated: int
    run: int
    reach: float
    clipped: int
    common: int
    level: float
    variance_low: float
    variance_high: float
    correlation: float
    rows: float
    columns: float


def limits(
    ref: Reference, alarm: float, frames: int, pairs: int, rows: int, columns: int, lags: int
) -> HealthLimits:
    pixels, differences = frames * rows * columns, pairs * rows * columns
    std = ref.credited / ref.step
    uneven = 1.0 if ref.ideal_converter else _UNEVEN
    likely = min(1.0, uneven * largest_probability(std))
    rounding = ref.step**2 / 12
    below, above = variance_limits(differences, alarm / 2)
    widest = ref.expected * (1 + ref.rise)
    narrowest = max(ref.credited, ref.expected * (1 - ref.drift))
    codes = 2 * math.ceil(_REACH * widest / ref.step) + 1
    outside = math.erfc(_REACH / math.sqrt(2))
    return HealthLimits(
        repeated=count_limit(differences, same_probability(ref), alarm),
        run=run_limit(pixels, likely, alarm / 3),
        reach=_REACH * widest * math.sqrt(2),
        clipped=count_limit(differences, outside, alarm),
        common=count_limit(pixels, likely, alarm / codes),
        level=mean_limit(pixels, alarm) * math.sqrt(widest**2 + rounding) + ref.level_drift,
        variance_low=(narrowest**2 + rounding) * below,
        variance_high=(widest**2 + rounding) * above,
        correlation=mean_limit(differences, alarm / lags),
        rows=sum_limit(pairs * rows, alarm / 2),
        columns=sum_limit(pairs * columns, alarm / 2),
    )
