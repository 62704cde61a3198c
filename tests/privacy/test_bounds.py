"""Epsilon lower bounds against closed forms, other implementations and known laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm

from noise_models.errors import UsageError
from privacy import accounting
from privacy.accounting.gdp import gaussian_epsilon
from privacy.auditing.bounds import (
    binomial_upper_limit,
    clopper_pearson_bound,
    gaussian_family_bound,
    gaussian_mu,
)

DELTA = 1e-5


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.9, 0.999))
def test_binomial_limit_is_where_the_count_becomes_unlikely(n: int, share: float, confidence: float) -> None:
    count = int(share * n)
    limit = binomial_upper_limit(count, n, confidence)
    if count == n:
        assert limit == 1.0
    else:
        assert binom.cdf(count, n, limit) == pytest.approx(1 - confidence, rel=1e-6)
        assert limit == pytest.approx(beta.ppf(confidence, count + 1, n - count), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 4.0, 10.0])
def test_gaussian_epsilon_inverts_dp_accounting(epsilon: float) -> None:
    """Against dp_accounting's distribution of the unsampled Gaussian, on a grid of 1e-4."""
    sigma = accounting.noise_multiplier(epsilon, DELTA, 1.0, 1)
    other = privacy_loss_distribution.from_gaussian_mechanism(sigma).get_epsilon_for_delta(DELTA)
    assert gaussian_epsilon(1 / sigma, DELTA) == pytest.approx(other, rel=2e-4)
    assert gaussian_epsilon(1 / sigma, DELTA) == pytest.approx(epsilon, rel=2e-3)


def test_gaussian_epsilon_of_nothing() -> None:
    assert gaussian_epsilon(0.0, DELTA) == 0.0
    assert gaussian_epsilon(1e-6, DELTA) == 0.0
    with pytest.raises(UsageError, match="mu"):
        gaussian_epsilon(-1.0, DELTA)


@given(st.floats(1e-3, 8.0))
def test_mu_from_total_variation(mu: float) -> None:
    assert gaussian_mu(2 * norm.cdf(mu / 2) - 1) == pytest.approx(mu, rel=1e-6)


def test_perfect_separation_gives_the_textbook_bound() -> None:
    """No error in 500 counted trials of each world: (1 - δ - u)/u with u = 1 - (0.025)^(1/500)."""
    bound = clopper_pearson_bound(np.zeros(1000), np.ones(1000), delta=DELTA, confidence=0.95)
    limit = 1 - 0.025 ** (1 / 500)
    assert bound.epsilon == pytest.approx(math.log((1 - DELTA - limit) / limit), rel=1e-9)
    assert (bound.trials, bound.false_alarms, bound.misses) == (1000, 0.0, 0.0)


def test_equal_worlds_bound_nothing() -> None:
    """Scores that say nothing: over 200 audits at 95 %, more than 24 positive bounds have probability < 1e-4."""
    rng = np.random.default_rng(1)
    positive = dict.fromkeys(("free", "family"), 0)
    for _ in range(200):
        a, b = rng.normal(size=(2, 300))
        positive["free"] += clopper_pearson_bound(a, b, delta=0.0, confidence=0.95).epsilon > 0
        family = gaussian_family_bound(a, b, threshold=0.0, delta=DELTA, confidence=0.95)
        positive["family"] += family.epsilon > 0
    assert binom.sf(24, 200, 0.05) < 1e-4
    assert max(positive.values()) <= 24


@pytest.mark.parametrize(("epsilon", "sample_rate", "steps"), [(1.0, 1.0, 1), (4.0, 0.5, 2), (2.0, 0.1, 10)])
def test_family_bound_holds_at_its_confidence_and_is_tight(
    epsilon: float, sample_rate: float, steps: int
) -> None:
    """Ideal subsampled Gaussians: of 30 audits at 95 %, more than 8 bounds above the truth have probability < 1e-4."""
    sigma = accounting.noise_multiplier(epsilon, DELTA, sample_rate, steps, accountant="numerical")
    rng = np.random.default_rng(2)
    found = []
    for _ in range(30):
        worlds = []
        for present in (0.0, 1.0):
            coins = rng.random((2000, steps)) < sample_rate
            x = rng.normal(scale=sigma, size=(2000, steps)) + present * coins
            ratio = (2 * x - 1) / (2 * sigma**2)
            worlds.append(np.log1p(sample_rate * np.expm1(ratio)).sum(1))
        bound = gaussian_family_bound(
            worlds[0], worlds[1], threshold=0.0, delta=DELTA, confidence=0.95,
            sample_rate=sample_rate, steps=steps,
        )  # fmt: skip
        found.append(bound.epsilon)
    assert binom.sf(8, 30, 0.05) < 1e-4
    assert sum(value > epsilon * 1.001 for value in found) <= 8
    assert np.median(found) > 0.6 * epsilon


def test_family_bound_grows_with_the_evidence() -> None:
    scores = np.linspace(-1, 1, 400)
    shifted = [
        gaussian_family_bound(
            scores - shift, scores + shift, threshold=0.0, delta=DELTA, confidence=0.95,
            sample_rate=0.5, steps=4,
        ).epsilon
        for shift in (0.0, 0.2, 0.4, 0.6, 1.0)
    ]  # fmt: skip
    assert shifted[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(shifted))


@pytest.mark.parametrize(
    ("low", "high", "delta", "confidence", "message"),
    [
        (np.zeros(3), np.ones(9), DELTA, 0.95, "at least 4"),
        (np.full(9, np.nan), np.ones(9), DELTA, 0.95, "NaN"),
        (np.zeros(9), np.ones(9), 1.0, 0.95, "delta = 1.0"),
        (np.zeros(9), np.ones(9), DELTA, 0.5, "confidence = 0.5"),
    ],
)
def test_bad_values_are_refused(
    low: object, high: object, delta: float, confidence: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        clopper_pearson_bound(low, high, delta=delta, confidence=confidence)


def test_unequal_worlds_are_refused() -> None:
    with pytest.raises(UsageError, match="equally many"):
        gaussian_family_bound(np.zeros(8), np.ones(9), threshold=0.5, delta=DELTA, confidence=0.95)
