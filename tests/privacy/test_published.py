"""The published-style accounting (a reconstruction, THEORY T1) against the divergence it claims to be."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from noise_models.errors import UsageError
from privacy import accounting
from privacy.accounting.published import ORDERS, epsilon, renyi
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

DELTA = 1e-5


def row(noise_multiplier: float, sample_rate: float = 1.0) -> ReleaseEvent:
    return ReleaseEvent("published", "per-record", sample_rate, noise_multiplier, 1.0, 1)


def published(rows: dict[ReleaseEvent, int], accountant: str = "published") -> float:
    return epsilon(rows, DELTA, Adjacency.ADD_REMOVE, accountant)


def by_integration(q: float, z: float, order: int) -> float:
    """D_α((1-q) N(0, z²) + q N(1, z²) || N(0, z²)) by a fine sum over the line."""
    grid = np.linspace(-40 * z - order, 40 * z + order, 400_001)
    below, above = norm.logpdf(grid, 0, z), norm.logpdf(grid, 1, z)
    mixed = np.logaddexp(math.log1p(-q) + below, math.log(q) + above)
    terms = order * mixed + (1 - order) * below
    peak = terms.max()
    return float((peak + math.log(np.exp(terms - peak).sum() * (grid[1] - grid[0]))) / (order - 1))


@pytest.mark.parametrize(
    ("q", "z", "order"), [(0.01, 0.7, 2), (0.1, 1.0, 5), (0.5, 2.0, 16), (0.004, 0.6, 8)]
)
def test_one_step_against_direct_integration(q: float, z: float, order: int) -> None:
    assert renyi(q, z, order) == pytest.approx(by_integration(q, z, order), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.3, 30.0), st.integers(1, 10_000))
def test_without_subsampling_it_is_the_closed_form(z: float, steps: int) -> None:
    expected = min(steps * a / (2 * z * z) + math.log(1 / DELTA) / (a - 1) for a in ORDERS)
    assert published({row(z): steps}) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 5.0), st.floats(0.001, 0.5), st.integers(1, 2000))
def test_the_library_computes_the_same_form(z: float, q: float, steps: int) -> None:
    ours, library = published({row(z, q): steps}), published({row(z, q): steps}, "published-rdp")
    assert library == pytest.approx(ours, rel=1e-8)


def test_an_order_that_does_not_converge_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """At these values the library gives up on six of its fractional orders, and warns of each."""
    rows = {row(1.458322, 256 / 1437): 12}
    with caplog.at_level(logging.DEBUG):
        assert published(rows, "published-rdp") == pytest.approx(published(rows), rel=1e-8)
        gaussian = {accounting.gaussian(256 / 1437, 1.458322): 12}
        assert 0 < accounting.epsilon(gaussian, DELTA, accountant="rdp") < published(rows)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_steps_add_up_and_groups_join() -> None:
    joined = {row(1.0, 0.1): 7, row(2.0, 0.1): 5}
    expected = min(
        7 * renyi(0.1, 1.0, a) + 5 * renyi(0.1, 2.0, a) + math.log(1 / DELTA) / (a - 1) for a in ORDERS
    )
    assert published(joined) == expected
    assert published({}) == 0.0
    assert math.isinf(published({row(0.0): 1}))


def test_it_is_what_the_ledger_is_accounted_with() -> None:
    assert accounting.epsilon({row(1.0, 0.1): 7}, DELTA) == published({row(1.0, 0.1): 7})
    sigma = accounting.least_noise(4.0, DELTA, lambda z: {row(z, 256 / 60_000): 2340})
    assert published({row(sigma, 256 / 60_000): 2340}) == pytest.approx(4.0, rel=5e-3)
    assert 0.6 < sigma < 0.9  # a sensible noise for MNIST, batch 256, ten epochs


def test_other_neighbours_are_refused() -> None:
    with pytest.raises(UsageError, match="add-or-remove") as error:
        epsilon({row(1.0): 1}, DELTA, Adjacency.REPLACE_ONE, "published")
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="mechanism published"):
        accounting.epsilon({row(1.0): 1}, DELTA, Adjacency.LABEL)
