"""Noise from a generator that the device keys: schedule, secrecy, refusals (THEORY T4, SP 800-90B)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from noise_models.base import NoiseModel, NoNoise
from noise_models.camera import PhysicalCamera, named_camera
from noise_models.errors import DeviceError, HealthError, UsageError
from noise_models.health.entropy import ASSESSED_BITS
from noise_models.health.min_entropy import LEAST_SAMPLES, MinEntropy
from noise_models.health.monitor import look_frames
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.releases import device_entropy
from privacy.releases.device_entropy import RESEED_RELEASES, DeviceEntropyNoise

PIXELS = 1 << 16
STD = 8192.0  # in grid steps: the noise of multiplier 1 on the coarsest grid
CAMERA = PhysicalCamera(replace(named_camera("machine-vision").ideal(), rows=1, columns=1))


class Camera:
    """A device that keeps its frames, and whose noise nobody vouches for: `codes` may be overwritten."""

    name = "camera"
    dark_pixels = PIXELS
    frame_shape = (256, 256)
    noise: NoiseModel = NoNoise()

    def __init__(self, seed: int | None = 0) -> None:
        secure = NoiseGenerator.secure("device")
        self.generators = (secure if seed is None else NoiseGenerator.seeded(seed, "device"),)
        self.taken: list[Tensor] = []

    def codes(self, n: int) -> Tensor:
        return CAMERA.dark_codes(n, self.generators[0]).view(n)

    def dark(self, frames: int) -> Tensor:
        taken = self.codes(frames * self.dark_pixels).view(frames, self.dark_pixels)
        self.taken += list(taken)
        return taken

    def expose(self, frames: int, **scene: Any) -> Tensor:
        raise UsageError("no lamp")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def fingerprint(self) -> str:
        return "0"


def source(camera: Camera | None = None, seed: int | None = 1) -> DeviceEntropyNoise:
    system = NoiseGenerator.secure("system") if seed is None else NoiseGenerator.seeded(seed, "system")
    return DeviceEntropyNoise(camera or Camera(), system)


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the assessment for granted, for tests of what follows it."""
    monkeypatch.setattr(device_entropy, "assess", lambda samples: MinEntropy(1.2, {}, len(samples), 54))


@pytest.fixture(scope="module")
def started() -> tuple[DeviceEntropyNoise, dict[str, Any]]:
    made = source()
    return made, made.start_up()


def test_start_up_reports_what_was_assessed(started: tuple[DeviceEntropyNoise, dict[str, Any]]) -> None:
    made, row = started
    assert row["samples"] >= LEAST_SAMPLES
    assert row["min_entropy_bits_per_sample"] == min(row["estimates"].values()) == made.assessment.bits
    # The difference of two rounded N(0, 4.08²) has -log2(1 / (4.08 sqrt(2) sqrt(2 pi))) = 3.85 bits.
    assert 0.5 < row["min_entropy_bits_per_sample"] < 3.86
    assert row["assessed_bits_per_key"] >= ASSESSED_BITS
    assert row["repetition_count"] < row["repetition_cutoff"]
    assert row["adaptive_proportion"] < row["proportion_cutoff"]
    assert row["false_alarm_per_key"] < 1e-6
    assert not row["watched"]
    assert made.describe()["health"] is None
    made.vouch()  # nothing to do


@pytest.mark.usefixtures("assessed")
def test_the_noise_is_normal_and_costs_what_digital_costs() -> None:
    made = source()
    made.start_up()
    total = torch.zeros(200_000, dtype=torch.int32)
    made.add_noise(total, STD)
    assert stats.kstest(total.numpy() / STD, "norm").pvalue > 1e-6
    cost = made.cost(100)
    assert (cost.log_ratio, cost.log_inflation, cost.mass) == (0.0, 0.0, 100 * TAIL_MASS)
    assert made.device_share == 0.0
    assert made.beta == 0.0
    assert made.describe()["conditioner"] == "HMAC-SHA-256"
    assert any("800-90B" in line for line in made.assumptions)


@pytest.mark.usefixtures("assessed")
def test_keys_follow_a_public_schedule_and_use_fresh_frames() -> None:
    camera = Camera()
    made = source(camera)
    made.start_up()
    (own,) = made.rekeyed()
    assert own is made.generators[0]
    assert made.rekeyed() == ()
    taken, keys = len(camera.taken), {own.fingerprint()}
    total = torch.zeros(3, dtype=torch.int32)
    for release in range(1, 3 * RESEED_RELEASES + 1):
        made.add_noise(total, STD)
        changed = made.rekeyed()
        due = release > 1 and release % RESEED_RELEASES == 1
        assert bool(changed) == due
        assert len(camera.taken) == taken + 2 * due
        taken = len(camera.taken)
        keys |= {generator.fingerprint() for generator in changed}
    assert len(keys) == 3
    frames = [frame.numpy().tobytes() for frame in camera.taken]
    assert len(set(frames)) == len(frames)


@pytest.mark.usefixtures("assessed")
def test_either_source_changes_every_normal() -> None:
    def normals(camera: int, system: int) -> Tensor:
        made = source(Camera(camera), system)
        made.start_up()
        total = torch.zeros(5, dtype=torch.int32)
        made.add_noise(total, STD)
        return total

    assert torch.equal(normals(0, 1), normals(0, 1))
    assert not torch.eq(normals(0, 1), normals(2, 1)).any()
    assert not torch.eq(normals(0, 1), normals(0, 2)).any()


@pytest.mark.usefixtures("assessed")
@pytest.mark.parametrize(("camera", "system"), [(None, None), (0, None), (None, 1), (0, 1)])
def test_secret_only_if_all_its_sources_are(camera: int | None, system: int | None) -> None:
    made = source(Camera(camera), system)
    before = made.generators
    made.start_up()
    own, *others = made.generators
    assert tuple(others) == before
    assert own.secret == (camera is None and system is None)


def test_no_noise_before_the_start_up() -> None:
    made = source()
    assert made.assessment is None
    assert made.rekeyed() == ()
    with pytest.raises(UsageError, match="start_up"):
        made.add_noise(torch.zeros(3, dtype=torch.int32), STD)


class Credited(Camera):
    """Its noise is known by construction, so that it is watched."""

    noise = CAMERA


@pytest.mark.usefixtures("assessed")
def test_a_device_of_known_noise_is_watched_at_every_release() -> None:
    camera = Credited()
    made = source(camera)
    assert made.describe()["health"]["start_up_pixels"] == 1 << 20
    row = made.start_up()
    assert row["watched"]
    assert not row["lamp_tested"]
    assert len(row["digests"]) == 2
    made.add_noise(torch.zeros(3, dtype=torch.int32), STD)
    taken = len(camera.taken)
    made.vouch()
    assert len(camera.taken) == taken + look_frames(PIXELS)
    usual = camera.codes
    camera.codes = lambda n: usual(n).sub(64).mul(0.8).add(64).round()  # type: ignore[method-assign]
    with pytest.raises(HealthError) as caught:
        made.vouch()
    assert caught.value.finding["test"] == "variance"


@pytest.mark.usefixtures("assessed")
def test_frames_logged_by_an_earlier_part_of_the_run_are_known() -> None:
    camera = Credited()
    digests = source(camera).start_up()["digests"]
    again = torch.stack(camera.taken[: 1 << 4]).flatten()
    camera.codes = lambda n: again[:n]  # type: ignore[method-assign]
    made = DeviceEntropyNoise(camera, NoiseGenerator.secure("system"), digests)
    with pytest.raises(HealthError, match="replay"):
        made.start_up()


class Stuck(Camera):
    """All frames equal, though all pixels differ."""

    def codes(self, n: int) -> Tensor:
        return torch.arange(PIXELS).remainder(251).repeat(n // PIXELS)


class Level(Camera):
    """All pixels equal."""

    def codes(self, n: int) -> Tensor:
        return torch.full((n,), 64)


class Faint(Camera):
    """The data setting's noise: 0.13 codes."""

    def codes(self, n: int) -> Tensor:
        return self.generators[0].normal_(torch.empty(n)).mul_(0.13).add_(64).round_()


class Pattern(Camera):
    """Much structure, no noise, and one code up and down with the mains: a pattern is not entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.pattern = (
            CAMERA.dark_codes(PIXELS, NoiseGenerator.seeded(5, "pattern")).view(PIXELS).to(torch.int32)
        )

    def codes(self, n: int) -> Tensor:
        self.number += 1
        return torch.cat([self.pattern + frame % 3 for frame in range(n // PIXELS)])


@pytest.mark.parametrize("camera", [Stuck, Level, Faint, Pattern])
def test_devices_without_entropy_are_refused(camera: type[Camera]) -> None:
    made = source(camera())
    with pytest.raises(DeviceError, match="min-entropy") as caught:
        made.start_up()
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        made.add_noise(torch.zeros(3, dtype=torch.int32), STD)


@pytest.mark.usefixtures("assessed")
def test_a_device_that_gets_stuck_later_gives_no_further_key() -> None:
    camera = Camera()
    made = source(camera)
    made.start_up()
    before = made.generators[0].fingerprint()
    for _ in range(RESEED_RELEASES):
        made.add_noise(torch.zeros(3, dtype=torch.int32), STD)
    frozen = camera.taken[-1]
    camera.codes = lambda n: frozen.repeat(n // PIXELS)  # type: ignore[method-assign]
    total = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(HealthError) as caught:
        made.add_noise(total, STD)
    assert caught.value.finding["test"]
    assert not total.any()
    assert made.generators[0].fingerprint() == before


@pytest.mark.usefixtures("assessed")
def test_frames_that_come_again_give_no_key() -> None:
    camera = Camera()
    made = source(camera)
    made.start_up()
    before = made.generators[0].fingerprint()
    earlier = torch.cat(camera.taken[:2])  # healthy in themselves
    for _ in range(RESEED_RELEASES):
        made.add_noise(torch.zeros(3, dtype=torch.int32), STD)
    camera.codes = lambda n: earlier  # type: ignore[method-assign]
    with pytest.raises(HealthError, match="replay") as caught:
        made.add_noise(torch.zeros(3, dtype=torch.int32), STD)
    assert caught.value.finding["test"] == "replay"
    assert made.generators[0].fingerprint() == before


def test_small_cameras_take_as_many_frames_as_a_key_needs() -> None:
    camera = Camera()
    camera.dark_pixels = 256
    made = source(camera)
    row = made.start_up()
    assert (
        row["frames_per_key"] == 2 * math.ceil(ASSESSED_BITS / (256 * row["min_entropy_bits_per_sample"])) > 2
    )
    assert np.ceil(LEAST_SAMPLES / 256) * 2 + row["frames_per_key"] == len(camera.taken)


def test_no_device_and_no_camera_are_refused() -> None:
    blind = Camera()
    blind.dark_pixels = 0
    for device in (None, blind):
        with pytest.raises(UsageError, match="--release digital") as caught:
            DeviceEntropyNoise(device, NoiseGenerator.secure("system"))
        assert "\n" not in str(caught.value)
