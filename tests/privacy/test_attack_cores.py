"""The attacks' arithmetic against closed forms, and against numpy simulations of what they attack."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multivariate_normal

from noise_models.errors import UsageError
from privacy.attacks.finding import Finding
from privacy.attacks.laws import CorrelatedGaussianLaw, GaussianLaw
from privacy.attacks.off_span import LEAST_OFFSET, off_span, off_span_share, span_basis
from privacy.attacks.one_run import guess, one_run_bound, p_value
from privacy.attacks.row_solving import invert
from privacy.attacks.untouched_column import dead_pixels, displacement

# ---- span


def published(
    rng: np.random.Generator, h: np.ndarray, width: int, sigma: float, *, on_the_sum: float = 0.0
) -> np.ndarray:
    """One layer's update of the published mechanism: noise inside every record's δ; in float32, as trainers sum."""
    delta = (rng.normal(size=(len(h), width)) + sigma * rng.normal(size=(len(h), width))).astype(np.float32)
    total = (delta.T @ h.astype(np.float32)).astype(np.float64)
    return np.asarray(total + on_the_sum * rng.normal(size=total.shape))


@given(
    seed=st.integers(0, 10_000),
    records=st.integers(2, 40),
    extra=st.integers(1, 40),
    sigma=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
)
@settings(max_examples=40, deadline=None)
def test_per_record_noise_never_leaves_the_span(seed: int, records: int, extra: int, sigma: float) -> None:
    """THEORY T1: at any noise the share off the others' span is rounding without the record, and not with it."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(records, records + extra))
    rest = h[-1] - h[:-1].T @ np.linalg.lstsq(h[:-1].T, h[-1], rcond=None)[0]
    assume(np.linalg.norm(rest) > 2 * LEAST_OFFSET * np.linalg.norm(h[-1]))  # else the attack refuses
    direction = off_span(span_basis(h[:-1]), h[-1])
    # A random direction in as few dimensions as these is off the span by at least this, or there is nothing to see.
    apart = np.linalg.norm(direction) / np.linalg.norm(h[-1])
    without = off_span_share(published(rng, h[:-1], 30, sigma)[None], direction)[0]
    present = off_span_share(published(rng, h, 30, sigma)[None], direction)[0]
    assert without < 3e-6
    assert present > 0.1 * apart / np.sqrt(records)


def test_noise_on_the_sum_hides_what_is_off_the_span() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(size=(20, 50))
    direction = off_span(span_basis(h[:-1]), h[-1])
    worlds = [
        off_span_share(
            np.stack([published(rng, rows, 30, 0.0, on_the_sum=1e4) for _ in range(200)]), direction
        )
        for rows in (h[:-1], h)
    ]
    # 30 of the 1500 equal noise coordinates: sqrt(1/50) of the norm, in both worlds.
    for shares in worlds:
        assert shares.mean() == pytest.approx(np.sqrt(1 / 50), rel=0.05)


def test_a_record_in_the_others_span_is_refused() -> None:
    h = np.random.default_rng(1).normal(size=(10, 4))
    with pytest.raises(UsageError, match="lies in the span of the 4"):
        off_span(span_basis(h[:-1]), h[-1])
    assert span_basis(np.zeros((3, 4))).shape == span_basis(np.zeros((0, 4))).shape == (0, 4)
    assert off_span_share(np.zeros((1, 2, 4)), np.ones(4)) == 0


# ---- dead pixel


def test_dead_pixel_is_the_targets_alone() -> None:
    others = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
    np.testing.assert_array_equal(dead_pixels(others, np.array([0.5, 1.0, 1.0, -2.0])), [3, 0])
    with pytest.raises(UsageError, match="no pixel"):
        dead_pixels(others, np.array([0.0, 3.0, 1.0, 0.0]))
    rng = np.random.default_rng(2)
    start = rng.normal(size=(5, 4))
    update = rng.normal(size=(2, 5)).T @ others
    assert displacement(start, start - update, 3) == 0.0
    assert displacement(start, start - update, 1) > 0.0


# ---- one run


@pytest.mark.parametrize(
    ("right", "guesses", "expected"),
    [(100, 100, 3.49), (1000, 1000, 5.81), (90, 100, 1.63), (600, 1000, 0.30)],
)
def test_one_run_bound_reference_values(right: int, guesses: int, expected: float) -> None:
    """At 95 % and delta = 0 (Steinke, Nasr, Jagielski 2023)."""
    found = one_run_bound(right=right, guesses=guesses, canaries=guesses, delta=0.0, confidence=0.95)
    assert found == pytest.approx(expected, abs=0.01)


def test_all_right_has_a_closed_form() -> None:
    """Every one of r right: (e^eps / (1 + e^eps))^r = significance."""
    q = 0.05 ** (1 / 37)
    found = one_run_bound(right=37, guesses=37, canaries=500, delta=0.0, confidence=0.95)
    assert found == pytest.approx(np.log(q / (1 - q)), abs=1e-6)


@given(
    guesses=st.integers(1, 60), right=st.integers(0, 60), epsilon=st.floats(0, 6), delta=st.floats(0, 1e-3)
)
@settings(max_examples=60, deadline=None)
def test_p_value_is_the_stated_formula(guesses: int, right: int, epsilon: float, delta: float) -> None:
    right, m = min(right, guesses), 2 * guesses
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    law = binom.pmf(np.arange(guesses + 1), guesses, q)
    alpha = max((law[right - i : right].sum() / i for i in range(1, right + 1)), default=0.0)
    expected = min(1.0, law[right:].sum() + 2 * m * delta * alpha)
    assert p_value(epsilon, right=right, guesses=guesses, canaries=m, delta=delta) == pytest.approx(
        expected, abs=1e-9
    )


def test_a_larger_delta_excuses_more() -> None:
    bounds = [
        one_run_bound(right=95, guesses=100, canaries=1000, delta=delta, confidence=0.95)
        for delta in (0.0, 1e-5, 1e-4, 1e-2)
    ]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0.0


def test_randomised_response_is_never_refuted() -> None:
    """Coins answered truthfully with probability q are (ln(q/(1-q)), 0)-private: 2000 audits, 1 % significance.

    More than 40 refutations would have probability 1e-5 if every one had probability 1 %.
    """
    rng, epsilon = np.random.default_rng(3), 1.5
    q = np.exp(epsilon) / (1 + np.exp(epsilon))
    refuted = 0
    for _ in range(2000):
        coins = rng.random(200) < 0.5
        answers = np.where(rng.random(200) < q, coins, ~coins)
        found = guess(answers + 1e-6 * rng.random(200), coins, 100)
        bound = one_run_bound(
            right=found.right, guesses=found.guesses, canaries=200, delta=0.0, confidence=0.99
        )
        refuted += bound > epsilon
    assert refuted <= 40


def test_guesses_are_the_extremes() -> None:
    coins = np.array([False, True, False, True, True])
    found = guess(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), coins, 4)
    assert (found.right, found.right_in, found.right_out) == (3, 2, 1)
    with pytest.raises(UsageError, match="even number"):
        guess(np.zeros(5), coins, 3)
    with pytest.raises(UsageError, match="NaN"):
        guess(np.full(5, np.nan), coins, 2)
    with pytest.raises(UsageError, match="right <= guesses"):
        one_run_bound(right=3, guesses=2, canaries=5, delta=0.0, confidence=0.95)
    with pytest.raises(UsageError, match="confidence"):
        one_run_bound(right=1, guesses=2, canaries=5, delta=0.0, confidence=1.0)


# ---- inversion


def test_noiseless_step_gives_the_record_exactly() -> None:
    rng = np.random.default_rng(4)
    h = np.concatenate((rng.normal(size=(12, 30)), np.ones((12, 1))), 1)
    delta = rng.normal(size=(12, 20))
    found = invert(delta.T @ h, h[:-1], delta[:-1])
    np.testing.assert_allclose(found.record, h[-1], atol=1e-9)
    assert found.share == pytest.approx(1.0, abs=1e-9)


def test_noise_inside_the_projection_leaves_the_off_span_part_exact() -> None:
    """The rest is estimated over the layer's neurons, with an error that falls with their number."""
    rng = np.random.default_rng(5)
    h = np.concatenate((rng.normal(size=(12, 30)), np.ones((12, 1))), 1)
    expected_part = off_span(span_basis(h[:-1]), h[-1])
    errors = []
    for width in (50, 5000):
        delta = rng.normal(size=(12, width))
        noisy = delta + rng.normal(size=delta.shape)
        found = invert(noisy.T @ h, h[:-1], delta[:-1])
        cosine = abs(found.off_span @ expected_part) / np.linalg.norm(expected_part)
        assert cosine == pytest.approx(1.0, abs=1e-9)
        errors.append(np.linalg.norm(found.record - h[-1]) / np.linalg.norm(h[-1]))
    assert errors[1] < 0.1 < errors[0]


def test_noise_on_the_sum_has_no_direction() -> None:
    rng = np.random.default_rng(6)
    h = rng.normal(size=(12, 40))
    update = 1e3 * rng.normal(size=(200, 40))
    assert invert(update, h[:-1], np.zeros((11, 200))).share < 0.1


# ---- laws and findings


def test_correlated_law_is_the_normal_density() -> None:
    rng = np.random.default_rng(7)
    root = rng.normal(size=(3, 3))
    noise = rng.normal(size=(4, 2, 3))
    law = CorrelatedGaussianLaw(root @ root.T)
    expected = multivariate_normal(np.zeros(3), root @ root.T).logpdf(noise) + 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(law.log_density(noise, 0.0), expected, rtol=1e-9)
    isotropic = CorrelatedGaussianLaw(4 * np.eye(3)).log_density(noise, 1.5)
    np.testing.assert_allclose(
        isotropic - isotropic[0, 0],
        (plain := GaussianLaw(2.0).log_density(noise, 1.5)) - plain[0, 0],
        rtol=1e-9,
    )


def test_a_finding_compares_bound_and_claim() -> None:
    def finding(lower: float | None, claimed: float) -> Finding:
        return Finding(
            "span", "digital", "digital", lower, 0.999, claimed, 1e-5, "record-dp", 10, "a step", {"extra": 1}
        )

    assert finding(1.0, 2.0).consistent is True
    assert finding(2.1, 2.0).consistent is False
    assert finding(None, 2.0).consistent is None
    assert finding(5.0, float("inf")).consistent is True
    assert finding(1.0, 2.0).to_dict()["extra"] == 1
