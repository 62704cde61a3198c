"""Mechanism "photon" (THEORY T10): the bound on a count, on a device, and what accountants make of it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise_models.errors import UsageError
from privacy import accounting
from privacy.accounting.amplification import _log_excess
from privacy.accounting.photon import ORDERS, epsilon, factor
from privacy.accounting.poisson import renyi
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

DELTA = 1e-5


def row(sample_rate: float, multiplier: float, change: float) -> ReleaseEvent:
    return ReleaseEvent(
        mechanism="photon",
        source="photon",
        sample_rate=sample_rate,
        noise_multiplier=multiplier,
        sensitivity=change,
        dimension=1,
    )


def exact(first: float, second: float, order: float) -> mpmath.mpf:
    """D_order(Poisson(first²) || Poisson(second²)), to 60 digits."""
    with mpmath.workdps(60):
        s, t, a = mpmath.mpf(first) ** 2, mpmath.mpf(second) ** 2, mpmath.mpf(order)
        return (s**a * t ** (1 - a) - a * s + (a - 1) * t) / (a - 1)


@given(
    st.floats(1.05, 80.0),
    st.floats(1e-3, 1e3),
    st.floats(1e-6, 0.5),
    st.floats(0.0, 3.0),
    st.floats(0.0, 1.0),
)
def test_no_count_costs_more_than_the_factor(
    order: float, least: float, change: float, above: float, share: float
) -> None:
    """Both directions, amplitudes at or above the least one, changes up to the largest."""
    low = least * (1 + above)
    high = low + share * change * least
    for first, second in ((high, low), (low, high)):
        bound = factor(order, change) * (mpmath.mpf(first) - mpmath.mpf(second)) ** 2
        assert exact(first, second, order) <= bound * (1 + 1e-9) + mpmath.mpf(10) ** -40


@pytest.mark.parametrize("order", [1.5, 2, 3, 32, 200])
@pytest.mark.parametrize("change", [1e-9, 1e-4, 1e-3, 0.05, 0.3])
def test_the_factor_is_attained_and_at_least_the_gaussians(order: float, change: float) -> None:
    attained = exact(7 * (1 + change), 7.0, order) / (mpmath.mpf(7 * (1 + change)) - 7) ** 2
    assert abs(attained / factor(order, change) - 1) < 1e-9
    assert factor(order, change) >= 2 * order


def test_no_random_device_exceeds_its_bound_and_the_worst_pair_comes_close() -> None:
    """1,000 devices: exact divergences of all counts, at random and adversarial columns inside the clamp."""
    rng = np.random.default_rng(0)
    sharpest = 0.0
    for _ in range(1000):
        pixels, inputs = int(rng.integers(1, 13)), int(rng.integers(1, 9))
        field = rng.normal(size=(pixels, inputs)) + 1j * rng.normal(size=(pixels, inputs))
        reference, ratio = rng.uniform(5, 200), rng.uniform(0.001, 0.7)
        clamp, bound = int(rng.integers(4, 50)), 4.0
        light = ratio * reference / (np.abs(field).sum(1).max() * clamp)
        gamma = ratio / math.sqrt(1 + ratio**2)
        stacked = np.concatenate([field.real, gamma * field.imag])
        norm = np.linalg.norm(stacked, 2)
        change = light * bound * np.linalg.norm(field, axis=1).max() / ((1 - ratio) * reference)
        order = int(rng.integers(2, 20))
        allowed = factor(order, change) * (light * norm * bound) ** 2
        worst = np.linalg.svd(stacked)[2][0] * bound
        for start in (np.zeros(inputs), rng.uniform(-clamp, clamp, inputs)):
            other = np.clip(start + worst, -clamp, clamp)
            rates = [
                np.concatenate([np.abs(reference + sign * light * (field @ a)) ** 2 / 2 for sign in (1, -1)])
                for a in (start, other)
            ]
            for first, second in (rates, rates[::-1]):
                found = renyi(first, second, order)
                assert found <= allowed * (1 + 1e-9)
                sharpest = max(sharpest, found / allowed)
    assert sharpest > 0.8


@pytest.mark.parametrize(
    ("sample_rate", "multiplier", "change", "steps"),
    [(1, 1.0, 1e-3, 1), (0.01, 1.0, 1e-3, 1000), (0.034, 2.0, 0.01, 900), (0.01, 5.0, 0.2, 3000), (1, 0.3, 0.05, 1)],
)  # fmt: skip
def test_both_accountants_agree_and_cost_at_least_the_gaussians_renyi(
    sample_rate: float, multiplier: float, change: float, steps: int
) -> None:
    tally = {row(sample_rate, multiplier, change): steps}
    first, second = (
        accounting.epsilon(tally, DELTA, accountant=name) for name in ("photon-rdp", "photon-integral")
    )
    assert second == pytest.approx(first, rel=0.02)
    gaussian = accounting.epsilon(
        {accounting.gaussian(sample_rate, multiplier): steps}, DELTA, accountant="rdp"
    )
    assert first >= gaussian * (1 - 2e-3)  # of another grid of orders
    assert first >= accounting.epsilon({accounting.gaussian(sample_rate, multiplier): steps}, DELTA)


def test_small_changes_cost_what_a_gaussian_does_by_renyi() -> None:
    photon = accounting.epsilon({row(0.01, 1.0, 1e-6): 1000}, DELTA)
    gaussian = accounting.epsilon({accounting.gaussian(0.01, 1.0): 1000}, DELTA, accountant="rdp")
    assert photon == pytest.approx(gaussian, rel=0.01)


@given(st.floats(0.05, 0.9), st.floats(0.3, 5.0), st.sampled_from([1e-3, 0.02, 0.1]))
def test_sampling_covers_both_directions_of_an_exact_count(
    q: float, multiplier: float, change: float
) -> None:
    """One count, sampled: its exact divergences both ways, by its probabilities, against the accountant's."""
    from privacy.accounting.photon import _sampled

    least = 1 / (2 * multiplier * change)  # so that one change of amplitude is 1 / (2 multiplier)
    rate, other = (least * (1 + change)) ** 2, least**2
    if not 1 < other < 1e5:
        return
    count = np.arange(int(rate + 40 * math.sqrt(rate) + 60))
    with np.errstate(divide="ignore"):
        logs = [count * math.log(r) - r - _log_factorial(count) for r in (rate, other)]
    for with_record, without in (
        logs,
        logs[::-1],
    ):  # a record that adds to the amplitude, one that takes from it
        mixed = np.logaddexp(math.log1p(-q) + without, math.log(q) + with_record)
        for order in (2, 5, 16):
            claimed = float(_sampled(q, multiplier, change)[ORDERS.index(order)])
            for p, r in ((mixed, without), (without, mixed)):
                found = float(np.logaddexp.reduce(order * p + (1 - order) * r)) / (order - 1)
                assert found <= claimed * (1 + 1e-6) + 1e-9


def _log_factorial(count: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    return np.asarray(gammaln(count + 1.0))


@pytest.mark.parametrize("sample_rate", [1e-3, 1e-12, 1e-15, 1e-16, 1e-17, 1e-20, 1e-160, 1e-300])
@pytest.mark.parametrize("multiplier", [1e-3, 0.05, 1.0])
def test_records_that_are_hardly_ever_drawn_have_a_number_too(sample_rate: float, multiplier: float) -> None:
    """Where e^D is beyond double precision and q below its rounding; more seldom is never dearer."""
    tally = {row(sample_rate, multiplier, 1e-3): 1000}
    first, second = (
        accounting.epsilon(tally, DELTA, accountant=name) for name in ("photon-rdp", "photon-integral")
    )
    assert second == pytest.approx(first, rel=0.02, abs=1e-6)
    dearer = accounting.epsilon({row(min(2 * sample_rate, 1.0), multiplier, 1e-3): 1000}, DELTA)
    assert 0 <= first <= dearer < math.inf


@given(st.integers(2, 2048), st.floats(-300, -0.01))
def test_what_sampling_leaves_of_the_other_direction_is_rounded_up(order: int, digits: float) -> None:
    """(1-q)^(1-a) - 1 - (a-1) q to 700 digits: never above what is charged, and above it by little."""
    q = 10.0**digits
    with mpmath.workdps(700):
        truth = (1 - mpmath.mpf(q)) ** (1 - order) - 1 - (order - 1) * mpmath.mpf(q)
        over = mpmath.mpf(float(_log_excess(np.array([float(order)]), q)[0])) - mpmath.log(truth)
        assert 0 <= over <= 1e-3


def test_no_light_level_means_no_guarantee() -> None:
    assert epsilon({row(0.1, 0.0, 1e-3): 1}, DELTA, Adjacency.ADD_REMOVE) == math.inf
    assert epsilon({}, DELTA, Adjacency.ADD_REMOVE) == 0.0


@pytest.mark.parametrize("change", [0.0, 1.5, math.nan])
def test_a_change_that_is_none_is_refused(change: float) -> None:
    with pytest.raises((UsageError, ValueError)):
        accounting.epsilon({row(0.1, 1.0, change): 1}, DELTA)


def test_other_adjacencies_are_refused() -> None:
    with pytest.raises(UsageError, match="add-or-remove-one"):
        epsilon({row(0.1, 1.0, 0.1): 1}, DELTA, Adjacency.REPLACE_ONE)
