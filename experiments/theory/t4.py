"""T4: dark frames with a Gaussian dither are Gaussian noise times 1 ± eta, and what breaks it.

Densities are exact: 40 digits for the ripple, double precision for privacy losses. The network of the figures is
784-512-512-10: 669,706 coordinates.
"""

from __future__ import annotations

import math

import mpmath  # type: ignore[import-untyped]
import numpy as np
from scipy.special import ndtr

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, gaussian_delta, hockey_stick
from noise_models.calibration.converter import (
    dither_ripple,
    epsilon_of_ripple,
    ripple,
    uneven_probabilities,
)

DIMENSION = 669_706
SIGMA, TAU = 4.0, 1.5  # of the read noise and of the dither, in converter steps
_LEVEL = 64.0  # dark level of the examples: 16 standard deviations above 0
_CODES = 129
_FINE = 256  # grid points a step


def measured_ripple(sigma: float, tau: float) -> float:
    """Largest relative difference of the exact density of Q(n) + tau xi from the ideal one; 40 digits.

    At four means and four places; ideal is the density of N(0, sigma² + tau²) with a uniform law of one step added.
    """
    worst = mpmath.mpf(0)
    with mpmath.workdps(40):
        half = mpmath.mpf(1) / 2
        total = mpmath.sqrt(mpmath.mpf(sigma) ** 2 + mpmath.mpf(tau) ** 2)
        for mean in (mpmath.mpf(i) / 8 for i in (0, 1, 3, 4)):
            edges = [mpmath.ncdf((k - half - mean) / sigma) for k in range(-60, 62)]
            for y in (mean + mpmath.mpf(i) / 8 for i in (0, 2, 4, 9)):
                found = mpmath.fsum(
                    (edges[k + 61] - edges[k + 60]) * mpmath.npdf(y - k, 0, tau) for k in range(-60, 61)
                )
                ideal = mpmath.ncdf((y - mean + half) / total) - mpmath.ncdf((y - mean - half) / total)
                worst = max(worst, abs(found / ideal - 1))
    return float(worst)


def dithered(sigma: float, tau: float, offset: float) -> Array:
    """The law of offset + Q(n) + tau xi on a grid of 1/_FINE of a step, n ~ N(0, sigma²) at a dark level of 0."""
    reach = 12 * math.hypot(sigma, tau) + abs(offset) + 2
    grid = np.arange(-math.ceil(reach * _FINE), math.ceil(reach * _FINE) + 1) / _FINE
    codes = np.arange(-math.ceil(10 * sigma), math.ceil(10 * sigma) + 1)
    law = ndtr((codes + 0.5) / sigma) - ndtr((codes - 0.5) / sigma)
    density = np.exp(-(((grid[:, None] - offset - codes) / tau) ** 2) / 2) @ law
    found: Array = density / density.sum()
    return found


def loss(sigma: float, tau: float, epsilon: float, noise_multiplier: float) -> tuple[float, float, float]:
    """(delta of the dithered noise, of the ideal Gaussian, and with eta charged) for one coordinate moved by C.

    The record moves the sum by C = sqrt(sigma² + tau²)/noise_multiplier steps, to the nearest grid point.
    """
    moved = round(math.hypot(sigma, tau) / noise_multiplier * _FINE) / _FINE
    p, q = dithered(sigma, tau, moved), dithered(sigma, tau, 0.0)
    width = max(len(p), len(q))
    p, q = (np.pad(law, (width - len(law)) // 2) for law in (p, q))
    mu, eta = moved / math.hypot(sigma, tau), dither_ripple(sigma, tau)
    charged = (1 + eta) * gaussian_delta(epsilon - epsilon_of_ripple(eta, 1), mu)
    return max(hockey_stick(p, q, epsilon), hockey_stick(q, p, epsilon)), gaussian_delta(epsilon, mu), charged


def modulo_the_step(noise_multiplier: float, trials: int = 2000, seed: int = 6) -> float:
    """delta without dither: share of releases whose remainder modulo the step names the world, less the false ones.

    The sums differ by 0.3 of a step, which is less than one; noise of `noise_multiplier` steps is whole steps.
    """
    generator = np.random.default_rng(seed)
    total = 17.123
    released = [
        total + moved + np.rint(noise_multiplier * generator.standard_normal(trials)) for moved in (0.3, 0.0)
    ]
    named = [np.abs(np.mod(r - total - 0.3 + 0.5, 1.0) - 0.5) < 1e-6 for r in released]
    return float(named[0].mean() - named[1].mean())


def known_dither(trials: int = 2000, seed: int = 7) -> float:
    """As `modulo_the_step` with dither of TAU whose generator is predicted: the adversary takes it off."""
    generator = np.random.default_rng(seed)
    named = []
    for moved in (0.3, 0.0):
        xi = TAU * np.random.default_rng(99).standard_normal(trials)
        released = moved + np.rint(SIGMA * generator.standard_normal(trials)) + xi
        rest = released - TAU * np.random.default_rng(99).standard_normal(trials)
        named.append(np.abs(np.mod(rest - 0.3 + 0.5, 1.0) - 0.5) < 1e-6)
    return float(named[0].mean() - named[1].mean())


def reused_frame(trials: int = 2000, seed: int = 8) -> float:
    """delta of two steps that share one frame and its dither: their difference has no noise."""
    noise = math.hypot(SIGMA, TAU) * np.random.default_rng(seed).standard_normal(trials)
    differences = [(moved + noise) - (0.0 + noise) for moved in (0.3, 0.0)]
    named = [np.abs(d - 0.3) < 1e-6 for d in differences]
    return float(named[0].mean() - named[1].mean())


def rounded_sum(dimension: int, step: float, seed: int = 9) -> float:
    """How far a record of norm C = 1 moves the sum rounded to a lattice, in C: worst of aligned small moves."""
    others = (np.random.default_rng(seed).integers(-99, 99, dimension) + 0.4999) * step
    record = np.full(dimension, 1 / math.sqrt(dimension))
    assert math.isclose(float(np.linalg.norm(record)), 1.0)
    return float(np.linalg.norm((np.rint((others + record) / step) - np.rint(others / step)) * step))


def uneven(period: int, error: float = 0.01) -> float:
    """Privacy loss of a step on a converter whose widths are 1 ± error, `period`/2 codes wide and as many narrow.

    Within three standard deviations; a constant threshold error and the variance of the errors are taken off.
    """
    widths = 1 + error * np.where(np.arange(_CODES - 1) % period < period // 2, 1.0, -1.0)
    offsets = np.concatenate(([0.0], np.cumsum(widths))) - np.arange(_CODES)
    offsets -= offsets[: _CODES - 1].mean()
    thresholds = np.asarray(np.arange(_CODES) + 0.5 + offsets, dtype=np.float64)
    law = uneven_probabilities(thresholds, _LEVEL, SIGMA)
    sigma = math.hypot(SIGMA, float(offsets[: _CODES - 1].std()))
    return epsilon_of_ripple(ripple(law, _LEVEL, sigma, TAU, 3 * math.hypot(SIGMA, TAU)), DIMENSION)


def gain_of_two() -> float:
    """Privacy loss of a step where a digital gain doubles the codes: only every second one comes."""
    return epsilon_of_ripple(dither_ripple(SIGMA, TAU, step=2), DIMENSION)


def black_level(level: float, epsilon: float = 1.0) -> float:
    """delta that one end's clipped mass adds to a step: dark level `level` standard deviations above zero."""
    return min(1.0, DIMENSION * (1 + math.exp(epsilon)) * float(ndtr(-level)))


def common_noise(own: float = 3.0, common: float = 3.0, pixels: int = 64) -> tuple[float, float]:
    """(mu with each pixel's whole variance credited, largest mu) of noise that has a part common to all pixels.

    A record that moves the sum by 1 along the direction of least variance, a contrast of pixels, meets `own` alone.
    """
    covariance = own**2 * np.eye(pixels) + common**2
    values, vectors = np.linalg.eigh(covariance)
    direction = vectors[:, int(values.argmin())]
    found = math.sqrt(float(direction @ np.linalg.solve(covariance, direction)))
    return 1 / math.sqrt(float(covariance[0, 0])), found


def released_if_small(cut: float, epsilon: float, mu: float = 1.0) -> tuple[float, float]:
    """(delta where noise beyond `cut` standard deviations stops the release, (delta + e^epsilon F)/(1 − F)).

    One coordinate of ideal Gaussian noise; F is how often a release is stopped. Only what is released is seen.
    """
    failing = 2 * float(ndtr(-cut))
    x = np.arange(-cut - 1, cut + mu + 1, 1 / 8192)
    worlds = [np.exp(-((x - m) ** 2) / 2) * (np.abs(x - m) <= cut) for m in (mu, 0.0)]
    p, q = (law / law.sum() for law in worlds)
    bound = (gaussian_delta(epsilon, mu) + math.exp(epsilon) * failing) / (1 - failing)
    return hockey_stick(p, q, epsilon), bound


def demonstrations() -> list[Demonstration]:
    dither, eta = "the dither is secret", "an ideal uniform converter"
    coarse, gaussian, charged = loss(4.0, 0.35, 6.0, 0.75)
    step = "privacy loss of a step, ε"
    tested, bound = released_if_small(3.0, 2.0)
    whole, contrast = common_noise()
    lattice = "share of sums told apart, δ at every ε"
    return [
        *(
            Demonstration(
                f"ripple of the density, σ_G = {sigma:g}, τ = {tau:g} steps (40 digits)",
                "η = 2 Σ exp(−2π² j² v)",
                dither_ripple(sigma, tau),
                measured_ripple(sigma, tau),
            )
            for sigma, tau in ((4.0, 1.5), (4.0, 0.5))
        ),
        Demonstration("one coordinate, τ = 0.35, η charged", "δ at ε = 6", charged, coarse),
        Demonstration("one coordinate, τ = 0.35, η left out", "δ at ε = 6", gaussian, coarse, "η is charged"),
        Demonstration(
            "whole network, σ_G = 4, τ = 1.5",
            step,
            1e-9,
            epsilon_of_ripple(dither_ripple(SIGMA, TAU), DIMENSION),
        ),
        Demonstration(
            "sum plus whole steps of noise, σ = 100 steps",
            lattice,
            1e-5,
            modulo_the_step(100.0),
            "the dither",
        ),
        Demonstration("dither from a generator that is predicted", lattice, 1e-5, known_dither(), dither),
        Demonstration("one frame for two steps", lattice, 1e-5, reused_frame(), "every frame is fresh"),
        Demonstration(
            "the sum is rounded to the lattice instead (step C/20)",
            "change of the sum, in C",
            1.0,
            rounded_sum(DIMENSION, 0.05),
            "the sum stays real-valued, or √dim · s is added to C",
        ),
        *(
            Demonstration(f"code widths off by 1 %, period {period}", step, 1e-9, uneven(period), eta)
            for period in (2, 4, 8)
        ),
        Demonstration("digital gain of 2 (every second code)", step, 1e-9, gain_of_two(), "raw codes"),
        Demonstration(
            "black level 10 σ above zero", "δ of a step from one end, at ε = 1", 1e-15, black_level(10.0)
        ),
        Demonstration(
            "black level 4 σ above zero",
            "δ of a step from one end, at ε = 1",
            1e-15,
            black_level(4.0),
            "10 σ to either end",
        ),
        Demonstration("Z released only within 3 σ, μ = 1, charged", "δ at ε = 2", bound, tested),
        Demonstration(
            "Z released only within 3 σ, μ = 1, not charged",
            "δ at ε = 2",
            gaussian_delta(2.0, 1.0),
            tested,
            "health is tested on other frames, or charged",
        ),
        Demonstration(
            "half of each pixel's variance is common to the row",
            "μ",
            whole,
            contrast,
            "noise is independent over pixels",
        ),
    ]
