"""A converter's code widths from the codes of noisy frames, and what uneven ones cost (THEORY T4).

Code density test (IEEE 1241, §4.4) with the camera's own noise as the source: each pixel's codes are compared with a
rounded normal law of that pixel's mean and of the pooled variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, hypot, log1p, pi, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Reals = npt.NDArray[np.float64]

# Pixel means are tabulated in bins of this many DN: a relative error of 6e-7 / sigma² in a code's probability.
_BIN: Final = 1 / 256
# A code enters with at least this many expected counts, so that its count is as good as normal.
_LEAST_COUNT: Final = 400.0
# A smooth law that is not quite normal (other noise in it) is no fault of the converter: this many
# Hermite terms of the ratio of laws (at most half as many as there are codes) are fitted and set aside.
_SHAPE_DEGREE: Final = 8
_FEWEST_CODES: Final = 6
# The largest width error is stated for codes this near the dark level; beyond, few readouts come.
REACH: Final = 3.0


@dataclass(frozen=True)
class CodeWidths:
    """Width errors of the codes that dark frames reach.

    Attributes:
        codes: the codes, in DN, shape (n,).
        distance: of each from the mean dark level, in standard deviations of noise and pattern.
        errors: width of each minus 1, in codes.
        thresholds: where each begins, less the ideal place half a code below it, in codes.
        standard_errors: of `errors`.
        p_value: of the hypothesis that all widths are 1, by a chi-square test.
        missing: codes that should have come and never did.
    """

    codes: Reals
    distance: Reals
    errors: Reals
    thresholds: Reals
    standard_errors: Reals
    p_value: float
    missing: int

    def largest(self, alpha: float) -> tuple[float, float, float]:
        """Largest |error| within REACH: estimate, lower and upper limit; both hold with probability 1 − alpha."""
        near = np.abs(self.distance) <= REACH
        size, z = np.abs(self.errors[near]), special.ndtri(1 - alpha / (2 * np.count_nonzero(near)))
        slack = z * self.standard_errors[near]
        return float(size.max()), max(0.0, float((size - slack).max())), float((size + slack).max())

    def law(self, mean: float, sigma: float, codes: int) -> Reals:
        """Probabilities of codes 0 … codes − 1 of a pixel at `mean`, by the thresholds found within REACH."""
        near = np.abs(self.distance) <= REACH
        offsets = np.interp(np.arange(1, codes), self.codes[near], self.thresholds[near])
        return uneven_probabilities(np.arange(1, codes) - 0.5 + offsets, mean, sigma)


def code_widths(
    histogram: npt.NDArray[np.int64], image: Reals, sigma: float, frames: int
) -> CodeWidths | None:
    """Widths of the codes, from a histogram of dark frames.

    The converter's thresholds are found from cumulated counts: threshold c is where the expected law has
    as many readouts below it as there were below code c. What is smooth over the noise's width (an affine error,
    and the first Hermite terms of a law that is not quite normal) cannot be told from the law itself and is not seen.

    Args:
        histogram: counts of codes 0, 1, … over all pixels and frames.
        image: mean code of each pixel, in DN.
        sigma: standard deviation of all of a pixel's noise before the converter, in DN.
        frames: frames that `image` and `histogram` come from.

    Returns:
        None where so few codes came often that nothing can be said.
    """
    # Around its own sample mean a pixel scatters with variance sigma² (1 − 1/frames).
    scatter = sigma * sqrt(1 - 1 / frames)
    places, pixels = np.unique(np.rint(image / _BIN), return_counts=True)
    reach = int(8 * sigma) + 2
    low = max(0, int(image.min()) - reach)
    high = min(len(histogram), int(image.max()) + reach + 1)
    codes = np.arange(low, high, dtype=np.float64)
    below = np.zeros(len(codes) + 1)
    density = np.zeros(len(codes) + 1)
    edges = np.append(codes - 0.5, codes[-1] + 0.5) if len(codes) else np.zeros(1)
    for first in range(0, len(places), 512):
        z = (edges[:, None] - places[None, first : first + 512] * _BIN) / scatter
        weight = pixels[first : first + 512].astype(np.float64)
        below += special.ndtr(z) @ weight
        density += np.exp(-(z**2) / 2) @ weight / (scatter * sqrt(2 * pi))
    expected = np.diff(below) * frames
    kept = expected >= _LEAST_COUNT
    n_codes = int(np.count_nonzero(kept))
    if n_codes < _FEWEST_CODES:
        return None
    degree = min(_SHAPE_DEGREE, n_codes // 2)
    codes, expected = codes[kept], expected[kept]
    inner = density[1:][kept] * frames
    observed = histogram[codes.astype(np.int64)].astype(np.float64)
    ratio = observed / expected - 1
    u = (codes - float(image.mean())) / hypot(sigma, float(image.std()))
    shape = np.polynomial.hermite_e.hermevander(u, degree)
    root = np.sqrt(expected)
    fitted = shape @ np.linalg.lstsq(shape * root[:, None], ratio * root, rcond=None)[0]
    statistic = float((expected * (ratio - fitted) ** 2).sum())
    # Moving the upper threshold of a code by dx moves density · dx readouts across it.
    upper = np.cumsum(expected * (ratio - fitted)) / inner
    thresholds = np.concatenate(([0.0], upper[:-1]))
    return CodeWidths(
        codes=codes,
        distance=u,
        errors=upper - thresholds,
        thresholds=thresholds,
        standard_errors=1 / root,
        p_value=float(stats.chi2.sf(statistic, n_codes - degree - 1)),
        missing=int(np.count_nonzero(observed == 0)),
    )


def ideal_probabilities(codes: int, mean: float, sigma: float) -> Reals:
    """Law of `round(N(mean, sigma²))` on codes 0 … codes − 1, in steps, each from its nearer tail."""
    edges = (np.arange(codes + 1) - 0.5 - mean) / sigma
    lower, upper = np.diff(special.ndtr(edges)), -np.diff(special.ndtr(-edges))
    law: Reals = np.where(np.arange(codes) < mean, lower, upper)
    return law


def uneven_probabilities(thresholds: Reals, mean: float, sigma: float) -> Reals:
    """Law of a normal read by a converter of given thresholds; code c lies between thresholds c − 1 and c.

    Args:
        thresholds: ascending, in steps, shape (codes − 1,).
    """
    z = (thresholds - mean) / sigma
    lower = np.diff(np.concatenate(([0.0], special.ndtr(z), [1.0])))
    upper = -np.diff(np.concatenate(([1.0], special.ndtr(-z), [0.0])))
    law: Reals = np.where(np.arange(len(lower)) < mean, lower, upper)
    return law


def ripple(probabilities: Reals, mean: float, sigma: float, tau: float, radius: float) -> float:
    """eta of THEORY T4: largest relative error of the dithered law of a converter that is not ideal.

        eta = sup over |y − mean| ≤ radius of |sum_m (P_m − P_m^ideal) phi_tau(y − m)| / ideal density(y),

    with the ideal density N(mean, sigma² + tau²) ⊛ Uniform(−1/2, 1/2). What lies beyond `radius` is a mass that
    the caller adds to delta.

    Args:
        probabilities: P_m of codes m = 0, 1, …
        mean, sigma: of the Gaussian before the converter, in codes.
        tau: standard deviation of the dither, in codes.
        radius: half the range of y, in codes.

    Returns:
        eta, 0 or more; searched on 32 points a code.
    """
    codes = np.arange(len(probabilities), dtype=np.float64)
    surplus = probabilities - ideal_probabilities(len(probabilities), mean, sigma)
    y = np.linspace(mean - radius, mean + radius, 1 + 2 * int(np.ceil(32 * radius)))
    total, distance = hypot(sigma, tau), np.abs(y - mean)
    density = special.ndtr((0.5 - distance) / total) - special.ndtr((-0.5 - distance) / total)
    error = np.zeros_like(y)
    for first in range(0, len(y), 4096):
        z = (y[first : first + 4096, None] - codes) / tau
        error[first : first + 4096] = np.exp(-(z**2) / 2) @ surplus / (tau * sqrt(2 * pi))
    return float((np.abs(error) / density).max())


def dither_ripple(sigma: float, tau: float, step: float = 1.0) -> float:
    """eta of an ideal converter: 2 sum_j exp(−2 pi² j² v / step²), v = sigma² tau²/(sigma² + tau²) (THEORY T4).

    Args:
        sigma, tau: standard deviations of the Gaussian before rounding and of the dither, in codes.
        step: distance between codes that come; more than 1 is a digital gain.
    """
    if sigma == 0.0 or tau == 0.0:
        return float("inf")
    v = (sigma * tau / (hypot(sigma, tau) * step)) ** 2
    return 2 * sum(exp(-2 * pi**2 * j**2 * v) for j in range(1, 200))


def epsilon_of_ripple(eta: float, dimension: int) -> float:
    """Privacy loss a step of that many coordinates: dim · ln((1 + eta)/(1 − eta)); infinite from eta = 1 on."""
    return dimension * (log1p(eta) - log1p(-eta)) if eta < 1 else float("inf")
