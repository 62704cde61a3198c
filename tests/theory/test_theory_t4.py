"""T4: dithered dark frames are Gaussian times 1 ± eta; without one of the conditions they protect nothing."""

from __future__ import annotations

import pytest

from experiments.theory import t4
from experiments.theory.gaussians import gaussian_delta
from noise_models.calibration.converter import dither_ripple, epsilon_of_ripple


@pytest.mark.parametrize(("sigma", "tau", "eta"), [(4.0, 1.5, 2.5e-17), (4.0, 0.5, 0.016)])
def test_the_ripple_is_the_formulas_to_forty_digits(sigma: float, tau: float, eta: float) -> None:
    found = t4.measured_ripple(sigma, tau)
    assert 0.9 * dither_ripple(sigma, tau) < found <= dither_ripple(sigma, tau) * (1 + 1e-9)
    assert found == pytest.approx(eta, rel=0.05)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 6.0])
def test_a_charged_ripple_covers_the_dithered_noise(epsilon: float) -> None:
    found, ideal, charged = t4.loss(4.0, 0.35, epsilon, 0.75)
    assert found <= charged
    assert ideal < charged


def test_an_uncharged_ripple_is_exceeded() -> None:
    found, ideal, _ = t4.loss(4.0, 0.35, 6.0, 0.75)
    assert found > 1.2 * ideal


def test_a_wide_dither_is_the_ideal_gaussian() -> None:
    found, ideal, _ = t4.loss(4.0, 1.5, 3.0, 0.75)
    assert found <= ideal  # the rounding's own uniform noise only helps
    assert found > 0.97 * ideal


def test_without_dither_the_sum_modulo_the_step_tells_the_worlds_apart_at_any_noise() -> None:
    assert t4.modulo_the_step(100.0) == 1.0


def test_a_predicted_dither_is_none() -> None:
    assert t4.known_dither() == 1.0


def test_a_frame_used_twice_cancels() -> None:
    assert t4.reused_frame() == 1.0


def test_rounding_the_sum_to_the_lattice_costs_root_dimension() -> None:
    assert 40 < t4.rounded_sum(t4.DIMENSION, 0.05) <= 1 + t4.DIMENSION**0.5 * 0.05


@pytest.mark.parametrize(("period", "least", "most"), [(2, 1.4, 2.6), (4, 750, 3000), (8, 4200, 16800)])
def test_uneven_codes_cost_a_loss_of_this_order(period: int, least: float, most: float) -> None:
    """1 % at sigma_G = 4, tau = 1.5: about 2, 1500 and 8400; the pattern's shape decides within a factor of 2."""
    assert least < t4.uneven(period) < most


def test_a_digital_gain_of_two_costs_159_a_step() -> None:
    assert t4.gain_of_two() == pytest.approx(159, abs=0.5)
    assert epsilon_of_ripple(dither_ripple(4.0, 1.5), t4.DIMENSION) < 1e-9


def test_a_low_black_level_spends_the_whole_delta() -> None:
    assert t4.black_level(10.0) < 1e-15
    assert t4.black_level(4.0) == 1.0


@pytest.mark.parametrize("cut", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_noise_that_is_released_only_if_it_looks_healthy_is_covered_by_the_charge(
    cut: float, epsilon: float
) -> None:
    found, bound = t4.released_if_small(cut, epsilon)
    assert found <= bound


def test_noise_that_is_tested_itself_costs_delta() -> None:
    found, _ = t4.released_if_small(3.0, 2.0)
    assert found > 1.3 * gaussian_delta(2.0, 1.0)


def test_noise_common_to_many_pixels_hides_no_contrast_of_them() -> None:
    whole, contrast = t4.common_noise()
    assert contrast == pytest.approx(1 / 3)  # the pixels' own part alone: the least eigenvalue
    assert contrast > 1.4 * whole
