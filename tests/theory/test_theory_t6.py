"""T6: divergences of counts by exact sums, both directions, and the two traps of light taken for noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.theory import t6
from privacy.accounting import poisson


def test_the_poisson_formula_is_the_sum_to_nine_digits() -> None:
    assert t6.largest_error() < 1e-9


@pytest.mark.parametrize("alpha", [1.5, 2.0, 8.0])
@pytest.mark.parametrize("difference", [0.5, 3.0])
def test_the_least_rate_is_the_worst(difference: float, alpha: float) -> None:
    assert t6.worst_rate(difference, 5.0, alpha) <= 1 + 1e-9


def test_the_directions_differ() -> None:
    one, other = t6.other_direction()
    assert (one, other) == (pytest.approx(32.0), pytest.approx(6.4))


def test_balanced_detection_is_no_shift_and_the_pair_of_counts_bounds_it() -> None:
    true, shifted, pair = t6.balanced()
    assert true == pytest.approx(33.3, abs=0.05)
    assert shifted == pytest.approx(10.5, abs=0.05)
    assert pair == pytest.approx(35.56, abs=0.01)
    assert shifted < true < pair


def test_a_whole_shift_of_a_count_shows_for_certain() -> None:
    assert t6.shifted_count() == math.inf
    assert poisson.shifted_renyi(10.0, -1, 2.0) == math.inf


def test_a_changing_variance_leaks_without_any_shift() -> None:
    leading, exact = t6.changing_variance()
    assert exact == pytest.approx(leading, rel=0.01)
    # as a Gaussian mechanism of noise multiplier s: alpha / (2 s²)
    assert math.sqrt(2.0 / (2 * exact)) == pytest.approx(5.7, abs=0.05)


def test_the_skellam_mechanism_is_within_the_papers_bound() -> None:
    bound, exact = t6.skellam_mechanism()
    assert 0.9 * bound < exact <= bound


def test_random_rounding_lengthens_a_record_beyond_the_clip() -> None:
    assert t6.rounded_at_random() > 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1), min_size=2, max_size=12),
    st.floats(0.01, 0.99),
    st.floats(1.01, 16),
)
def test_with_a_reflection_removing_is_the_worse_direction_for_any_law(
    masses: list[float], q: float, alpha: float
) -> None:
    law = np.array(masses) / sum(masses)
    adding, removing = t6.sampled_directions(law, q, alpha)
    assert adding <= removing * (1 + 1e-9) + 1e-12
