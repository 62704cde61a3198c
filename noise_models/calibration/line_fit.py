"""A straight line through points with errors, and the arithmetic of confidence limits."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from noise_models.calibration.document import Interval


@dataclass(frozen=True)
class Line:
    """A weighted straight line y = intercept + slope x, with standard errors and the p-value of its chi-square."""

    slope: float
    slope_error: float
    intercept: float
    intercept_error: float
    residuals: npt.NDArray[np.float64]
    p_value: float


def limits_of(value: float, error: float, z: float) -> Interval:
    """Of an estimate with a normal error, z standard errors away on both sides."""
    return Interval(value, value - z * error, value + z * error)


def ratio(above: Interval, below: Interval) -> Interval:
    """Limits of a quotient from limits of both (below positive); they hold when both do."""
    low = above.lower / (below.upper if above.lower >= 0 else below.lower)
    high = above.upper / (below.lower if above.upper >= 0 else below.upper)
    return Interval(above.value / below.value, low, high)


def fit_line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], error: npt.NDArray[np.float64]) -> Line:
    """Weighted least squares, two points or more."""
    weight = 1 / np.maximum(error, 1e-12) ** 2
    total = weight.sum()
    centre, mean = float(weight @ x / total), float(weight @ y / total)
    power = float(weight @ (x - centre) ** 2)
    slope = float(weight @ ((x - centre) * (y - mean))) / power
    residuals = y - mean - slope * (x - centre)
    statistic = float(weight @ residuals**2)
    return Line(
        slope=slope,
        slope_error=1 / sqrt(power),
        intercept=mean - slope * centre,
        intercept_error=sqrt(1 / total + centre**2 / power),
        residuals=residuals,
        p_value=float(stats.chi2.sf(statistic, len(x) - 2)) if len(x) > 2 else 1.0,
    )


def root(square: Interval) -> Interval:
    """Limits of a square root; what is negative is zero."""
    return Interval(*(sqrt(max(0.0, x)) for x in (square.value, square.lower, square.upper)))
