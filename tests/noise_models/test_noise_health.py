"""Health tests of a camera: false alarms as stated, every fault found, and how many frames that takes."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.document import DRIFT_ALLOWANCE, Calibration
from noise_models.camera import CAMERAS, PhysicalCamera
from noise_models.errors import HealthError, UsageError
from noise_models.health.limits import (
    DRIFT,
    LEVEL_DRIFT,
    RISE,
    Reference,
    code_law,
    limits,
    rare_count_limit,
)
from noise_models.health.monitor import (
    FALSE_ALARM,
    LEAST_PIXELS,
    LOOK_PIXELS,
    RELEASED_FALSE_ALARM,
    START_UP_PIXELS,
    HealthMonitor,
    look_frames,
)
from noise_models.health.replays import RECENT_FRAMES, Replays
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.faults import FAULTS, Fault

SIGMA, LEVEL, TOP = 4.08, 64.0, 255
LIT, CLOSED = 150.0, 32.0
BY_CONSTRUCTION = Reference(credited=SIGMA, expected=SIGMA, level=LEVEL, step=1.0)
CALIBRATED = Reference(
    (1 - DRIFT_ALLOWANCE) * 0.99 * SIGMA, SIGMA, LEVEL, 1.0, DRIFT, LEVEL_DRIFT * SIGMA, LIT,
    ideal_converter=False, normal=False, rise=RISE,
)  # fmt: skip
TINY, SMALL, USUAL = (32, 32), (32, 64), (256, 512)


class Camera:
    """An ideal camera with a lamp, and maybe a fault."""

    def __init__(self, shape: tuple[int, int], seed: int = 0, fault: str = "", after: int = 0) -> None:
        self.shape, self.pixels = shape, shape[0] * shape[1]
        self.normals = np.random.default_rng(seed)
        self.fault = Fault(fault, after=after, shape=shape, top=TOP) if fault else None
        self.std, self.level, self.pattern = SIGMA, LEVEL, np.float32(0)

    def dark(self, frames: int) -> Tensor:
        z = self.normals.standard_normal((frames, self.pixels), dtype=np.float32)
        return self._out(self.level + self.pattern + self.std * z, Frame.DARK, LEVEL)

    def data(self, light: float) -> Tensor:
        light = self.fault.light(light) if self.fault else light
        mean = CLOSED + (LIT - CLOSED) * light
        z = self.normals.standard_normal((1, self.pixels), dtype=np.float32)
        return self._out(mean + (0.2 + 1.5 * light) * z, Frame.DATA, CLOSED)

    def _out(self, codes: np.ndarray, setting: Frame, black: float) -> Tensor:
        frames = torch.from_numpy(np.clip(np.rint(codes), 0, TOP).astype(np.uint8))
        return self.fault.codes(frames, setting=setting, black=black) if self.fault else frames


def start_up_frames(shape: tuple[int, int]) -> int:
    return 2 * -(-START_UP_PIXELS // (2 * shape[0] * shape[1]))


def started(camera: Camera, reference: Reference = BY_CONSTRUCTION) -> HealthMonitor:
    monitor = HealthMonitor(reference, camera.shape)
    monitor.start_up(camera.dark(start_up_frames(camera.shape)))
    monitor.lamp(camera.data(0.0), camera.data(1.0))
    return monitor


def step(monitor: HealthMonitor, camera: Camera, released: int = 6, looked: int = 2) -> None:
    """What a dark-frame step shows the monitor."""
    for _ in range(released):
        monitor.released(camera.dark(1))
    monitor.dark(camera.dark(looked))
    monitor.lit(camera.data(1.0))


def test_the_limits_hold_at_the_stated_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loosened to 2 % a test: each test's rate over 3000 healthy pairs is at most that (false alarm 1e-6 each).

    The tests of continuous statistics must also come near it, or their limits would be wider than stated.
    """
    alarm, n = 0.02, 3000
    failed: Counter[str] = Counter()

    def count(self: HealthMonitor, bad: bool, test: str, *rest: float) -> None:
        failed[test] += bool(bad)

    camera = Camera(SMALL, seed=3)
    monitor = HealthMonitor(BY_CONSTRUCTION, SMALL, false_alarm=9 * alarm)
    monkeypatch.setattr(HealthMonitor, "_fail_if", count)
    monitor.start_up(camera.dark(start_up_frames(SMALL)))
    failed.clear()
    frames = camera.dark(2 * n)
    for start in range(0, 2 * n, 2):
        monitor.dark(frames[start : start + 2])
    most = stats.binom.isf(1e-6, n, alarm)
    assert max(failed.values()) <= most, failed
    for test in ("variance", "level", "correlation", "code law"):
        assert failed[test] >= stats.binom.ppf(1e-6, n, alarm / 2), failed
    # Row and column means have half the level each; both count.
    assert failed["row means"] + failed["column means"] >= stats.binom.ppf(1e-6, n, alarm / 2), failed


def test_stated_false_alarms_are_small_and_add_up() -> None:
    monitor = HealthMonitor(BY_CONSTRUCTION, USUAL)
    stated = monitor.describe()
    assert stated["false_alarm_look"] == FALSE_ALARM < 1e-6
    assert stated["false_alarm_released_frame"] == RELEASED_FALSE_ALARM < 1e-26
    json.dumps(stated, allow_nan=False)
    # The laws behind the limits, each against another route to it.
    cut = limits(BY_CONSTRUCTION, alarm := FALSE_ALARM / 9, 2, 1, *USUAL, 5)
    pixels = USUAL[0] * USUAL[1]
    law = code_law(SIGMA, LEVEL, np.arange(256.0))
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    assert stats.binom.sf(cut.repeated - 1, pixels, float(np.square(law).sum())) <= alarm
    assert stats.binom.sf(cut.common - 1, 2 * pixels, law.max()) <= alarm / 78
    assert 2 * pixels * law.max() ** (cut.run - 1) <= alarm / 3
    variance = float(law @ (np.arange(256) - LEVEL) ** 2)
    low, high = (stats.chi2.ppf(alarm / 2, pixels), stats.chi2.isf(alarm / 2, pixels))
    assert (cut.variance_low, cut.variance_high) == pytest.approx(
        (variance * low / pixels, variance * high / pixels)
    )


def test_a_healthy_camera_passes_for_a_thousand_steps() -> None:
    camera = Camera(SMALL, seed=1)
    for reference in (BY_CONSTRUCTION, CALIBRATED):
        monitor = started(camera, reference)
        for _ in range(500):
            step(monitor, camera, released=2)
        assert monitor.frames == start_up_frames(SMALL) + 2 + 500 * 5


def test_a_fixed_pattern_is_no_fault_and_hides_none() -> None:
    """A pattern as strong as the noise: DSNU and hot pixels cancel in the difference of two frames."""
    for fault in ("", *FAULTS):
        before = start_up_frames(USUAL) + 2 + 2 * 9
        camera = Camera(USUAL, seed=16, fault=fault, after=before)
        pattern = SIGMA * np.random.default_rng(17).standard_normal(camera.pixels, dtype=np.float32)
        camera.pattern = pattern - pattern.mean()
        monitor = started(camera)
        for _ in range(2):
            step(monitor, camera)
        if fault:
            with pytest.raises(HealthError):
                step(monitor, camera)


def test_a_calibrated_camera_may_drift_within_the_stated_allowance() -> None:
    camera = Camera(USUAL, seed=2)
    monitor = started(camera, CALIBRATED)
    camera.std, camera.level = 0.981 * SIGMA, LEVEL + 0.4 * SIGMA
    for _ in range(5):
        step(monitor, camera)
    camera.std = 1.04 * SIGMA
    step(monitor, camera)


# Frames from the fault's first one to the failure, at 131 072 pixels and steps of 6 + 2 + 1 frames, the fault
# beginning with a step's first frame. Released frames show what is gross; the look after them the rest.
DELAYS = {
    "lamp-off": 9,
    "saturation": 1,
    "frozen-frame": 1,
    "replayed-frame": 1,
    "stuck-rows": 2,
    "correlated-rows": 8,
    "gain-drop": 1,
}
# The same at 1024 pixels and steps of 1 + 128 + 1 frames.
TINY_DELAYS = {
    "lamp-off": 130,
    "saturation": 1,
    "frozen-frame": 1,
    "replayed-frame": 1,
    "stuck-rows": 129,
    "correlated-rows": 129,
    "gain-drop": 129,
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("reference", [BY_CONSTRUCTION, CALIBRATED], ids=["construction", "calibrated"])
def test_every_fault_is_found_within_the_step_it_begins_in(name: str, reference: Reference) -> None:
    before = start_up_frames(USUAL) + 2 + 3 * 9
    camera = Camera(USUAL, seed=4, fault=name, after=before)
    monitor = started(camera, reference)
    for _ in range(3):
        step(monitor, camera)
    with pytest.raises(HealthError) as error:
        step(monitor, camera)
    assert error.value.finding["frame"] - before == DELAYS[name]
    assert "\n" not in str(error.value)
    json.dumps(error.value.finding, allow_nan=False)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("reference", [BY_CONSTRUCTION, CALIBRATED], ids=["construction", "calibrated"])
def test_small_sensors_have_the_power_of_large_ones(name: str, reference: Reference) -> None:
    looked = look_frames(1024)
    assert looked * 1024 == look_frames(131_072) * 131_072 // 2 == LOOK_PIXELS
    before = start_up_frames(TINY) + 2 + looked + 2
    camera = Camera(TINY, seed=21, fault=name, after=before)
    monitor = started(camera, reference)
    step(monitor, camera, 1, looked)
    with pytest.raises(HealthError) as error:
        step(monitor, camera, 1, looked)
    assert error.value.finding["frame"] - before == TINY_DELAYS[name]


def test_a_twentieth_less_noise_is_found_by_one_look_at_a_small_sensor() -> None:
    camera = Camera(TINY, seed=22)
    monitor = started(camera)
    camera.std = 0.95 * SIGMA
    with pytest.raises(HealthError, match="variance"):
        step(monitor, camera, 1, look_frames(1024))


def test_a_device_that_lost_more_than_the_drift_allowance_fails_every_look() -> None:
    """From the law of the look's own statistic, for the smallest look and the coarsest converter allowed."""
    for sigma in (1.0, SIGMA, 40.0):
        reference = replace(CALIBRATED, credited=(1 - DRIFT_ALLOWANCE) * sigma, expected=sigma)
        cut = limits(reference, FALSE_ALARM / 9, 128, 64, *TINY, 5)
        left = ((1 - DRIFT_ALLOWANCE) * sigma) ** 2 + 1 / 12
        assert stats.chi2.sf(cut.variance_low / left * LOOK_PIXELS / 2, LOOK_PIXELS / 2) < 1e-6
        more = (0.96 * sigma) ** 2 + 1 / 12
        # ... and DRIFT is not narrower than that asks for.
        assert stats.chi2.sf(cut.variance_low / more * LOOK_PIXELS / 2, LOOK_PIXELS / 2) > 1e-6


def test_a_calibrated_reference_is_the_credit_and_the_estimate_each_once() -> None:
    calibration = Calibration(
        camera="any", camera_fingerprint="0", taken_at="2026-01-01T00:00:00+00:00",
        expires_at="2026-01-02T00:00:00+00:00", frames=10, confidence=0.999, beta=1e-9, parameters={},
        credit_dn=SIGMA, credit_lower_dn=0.9 * SIGMA, step_dn=1.0, clipped_mass=0.0, dark_level_dn=LEVEL,
        light_level_dn=LIT, saturation_dn=255.0, passed=True, findings=(), assumptions=("none",), curves={},
    )  # fmt: skip
    reference = Reference.of_calibration(calibration)
    assert (reference.credited, reference.expected) == (calibration.credit().std, SIGMA)
    cut = limits(reference, FALSE_ALARM / 9, 2, 1, *USUAL, 5)
    assert cut.variance_low == pytest.approx(((1 - DRIFT) * SIGMA) ** 2, rel=0.03)
    # Less than the credit is never enough, however near the estimate it is.
    cut = limits(replace(reference, credited=0.99 * SIGMA), FALSE_ALARM / 9, 2, 1, *USUAL, 5)
    assert cut.variance_low == pytest.approx((0.99 * SIGMA) ** 2, rel=0.03)


@pytest.mark.parametrize(("dark_current", "normal"), [(0.0, True), (1e5, False)])
def test_noise_beside_the_credited_is_no_fault_of_the_converter(dark_current: float, normal: bool) -> None:
    """A camera whose dark current's shot noise makes a third of its variance: its codes follow no normal law."""
    camera = replace(CAMERAS["machine-vision"], dark_current_electrons_per_second=dark_current)
    model, generator = PhysicalCamera(camera), NoiseGenerator.seeded(26, "camera")
    variance = float(model.variance(torch.zeros(1), Frame.DARK))
    reference = Reference.of_credit(model.credit(Frame.DARK), variance)
    assert reference.normal is normal
    shape = (camera.rows, camera.columns)
    monitor = HealthMonitor(reference, shape)
    monitor.start_up(model.dark_codes(start_up_frames(shape), generator).view(-1, shape[0] * shape[1]))
    for _ in range(3):
        monitor.dark(model.dark_codes(2, generator).view(2, -1))


def test_rare_counts_have_a_limit_of_their_own() -> None:
    """Against the exact law where its tail can be computed, and against its normal limit far out."""
    for trials, p in ((1024, 0.069), (131_072, 0.069), (131_072, 0.35)):
        limit = rare_count_limit(trials, p, 1e-12)
        assert 0 < stats.binom.sf(limit - 1, trials, p) <= 1e-12
        assert limit <= 1.05 * stats.binom.isf(1e-12, trials, p)
        rare = rare_count_limit(trials, p, 2.0**-90)
        assert 10.8 < (rare - trials * p) / math.sqrt(trials * p * (1 - p)) < 14


@pytest.mark.parametrize("shape", [TINY, USUAL, (30, 41)], ids=str)
@pytest.mark.parametrize("fault", ["tear", "ring", "one chunk", "every second pixel"])
def test_parts_of_released_frames_do_not_come_again(shape: tuple[int, int], fault: str) -> None:
    """In released frames and in the looks between them, though no frame as a whole comes again."""
    camera = Camera(shape, seed=23)
    monitor = started(camera)
    ring = camera.dark(4)
    for first in range(4):
        monitor.released(ring[first : first + 1])
    bad = camera.dark(2)
    if fault == "tear":
        bad[0, camera.pixels // 2 :] = ring[-1, camera.pixels // 2 :]
    elif fault == "ring":
        bad[0, 4:] = ring[0, 4:]
    elif fault == "one chunk":
        bad[0, -256:] = ring[2, -256:]
    else:
        bad[0, ::2] = ring[-1, ::2]
    expected = "repeated pixels" if fault == "every second pixel" else "replay"
    look = copy.deepcopy(monitor)
    for show in (lambda: monitor.released(bad[:1]), lambda: look.dark(bad)):
        with pytest.raises(HealthError) as error:
            show()
        assert error.value.finding["test"] == expected
        assert error.value.finding["false_alarm"] <= 2.0**-90


def test_chunks_are_remembered_for_the_stated_number_of_frames_and_in_their_place() -> None:
    normals = np.random.default_rng(24)
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        frames = np.rint(normals.normal(LEVEL, SIGMA, (RECENT_FRAMES + 2, 131_072 + 9))).astype(dtype)
        replays = Replays(131_072 + 9)
        for old, frame in enumerate(frames[1:]):
            frame[512:768] = frames[0, 256:512]  # another place
            assert replays.show(frame[None], noise=True)[1] == (old > 0)
            frame[512:768] = normals.integers(0, 99, 256)
        replays = Replays(131_072 + 9)
        assert replays.show(frames, noise=True)[1] == 0
        late = np.rint(normals.normal(LEVEL, SIGMA, (2, 131_072 + 9))).astype(dtype)
        late[0, 700:1300] = frames[
            3, 700:1300
        ]  # one whole chunk, 63 frames later: 768 ... 1023, and 1024 ... 1279
        late[1, 700:1300] = frames[2, 700:1300]  # 65 frames later
        assert [replays.show(frame[None], noise=True)[1] for frame in late] == [2, 0]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("place", range(9))
def test_no_step_in_which_a_fault_is_present_at_its_end_passes(name: str, place: int) -> None:
    """Wherever in the step it begins; a lamp that fails after the lit frame concerns the next step."""
    before = start_up_frames(USUAL) + 2
    camera = Camera(USUAL, seed=5, fault=name, after=before + place)
    monitor = started(camera)
    if place == 8 and name not in ("lamp-off", "frozen-frame", "replayed-frame", "gain-drop"):
        step(monitor, camera)  # the lit frame alone does not show it; the next dark frame does
    with pytest.raises(HealthError):
        step(monitor, camera)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_from_the_beginning_is_found_by_the_start_up(name: str) -> None:
    with pytest.raises(HealthError):
        started(Camera(USUAL, seed=6, fault=name))


def spoiled(how: Callable[[np.ndarray], np.ndarray]) -> HealthError:
    """The failure of a start-up whose analog frames were changed."""
    camera = Camera(USUAL, seed=7)
    usual = camera._out

    def changed(codes: np.ndarray, setting: Frame, black: float) -> Tensor:
        return usual(how(codes.reshape(-1, *USUAL)).reshape(codes.shape), setting, black)

    camera._out = changed  # type: ignore[method-assign]
    monitor = HealthMonitor(BY_CONSTRUCTION, USUAL)
    with pytest.raises(HealthError) as error:
        monitor.start_up(camera.dark(start_up_frames(USUAL)))
    return error.value


NORMALS = np.random.default_rng(11)


def uneven(x: np.ndarray) -> np.ndarray:
    """Odd codes are 2 % rarer."""
    moved = np.rint(x)
    changed: np.ndarray = moved + (NORMALS.random(x.shape) < 0.02) * (moved % 2) * NORMALS.choice(
        [-1, 1], x.shape
    )
    return changed


def stuck_row(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x[:, :-1], np.full_like(x[:, -1:], 60)), axis=1)


SUBTLE: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "2 % less noise": (lambda x: LEVEL + 0.98 * (x - LEVEL), "variance"),
    "2 % more noise": (lambda x: LEVEL + 1.02 * (x - LEVEL), "variance"),
    "level off by 0.03 DN": (lambda x: x + 0.03, "level"),
    "row noise of 0.12 DN": (lambda x: x + 0.12 * NORMALS.standard_normal((*x.shape[:2], 1)), "row means"),
    "column noise of 0.12 DN": (
        lambda x: x + 0.12 * NORMALS.standard_normal((len(x), 1, x.shape[2])),
        "column means",
    ),
    "neighbours alike": (lambda x: 0.9998 * x + 0.02 * (np.roll(x, 1, 2) - LEVEL), "correlation"),
    "odd codes 2 % rarer": (uneven, "code law"),
    "a stuck row": (stuck_row, "replay"),
    "noise of four codes": (
        lambda x: LEVEL + np.sign(x - LEVEL) * (4 + (np.abs(x - LEVEL) > 1.75 * SIGMA)),
        "repeated pixels",
    ),
    "a fifth less gain": (lambda x: LEVEL + 0.8 * (x - LEVEL), "variance"),
}


@pytest.mark.parametrize("name", SUBTLE)
def test_subtle_defects_are_found_by_their_own_test(name: str) -> None:
    how, test = SUBTLE[name]
    assert spoiled(how).finding["test"] == test


def test_a_stuck_pixel_is_found_in_the_frame_that_makes_it_improbable() -> None:
    camera = Camera(USUAL, seed=8)
    monitor = started(camera)
    limit = monitor.describe()["limits"]["run"]
    for count in range(1, limit + 1):
        frames = camera.dark(2)
        frames[:, 4711] = 66
        if 2 * count < limit:
            monitor.dark(frames)
        else:
            break
    with pytest.raises(HealthError) as error:
        monitor.dark(frames)
    assert (error.value.finding["test"], error.value.finding["value"]) == ("repetition count", 2 * count)
    assert (limit, 2 * count) == (15, 16)


@pytest.mark.parametrize("axis", ["row", "column"])
def test_a_short_run_of_equal_codes_in_one_frame_is_found(axis: str) -> None:
    camera = Camera(USUAL, seed=9)
    monitor = started(camera)
    frames = camera.dark(2)
    image = frames[0].view(USUAL)
    (image[100] if axis == "row" else image[:, 100])[40:55] = 70
    with pytest.raises(HealthError) as error:
        monitor.dark(frames)
    assert error.value.finding["test"] == "repetition count"


def test_a_claim_of_more_noise_than_there_is_fails_and_of_less_does_not() -> None:
    """One-sided against the lower limit: a calibration that credits 3 % more than there is."""
    camera = Camera(USUAL, seed=10)
    with pytest.raises(HealthError) as error:
        started(camera, replace(CALIBRATED, credited=1.03 * SIGMA, expected=1.03 * SIGMA))
    assert error.value.finding["test"] == "variance"
    started(camera, replace(CALIBRATED, credited=0.8 * SIGMA))
    with pytest.raises(HealthError):  # another camera's estimate
        started(camera, replace(CALIBRATED, credited=0.8 * SIGMA, expected=0.85 * SIGMA))


def test_frames_of_an_earlier_part_of_the_run_are_replays() -> None:
    first, second = Camera(SMALL, seed=12), Camera(SMALL, seed=12)
    found = HealthMonitor(BY_CONSTRUCTION, SMALL).start_up(first.dark(start_up_frames(SMALL)))
    monitor = HealthMonitor(BY_CONSTRUCTION, SMALL, known=found["digests"])
    with pytest.raises(HealthError) as error:
        monitor.start_up(second.dark(start_up_frames(SMALL)))
    assert error.value.finding["test"] == "replay"


def test_a_lamp_without_light_is_found_though_nobody_calibrated_it() -> None:
    camera = Camera(USUAL, seed=13)
    monitor = HealthMonitor(BY_CONSTRUCTION, USUAL)
    with pytest.raises(HealthError, match="lamp"):
        monitor.lamp(camera.data(0.0), camera.data(0.0))


def test_codes_that_are_no_numbers_or_no_integers_are_a_failure() -> None:
    camera = Camera(SMALL, seed=14)
    monitor = started(camera)
    monitor.dark(camera.dark(2).float())
    for value in (float("nan"), 64.5, float("inf")):
        frame = camera.dark(2).float()
        frame[0, 0] = value
        with pytest.raises(HealthError, match="codes"):
            monitor.dark(frame)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(UsageError, match=str(LEAST_PIXELS)):
        HealthMonitor(BY_CONSTRUCTION, (31, 33))
    with pytest.raises(UsageError, match="analog gain"):
        HealthMonitor(Reference(0.13, 0.13, LEVEL, 1.0), SMALL)
    monitor = HealthMonitor(BY_CONSTRUCTION, SMALL)
    with pytest.raises(UsageError, match="start-up"):
        monitor.dark(Camera(SMALL).dark(2))
    with pytest.raises(UsageError, match="even number"):
        monitor.start_up(Camera(SMALL).dark(2))
    with pytest.raises(UsageError, match="even number"):
        started(Camera(SMALL)).dark(Camera(SMALL, seed=1).dark(3))


def test_the_package_needs_no_camera_of_ours() -> None:
    """A single row of pixels and int32 codes, as a third party's driver may give them."""
    monitor = HealthMonitor(BY_CONSTRUCTION, (1, 4096))
    normals = NoiseGenerator.seeded(15, "camera")
    frames = (LEVEL + SIGMA * normals.normal_(torch.empty(256 * 4096, dtype=torch.float64))).round().int()
    monitor.start_up(frames.view(256, 4096))
    more = (LEVEL + SIGMA * normals.normal_(torch.empty(8192, dtype=torch.float64))).round().int()
    monitor.dark(more.view(2, 4096))
