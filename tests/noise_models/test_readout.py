"""The camera: its law by two ways, its credit, and what it refuses."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noise_models.base import Frame, NoNoise, UncalibratedNoise
from noise_models.errors import UsageError
from noise_models.gaussian import GaussianNoise
from noise_models.generator import NORMAL_TAIL_MASS, NoiseGenerator
from noise_models.quantised_normal import QuantisedNormal
from noise_models.readout import CameraReadout


def exact_law(mean: float, std: float, top: int) -> np.ndarray:
    """P(code) by scipy's normal distribution, from the nearer tail."""
    edges = (np.arange(top) + 0.5 - mean) / std
    below, above = stats.norm.cdf(edges), stats.norm.sf(edges)
    left = np.diff(np.concatenate(([0.0], below, [1.0])))
    right = -np.diff(np.concatenate(([1.0], above, [0.0])))
    return np.where(np.arange(top + 1) < mean, left, right)


def chi_square(codes: np.ndarray, law: np.ndarray) -> float:
    """P-value of the codes' counts, rare codes pooled."""
    counts = np.bincount(codes, minlength=len(law))
    common = law * len(codes) >= 10
    seen = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common], law[~common].sum()) * len(codes)
    if expected[-1] < 10:  # the pool itself is rare: its excess is tested by the caller's range check
        seen, expected = seen[:-1], expected[:-1] * seen[:-1].sum() / expected[:-1].sum()
    return float(stats.chisquare(seen, expected).pvalue)


@pytest.mark.parametrize(
    ("mean", "std", "top"),
    [
        (64.0, 4.08, 255),
        (64.3, 4.08, 255),
        (8.0, 0.13, 255),
        (2000.25, 65.0, 4095),
        (3.0, 2.5, 7),
        (0.2, 1.0, 1),
    ],
)
def test_quantised_normal_law(mean: float, std: float, top: int) -> None:
    law = QuantisedNormal(mean, std, top)
    exact = exact_law(mean, std, top)
    np.testing.assert_allclose(law.probabilities(), exact, rtol=1e-9, atol=2.0**-52)
    # Chi-square on 10^6 draws: false alarm 1e-6.
    codes = law.sample(1_000_000, NoiseGenerator.seeded(1, "law"))
    assert codes.max() <= top
    assert chi_square(codes, exact) > 1e-6


def test_quantised_normal_thresholds_are_correct_to_the_last_bit() -> None:
    law = QuantisedNormal(64.0, 4.08, 255)
    with mpmath.workdps(60):
        for code in range(1, 256):
            exact = mpmath.nint(2**64 * mpmath.ncdf((code - mpmath.mpf("0.5") - 64) / mpmath.mpf(4.08)))
            drawn = int(law._below[code - 1]) if code <= len(law._below) else 2**64
            assert drawn == int(exact), code
    assert 0 < law.error < 1e-17


def test_quantised_normal_uses_the_bits_that_the_table_leaves_undecided() -> None:
    # The reference searches the whole 64-bit word of every pixel, assembled from the same stream.
    law = QuantisedNormal(64.0, 4.08, 255)
    n = 20_001
    codes = law.sample(n, NoiseGenerator.seeded(2, "law"))
    stream = NoiseGenerator.seeded(2, "law")
    upper = stream.uint64((n + 3) // 4).view(np.uint16)[:n].astype(np.uint64) << np.uint64(48)
    undecided = np.searchsorted(law._below, upper, "right") != np.searchsorted(
        law._below, upper | np.uint64(2**48 - 1), "right"
    )
    assert 0 < undecided.sum() < n / 100
    upper[undecided] |= stream.uint64(int(undecided.sum())) >> np.uint64(16)
    assert (codes == np.searchsorted(law._below, upper, "right")).all()


def test_dark_codes_and_sampled_dark_frames_have_one_law() -> None:
    # Chi-square of each against the exact law, 10^6 pixels: false alarm 2e-6.
    camera = CameraReadout()
    law = exact_law(64.0, 4.08, 255)
    fast = camera.dark_codes(1_000_000, NoiseGenerator.seeded(3, "dark"))
    slow = camera.sample(torch.zeros(1_000_000), NoiseGenerator.seeded(4, "dark"), Frame.DARK)
    assert fast.dtype == torch.uint8
    assert chi_square(fast.numpy(), law) > 1e-6
    assert chi_square(slow.int().numpy(), law) > 1e-6


@settings(deadline=None, max_examples=25)
@given(signal=st.floats(-110, 110), read_noise=st.floats(1, 60), seed=st.integers(0, 10**6))
def test_data_frame_moments(signal: float, read_noise: float, seed: int) -> None:
    # Mean and variance at 6 sigma where no end is near: false alarm 1e-7 over 25 examples. Rounding biases
    # them by less than exp(-2 pi^2 std^2) of a code; below 0.4 DN the test allows for it.
    camera = CameraReadout(read_noise_electrons=read_noise, dark_gain=0.0)
    std = camera.std(Frame.DATA)
    n = 20_000
    x = camera.sample(
        torch.full((n,), signal, dtype=torch.float64), NoiseGenerator.seeded(seed, "data"), Frame.DATA
    )
    bias = float(np.exp(-2 * np.pi**2 * std**2))
    variance = float(camera.variance(torch.zeros(1), Frame.DATA))
    assert variance == pytest.approx(std**2 + 1 / 12)
    assert abs(float(x.mean()) - 128 - signal) < 6 * np.sqrt(variance / n) + bias
    assert abs(float(x.var()) - variance) < 6 * variance * np.sqrt(3 / n) + 2 * bias


def test_saturation_and_non_finite_signals() -> None:
    camera = CameraReadout()
    signal = torch.tensor([1e9, -1e9, torch.inf, -torch.inf, torch.nan, 0.0])
    codes = camera.sample(signal, NoiseGenerator.seeded(1, "data"), Frame.DATA)
    assert codes[:4].tolist() == [255, 0, 255, 0]
    assert bool(codes[4].isnan())
    assert 126 <= float(codes[5]) <= 130
    assert signal[5] == 0.0


def test_clipped_probability_is_right_in_the_far_tail() -> None:
    camera = CameraReadout()
    with mpmath.workdps(50):
        std = mpmath.mpf(camera.std(Frame.DARK))
        exact = mpmath.ncdf(-mpmath.mpf("64.5") / std) + mpmath.ncdf(-mpmath.mpf("191.5") / std)
    assert camera.clipped_probability() == pytest.approx(float(exact), rel=1e-10)
    assert 1e-57 < camera.clipped_probability() < 1e-55


def test_credit() -> None:
    camera = CameraReadout()
    dark = camera.credit(Frame.DARK)
    assert dark.std == pytest.approx(5 * 32 * 255 / 10_000)
    assert (dark.step, dark.beta) == (1.0, 0.0)
    assert camera.clipped_probability() < dark.clipped_mass < 1e-17
    assert any("ideal" in text and "raw codes" in text for text in dark.assumptions)
    assert any("Gaussian" in text for text in dark.assumptions)
    data = camera.credit(Frame.DATA)
    assert data.std == 0.0
    assert "T3" in data.argument
    silent = CameraReadout(read_noise_electrons=0.0)
    assert silent.credit(Frame.DARK).std == 0.0
    with pytest.raises(UsageError):
        silent.dark_codes(5, NoiseGenerator.seeded(1, "dark"))


def test_more_bits() -> None:
    camera = CameraReadout(bits=12, data_gain=4095 / 10_000, dark_gain=4.0, data_black=2048, dark_black=512)
    codes = camera.dark_codes(100_000, NoiseGenerator.seeded(5, "dark"))
    assert codes.dtype == torch.int32
    # Variance at 6 sigma: false alarm 2e-9.
    expected = 400 + 1 / 12
    assert float(codes.double().var()) == pytest.approx(expected, rel=6 * np.sqrt(2 / 100_000))


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 1},
        {"bits": 17},
        {"bits": 8.5},
        {"read_noise_electrons": -1.0},
        {"read_noise_electrons": float("nan")},
        {"data_gain": float("inf")},
        {"dark_gain": -0.1},
        {"data_black": 256.0},
        {"dark_black": 40.0},
        {"dark_black": 215.0},
        {"dark_gain": 1.5},
    ],
)
def test_refused_cameras(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        CameraReadout(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("std", "top"), [(0.0, 255), (-1.0, 255), (float("nan"), 255), (1.0, 0), (1.0, 65536)]
)
def test_refused_laws(std: float, top: int) -> None:
    with pytest.raises(UsageError):
        QuantisedNormal(64.0, std, top)


def test_gaussian_noise() -> None:
    # Kolmogorov-Smirnov on 10^5 residuals: false alarm 1e-6.
    noise = GaussianNoise(std=0.5)
    signal = torch.linspace(-3, 3, 100_000)
    before = signal.clone()
    x = noise.sample(signal, NoiseGenerator.seeded(6, "data"), Frame.DATA)
    assert torch.equal(signal, before)
    assert stats.kstest((x - signal).numpy(), "norm", args=(0, 0.5)).pvalue > 1e-6
    assert float(noise.variance(signal, Frame.DARK)[0]) == 0.25
    credit = noise.credit(Frame.DARK)
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


def test_descriptions_name_every_parameter() -> None:
    described = CameraReadout().describe()
    assert described["data_gain_dn_per_electron"] == 255 / 10_000
    assert len(described) == 7
    assert CameraReadout(bits=9, data_black=250).describe() != described
