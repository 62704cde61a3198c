"""T6: the Rényi divergence of counts, which direction is worst, and why light is no additive noise. Exact sums."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import poisson, skellam

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, renyi, scaled_delta
from privacy.accounting import poisson as counts
from privacy.accounting import skellam as integers

ORDERS = (1.25, 2.0, 8.0, 32.0)


def poisson_sum(a: float, b: float, alpha: float) -> float:
    """D_alpha(Poisson(a) ‖ Poisson(b)), summed over counts in logarithms: what the closed form is held against."""
    top = max(a, a**alpha * b ** (1 - alpha))
    n = np.arange(int(top + 40 * math.sqrt(top) + 100))
    exponents = alpha * poisson.logpmf(n, a) + (1 - alpha) * poisson.logpmf(n, b)
    return float(np.logaddexp.reduce(exponents) / (alpha - 1))


def largest_error() -> float:
    """Largest relative difference of the closed form from the sum, over rates and orders."""
    rates = ((10.0, 18.0), (18.0, 10.0), (2.0, 10.0), (100.0, 103.0), (0.5, 0.75))
    return max(
        abs(counts.renyi(a, b, alpha) / poisson_sum(a, b, alpha) - 1)
        for a, b in rates
        for alpha in ORDERS[:3]
    )


def worst_rate(difference: float, least: float, alpha: float) -> float:
    """Largest divergence over lambda from `least` on and both directions, over the one at `least`."""
    at_least = max(
        counts.renyi(least, least + difference, alpha), counts.renyi(least + difference, least, alpha)
    )
    found = max(
        max(counts.renyi(x, x + difference, alpha), counts.renyi(x + difference, x, alpha))
        for x in np.geomspace(least, 1000 * least, 400)
    )
    return found / at_least


def other_direction(least: float = 10.0, difference: float = 8.0, alpha: float = 2.0) -> tuple[float, float]:
    """D of no signal against signal, and of signal against none, from `least` downwards."""
    return counts.renyi(least, least - difference, alpha), counts.renyi(least - difference, least, alpha)


def _law(bright: float, dark: float) -> Array:
    return np.asarray(skellam.pmf(np.arange(-300, 301), bright, dark))


def balanced(rate: float = 10.0, signal: float = 8.0, alpha: float = 2.0) -> tuple[float, float, float]:
    """Balanced detection, no signal against signal: D_alpha as it is, as a shift by 2 s, and the pair's bound."""
    silent, lit = _law(rate, rate), _law(rate + signal, rate - signal)
    shifted = np.roll(silent, round(2 * signal))
    kept = np.abs(np.arange(-300, 301)) <= 120
    pair = counts.balanced_renyi_bound([rate, rate], [rate + signal, rate - signal], alpha)
    return renyi(silent[kept], lit[kept], alpha), renyi(silent[kept], shifted[kept], alpha), pair


def shifted_count(rate: float = 10.0, shift: int = 1, alpha: float = 2.0) -> float:
    """D_alpha of Poisson(rate) against the same shifted up by a whole number: the counts below it never come."""
    law = poisson.pmf(np.arange(200), rate)
    moved = np.concatenate((np.zeros(shift), law[:-shift]))
    return renyi(law, moved, alpha)


def changing_variance(
    dimension: int = 4096, excess: float = 1 / 256, alpha: float = 2.0
) -> tuple[float, float]:
    """(α d (r−1)²/4, the exact D_alpha) of N(0, r I) against N(0, I), r = 1 + excess: no shift at all."""
    r = 1 + excess
    exact = -dimension / 2 * (math.log(alpha + (1 - alpha) * r) / (alpha - 1) + math.log(r))
    return alpha * dimension * excess**2 / 4, exact


def skellam_mechanism(variance: float = 50.0, shift: int = 4, alpha: int = 4) -> tuple[float, float]:
    """(the product's bound, the sum over integers) of D_alpha of Skellam noise under a shift of one coordinate."""
    # Mass of the counts below the moved law's reach is 1e-60: the window is cut there.
    n = np.arange(-160, 161)
    law, moved = (skellam.logpmf(n - s, variance / 2, variance / 2) for s in (shift, 0))
    exact = float(np.logaddexp.reduce(alpha * law + (1 - alpha) * moved) / (alpha - 1))
    return integers.renyi_bound(alpha, variance, float(shift), float(shift)), exact


def rounded_at_random(dimension: int = 4096, norm: float = 10.0, seed: int = 14) -> float:
    """Norm of a record of norm `norm` grid units after stochastic rounding to whole ones, over `norm`."""
    record = np.full(dimension, norm / math.sqrt(dimension))
    rounded = np.floor(record) + (np.random.default_rng(seed).random(dimension) < record - np.floor(record))
    return float(np.linalg.norm(rounded) / norm)


def sampled_directions(law: Array, sample_rate: float, alpha: float) -> tuple[float, float]:
    """(D_alpha(Q ‖ R), D_alpha(R ‖ Q)) for the law Q, its mirror image P, and R = (1 − q) Q + q P."""
    mixed = (1 - sample_rate) * law + sample_rate * law[::-1]
    return renyi(law, mixed, alpha), renyi(mixed, law, alpha)


def demonstrations() -> list[Demonstration]:
    true, shifted, pair = balanced()
    leading, exact = changing_variance()
    one, other = other_direction()
    same_law = "noise of data frames has the same law for neighbours"
    return [
        Demonstration(
            "closed form against the sum, 5 rates × 3 orders", "relative difference", 1e-9, largest_error()
        ),
        Demonstration(
            "λ from λ_min to 1000 λ_min at |λ − λ'| = 3, α = 8",
            "D over that at λ_min",
            1.0,
            worst_rate(3.0, 5.0, 8.0),
        ),
        Demonstration(
            "10 → 2 electrons, α = 2, one direction for the other", "D_α", other, one, "both directions"
        ),
        Demonstration("balanced detection, λ = 10, s = 8, α = 2: pair of Poisson bounds", "D_α", pair, true),
        Demonstration(
            "the same, taken for a shift by 2 s",
            "D_α",
            shifted,
            true,
            "light changes the rates, it adds no noise",
        ),
        Demonstration(
            "a count shifted by 1, taken for a Gaussian of variance λ",
            "D_α at α = 2",
            0.1,
            shifted_count(),
            "no whole shift",
        ),
        Demonstration(
            "variance ratio 1 + 1/256, 4096 coordinates, α = 2: the leading order",
            "D_α",
            leading,
            exact,
            tolerance=0.02,
        ),
        Demonstration(
            "variance ratio 1 + 1/4, 4096 coordinates, taken for constant",
            "δ at ε = 4",
            1e-5,
            scaled_delta(4.0, 4096, 1.25),
            same_law,
        ),
        Demonstration("Skellam mechanism, variance 50, shift 4, α = 4", "D_α", *skellam_mechanism()),
        Demonstration(
            "4096 coordinates of norm 10, each rounded at random to a whole number",
            "norm, in C",
            1.0,
            rounded_at_random(),
            "clipped again, rounding in the sensitivity",
        ),
    ]
