"""T8: noise credited at simultaneous lower limits costs beta in delta, and nothing less will do. Fixed seeds."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import chi2

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import gaussian_delta, lower_limit

PIXELS, FRAMES, BETA = 256, 100, 0.05
CALIBRATIONS = 4000
CONFIDENCE = 0.999


def credit_factor(pixels: float, beta: float, frames: int) -> float:
    """Lower limit of a pixel's sigma over its estimate, for all at once with probability 1 − beta (chi-square)."""
    return math.sqrt((frames - 1) / float(chi2.isf(beta / pixels, frames - 1)))


def failures(factor: float, seed: int = 30) -> float:
    """Lower limit (99.9 %) on how often some pixel's credit `factor` · estimate is above its true sigma.

    `CALIBRATIONS` simulated calibrations of PIXELS pixels of sigma 1 from FRAMES frames each.
    """
    generator = np.random.default_rng(seed)
    variances = generator.chisquare(FRAMES - 1, (CALIBRATIONS, PIXELS)) / (FRAMES - 1)
    failed = int((factor * np.sqrt(variances) > 1).any(axis=1).sum())
    return lower_limit(failed, CALIBRATIONS, CONFIDENCE)


def with_failing_calibrations(epsilon: float, mu: float, beta: float) -> float:
    """delta of a calibration and a release: with probability beta the credit is worth nothing and all shows."""
    return (1 - beta) * gaussian_delta(epsilon, mu) + beta


def renyi_with_failing_calibrations(beta: float, mu: float, failed_mu: float, alpha: float = 8.0) -> float:
    """D_alpha of a calibration and a Gaussian release that has mu, and failed_mu with probability beta."""
    good, bad = alpha * mu**2 / 2, alpha * failed_mu**2 / 2
    terms = (math.log1p(-beta) + (alpha - 1) * good, math.log(beta) + (alpha - 1) * bad)
    return float(np.logaddexp(*terms)) / (alpha - 1)


def demonstrations() -> list[Demonstration]:
    limit = credit_factor(PIXELS, BETA, FRAMES)
    rate = f"calibrations with a pixel credited too much ({PIXELS} pixels)"
    ideal = gaussian_delta(4.0, 1.0)
    failing = with_failing_calibrations(4.0, 1.0, 1e-3)
    return [
        Demonstration(
            "10⁶ pixels, β = 10⁻⁶, 1000 frames",
            "lower limit of σ over its estimate",
            0.86,
            credit_factor(1e6, 1e-6, 1000),
            tolerance=0.01,
        ),
        Demonstration("simultaneous lower limits", rate, BETA, failures(limit)),
        Demonstration(
            "limits of one pixel at a time",
            rate,
            BETA,
            failures(credit_factor(1, BETA, FRAMES)),
            "simultaneous over pixels",
        ),
        Demonstration("the estimates themselves", rate, BETA, failures(1.0), "lower limits"),
        Demonstration("β = 10⁻³ added to δ, μ = 1", "δ at ε = 4", ideal + 1e-3, failing),
        Demonstration("β left out", "δ at ε = 4", ideal, failing, "β enters δ"),
        Demonstration(
            "Rényi statement, credit ten times too large with probability 10⁻³",
            "D_8",
            4.0,
            renyi_with_failing_calibrations(1e-3, 1.0, 10.0),
            "(ε, δ) statements only",
        ),
    ]
