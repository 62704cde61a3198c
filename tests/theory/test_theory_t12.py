"""T12: digits of dark pixels are Gaussian noise times the ripples; without a condition they show the sum."""

from __future__ import annotations

import math

import pytest

from experiments.theory import t12
from noise_models.calibration.converter import epsilon_of_ripple


@pytest.mark.parametrize("weights", [(1, 3), (1, 3, 9), (1, 3, 8), (1, 4, 15)])
def test_the_density_stays_within_the_ripples(weights: tuple[int, ...]) -> None:
    sigma = 1.5
    claimed = math.prod(1 + eta for eta in t12.etas(sigma, weights)) - 1
    assert claimed / 10 < t12.measured_ripple(sigma, weights) <= claimed * (1 + 1e-9)


def test_every_digit_is_smoothed_at_least_as_the_second_is() -> None:
    """Weights up to a times the one before: V_j <= (1 + a²) V_(j-1)."""
    for weights in ((1, 3, 9, 27, 81), (1, 3, 9, 27, 80), (1, 5, 25, 3)):
        etas = t12.etas(2.0, weights)
        assert max(etas) == etas[0]


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0, 6.0])
@pytest.mark.parametrize("weights", [(1, 11), (1, 3, 33), (1, 3, 8)])
def test_charged_ripples_cover_the_digits(weights: tuple[int, ...], epsilon: float) -> None:
    found, ideal, charged = t12.loss(4.0, weights, epsilon, 40)
    assert found <= charged
    assert ideal < charged


def test_uncharged_ripples_are_exceeded() -> None:
    found, ideal, _ = t12.loss(4.0, (1, 11), 4.0, 40)
    assert found > 1.4 * ideal


def test_smoothed_digits_are_the_ideal_gaussian() -> None:
    found, ideal, _ = t12.loss(4.0, (1, 3, 8), 3.0, 27)
    assert 0.95 * ideal < found <= ideal  # the roundings' own uniform noise only helps


def test_widths_of_the_bases_period_show_the_sum_at_their_full_size() -> None:
    """THEORY: 1 %, period 3, a = 3, sigma_G = 6, k = 4: 5.4 times the divergence of one step of the sum."""
    assert t12.shown_by_widths(3, t12.POWERS) == pytest.approx(5.4, abs=0.1)


def test_a_last_weight_that_is_no_multiple_of_the_base_hides_them() -> None:
    assert t12.shown_by_widths(3, t12.SHIFTED) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("width", [2, 4, 5])
def test_an_odd_base_hides_other_periods(width: int) -> None:
    assert t12.shown_by_widths(width, t12.POWERS) == pytest.approx(1.0, abs=2e-3)


def test_an_even_base_does_not_hide_alternating_widths() -> None:
    assert t12.shown_by_widths(2, (1, 2, 4, 8, 16)) > 1.5


def test_codes_that_are_left_out_show_the_sum_whatever_the_weights_are() -> None:
    assert t12.modulo(t12.SHIFTED, 3) == pytest.approx(1.0)
    assert t12.modulo(t12.SHIFTED) < 0.01


def test_a_pixel_used_for_several_digits_is_no_digit() -> None:
    assert t12.modulo(t12.POWERS, one_pixel=True) == pytest.approx(1.0)


def test_a_lowest_digit_that_is_too_narrow_costs_thousands_a_step() -> None:
    weights = t12.digit_weights(8192.0, 4.0, 8) or ()
    assert sum(epsilon_of_ripple(eta, t12.DIMENSION) for eta in t12.etas(2.0, weights)) > 1000
    assert sum(epsilon_of_ripple(eta, t12.DIMENSION) for eta in t12.etas(4.0, weights)) < 1e-6


def test_every_digit_counts_its_clipped_mass() -> None:
    assert t12.clipped(8, 10.0) == pytest.approx(8 * t12.clipped(1, 10.0))
    assert t12.clipped(8, 4.0) == 1.0
