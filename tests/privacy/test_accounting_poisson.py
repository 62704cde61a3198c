"""Shot noise: closed forms against sums over counts, and the worst case against random frames (THEORY T6)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson as poisson_law

from noise_models.errors import UsageError
from privacy.accounting import poisson
from privacy.accounting.skellam_law import log_pmf, renyi_shift

rates, orders = st.floats(0.05, 60.0), st.floats(1.05, 20.0)


@given(rates, st.floats(0.6, 1.7), orders)
@settings(max_examples=60, deadline=None)
def test_the_closed_form_equals_the_sum_over_counts(rate: float, ratio: float, order: float) -> None:
    closed = poisson.renyi(rate * ratio, rate, order)
    tilted = rate * ratio**order  # mean of the tilted law: what the sum must reach
    count = np.arange(int(tilted + 12 * math.sqrt(tilted) + 80))
    terms = order * poisson_law.logpmf(count, rate * ratio) + (1 - order) * poisson_law.logpmf(count, rate)
    direct = float(np.logaddexp.reduce(terms)) / (order - 1)
    assert closed == pytest.approx(direct, rel=1e-9, abs=1e-11 * (1 + tilted) * order / (order - 1))


def test_limits_and_dark_pixels() -> None:
    assert poisson.renyi(10.0, 13.0, 1.0) == pytest.approx(10 * math.log(10 / 13) + 3, rel=1e-12)
    assert poisson.renyi(10.0, 13.0, 1 + 1e-9) == pytest.approx(poisson.renyi(10.0, 13.0, 1.0), rel=1e-6)
    assert poisson.renyi(10.0, 13.0, math.inf) == 3.0
    assert poisson.renyi(13.0, 10.0, math.inf) == math.inf
    assert poisson.renyi(0.0, 2.0, 3.0) == pytest.approx(2.0)
    assert poisson.renyi(0.0, 2.0, 1.0) == pytest.approx(2.0)
    assert poisson.renyi(2.0, 0.0, 3.0) == math.inf
    assert poisson.renyi([0.0, 5.0], [0.0, 5.0], 7.0) == 0.0
    tiny = poisson.renyi(1e6 + 1e-3, 1e6, 4.0)
    assert tiny == pytest.approx(4 * 1e-6 / 2e6, rel=1e-6)  # alpha s² / (2 rate): no cancellation


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=5), orders)
@settings(max_examples=50, deadline=None)
def test_pixels_add_and_light_common_to_both_worlds_only_helps(
    pairs: list[tuple[float, float]], order: float
) -> None:
    first, second = np.asarray(pairs).T
    together = poisson.renyi(first, second, order)
    assert together == pytest.approx(sum(poisson.renyi(a, b, order) for a, b in pairs), rel=1e-9)
    assert poisson.renyi(first + 3.0, second + 3.0, order) <= together * (1 + 1e-9) + 1e-15


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20.0), st.floats(1.01, 30.0))
@settings(max_examples=60, deadline=None)
def test_the_bound_covers_random_frames_both_ways(seed: int, least: float, order: float) -> None:
    rng = np.random.default_rng(seed)
    pixels = int(rng.integers(1, 40))
    darker = least + rng.exponential(3.0, pixels) * rng.integers(0, 2, pixels)
    step = rng.exponential(least, pixels) * rng.integers(0, 2, pixels) + 1e-3
    up = rng.integers(0, 2, pixels).astype(bool)
    first, second = np.where(up, darker + step, darker), np.where(up, darker, darker + step)
    l2, largest = float(np.linalg.norm(step)), float(step.max())
    bound = poisson.renyi_bound(least, l2, largest, order)
    worst = max(poisson.renyi(first, second, order), poisson.renyi(second, first, order))
    assert worst <= bound * (1 + 1e-9)


def test_the_bound_is_reached() -> None:
    """Equal pixels at the least rate, the larger of both directions at orders above 2."""
    for order in (2.0, 5.0, 30.0):
        reached = poisson.renyi(np.full(9, 14.0), np.full(9, 10.0), order)
        assert poisson.renyi_bound(10.0, 12.0, 4.0, order) == pytest.approx(reached, rel=1e-12)


def test_balanced_detection_is_bounded_by_the_pair_of_arms() -> None:
    """THEORY T6's figures: true 33.3, a shifted law's formula 10.5 (unsafe), the pair 35.6."""
    count = np.arange(-400, 401)
    terms = 2 * log_pmf(count, 10.0, 10.0) - log_pmf(count, 18.0, 2.0)
    true = float(np.logaddexp.reduce(terms))
    shifted = float(renyi_shift(2.0, 20.0, 16)[0])
    pair = poisson.balanced_renyi_bound([10.0, 10.0], [18.0, 2.0], 2.0)
    assert true == pytest.approx(33.3, abs=0.05)
    assert shifted == pytest.approx(10.5, abs=0.05)
    assert pair == pytest.approx(35.6, abs=0.05)
    assert shifted < true <= pair


@given(st.floats(2.0, 40.0), st.floats(-0.9, 0.9), st.floats(1.1, 6.0))
@settings(max_examples=30, deadline=None)
def test_the_pair_bounds_every_balanced_detector(rate: float, part: float, order: float) -> None:
    lit = np.asarray([rate * (1 + part), rate * (1 - part)])
    count = np.arange(-4000, 4001)
    terms = order * log_pmf(count, rate, rate) + (1 - order) * log_pmf(count, lit[0], lit[1])
    true = float(np.logaddexp.reduce(terms)) / (order - 1)
    assert true <= poisson.balanced_renyi_bound([rate, rate], lit, order) * (1 + 1e-6) + 1e-9


def test_a_count_shifted_by_an_integer_is_infinite_one_way() -> None:
    assert poisson.shifted_renyi(10.0, -1, 2.0) == math.inf
    assert poisson.shifted_renyi(10.0, 0, 2.0) == 0.0
    # E[(n/lambda)²] under Poisson(lambda) is 1 + 1/lambda: D_2 of a shift by one.
    assert poisson.shifted_renyi(10.0, 1, 2.0) == pytest.approx(math.log(1.1), rel=1e-9)


@given(rates, rates, st.floats(-1.0, 6.0))
@settings(max_examples=100, deadline=None)
def test_hockey_stick_equals_the_sum_over_counts(rate: float, other: float, epsilon: float) -> None:
    count = np.arange(400)
    first, second = poisson_law.pmf(count, rate), poisson_law.pmf(count, other)
    direct = float(np.clip(first - math.exp(epsilon) * second, 0, None).sum())
    assert poisson.hockey_stick(rate, other, epsilon) == pytest.approx(direct, abs=1e-11)


def test_hockey_stick_of_dark_pixels() -> None:
    assert poisson.hockey_stick(0.0, 0.0, 1.0) == 0.0
    assert poisson.hockey_stick(2.0, 0.0, 1.0) == pytest.approx(1 - math.exp(-2))
    assert poisson.hockey_stick(0.0, 2.0, 1.0) == pytest.approx(1 - math.exp(-1))
    assert poisson.hockey_stick(0.0, 2.0, 2.0) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.5])
def test_pixels_compose_like_the_sum_over_pairs_of_counts(epsilon: float) -> None:
    """Two pixels summed over both counts, either direction: the distribution dominates, and barely."""
    count = np.arange(120)
    first = np.outer(poisson_law.pmf(count, 10.0), poisson_law.pmf(count, 20.0))
    second = np.outer(poisson_law.pmf(count, 13.0), poisson_law.pmf(count, 18.0))
    scale = math.exp(epsilon)
    exact = max(
        np.clip(first - scale * second, 0, None).sum(), np.clip(second - scale * first, 0, None).sum()
    )
    loss = poisson.PixelLoss([(10.0, 13.0, 1), (20.0, 18.0, 1)], interval=1e-4)
    assert exact - 1e-12 <= loss.delta(epsilon) <= exact + 2e-4
    assert loss.epsilon(loss.delta(epsilon)) == pytest.approx(epsilon, abs=1e-6)


def test_many_pixels_stay_below_their_renyi_conversion_and_above_one_pixel() -> None:
    loss = poisson.PixelLoss([(100.0, 103.0, 50)], interval=1e-3)
    value = loss.epsilon(1e-5)
    grid = np.arange(2.0, 80.0)
    divergences = np.asarray([50 * max(poisson.renyi(100, 103, a), poisson.renyi(103, 100, a)) for a in grid])
    converted = float(np.min(divergences + math.log(1e5) / (grid - 1)))
    assert poisson.PixelLoss([(100.0, 103.0, 1)]).epsilon(1e-5) < value < converted


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: poisson.renyi(-1.0, 1.0, 2.0),
        lambda: poisson.renyi(1.0, math.inf, 2.0),
        lambda: poisson.renyi(1.0, 2.0, 0.5),
        lambda: poisson.renyi_bound(0.0, 1.0, 1.0, 2.0),
        lambda: poisson.renyi_bound(1.0, 1.0, 1.0, math.inf),
        lambda: poisson.balanced_renyi_bound([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 2.0),
        lambda: poisson.shifted_renyi(0.0, 1, 2.0),
        lambda: poisson.hockey_stick(1.0, 2.0, math.inf),
        lambda: poisson.PixelLoss([]),
        lambda: poisson.PixelLoss([(0.0, 1.0, 1)]),
    ],
)
def test_wrong_values_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        wrong()
