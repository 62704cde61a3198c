"""T2: the product's Gaussian divergences against quadrature and chi-square laws, and where they are infinite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.theory import t2
from experiments.theory.gaussians import scaled_delta
from privacy.accounting.divergences import GaussianPair


@pytest.mark.parametrize("seed", [1, 2])
def test_gaussians_in_the_plane_against_quadrature(seed: int) -> None:
    pair = t2.random_pair(seed)
    for order, epsilon in ((0.5, 0.0), (1.2, 1.0)):
        renyi, hockey = t2.by_quadrature(pair, order, epsilon)
        assert t2.of(pair).renyi(order) == pytest.approx(renyi, rel=1e-6)
        assert t2.of(pair).hockey_stick(epsilon) == pytest.approx(hockey, abs=1e-4)


@pytest.mark.parametrize(("dimension", "ratio"), [(512, 1.1), (64, 0.5), (2, 4.0)])
def test_a_change_of_variance_against_the_chi_square_law(dimension: int, ratio: float) -> None:
    pair = GaussianPair(np.full(dimension, ratio), np.zeros(dimension))
    found = max(pair.hockey_stick(1.0), pair.reversed().hockey_stick(1.0))
    assert found == pytest.approx(scaled_delta(1.0, dimension, ratio), rel=1e-6, abs=1e-9)


def test_unequal_ranges_and_means_off_the_range_tell_the_worlds_apart() -> None:
    for pair in (t2.line_and_plane(), t2.mean_off_the_line()):
        assert pair.renyi(2.0) == math.inf
        assert pair.hockey_stick(10.0) == 1.0


def test_where_the_mixed_covariance_is_not_positive_the_divergence_is_infinite() -> None:
    blind, found = t2.wide_against_narrow()
    assert math.isfinite(blind)
    assert found == math.inf
    assert t2.wide_against_narrow(order=1.4)[1] < math.inf


def test_a_figure_of_one_batch_says_nothing_of_another() -> None:
    assert t2.instance(400) < 20
    assert t2.instance(12) == math.inf
