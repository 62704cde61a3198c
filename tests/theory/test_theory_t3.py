"""T3: noise, clip, isotropic noise is dominated exactly by the subsampled Gaussian; and what breaks it."""

from __future__ import annotations

import pytest
import torch

from experiments.theory import t3
from experiments.theory.gaussians import gaussian_delta
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import NumericalComposition
from privacy.adjacency import Adjacency


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
