"""Shot noise as a sampled mechanism: against sums over counts, the exact law and the Gaussian limit (T6)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import poisson as poisson_law

from noise_models.errors import UsageError
from privacy.accounting import epsilon, gaussian, poisson_frames
from privacy.accounting.planning import Scheme
from privacy.accounting.poisson import hockey_stick
from privacy.accounting.poisson_frames import ORDERS, FrameEvent, multiplier_of
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

DELTA = 1e-5


def frame(q: float, rate: float, l2: float, largest: float = math.inf) -> FrameEvent:
    return FrameEvent("poisson", "plan", q, multiplier_of(rate, l2), l2, 1, largest=largest)


@given(st.floats(1.0, 40.0), st.floats(0.05, 1.5), st.floats(0.001, 0.95), st.integers(2, 12))
@settings(max_examples=80, deadline=None)
def test_sampled_counts_are_covered_in_either_direction(
    rate: float, change: float, q: float, order: int
) -> None:
    """A pixel gains or loses light, its record comes or goes: all four sums over counts are within the bound."""
    step = change * math.sqrt(rate)
    bound = poisson_frames._sampled(q, rate, step, step)[ORDERS.index(order)]
    lit = rate + step
    reach = lit * (lit / rate) ** order
    count = np.arange(int(reach + 40 * math.sqrt(reach) + 200))
    for first, second in ((lit, rate), (rate, lit)):
        base = poisson_law.logpmf(count, second)
        mixed = np.logaddexp(math.log1p(-q) + base, math.log(q) + poisson_law.logpmf(count, first))
        for one, other in ((mixed, base), (base, mixed)):
            terms = order * one + (1 - order) * other
            exact = float(np.logaddexp.reduce(terms)) / (order - 1)
            assert exact <= bound * (1 + 1e-7) + 1e-11


@pytest.mark.parametrize(
    ("rate", "step", "times"),
    [(100.0, 3.0, 20), (10.0, 2.0, 5), (1e4, 100.0, 2), (4.0, 1.0, 1), (1e5, 3.0, 50)],
)
def test_unsampled_frames_cost_a_little_more_than_the_exact_law(rate: float, step: float, times: int) -> None:
    """One pixel, the worst one: of `times` frames the sum tells all, a Poisson count again."""
    found = epsilon({frame(1.0, rate, step): times}, DELTA)
    lit, dark = times * (rate + step), times * rate
    exact = max(
        brentq(lambda at, pair: hockey_stick(*pair, at) - DELTA, 1e-6, 100.0, args=(pair,))
        for pair in ((lit, dark), (dark, lit))
    )
    assert exact <= found <= 1.2 * exact


@pytest.mark.parametrize("q", [0.01, 0.05, 1.0])
def test_much_light_is_a_gaussian(q: float) -> None:
    found = epsilon({frame(q, 1e10, 1e5 / 1.5, 10.0): 50}, DELTA)
    assert found == pytest.approx(epsilon({gaussian(q, 1.5): 50}, DELTA, accountant="rdp"), rel=5e-3)


def test_less_light_and_a_concentrated_change_cost_more_at_one_multiplier() -> None:
    """What a Gaussian approximation leaves out, and what a bound on a single pixel saves."""
    costs = [
        epsilon({frame(0.05, rate, math.sqrt(rate) / 2, math.sqrt(rate) / 2 * share): 50}, DELTA)
        for rate, share in ((1e8, 1.0), (1e3, 0.05), (1e3, 1.0), (10.0, 1.0))
    ]
    assert costs == sorted(costs)
    assert costs[-1] > 1.1 * costs[0]


def test_a_row_without_a_largest_change_may_change_in_one_pixel() -> None:
    plain = ReleaseEvent("poisson", "plan", 0.1, multiplier_of(500.0, 20.0), 20.0, 1)
    assert epsilon({plain: 3}, DELTA) == epsilon({frame(0.1, 500.0, 20.0): 3}, DELTA)


def test_edges_and_wrong_use() -> None:
    assert poisson_frames.epsilon({}, DELTA, Adjacency.ADD_REMOVE) == 0.0
    assert epsilon({ReleaseEvent("poisson", "plan", 0.1, 0.0, 20.0, 1): 1}, DELTA) == math.inf
    for adjacency, accountant in ((Adjacency.LABEL, "poisson-rdp"), (Adjacency.ADD_REMOVE, "pld")):
        with pytest.raises(UsageError, match="'poisson' is accounted under"):
            poisson_frames.epsilon({frame(0.1, 500.0, 20.0): 1}, DELTA, adjacency, accountant)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="photo-electrons"):
            frame(0.1, 500.0, 20.0, wrong)
    with pytest.raises(UsageError, match="photo-electrons"):
        Scheme("poisson", DELTA, largest=0.0).steps(1.0, 1)
