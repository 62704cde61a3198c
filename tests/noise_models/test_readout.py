"""Gaussian noise, the ideal converter, and readouts without noise or knowledge of it."""

from __future__ import annotations

import json

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from noise_models.base import Frame, NoNoise, UncalibratedNoise
from noise_models.errors import UsageError
from noise_models.gaussian import GaussianNoise
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator
from noise_models.readout import IdealConverter


def test_gaussian_noise() -> None:
    # Kolmogorov-Smirnov on 10^5 residuals: false alarm 1e-6.
    noise = GaussianNoise(std=0.5)
    signal = torch.linspace(-3, 3, 100_000)
    before = signal.clone()
    x = noise.sample(signal, NoiseGenerator.seeded(6, "data"), Frame.DATA)
    assert torch.equal(signal, before)
    assert stats.kstest((x - signal).numpy(), "norm", args=(0, 0.5)).pvalue > 1e-6
    assert float(noise.variance(signal, Frame.DARK)[0]) == 0.25
    for frame in Frame:
        credit = noise.credit(frame)
        assert (credit.std, credit.step, credit.clipped_mass) == (0.5, 0.0, NORMAL_TAIL_MASS)
    assert noise.describe() == {"model": "gaussian", "std_dn": 0.5}
    with pytest.raises(UsageError):
        GaussianNoise(std=-1.0)


def test_noise_that_is_absent_or_unknown_earns_nothing() -> None:
    signal = torch.ones(3)
    assert NoNoise().sample(signal, NoiseGenerator.seeded(1, "x"), Frame.DATA) is signal
    for model in (NoNoise(), UncalibratedNoise()):
        assert model.credit(Frame.DARK).std == model.credit(Frame.DATA).std == 0.0
    with pytest.raises(UsageError, match="calibrated"):
        UncalibratedNoise().sample(signal, NoiseGenerator.seeded(1, "x"), Frame.DATA)


@given(st.floats(-300, 500), st.integers(2, 16), st.floats(0, 1))
def test_converter_rounds_and_saturates(signal: float, bits: int, black: float) -> None:
    converter = IdealConverter(bits, black * (2**bits - 1))
    generator = NoiseGenerator.seeded(1, "unused")
    level = torch.tensor([signal], dtype=torch.float64)
    code = float(converter.sample(level, generator, Frame.DATA))
    assert code == int(code)
    assert 0 <= code <= converter.top
    analog = signal + converter.black
    assert abs(code - min(max(analog, 0.0), converter.top)) <= 0.5
    assert float(level) == signal
    assert generator.position == 0


def test_rounding_error_has_a_twelfth_of_variance() -> None:
    # A signal that is uniform over 100 codes: mean square of 10^6 errors at 5 sigma, false alarm 6e-7.
    converter = IdealConverter(8, 0.0)
    n = 1_000_000
    signal = 50 + 100 * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = converter.sample(signal, NoiseGenerator.seeded(1, "unused"), Frame.DATA) - signal
    # The fourth moment of a uniform error is 1/80, so its square varies by 1/80 - 1/144.
    spread = ((1 / 80 - 1 / 144) / n) ** 0.5
    assert abs(float(error.square().mean()) - 1 / 12) < 5 * spread
    assert float(converter.variance(signal, Frame.DATA)[0]) == pytest.approx(1 / 12)


def test_converter_earns_nothing_and_knows_its_tails() -> None:
    converter = IdealConverter(8, 64.0)
    assert converter.credit(Frame.DARK).std == converter.credit(Frame.DATA).std == 0.0
    with mpmath.workdps(50):
        exact = mpmath.ncdf(-mpmath.mpf("64.5") / 4) + mpmath.ncdf(-mpmath.mpf("191.5") / 4)
    assert converter.clipped_probability(4.0) == pytest.approx(float(exact), rel=1e-10)
    assert converter.clipped_probability(0.0) == 0.0
    assert json.loads(json.dumps(converter.describe()))["black_dn"] == 64.0
    assert bool(
        converter.sample(torch.tensor([torch.nan]), NoiseGenerator.seeded(1, "x"), Frame.DATA).isnan()
    )


@pytest.mark.parametrize(("bits", "black"), [(1, 0.0), (17, 0.0), (8.5, 0.0), (8, -1.0), (8, 256.0)])
def test_refused_converters(bits: float, black: float) -> None:
    with pytest.raises(UsageError) as caught:
        IdealConverter(bits, black)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
