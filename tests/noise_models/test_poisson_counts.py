"""Exact Poisson counts: against exact probabilities, and as draws.

The statistical tests have fixed seeds and a false-alarm rate of 1e-6 each.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.poisson_counts import COUNT_MASS, MOST_MEAN, exact_poisson, poisson_weights

ALARM = 1e-6


@pytest.mark.parametrize(
    "mean", [Fraction(1, 64), Fraction(63, 64), Fraction(1), Fraction(63), Fraction(4032), Fraction(4096)]
)
def test_a_table_has_the_laws_probabilities(mean: Fraction) -> None:
    """To 60 digits against the formula, tail included: total variation far below what is charged."""
    weights, least = poisson_weights(mean)
    total = sum(weights)
    with mpmath.workdps(70):
        m = mpmath.mpf(mean.numerator) / mean.denominator
        term = mpmath.exp(-m + least * mpmath.log(m) - mpmath.loggamma(least + 1))
        apart, inside = mpmath.mpf(0), mpmath.mpf(0)
        for count, weight in enumerate(weights, least):
            apart += abs(mpmath.mpf(weight) / total - term)
            inside += term
            term *= m / (count + 1)
        distance = (apart + 1 - inside) / 2
    assert distance < mpmath.mpf(2) ** -130 < COUNT_MASS


@pytest.mark.parametrize("mean", [0.003, 0.5, 1.0, 3.7, 64.0, 77.3, 4096.25, 5000.123, 99_999.5])
def test_draws_have_the_law(mean: float) -> None:
    draws = 100_000
    counts = exact_poisson(np.full(draws, mean), NoiseGenerator.seeded(5, "poisson"))
    edges = np.unique(stats.poisson.ppf(np.linspace(0.002, 0.998, 40), mean))
    expected = np.diff(np.concatenate([[0.0], stats.poisson.cdf(edges, mean), [1.0]]))
    found = np.histogram(counts, np.concatenate([[-1.0], edges, [np.inf]]) + 0.5)[0]
    keep = expected * draws > 5
    assert found[~keep].sum() <= 40
    statistic = ((found - expected * draws)[keep] ** 2 / (expected * draws)[keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > ALARM
    deviation = abs(counts.var() - mean) / np.sqrt((2 * mean**2 + mean) / draws)
    assert deviation < stats.norm.isf(ALARM / 2)


def test_each_draw_has_its_own_mean() -> None:
    means = np.tile(np.array([0.0, 1e-12, 0.3, 5.0, 63.999, 4095.99, 2000.5]), 20_000)
    counts = exact_poisson(means, NoiseGenerator.seeded(6, "poisson")).reshape(-1, 7)
    assert not counts[:, 0].any()
    z = (counts.mean(0) - means[:7]) / np.sqrt(np.maximum(means[:7], 1e-12) / len(counts))
    assert np.abs(z).max() < stats.norm.isf(ALARM / 14)
    correlation = np.corrcoef(counts[:, 2:].T)[np.triu_indices(5, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(ALARM / 20) / np.sqrt(len(counts))


def test_known_answers() -> None:
    """The same seed gives the same counts on every machine."""
    means = np.array([0.01, 0.7, 12.5, 100.0, 2500.25, 5123.5, 200_000.75])
    counts = exact_poisson(means, NoiseGenerator.seeded(7, "poisson"))
    assert counts.tolist() == [0, 0, 15, 88, 2519, 5062, 199485]


@given(st.one_of(st.floats(max_value=-1e-300), st.floats(min_value=MOST_MEAN), st.just(float("nan"))))
def test_means_out_of_range_are_refused(mean: float) -> None:
    with pytest.raises(UsageError, match="mean count is outside"):
        exact_poisson(np.array([1.0, mean]), NoiseGenerator.seeded(8, "poisson"))
