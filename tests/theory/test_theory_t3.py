"""T3: noise, clip, isotropic noise is dominated exactly by the subsampled Gaussian; and what breaks it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.theory import t3
from experiments.theory.gaussians import gaussian_delta
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import NumericalComposition
from privacy.notions import Adjacency


@pytest.mark.parametrize("adjacency", [Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE])
@pytest.mark.parametrize(("q", "sigma"), [(1.0, 1.0), (0.3, 1.0), (0.05, 0.7)])
def test_noise_inside_the_clip_is_dominated_by_the_subsampled_gaussian(
    q: float, sigma: float, adjacency: Adjacency
) -> None:
    assert t3.excess(q, sigma, adjacency) <= 1 + 1e-9


@pytest.mark.parametrize(("q", "sigma"), [(1.0, 1.0), (0.3, 1.0), (0.05, 0.7)])
def test_the_dominating_pair_is_attained_by_a_record_at_the_clip(q: float, sigma: float) -> None:
    # The composition rounds its losses up, by parts in a thousand of delta.
    assert t3.tightest(q, sigma) == pytest.approx(1, abs=2e-3)


def test_clipping_before_the_device_noise_breaks_it() -> None:
    assert t3.clip_before_the_noise(1.0, 1.0) > 1.4 * gaussian_delta(1.0, 1.0)
    assert t3.clip_before_the_noise(1.0, 0.02) == pytest.approx(gaussian_delta(1.0, 1.0), rel=0.01)


def test_an_automatic_gain_moves_the_others() -> None:
    assert t3.automatic_gain(20) == pytest.approx(9)


def test_replace_one_is_not_covered_by_the_pair_of_add_or_remove() -> None:
    groups = (Group(0.3, 1.0, 1),)
    found = t3.replaced(0.3, 1.0)
    assert found > 2 * NumericalComposition(groups, Adjacency.ADD_REMOVE).delta(1.0)
    assert found == pytest.approx(NumericalComposition(groups, Adjacency.REPLACE_ONE).delta(1.0), rel=2e-3)


def test_float32_clips_within_two_parts_in_a_million_and_bfloat16_does_not() -> None:
    assert t3.overshoot(torch.float32) < 2e-6
    assert t3.production_overshoot() < 2e-6
    assert 2e-3 < t3.overshoot(torch.bfloat16) < 2e-2


def test_a_bfloat16_batch_sum_moves_by_more_than_the_clip() -> None:
    assert t3.moved_sum(torch.float32, trials=20) < 1 + 1e-4
    assert t3.moved_sum(torch.bfloat16, trials=20) > 1.18


def test_a_sum_cast_down_before_its_noise_moves_by_more_than_the_clip() -> None:
    assert t3.cast_before_the_noise() > 1.2


angles = st.floats(0, 2 * math.pi)
radii = st.floats(0, 1)


@settings(max_examples=25, deadline=None)
@given(angles, radii, angles, radii, st.floats(0.01, 1), st.floats(0.5, 2), st.floats(-2, 3))
def test_no_replacement_in_the_plane_exceeds_the_opposite_pair(
    a: float, r: float, b: float, s: float, q: float, sigma: float, epsilon: float
) -> None:
    """Kahane's inequality in the proof of replace-one, for any two vectors within the clip."""
    one, other = (r * math.cos(a), r * math.sin(a)), (s * math.cos(b), s * math.sin(b))
    worst = t3.replaced_in_the_plane((1.0, 0.0), (-1.0, 0.0), q, sigma, epsilon)
    assert t3.replaced_in_the_plane(one, other, q, sigma, epsilon) <= worst + 1e-4  # of the quadrature


def test_shuffled_batches_are_not_poisson_sampling() -> None:
    assert t3.shuffled(100, 0.5, 4.0) > 100 * t3.sampled(100, 0.5, 4.0)


def test_known_coins_amplify_nothing() -> None:
    claim = NumericalComposition((Group(0.05, 1.0, 1),), Adjacency.ADD_REMOVE).delta(1.0)
    assert gaussian_delta(1.0, 1.0) > 100 * claim
