"""Noise from dark frames: its law, its lattice, its cost, its start-up test (THEORY T4)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel, NoNoise
from noise_models.calibration.converter import dither_ripple
from noise_models.camera import PhysicalCamera, named_camera
from noise_models.errors import DeviceError, UsageError
from noise_models.health.monitor import RELEASED_FALSE_ALARM, START_UP_PIXELS
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.releases.dark_frame import TAU, DarkFrameNoise

PIXELS = 1 << 15
SHAPE = (128, 256)
CAMERA = PhysicalCamera(replace(named_camera("machine-vision").ideal(), rows=SHAPE[0], columns=SHAPE[1]))
SIGMA = CAMERA.camera.read_noise_dn(Frame.DARK)
STD = 8192.0  # in grid steps: the noise of multiplier 1 on the coarsest grid
SCALE = math.floor(STD / math.hypot(SIGMA, TAU))  # grid steps a code


class Camera:
    """A device that counts its frames; `codes` may be overwritten by what it really does."""

    name = "camera"
    dark_pixels = PIXELS
    frame_shape = SHAPE
    ideal_converter = True

    def __init__(self, noise: NoiseModel = CAMERA, seed: int = 0) -> None:
        self.noise = noise
        self.generators = (NoiseGenerator.seeded(seed, "device"),)
        self.taken: list[Tensor] = []

    def codes(self, n: int) -> Tensor:
        return CAMERA.dark_codes(n // PIXELS, self.generators[0]).view(n)

    def dark(self, frames: int) -> Tensor:
        taken = self.codes(frames * PIXELS).view(frames, PIXELS)
        self.taken.append(taken)
        return taken

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        raise UsageError("this camera's lamp cannot be shown")

    def camera_fingerprint(self) -> str:
        return "camera 1"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def fingerprint(self) -> str:
        return "0"


def source(camera: Camera | None = None, seed: int = 1) -> DarkFrameNoise:
    """A source whose device passed its start-up test."""
    made = DarkFrameNoise(camera or Camera(), NoiseGenerator.seeded(seed, "dither"))
    made.start_up()
    return made


def noise(std: float, dimension: int, total: Tensor | None = None) -> npt.NDArray[np.float64]:
    out = torch.zeros(dimension, dtype=torch.int32) if total is None else total
    source().add_noise(out, std)
    return out.double().numpy()


@pytest.fixture(scope="module")
def drawn() -> npt.NDArray[np.float64]:
    return noise(STD, 8 * PIXELS)


def test_variance_is_the_ideal_gaussians_and_the_roundings(drawn: npt.NDArray[np.float64]) -> None:
    """std² of credit and dither, s²/12 of rounding; chi-square-like bounds at 6 standard deviations (2e-9)."""
    expected = STD**2 + SCALE**2 / 12
    spread = 6 * math.sqrt(2 / len(drawn))
    assert drawn.var() / expected == pytest.approx(1.0, abs=spread)
    assert drawn.var() > STD**2 * (1 - spread)
    # the start-up mean of 2^20 pixels is the offset
    assert abs(drawn.mean()) < 6 * STD * math.sqrt(1 / len(drawn) + 1 / START_UP_PIXELS)


def test_law_is_a_normal_convolved_with_a_uniform(drawn: npt.NDArray[np.float64]) -> None:
    """KS against N(0, std²) * U(-s/2, s/2) by numerical integration of the cdf; false alarm 1e-6."""

    def cdf(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        nodes, weights = np.polynomial.legendre.leggauss(12)
        return np.sum(
            [w / 2 * stats.norm.cdf((x - n * SCALE / 2) / STD) for n, w in zip(nodes, weights, strict=True)],
            0,
        )

    assert stats.kstest(drawn, cdf).pvalue > 1e-6


def test_without_the_dither_the_sum_shows_modulo_the_step_and_with_it_nothing_does() -> None:
    """The trap of T4: whole codes of the camera are SCALE grid steps each, on a sum in single ones.

    Chi-square of the residues against the uniform law, false alarm 1e-6.
    """
    for secret in (0, 567):
        total = torch.full((4 * PIXELS,), secret, dtype=torch.int32)
        residues = np.mod(noise(STD, len(total), total), SCALE).astype(int)
        assert stats.chisquare(np.bincount(residues, minlength=SCALE)).pvalue > 1e-6
    bare = source()
    bare._normals = Nothing()  # type: ignore[assignment]
    seen = []
    for secret in (0, 567):
        total = torch.full((PIXELS,), secret, dtype=torch.int32)
        bare.add_noise(total, STD)
        seen.append(torch.unique(total % SCALE))
        assert len(torch.unique(total)) > 20  # the device's noise is there
    assert len(seen[0]) == len(seen[1]) == 1
    assert int(seen[1] - seen[0]) % SCALE == 567  # read off exactly


class Nothing:
    """A dither that is switched off."""

    def add(self, total: Tensor, std: float, generator: NoiseGenerator) -> None:
        pass


def test_frames_are_fresh_and_none_of_the_start_up_is_released() -> None:
    camera = Camera()
    release = source(camera)
    start_up = len(camera.taken)
    assert sum(frames.numel() for frames in camera.taken) >= START_UP_PIXELS
    for _ in range(2):
        release.add_noise(torch.zeros(2 * PIXELS + 5, dtype=torch.int32), STD)
    taken = camera.taken[start_up:]
    assert [len(frames) for frames in taken] == [1] * 6  # three a step, the last one's rest thrown away
    for i, a in enumerate(taken):
        for b in taken[i + 1 :]:
            assert not torch.equal(a, b)


def test_every_coordinate_gets_its_own_pixel() -> None:
    """No pixel twice: lag correlations at the frame's length, 5 standard deviations."""
    z = noise(STD, 4 * PIXELS).reshape(4, PIXELS)
    corr = np.corrcoef(z) - np.eye(4)
    assert np.abs(corr).max() < 5 / math.sqrt(PIXELS)
    assert abs(np.corrcoef(z[0, 1:], z[0, :-1])[0, 1]) < 5 / math.sqrt(PIXELS)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_sum_itself_is_kept(dtype: torch.dtype, drawn: npt.NDArray[np.float64]) -> None:
    """Noise is added exactly and does not look at the sum, up to the ends of what one may be; the same seeds."""
    most = 2**30 if dtype is torch.int32 else 2**50
    total = torch.linspace(-most, most, 8 * PIXELS, dtype=torch.float64).to(dtype)
    found = noise(STD, len(total), total.clone())
    assert np.array_equal(found - total.double().numpy(), drawn)


@pytest.mark.parametrize("std", [5.0, 100.3, STD, 12345.678, 3e5])
def test_whole_grid_steps_a_code_and_the_rest_is_dither(std: float) -> None:
    """What the device supplies and the dither make up the stated variance; the dither never falls below TAU codes."""
    made = source()
    scale, dither = made._shares(std)
    assert scale == int(scale) >= 1
    assert math.hypot(scale * SIGMA, dither) == pytest.approx(std, rel=1e-12)
    assert dither >= TAU * scale * (1 - 1e-12)
    assert dither_ripple(SIGMA, dither / scale) <= dither_ripple(SIGMA, TAU) * (1 + 1e-9)
    made.prepare(std)
    assert made.device_share == pytest.approx((scale * SIGMA / std) ** 2, rel=1e-12)
    assert 0.6 < made.device_share <= SIGMA**2 / (SIGMA**2 + TAU**2)


@pytest.mark.parametrize("std", [1e-6, 1.0, 0.999 * math.hypot(SIGMA, TAU)])
def test_noise_below_a_grid_step_a_code_is_refused(std: float) -> None:
    made, total = source(), torch.zeros(5, dtype=torch.int32)
    for call in (lambda: made.prepare(std), lambda: made.add_noise(total, std)):
        with pytest.raises(
            UsageError, match=r"less than a step for each of the camera's codes.*--release digital"
        ) as error:
            call()
        assert "\n" not in str(error.value)
    assert not total.any()


@pytest.mark.parametrize(
    ("sigma", "tau"), [(4.0, 1.5), (4.0, 0.5), (10.0, 1.5), (4.08, 1.5), (2.5, 1.5), (4.0, 0.3)]
)
def test_ripple_is_the_density_of_a_rounded_dithered_normal(sigma: float, tau: float) -> None:
    """The worst ratio to the ideal density over means and places, to 60 digits; eta bounds it and is attained."""
    with mpmath.workdps(60):
        ideal_std = mpmath.sqrt(mpmath.mpf(sigma) ** 2 + mpmath.mpf(tau) ** 2)
        worst = mpmath.mpf(0)
        for mean in (0, "0.25", "0.5"):
            mu = mpmath.mpf(mean)
            for place in (0, "0.25", "0.5"):
                y = mu + mpmath.mpf(place)
                density = mpmath.fsum(
                    (
                        mpmath.ncdf((k + mpmath.mpf("0.5") - mu) / sigma)
                        - mpmath.ncdf((k - mpmath.mpf("0.5") - mu) / sigma)
                    )
                    * mpmath.npdf(y - k, 0, tau)
                    for k in range(-120, 121)
                )
                ideal = mpmath.ncdf((y - mu + mpmath.mpf("0.5")) / ideal_std) - mpmath.ncdf(
                    (y - mu - mpmath.mpf("0.5")) / ideal_std
                )
                worst = max(worst, abs(density / ideal - 1))
        eta = dither_ripple(sigma, tau)
        assert worst <= mpmath.mpf(eta) * (1 + mpmath.mpf("1e-9"))
        assert worst >= mpmath.mpf(eta) / 10


def test_ripple_known_answers() -> None:
    assert dither_ripple(4.0, 1.5) == pytest.approx(2.5e-17, rel=0.05)
    assert dither_ripple(4.0, 0.5) == pytest.approx(0.016, rel=0.05)
    assert dither_ripple(4.0, 0.0) == math.inf
    assert dither_ripple(0.0, 1.5) == math.inf


def test_cost_is_what_t4_says() -> None:
    release = source()
    dimension = 670_000
    cost = release.cost(dimension)
    v = SIGMA**2 * TAU**2 / (SIGMA**2 + TAU**2)
    eta = 2 * math.exp(-2 * math.pi**2 * v)
    assert cost.log_ratio == pytest.approx(dimension * 2 * eta, rel=1e-9)
    assert cost.log_inflation == pytest.approx(dimension * eta, rel=1e-9)
    assert (
        cost.mass
        == dimension * (CAMERA.credit(Frame.DARK).clipped_mass + TAIL_MASS) + 21 * RELEASED_FALSE_ALARM
    )  # 21 frames of 2^15 pixels
    assert release.device_share == pytest.approx(SIGMA**2 / (SIGMA**2 + TAU**2))
    assert release.device_share > 0.85


class Unlike(Camera):
    """Its dark frames are not as credited."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def codes(self, n: int) -> Tensor:
        z = self.generators[0].normal_(torch.empty(n, dtype=torch.float64))
        if self.how == "quieter":
            z *= 0.97
        elif self.how == "noisier":
            z *= 1.03
        elif self.how == "stuck":
            return torch.full((n,), 64, dtype=torch.uint8)
        elif self.how == "half the pixels dead":
            z[::2] = 0
        elif self.how == "binary":
            z = SIGMA * z.sign() / SIGMA
        return (64 + SIGMA * z).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("how", ["quieter", "noisier", "stuck", "half the pixels dead", "binary"])
def test_a_device_that_is_not_as_credited_stops_the_run(how: str) -> None:
    with pytest.raises(DeviceError, match="nothing more is released") as error:
        source(Unlike(how))
    assert "\n" not in str(error.value)


def test_a_device_as_credited_starts() -> None:
    for seed in range(5):
        source(Camera(seed=seed))
    source(Unlike("as credited"))


class OneNumber(NoiseModel):
    """A model that credits nothing for dark frames."""

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        return signal

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        return signal

    def credit(self, frame: Frame) -> Credit:
        return Credit(std=0.0, step=1.0, clipped_mass=0.0, beta=0.0, argument="the law is not known")

    def describe(self) -> dict[str, float | int | str]:
        return {}


def test_devices_without_credit_are_refused() -> None:
    blind = Camera()
    blind.dark_pixels = 0
    cases = [
        (None, "no device"),
        (blind, "camera"),
        (Camera(OneNumber()), "not known"),
        (Camera(NoNoise()), "no noise"),
    ]
    for device, word in cases:
        with pytest.raises(UsageError, match="--release digital") as error:
            DarkFrameNoise(device, NoiseGenerator.secure("dither"))
        assert word in str(error.value)
        assert "\n" not in str(error.value)


def test_the_guarantee_rests_on_the_dither_and_on_a_simulated_devices_generator() -> None:
    camera = Camera()
    release = source(camera)
    assert [g.name for g in release.generators] == ["dither", "device"]


def test_calibration_shows_start_up_frames_only() -> None:
    camera = Camera()
    release = source(camera)
    before = torch.cat([frames.flatten() for frames in camera.taken])
    shown = release.histogram()
    values, counts = np.unique(before.numpy(), return_counts=True)
    assert shown["codes"] == values.tolist()
    assert shown["counts"] == counts.tolist()
    release.add_noise(torch.zeros(10, dtype=torch.int32), STD)
    assert release.histogram() == shown
