"""Closed forms for pairs of Gaussians that the demonstrations measure claims against, and limits of estimates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, xlogy
from scipy.stats import chi2, ncx2

from privacy.accounting import gdp

Array = NDArray[np.float64]


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) of N(mu, 1) against N(0, 1), by the product's closed form; 1 for mu = inf."""
    return 1.0 if math.isinf(mu) else gdp.gaussian_delta(mu, epsilon)


def total_variation(mu: float) -> float:
    """Of N(mu, 1) and N(0, 1)."""
    return gaussian_delta(0.0, mu)


def scaled_delta(epsilon: float, dimension: int, ratio: float) -> float:
    """delta(epsilon) of N(0, ratio I) against N(0, I), the better of both orders; exact (chi-square).

    The log-likelihood ratio is monotone in the squared norm, so the event is a ball's outside (or inside).
    """
    found = 0.0
    for r in (ratio, 1 / ratio):
        # log(P/Q)(s) = s (1 - 1/r)/2 - dimension log(r)/2 for s = |x|², P = N(0, r I)
        edge = (epsilon + 0.5 * dimension * math.log(r)) / (0.5 * (1 - 1 / r))
        tail = chi2.sf if r > 1 else chi2.cdf
        found = max(
            found,
            float(tail(edge / r, dimension) - math.exp(epsilon) * tail(edge, dimension)) if edge > 0 else 0.0,
        )
    return found


def energy_total_variation(dimension: int, shift: float) -> float:
    """Total variation of |x|² for x ~ N(m, I) with |m| = shift against N(0, I), shape (dimension,); exact to a grid."""
    spread = math.sqrt(2 * dimension) * 10
    s = np.linspace(max(1e-9, dimension - spread), dimension + shift**2 + spread, 200_001)
    return float(np.abs(chi2.cdf(s, dimension) - ncx2.cdf(s, dimension, shift**2)).max())


def hockey_stick(p: Array, q: Array, epsilon: float) -> float:
    """delta(epsilon) of two discrete laws on the same points, or of densities times the grid's interval."""
    return float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum())


def renyi(p: Array, q: Array, alpha: float) -> float:
    """Rényi divergence of order alpha > 1 of two discrete laws on the same points; inf where q misses mass of p."""
    if bool(((q <= 0) & (p > 0)).any()):
        return math.inf
    log_ratio = xlogy(alpha, p) - xlogy(alpha - 1, np.where(q > 0, q, 1.0))
    return float(np.log(np.exp(log_ratio)[p > 0].sum()) / (alpha - 1))


def lower_limit(count: int, trials: int, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower limit on a probability."""
    return 0.0 if count == 0 else float(betaincinv(count, trials - count + 1, 1 - confidence))


def delta_limit(epsilon: float, seen: int, others: int, trials: int, confidence: float) -> float:
    """Lower limit on delta(epsilon) from an event counted `seen` times in one world and `others` in the other.

    delta >= P(event) - e^epsilon Q(event), both rates at the limits that favour the claim.
    """
    least = lower_limit(seen, trials, (1 + confidence) / 2)
    most = 1 - lower_limit(trials - others, trials, (1 + confidence) / 2)
    return max(0.0, least - math.exp(epsilon) * most)
