"""Noise from several dark pixels a coordinate: its law by exact probabilities, its weights, cost and refusals (T12)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from test_release_dark_frame import CAMERA, PIXELS, SIGMA, Camera
from torch import Tensor

from noise_models.base import Frame, NoiseModel
from noise_models.calibration.converter import dither_ripple
from noise_models.calibration.document import Calibration, Interval
from noise_models.camera import PhysicalCamera
from noise_models.errors import DeviceError, UsageError
from noise_models.health.monitor import RELEASED_FALSE_ALARM
from noise_models.randomness.generator import NoiseGenerator
from privacy.releases.dark_digits import DarkFrameDigits, digit_weights, largest_base
from privacy.releases.dark_frame import DarkFrameNoise

STD = 30_000.0  # in grid steps
DIGITS = 10


def source(camera: Camera | None = None, digits: object = DIGITS, seed: int = 1) -> DarkFrameDigits:
    made = DarkFrameDigits(camera or Camera(), NoiseGenerator.seeded(seed, "places"), digits)
    made.start_up()
    return made


# ---- the law


def ripples(sigma: float, weights: tuple[int, ...]) -> tuple[float, float]:
    """prod (1 - eta_j) and prod (1 + eta_j)."""
    etas = [
        dither_ripple(sigma, sigma * math.hypot(*weights[:j]) / weights[j]) for j in range(1, len(weights))
    ]
    return math.prod(1 - eta for eta in etas), math.prod(1 + eta for eta in etas)


def exact_density(y: float, sigma: float, weights: tuple[int, ...], means: tuple[float, ...]) -> float:
    """Of n_0 + sum_(j>0) w_j Q(n_j) at y: a sum over all codes of the higher digits."""
    centre, mass = np.array([means[0]]), np.ones(1)
    for weight, mean in zip(weights[1:], means[1:], strict=True):
        codes = np.arange(math.floor(mean - 9 * sigma), math.ceil(mean + 9 * sigma) + 1)
        law = np.diff(special.ndtr((np.append(codes, codes[-1] + 1) - 0.5 - mean) / sigma))
        centre = np.add.outer(centre, weight * codes).ravel()
        mass = np.multiply.outer(mass, law).ravel()
    return float(mass @ np.exp(-(((y - centre) / sigma) ** 2) / 2)) / (sigma * math.sqrt(2 * math.pi))


def ideal_density(y: float, sigma: float, weights: tuple[int, ...], means: tuple[float, ...]) -> float:
    """N(sum w_j mean_j, sigma² sum w_j²) with uniform laws of widths w_1, w_2, ... added, by quadrature."""
    nodes, share = np.polynomial.legendre.leggauss(24)
    shift, mass = np.zeros(1), np.ones(1)
    for weight in weights[1:]:
        shift = np.add.outer(shift, weight * nodes / 2).ravel()
        mass = np.multiply.outer(mass, share / 2).ravel()
    std, mean = sigma * math.hypot(*weights), float(np.dot(weights, means))
    return float(mass @ stats.norm.pdf(y, mean + shift, std))


@pytest.mark.parametrize(
    ("sigma", "weights"),
    [
        (1.0, (1, 2)), (1.5, (1, 3)), (2.0, (1, 3, 9)), (1.5, (1, 3, 8)), (1.0, (1, 2, 3)), (2.5, (1, 5, 23)),
        (1.2, (1, 2, 4, 7)),
    ],
)  # fmt: skip
def test_density_is_the_stated_law_within_its_ripples(sigma: float, weights: tuple[int, ...]) -> None:
    """At means at whole, half and odd places, and from the middle to the tail; the bound is not idle either."""
    low, high = ripples(sigma, weights)
    worst = 0.0
    for place in (0.0, 0.5, 0.25, 0.37):
        for first in (0.0, 0.5):
            means = (first, *(place for _ in weights[1:]))
            std = sigma * math.hypot(*weights)
            for z in (0.0, 0.3, -1.1, 3.0):
                for step in (0.0, weights[1] / 4, weights[1] / 2):
                    y = float(np.dot(weights, means)) + z * std + step
                    ratio = exact_density(y, sigma, weights, means) / ideal_density(y, sigma, weights, means)
                    assert low * (1 - 1e-10) <= ratio <= high * (1 + 1e-10)
                    worst = max(worst, abs(ratio - 1))
    assert worst > (high - 1) / 10


def test_known_ripple_to_thirty_digits() -> None:
    """sigma_G = 4, a = 3: eta_1 = 3.8e-14, bounds the exact density of two digits and is attained."""
    eta = dither_ripple(4.0, 4.0 / 3)
    assert eta == pytest.approx(3.8e-14, rel=0.02)
    worst = mpmath.mpf(0)
    with mpmath.workdps(30):
        half, std = mpmath.mpf(1) / 2, 4 * mpmath.sqrt(10)
        for mean in (mpmath.mpf(0), half / 2, half):
            edges = [mpmath.ncdf((k - half - mean) / 4) for k in range(-50, 52)]
            for y in (3 * mean, 3 * mean + half, 3 * mean + 3 * half):
                found = mpmath.fsum(
                    (edges[k + 51] - edges[k + 50]) * mpmath.npdf(y - 3 * k, 0, 4) for k in range(-50, 51)
                )
                edge = (y - 3 * mean) / std
                ideal = (mpmath.ncdf(edge + 3 * half / std) - mpmath.ncdf(edge - 3 * half / std)) / 3
                worst = max(worst, abs(found / ideal - 1))
        assert eta / 10 < worst <= eta * (1 + mpmath.mpf("1e-6"))


# ---- the weights


@given(std=st.floats(20.0, 3e6), sigma=st.floats(3.95, 40.0), digits=st.integers(2, 12))
def test_weights_reach_the_noise_and_hardly_more(std: float, sigma: float, digits: int) -> None:
    weights = digit_weights(std, sigma, digits)
    ranges = [
        (math.hypot(*(b**j for j in range(digits - 1))), math.hypot(*(b**j for j in range(digits))))
        for b in range(3, largest_base(sigma) + 1, 2)
    ]
    inside = [low * (1 + 1e-9) < std / sigma <= high * (1 - 1e-12) for low, high in ranges]
    if weights is None:
        assert not any(inside) or std / sigma > 0.9 * ranges[inside.index(True)][1]
        return
    base = weights[1] if digits > 2 else None
    assert len(weights) == digits
    if base is not None:
        assert base % 2 == 1
        assert weights[:-1] == tuple(base**j for j in range(digits - 1))
        assert weights[-1] % base
        assert base <= largest_base(sigma)
    assert sigma * math.hypot(*weights) >= std
    assert sigma * math.hypot(*weights[:-1], max(0, weights[-1] - 2)) < std * (1 + 1e-12)
    etas = [
        dither_ripple(sigma, sigma * math.hypot(*weights[:j]) / weights[j]) for j in range(1, len(weights))
    ]
    assert max(etas) <= 1e-13 * (1 + 1e-9)


def test_known_budgets() -> None:
    """THEORY: sigma D = 8192 takes 8 digits of base 3 at 4 steps, 5 of base 7 at 10 steps."""
    assert digit_weights(8192.0, 4.0, 8) == (1, 3, 9, 27, 81, 243, 729, 1897)
    assert digit_weights(8192.0, 4.0, 7) is None
    assert (digit_weights(8192.0, 10.0, 5) or ())[:4] == (1, 7, 49, 343)
    assert (largest_base(4.0), largest_base(10.0)) == (3, 7)


# ---- what is added


@pytest.fixture(scope="module")
def drawn() -> npt.NDArray[np.float64]:
    out = torch.zeros(4 * PIXELS, dtype=torch.int32)
    source().add_noise(out, STD)
    return out.double().numpy()


def test_noise_has_the_stated_law(drawn: npt.NDArray[np.float64]) -> None:
    """Variance of all digits and their roundings, to 6 standard errors; a normal law by KS at 1e-6, mean near 0."""
    weights = digit_weights(STD, SIGMA, DIGITS)
    assert weights is not None
    std = math.hypot(*weights) * math.sqrt(SIGMA**2 + 1 / 12)
    assert drawn.var() / std**2 == pytest.approx(1.0, abs=6 * math.sqrt(2 / len(drawn)))
    assert drawn.var() > STD**2 * (1 - 6 * math.sqrt(2 / len(drawn)))
    assert abs(drawn.mean()) < 6 * std * (1 / math.sqrt(len(drawn)) + 1.5 / math.sqrt(1 << 20))
    assert stats.kstest((drawn - drawn.mean()) / std, "norm").pvalue > 1e-6


@pytest.mark.parametrize("modulus", [2, 3, 9, 27, 40])
def test_the_sum_shows_modulo_no_small_number(drawn: npt.NDArray[np.float64], modulus: int) -> None:
    """Residues of S + Z, S a constant, are uniform: chi-square, false alarm 1e-6 each."""
    residues = np.mod(drawn, modulus).astype(int)
    assert stats.chisquare(np.bincount(residues, minlength=modulus)).pvalue > 1e-6


@pytest.mark.parametrize("dimension", [7, PIXELS // 4, PIXELS + 13])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_noise_is_fresh_pixels_weighted_and_nothing_else(dimension: int, dtype: torch.dtype) -> None:
    """Recomputed to the last bit from the frames that the camera gave: k pixels a coordinate, none of them twice."""
    camera, total = Camera(), torch.arange(dimension, dtype=dtype) - 5
    made = source(camera, seed=3)
    start_up = len(camera.taken)
    before = total.clone()
    made.add_noise(total, STD)
    frames = camera.taken[start_up:]
    assert [frame.shape for frame in frames] == [(1, PIXELS)] * math.ceil(DIGITS * dimension / PIXELS)
    places = NoiseGenerator.seeded(3, "places")
    turned = [torch.roll(frame[0].long(), -(int(places.uint64(1)[0]) % PIXELS)) for frame in frames]
    codes = torch.cat(turned)[: DIGITS * dimension].view(DIGITS, dimension)
    weights = digit_weights(STD, SIGMA, DIGITS)
    assert weights is not None
    expected = (codes * torch.tensor(weights).unsqueeze(1)).sum(0)
    found = (total - before).long()
    constant = expected - found
    assert len(torch.unique(constant)) == 1
    assert abs(float(constant[0]) - sum(weights) * made.offset) <= 1


def test_coordinates_are_independent(drawn: npt.NDArray[np.float64]) -> None:
    z = drawn.reshape(4, PIXELS)
    assert np.abs(np.corrcoef(z) - np.eye(4)).max() < 5 / math.sqrt(PIXELS)
    for lag in (1, 2, 256):
        assert abs(np.corrcoef(drawn[lag:], drawn[:-lag])[0, 1]) < 5 / math.sqrt(len(drawn))


def test_the_device_supplies_all_of_it_and_no_generator() -> None:
    made = source()
    assert made.device_share == 1.0
    assert [generator.name for generator in made.generators] == ["device"]
    with pytest.raises(UsageError, match="call start_up first"):
        DarkFrameDigits(Camera(), NoiseGenerator.seeded(0, "places"), 10).add_noise(torch.zeros(5), STD)


def test_both_ways_say_which_theorem_they_take_and_why() -> None:
    digits, dither = source(), DarkFrameNoise(Camera(), NoiseGenerator.seeded(0, "dither"))
    digits.prepare(STD)
    assert digits.describe()["theorem"] == "T12"
    assert "digits=10" in digits.describe()["why"]
    assert digits.describe()["weights"] == list(digit_weights(STD, SIGMA, 10) or ())
    assert digits.describe()["noise_std_grid_steps"] >= STD
    assert dither.describe()["theorem"] == "T4"
    assert "no release option digits" in dither.describe()["why"]
    assert any("no digital noise" in text for text in digits.assumptions)
    assert not any("dither" in text for text in digits.assumptions)


def test_cost_is_what_t12_says() -> None:
    made, dimension = source(), 670_000
    cost, eta = made.cost(dimension), 2 * math.exp(-2 * math.pi**2 * SIGMA**2 / 10)
    assert cost.log_ratio == pytest.approx(dimension * 9 * 2 * eta, rel=1e-6)
    assert cost.log_inflation == pytest.approx(dimension * 9 * eta, rel=1e-6)
    frames = math.ceil(10 * dimension / PIXELS)
    assert cost.mass == pytest.approx(
        10 * dimension * CAMERA.credit(Frame.DARK).clipped_mass + frames * RELEASED_FALSE_ALARM, rel=1e-12
    )
    for std in (28_500.0, STD, 80_000.0):  # the cost is no less than what the noise's own weights ripple
        low, high = ripples(SIGMA, digit_weights(std, SIGMA, 10) or ())
        assert math.log(high) * dimension <= cost.log_inflation * (1 + 1e-9)
        assert math.log(high / low) * dimension <= cost.log_ratio * (1 + 1e-9)


# ---- refusals


class Uncertain(Camera):
    """Nobody knows its converter."""

    ideal_converter = False


def quiet(noise: float) -> NoiseModel:
    return PhysicalCamera(replace(CAMERA.camera, read_noise_electrons=noise))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: source(digits=1), "digits is 1; it must be a whole number from 2 to 16"),
        (lambda: source(digits=17), "digits is 17"),
        (lambda: source(digits="8"), "digits is '8'"),
        (lambda: source(digits=True), "digits is True"),
        (lambda: source(digits=8.0), "digits is 8.0"),
        (lambda: source(Uncertain()), "not known to be ideal"),
        (lambda: source(Camera(quiet(4.5))), "need 3.939; raise the analog gain"),
        (lambda: source(digits=8).prepare(STD), "digits=8 of base 3 make no noise of 30000 grid steps.*take digits=10"),
        (lambda: source(digits=12).prepare(STD), "digits=12 of base 3 make no.*take digits=10"),
        (lambda: source(digits=2).prepare(1.0), "make no noise of 1 grid steps.* steps; leave digits out"),
        (lambda: source(digits=16).prepare(1e9), "make no noise of 1e\\+09 grid steps.* steps; leave digits out"),
        (lambda: source(digits=8).add_noise(torch.zeros(3, dtype=torch.int32), STD), "digits=8 of base 3 make no"),
    ],
)  # fmt: skip
def test_what_it_cannot_serve_is_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


class Thirds(Camera):
    """Hands out every third code, which shows the sum modulo 3 whatever the weights are."""

    def codes(self, n: int) -> Tensor:
        return super().codes(n) // 3 * 3


def test_a_converter_that_leaves_codes_out_does_not_start() -> None:
    with pytest.raises(DeviceError, match="nothing more is released"):
        source(Thirds())


def with_widths(calibration: Calibration, widths: Interval | None, share: float = 1.0) -> DarkFrameDigits:
    parameters = {name: value for name, value in calibration.parameters.items() if name != "dnl_codes"}
    if widths is not None:
        parameters["dnl_codes"] = widths
    document = replace(
        calibration, parameters=parameters, credit_lower_dn=share * calibration.credit_lower_dn
    )
    return DarkFrameDigits(Camera(), NoiseGenerator.seeded(0, "places"), 10, document)


def test_a_calibration_has_to_show_an_even_converter_and_enough_noise(calibration: Calibration) -> None:
    loud = replace(
        calibration, credit_dn=1.2 * calibration.credit_dn, credit_lower_dn=1.2 * calibration.credit_dn
    )
    assert with_widths(loud, Interval(1e-3, 0.0, 2e-3)).sigma > 4.0
    for widths, said in (
        (Interval(4e-3, 3e-3, 5e-3), "off by 0.003 or more"),
        (None, "not in the calibration"),
    ):
        with pytest.raises(UsageError, match=f"code widths.*{said}.*--release device-entropy"):
            with_widths(loud, widths)
    with pytest.raises(UsageError, match=r"digits of base 3 need 3\.939"):
        with_widths(loud, Interval(1e-3, 0.0, 2e-3), share=0.7)
