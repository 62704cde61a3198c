"""The camera: each stage against its closed form, its credit, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import chi_square, rounded_normal
from scipy import stats

from noise_models.base import Frame
from noise_models.camera import CAMERAS, DEFAULT_CAMERA, Camera, PhysicalCamera, named_camera
from noise_models.errors import DeviceError, UsageError
from noise_models.gaussian import GaussianNoise
from noise_models.randomness.chunks import CHUNK
from noise_models.randomness.generator import NoiseGenerator

SHEET = named_camera(DEFAULT_CAMERA)
IDEAL = SHEET.ideal()
# One DN an electron and nothing but the stage under test.
PLAIN = Camera(
    name="plain", full_well_electrons=65_535.0, read_noise_electrons=0.0,
    dark_current_electrons_per_second=0.0, prnu=0.0, dsnu_electrons=0.0, bits=16, dark_amplification=1.0,
    data_black_dn=0.0, dark_black_dn=100.0, data_exposure_seconds=1.0, dark_exposure_seconds=1.0,
)  # fmt: skip


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def seeded(name: str) -> NoiseGenerator:
    return NoiseGenerator.seeded(1, name)


def code_law(camera: Camera, electrons: float, frame: Frame) -> np.ndarray:
    """P(code) of a pixel without patterns: rounded normals mixed over Poisson counts, by scipy alone."""
    gain, black = camera.gain(frame), camera.black(frame)
    mean = electrons + camera.dark_electrons(frame)
    least, most = (int(stats.poisson.ppf(p, mean)) for p in (1e-12, 1 - 1e-12))
    law = np.zeros(camera.top + 1)
    for count in range(least, most + 1):
        level = black + gain * min(count, camera.full_well_electrons)
        law += stats.poisson.pmf(count, mean) * rounded_normal(level, camera.read_noise_dn(frame), camera.top)
    return law


@pytest.mark.parametrize("name", CAMERAS)
def test_named_cameras_are_worth_having(name: str) -> None:
    camera = CAMERAS[name]
    assert camera.name == name
    # Full well at the last code, dark noise that T4's dither of 1.5 codes completes.
    top = camera.data_black_dn + camera.data_gain_dn_per_electron * camera.full_well_electrons
    assert top == pytest.approx(camera.top)
    assert 2.5 < camera.read_noise_dn(Frame.DARK) < camera.top / 40
    assert camera.frame_rate_hz * camera.data_exposure_seconds <= 1
    credit = PhysicalCamera(camera).credit(Frame.DARK)
    assert credit.std == pytest.approx(camera.read_noise_electrons * camera.dark_gain_dn_per_electron)
    assert credit.clipped_mass < 1e-17


@pytest.mark.parametrize(
    ("camera", "electrons", "frame"),
    [
        (IDEAL, 0.0, Frame.DARK),
        (IDEAL, 0.0, Frame.DATA),
        (IDEAL, 3.7, Frame.DATA),
        (IDEAL, 2500.0, Frame.DATA),
        (IDEAL, 100.0, Frame.DARK),
        (IDEAL, 9_950.0, Frame.DATA),  # at the full well
        (replace(IDEAL, dark_current_electrons_per_second=3e4), 20.0, Frame.DATA),
        (CAMERAS["scientific-cmos"].ideal(), 40.0, Frame.DATA),
    ],
)
def test_law_of_a_code(camera: Camera, electrons: float, frame: Frame) -> None:
    # Chi-square on 4·10^5 codes: false alarm 1e-6.
    signal = torch.full((8, 50_000), electrons)
    codes = PhysicalCamera(camera).sample(signal, seeded(f"{electrons} {frame}"), frame)
    assert codes.dtype == torch.float32
    assert chi_square(codes, code_law(camera, electrons, frame)) > 1e-6
    assert float(signal[0, 0]) == np.float32(electrons)


@settings(deadline=None, max_examples=25)
@given(
    electrons=st.floats(0, 6000),
    read_noise=st.floats(2, 60),
    factor=st.floats(0.9, 1.1),
    seed=st.integers(0, 10**6),
)
def test_moments(electrons: float, read_noise: float, factor: float, seed: int) -> None:
    # Mean and variance at 6 sigma, 25 examples: false alarm 1e-7. A 16-bit converter and 1.8 DN of read noise or
    # more, so that rounding is uniform to 1e-20: whole electrons alone would round to a pattern of their own.
    camera = PhysicalCamera(
        replace(PLAIN, read_noise_electrons=read_noise, dark_black_dn=700.0, data_black_dn=700.0),
        drift_limit=0.1,
    )
    camera.gain_factor = factor
    n = 20_000
    signal = torch.full((n,), electrons)
    x = camera.sample(signal, NoiseGenerator.seeded(seed, "data"), Frame.DATA).double()
    gain = factor * camera.camera.data_gain_dn_per_electron
    variance = float(camera.variance(signal.double(), Frame.DATA)[0])
    assert variance == pytest.approx(gain**2 * (electrons + read_noise**2) + 1 / 12)
    assert abs(float(x.mean()) - 700 - gain * electrons) < 6 * np.sqrt(variance / n) + 1e-3
    assert abs(float(x.var()) - variance) < 6 * np.sqrt((2 * variance**2 + gain**4 * electrons) / n) + 1e-3


@pytest.mark.parametrize("camera", [SHEET, IDEAL, CAMERAS["industrial"]])
@pytest.mark.parametrize("factor", [1.0, 0.97])
def test_dark_codes_and_dark_samples_have_one_law(camera: Camera, factor: float) -> None:
    # Two-sample chi-square on 10^6 pixels, and level of the mean frame at 5 sigma: false alarm 4e-6. The shift
    # of a dark code is resolved to 1/16 DN.
    device = PhysicalCamera(replace(camera, rows=64, columns=64), serial=3, drift_limit=0.1)
    device.gain_factor = factor
    frames = 250
    fast = device.dark_codes(frames, seeded("fast"))
    slow = device.sample(torch.zeros(frames, 4096), seeded("slow"), Frame.DARK)
    assert fast.dtype == (torch.uint8 if camera.bits == 8 else torch.int32)
    assert fast.shape == (frames, 4096)
    counts = np.stack(
        [np.bincount(x.int().flatten().numpy(), minlength=camera.top + 1) for x in (fast, slow)]
    )
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 20]).pvalue > 1e-6
    spread = np.sqrt(2 * float(device.variance(torch.zeros(1), Frame.DARK)) / frames)
    gap = (fast.float().mean(0) - slow.mean(0)).abs().max()
    assert float(gap) < 6.5 * spread + 1 / 32


def test_ideal_dark_codes_are_exactly_rounded_normals() -> None:
    # Chi-square on 10^6 codes: false alarm 1e-6.
    device = PhysicalCamera(replace(IDEAL, rows=1000, columns=1000))
    codes = device.dark_codes(1, seeded("dark"))
    law = rounded_normal(IDEAL.dark_black_dn, IDEAL.read_noise_dn(Frame.DARK), IDEAL.top)
    assert chi_square(codes, law) > 1e-6
    assert device.dark_codes(0, seeded("dark")).shape == (0, 1_000_000)


@pytest.mark.parametrize("mean", [0.02, 0.4, 3.0])
def test_dark_current_is_poisson(mean: float) -> None:
    # Chi-square on 2·10^5 dark codes of a camera whose read noise is small beside an electron: false alarm 1e-6.
    camera = replace(
        PLAIN, read_noise_electrons=0.1, dark_current_electrons_per_second=mean, rows=200, columns=100
    )
    codes = PhysicalCamera(camera).dark_codes(10, seeded(f"thermal {mean}"))
    assert chi_square(codes, code_law(camera, 0.0, Frame.DARK)) > 1e-6
    longer = PhysicalCamera(camera).dark_codes(10, seeded("thermal"), seconds=10.0).double()
    assert float(longer.mean()) - 100 == pytest.approx(10 * mean, abs=5 * np.sqrt(10 * mean / 200_000))


def test_patterns_have_their_spread() -> None:
    # 131 072 pixels, standard deviations at 5 sigma: false alarm 2e-6. Cutting at 4 sigma loses 0.05 %.
    device = PhysicalCamera(SHEET, serial=7)
    tolerance = 5 / np.sqrt(2 * SHEET.pixels) + 1e-3
    assert device.prnu_pattern.std() == pytest.approx(0.01, rel=tolerance)
    assert device.dsnu_pattern.std() == pytest.approx(2.0, rel=tolerance)
    assert np.abs(device.dsnu_pattern).max() <= 8.0
    assert abs(np.corrcoef(device.prnu_pattern, device.dsnu_pattern)[0, 1]) < 5 / np.sqrt(SHEET.pixels)
    other = PhysicalCamera(SHEET, serial=8)
    assert abs(np.corrcoef(other.prnu_pattern, device.prnu_pattern)[0, 1]) < 5 / np.sqrt(SHEET.pixels)
    assert (PhysicalCamera(SHEET, serial=7).prnu_pattern == device.prnu_pattern).all()


def test_patterns_show_in_frames() -> None:
    # Mean of 400 frames of each pixel against its own law: 1000 pixels at 6 sigma, false alarm 2e-6.
    camera = replace(PLAIN, read_noise_electrons=3.0, prnu=0.05, dsnu_electrons=20.0, dark_black_dn=500.0)
    device = PhysicalCamera(camera, serial=2)
    signal = torch.full((400, 1000), 5000.0)
    mean = device.sample(signal, seeded("pattern"), Frame.DATA).double().mean(0).numpy()
    expected = 5000 * device.prnu_pattern[:1000].astype(float) + device.dsnu_pattern[:1000]
    assert np.abs(mean - expected).max() < 6 * np.sqrt(5000 * 1.2 / 400)
    assert mean.std() == pytest.approx(np.hypot(250, 20), rel=0.15)


def test_full_well_clips_before_read_noise() -> None:
    camera = replace(
        PLAIN, full_well_electrons=1000.0, read_noise_electrons=2.0, data_black_dn=32_768.0, dark_black_dn=5e3
    )
    codes = PhysicalCamera(camera).sample(torch.full((50_000,), 2000.0), seeded("full"), Frame.DATA).double()
    # Shot noise is gone: what is left is read noise around the largest code, cut there.
    gain = camera.data_gain_dn_per_electron
    below = camera.top - codes
    assert float((below == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    # Root mean square of the lower half of a normal: 5 sigma of 25 000 values.
    rms = float(below[below > 0].square().mean().sqrt())
    assert rms == pytest.approx(2.0 * gain, rel=5 / np.sqrt(2 * 25_000) + 0.01)


def test_extreme_signals() -> None:
    signal = torch.tensor([1e30, torch.inf, -5.0, -torch.inf, torch.nan, 100.0])
    for camera in (SHEET, replace(SHEET, dnl_lsb=0.2)):
        codes = PhysicalCamera(camera).sample(signal, seeded("extreme"), Frame.DATA)
        assert codes[:2].tolist() == [255, 255]
        assert all(7 <= code <= 9 for code in codes[2:4].tolist())
        assert codes.isnan().tolist() == [False] * 4 + [True, False]
        assert 9 <= float(codes[5]) <= 12
    assert signal[0] == np.float32(1e30)


def test_converter_with_unequal_codes() -> None:
    camera = replace(IDEAL, dnl_lsb=0.3)
    device = PhysicalCamera(camera, serial=5)
    thresholds = device.thresholds_dn
    assert thresholds is not None
    assert thresholds.shape == (camera.top,)
    assert (np.diff(thresholds) >= 0).all()
    assert thresholds[0] == 0.5
    assert thresholds[-1] == pytest.approx(camera.top - 0.5, abs=1e-4)
    # 254 widths, 5 sigma of their standard deviation: false alarm 6e-7.
    assert np.diff(thresholds).std() == pytest.approx(0.3, rel=5 / np.sqrt(2 * 254))
    # A noisy pixel's codes are as likely as their intervals are: chi-square, false alarm 1e-6.
    level, std = camera.dark_black_dn, camera.read_noise_dn(Frame.DARK)
    edges = np.concatenate(([0.0], stats.norm.cdf(thresholds.astype(float), level, std), [1.0]))
    codes = device.dark_codes(4, seeded("dnl"))
    assert codes.dtype == torch.uint8
    assert chi_square(codes, np.diff(edges)) > 1e-6
    assert chi_square(codes, rounded_normal(level, std, camera.top)) < 1e-6
    assert device.credit(Frame.DARK).std == 0.0
    assert "0.3" in device.credit(Frame.DARK).argument
    assert PhysicalCamera(IDEAL).thresholds_dn is None


@pytest.mark.parametrize("shape", [(7, 10_000), (3, CHUNK + 17), (2, 3, 500), (5,), (0, 4), (4, 0), ()])
@pytest.mark.usefixtures("any_threads")
def test_threads_do_not_change_the_codes(shape: tuple[int, ...]) -> None:
    device = PhysicalCamera(replace(SHEET, dnl_lsb=0.1))
    signal = torch.full(shape, 2500.0)
    drawn = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        drawn.append(device.sample(signal, seeded("threads"), Frame.DATA))
        assert drawn[-1].shape == shape
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_pixels_are_addressed_alike_however_frames_are_cut() -> None:
    # In the dark and without read noise a frame is the pattern itself.
    camera = replace(PLAIN, dsnu_electrons=1.0, dark_black_dn=50.0, rows=2, columns=CHUNK)
    device = PhysicalCamera(camera)
    whole = device.sample(torch.zeros(2, 2 * CHUNK), seeded("cut"), Frame.DARK)
    rows = device.sample(torch.zeros(3, 100), seeded("cut"), Frame.DARK)
    expected = np.rint(50 + device.dsnu_pattern)
    assert (whole.numpy() == expected).all()
    assert (rows.numpy() == expected[:100]).all()


def test_dark_credit_is_the_read_noise_alone() -> None:
    ideal, real = PhysicalCamera(IDEAL).credit(Frame.DARK), PhysicalCamera(SHEET).credit(Frame.DARK)
    assert ideal.std == real.std == pytest.approx(5 * 32 * 247 / 10_000)
    assert (real.step, real.beta) == (1.0, 0.0)
    assert any("ideal" in text and "raw codes" in text for text in real.assumptions)
    assert any("Gaussian" in text for text in real.assumptions)
    hot = PhysicalCamera(replace(SHEET, dark_current_electrons_per_second=1e5, dsnu_electrons=4.0))
    assert hot.credit(Frame.DARK).std == real.std
    assert hot.credit(Frame.DARK).level > real.level + 7
    # The credited level is the mean code: 5 sigma of the mean of 20 frames.
    codes = hot.dark_codes(20, seeded("hot")).double()
    variance = float(hot.variance(torch.zeros(1, dtype=torch.float64), Frame.DARK)) + (4 * 0.7904) ** 2
    assert float(codes.mean()) == pytest.approx(
        hot.credit(Frame.DARK).level, abs=5 * np.sqrt(variance / codes.numel())
    )


def test_no_credit() -> None:
    data = PhysicalCamera(SHEET).credit(Frame.DATA)
    assert data.std == 0.0
    assert "T3" in data.argument
    silent = PhysicalCamera(replace(SHEET, read_noise_electrons=0.0))
    assert silent.credit(Frame.DARK).std == 0.0
    with pytest.raises(UsageError):
        silent.dark_codes(5, seeded("dark"))
    with pytest.raises(UsageError):
        PhysicalCamera(SHEET).dark_codes(-1, seeded("dark"))


def test_clipped_mass_is_right_in_the_far_tail() -> None:
    with mpmath.workdps(50):
        std = mpmath.mpf(IDEAL.read_noise_dn(Frame.DARK))
        exact = mpmath.ncdf(-mpmath.mpf("64.5") / std) + mpmath.ncdf(-mpmath.mpf("191.5") / std)
        patterned = mpmath.ncdf(-(mpmath.mpf("64.5") - 8 * mpmath.mpf(SHEET.dark_gain_dn_per_electron)) / std)
    assert PhysicalCamera(IDEAL).clipped_probability() == pytest.approx(float(exact), rel=1e-9)
    assert PhysicalCamera(SHEET).clipped_probability() == pytest.approx(float(patterned) + 1e-30, rel=1e-6)
    wide = PhysicalCamera(SHEET, drift_limit=0.3)
    assert wide.clipped_probability() > PhysicalCamera(SHEET).clipped_probability()


def test_gain_drift_stays_within_its_declared_limit() -> None:
    device = PhysicalCamera(SHEET, drift_limit=0.05)
    assert device.credit(Frame.DARK).std == pytest.approx(0.95 * SHEET.read_noise_dn(Frame.DARK))
    device.gain_factor = 0.95
    # Standard deviation of 4 frames at 5 sigma, pattern and rounding included: never below the credit.
    codes = PhysicalCamera(IDEAL, drift_limit=0.05)
    codes.gain_factor = 0.95
    std = float(codes.dark_codes(4, seeded("drift")).double().var().sub(1 / 12).sqrt())
    assert std == pytest.approx(codes.credit(Frame.DARK).std, rel=5 / np.sqrt(2 * 4 * SHEET.pixels))
    for factor in (0.94, 1.06, float("nan")):
        with pytest.raises(DeviceError) as caught:
            device.gain_factor = factor
        assert "\n" not in str(caught.value)
    assert device.gain_factor == 0.95
    with pytest.raises(DeviceError):
        PhysicalCamera(SHEET).gain_factor = 0.999
    with pytest.raises(UsageError):
        PhysicalCamera(SHEET, drift_limit=0.6)


def test_large_signals_look_gaussian_to_the_effective_model() -> None:
    # Standardised codes of 10^5 pixels: mean, variance, skewness and kurtosis at 5 sigma, false alarm 2e-6.
    camera = CAMERAS["scientific-cmos"].ideal()
    device = PhysicalCamera(camera)
    n, electrons = 100_000, 20_000.0
    signal = torch.full((n,), electrons, dtype=torch.float64)
    x = device.sample(signal, seeded("large"), Frame.DATA).double()
    gain = camera.data_gain_dn_per_electron
    z = (x - camera.data_black_dn - gain * electrons) / device.variance(signal, Frame.DATA).sqrt()
    reference = GaussianNoise(1.0).sample(torch.zeros(n), seeded("gauss"), Frame.DATA)
    for values in (z, reference.double()):
        assert abs(float(values.mean())) < 5 / np.sqrt(n)
        assert abs(float(values.var()) - 1) < 5 * np.sqrt(2 / n)
        assert abs(float(values.pow(3).mean()) - 0) < 5 * np.sqrt(15 / n) + 0.01
        assert abs(float(values.pow(4).mean()) - 3) < 5 * np.sqrt(96 / n)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 1},
        {"bits": 17},
        {"bits": 8.5},
        {"full_well_electrons": 0.0},
        {"read_noise_electrons": -1.0},
        {"read_noise_electrons": float("nan")},
        {"dark_current_electrons_per_second": float("inf")},
        {"prnu": 0.25},
        {"dsnu_electrons": -0.1},
        {"dark_amplification": float("inf")},
        {"data_black_dn": 255.0},
        {"dark_black_dn": 40.0},
        {"dark_black_dn": 215.0},
        {"dark_amplification": 60.0},
        {"dsnu_electrons": 9.0},
        {"dnl_lsb": 1.5},
        {"dark_current_electrons_per_second": 3e6},
        {"rows": 0},
        {"columns": 2.5},
        {"frame_rate_hz": 0.0},
        {"dark_exposure_seconds": -1.0},
    ],
)
def test_refused_cameras(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        replace(SHEET, **arguments)
    assert "\n" not in str(caught.value)


def test_refused_uses() -> None:
    with pytest.raises(UsageError, match="machine-vision"):
        named_camera("eye")
    with pytest.raises(UsageError, match="fit"):
        PhysicalCamera(replace(SHEET, rows=2, columns=3)).sample(torch.zeros(7), seeded("x"), Frame.DATA)


def test_descriptions_name_every_parameter() -> None:
    described = json.loads(json.dumps(PhysicalCamera(SHEET, serial=4).describe()))
    assert described["serial"] == 4
    assert described["read_noise_electrons"] == 5.0
    assert set(described) == {"model", "serial", "drift_limit", *SHEET.__dataclass_fields__}
    assert PhysicalCamera(SHEET, serial=5).describe() != described
