"""Photon-transfer calibration against a camera whose every parameter is known."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy_camera import NumpyCamera, random_camera
from scipy import stats
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.document import DRIFT_ALLOWANCE, Calibration, Interval
from noise_models.calibration.frame_statistics import DarkMoments, measure_level
from noise_models.calibration.noise_credit import noise_credit
from noise_models.calibration.photon_transfer import calibrate, planned
from noise_models.errors import DeviceError, UsageError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run(camera: NumpyCamera, dark_frames: int = 256, **options: Any) -> Calibration:
    return calibrate(camera, dark_frames=dark_frames, now=NOW, **{"ideal_converter": True, **options})


def outside(camera: NumpyCamera, found: Calibration) -> list[str]:
    """Parameters whose true value is not within the limits, and broken promises of the credit."""
    truth = camera.truth()
    assert set(found.parameters) <= set(truth)
    wrong = [
        name
        for name, limits in found.parameters.items()
        if not limits.lower - 1e-12 <= truth[name] <= limits.upper + 1e-12
    ]
    sigma = camera.gain * camera.read
    level = camera.black + camera.gain * camera.pattern
    tails = stats.norm.cdf(-(level.min() + 0.5) / sigma) + stats.norm.sf(
        (camera.top + 0.5 - level.max()) / sigma
    )
    if not found.credit_lower_dn <= sigma:
        wrong.append("credit")
    if not found.clipped_mass >= tails:
        wrong.append("clipped mass")
    return wrong


def simultaneous_failures(seeds: range, confidence: float) -> int:
    failures = 0
    for seed in seeds:
        camera = random_camera(seed)
        found = run(camera, confidence=confidence)
        assert found.passed, (seed, found.findings)
        assert len(found.parameters) == len(camera.truth())
        failures += bool(outside(camera, found))
    return failures


def test_true_values_lie_within_simultaneous_limits_of_10_random_cameras() -> None:
    # At 99 % a sound calibration fails on 3 or more of 10 with probability 1.1e-4.
    assert simultaneous_failures(range(10), 0.99) <= 2


@pytest.mark.slow
def test_rate_of_simultaneous_limits_over_200_random_cameras() -> None:
    # At 90 % a sound calibration fails on more than 37 of 200 with probability 1e-4.
    assert simultaneous_failures(range(1000, 1200), 0.9) <= stats.binom.isf(1e-4, 200, 0.1)


def test_gain_and_read_noise_within_two_per_cent_of_at_most_2000_frames() -> None:
    # At this size the standard errors are below 0.25 %; 2 % is 8 of them.
    camera = NumpyCamera(shape=(256, 256))
    found = run(camera, 512)
    assert found.frames == camera.taken <= 2000
    assert planned(65536, 512) + 16 >= found.frames
    for name in ("gain_dn_per_electron", "read_noise_electrons", "data_gain_dn_per_electron"):
        limits, true = found.parameters[name], camera.truth()[name]
        assert limits.value == pytest.approx(true, rel=0.02)
        assert limits.upper - limits.lower < 0.03 * true
    assert found.passed
    assert found.saturation_dn == 255
    assert found.credit_dn == pytest.approx(4.0, rel=0.005)
    # 512 frames and the worst of 65536 pixels leave half of the noise; the limit stays below the truth.
    assert 0.5 * 4 < found.credit_lower_dn < 4.0


def test_more_dark_frames_bring_the_credit_nearer() -> None:
    few, many = (run(NumpyCamera(), frames).credit_lower_dn for frames in (128, 1536))
    assert few < many - 0.3
    assert many < 4.0


def test_the_smallest_limit_holds_for_a_pixel_that_is_quieter_than_the_others() -> None:
    # One pixel of 4096 with 80 % of the noise. At beta = 0.1 a wrong credit comes in 1 of 120 (a twelfth of beta)
    # at most; 60 runs give 6 or more with probability 2e-5.
    def quiet(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(0, 3.0, shape)
        noise[:, 1234] *= 0.8
        return noise

    wrong = 0
    for seed in range(60):
        camera = NumpyCamera(read=1e-3, dsnu=0, extra=quiet, seed=seed, shape=(32, 64))
        moments = DarkMoments(camera.shape)
        moments.add(camera.expose(64, light=0.0, seconds=None, setting=Frame.DARK).numpy())
        wrong += noise_credit(moments, Interval(0, 0, 0), np.zeros(2048), 255, 0.1).lower > 0.8 * 3.0
    assert wrong <= 5


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_random_telegraph_noise_is_subtracted(share: float) -> None:
    # Symmetric two-level noise with this share of the variance: k4 = −2 a⁴ gives it back.
    read = 4.0 * np.sqrt(1 - share)
    level = 4.0 * np.sqrt(share)

    def telegraph(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return level * rng.choice([-1.0, 1.0], size=shape)

    camera = NumpyCamera(gain=0.8, read=read / 0.8, extra=telegraph, shape=(128, 128))
    found = run(camera, 1024)
    assert found.passed, found.findings
    assert found.parameters["read_noise_dn"].value == pytest.approx(4.0, rel=0.01)  # all of it, unresolved
    assert found.credit_dn == pytest.approx(read, rel=0.02)
    assert 0.6 * read < found.credit_lower_dn < read


def test_a_converter_that_is_not_ideal_is_found_at_one_per_cent() -> None:
    rng = np.random.default_rng(3)
    widths = 1 + 0.01 * rng.standard_normal(254)
    widths *= 254 / widths.sum()
    thresholds = 0.5 + np.concatenate(([0.0], np.cumsum(widths)))
    camera = NumpyCamera(
        convert=lambda analog: np.searchsorted(thresholds, analog, side="right"), shape=(128, 128)
    )
    found = run(camera, 512)
    assert not found.passed
    assert found.credit_lower_dn == found.credit().std == 0.0
    (finding,) = (text for text in found.findings if "not ideal" in text)
    assert "--release device-entropy or digital" in finding
    assert any("NOT consistent" in text for text in found.assumptions)
    # Codes 56 to 72 are within two sigma: their widths are measured to 0.1 %, but for what is smooth over the noise.
    codes, errors = (np.array(found.curves[name]) for name in ("codes", "width_errors"))
    near = np.abs(codes - 64) <= 8
    off = errors[near] - (widths[codes[near].astype(int) - 1] - 1)
    assert errors[near].std() > 0.007
    assert (off - np.polyval(np.polyfit(codes[near], off, 5), codes[near])).std() < 0.002
    ideal = run(NumpyCamera(shape=(128, 128)), 512)
    assert ideal.passed
    assert ideal.parameters["dnl_codes"].lower == 0.0
    assert ideal.parameters["dnl_codes"].upper < 0.05


def test_a_converter_that_nobody_vouches_for_earns_nothing() -> None:
    beginning = "the converter is ideal and uniform and hands out raw codes ("
    for device, vouched, said in (
        (NumpyCamera(), False, "NOT known"),
        (NumpyCamera(), True, "vouched for by whoever calibrated"),
        (NumpyCamera(ideal_converter=True), False, "by construction"),
        (NumpyCamera(ideal_converter=True), True, "by construction"),
    ):
        found = run(device, ideal_converter=vouched)
        (assumption,) = (text for text in found.assumptions if text.startswith(beginning))
        assert assumption.removeprefix(beginning).startswith(said)
        assert found.passed == (said != "NOT known")
        if not found.passed:
            (finding,) = found.findings
            assert "thresholds are not known" in finding
            assert "device-entropy" in finding
            assert "--ideal-converter" in finding
            assert found.credit().std == 0.0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"convert": lambda analog: 2 * np.rint(analog / 2)}, "digital gain"),
        ({"lamp": 0.0}, "switch the lamp on"),
        ({"gain": 0.1}, "raise the analog gain"),
        ({"black": 20.0, "dsnu": 0.0}, "sigma from an end"),
        ({}, None),
        (
            {"extra": lambda shape, rng: np.repeat(rng.normal(0, 2, (shape[0], 64)), shape[1] // 64, axis=1)},
            "correlated",
        ),
        ({"bend": lambda electrons: 4000 * np.tanh(electrons / 4000)}, "straight line"),
        ({"lamp": 30000.0}, "saturated at nominal light"),
    ],
)
def test_findings(change: dict[str, Any], text: str | None) -> None:
    found = run(NumpyCamera(**change))
    if text is None:
        assert found.passed, found.findings
        return
    assert not found.passed
    assert found.credit().std == 0.0
    assert any(text in finding for finding in found.findings), found.findings
    assert all("\n" not in finding for finding in found.findings)


class Faulty(NumpyCamera):
    """Dark frames with a fault, by name."""

    fault = ""

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        codes = super().expose(frames, light=light, seconds=seconds, setting=setting)
        if setting is Frame.DARK and light == 0 and seconds is None:
            if self.fault == "stuck":
                codes[:, 100:164] = 64
            elif self.fault == "replayed":
                codes[1:] = codes[:1]
            elif self.fault == "late" and self.taken > 400:
                codes = 64 + (codes - 64) // 2
            elif self.fault == "drift":
                codes += torch.arange(self.taken - frames, self.taken, dtype=codes.dtype)[:, None] // 32
        return codes


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("stuck", "dead or stuck"),
        ("replayed", "equal an earlier one"),
        ("drift", "level moved"),
        ("late", "at last"),
    ],
)
def test_faulty_dark_frames_earn_nothing(fault: str, text: str) -> None:
    camera = Faulty()
    camera.fault = fault
    found = run(camera)
    assert not found.passed
    assert found.credit().std == 0.0
    assert any(text in finding for finding in found.findings), found.findings


def test_common_fluctuations_and_drift_are_no_pixels_noise() -> None:
    # A level that moves with the frame (1 DN) changes nothing but the frames' means.
    def common(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        return rng.normal(0, 1.0, (shape[0], 1))

    found = run(NumpyCamera(extra=common))
    assert found.parameters["read_noise_dn"].value == pytest.approx(4.0, rel=0.01)


def test_moments_are_those_of_all_frames_at_once() -> None:
    # Against scipy's k-statistics over the frames, with each frame's mean taken off.
    rng = np.random.default_rng(1)
    codes = rng.normal(60, 5, (64, 512)).round().astype(np.int32) + rng.integers(0, 9, 512)
    moments = DarkMoments((16, 32))
    for part in np.split(codes, 8):
        moments.add(part)
    centred = codes - codes.mean(1, keepdims=True)
    second, fourth = moments.cumulants()
    np.testing.assert_allclose(second, centred.var(0, ddof=1) * 512 / 511, rtol=1e-5)
    np.testing.assert_allclose(fourth, [stats.kstat(column, 4) for column in centred.T], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(moments.image, codes.mean(0), rtol=1e-6)
    assert (moments.histogram == np.bincount(codes.ravel())).all()
    assert moments.repeats == 0
    moments.add(codes[:2])
    assert moments.repeats == 2


def test_neighbours_and_successive_frames() -> None:
    # Correlations at 6 standard errors: false alarm 1e-8.
    rng = np.random.default_rng(2)
    white = rng.normal(0, 5, (401, 64, 64))
    mixed = white.copy()
    mixed[:, :, 1:] += 0.3 * white[:, :, :-1]  # 0.3 / 1.09 along the row
    mixed[1:] += 0.2 * mixed[:-1]
    moments = DarkMoments((64, 64))
    moments.add((100 + mixed[1:]).round().astype(np.int32).reshape(400, -1))
    along, error = moments.neighbours()
    assert along[0] == pytest.approx(0.3 / 1.09, abs=0.01)
    assert np.abs(along[1:]).max() < 6 * error + 0.001
    after, after_error = moments.successive()
    assert after == pytest.approx(0.2 / 1.04, abs=0.01)
    assert 0 < after_error < 0.002


def test_level_of_pairs() -> None:
    camera = NumpyCamera()
    found = measure_level(camera, 16, light=0.02, setting=Frame.DARK)
    # 5 standard errors each: false alarm 1e-6.
    signal = 50 * camera.response.mean()
    assert abs(found.variance - 0.64 * (signal + 25) - 1 / 12) < 5 * found.variance_error
    assert abs(found.mean - 64 - 0.8 * (signal + camera.pattern.mean())) < 5 * found.mean_error
    assert found.variance_error == pytest.approx(found.variance * np.sqrt(2 / (8 * 4096)), rel=0.1)


def test_document_survives_and_is_refused_elsewhere(tmp_path: Path) -> None:
    found = run(NumpyCamera())
    found.save(tmp_path / "cal.json")
    again = Calibration.load(tmp_path / "cal.json")
    assert again == found
    assert again.digest == found.digest != dataclasses.replace(found, beta=1e-7).digest
    assert datetime.fromisoformat(found.expires_at) == NOW + timedelta(days=30)
    credit = again.credit()
    assert credit.std == pytest.approx((1 - DRIFT_ALLOWANCE) * found.credit_lower_dn)
    assert (credit.beta, credit.step) == (1e-6, 1.0)
    again.refuse_other(NumpyCamera().camera_fingerprint(), NOW + timedelta(days=29))
    with pytest.raises(DeviceError, match="expired"):
        again.refuse_other(NumpyCamera().camera_fingerprint(), NOW + timedelta(days=30))
    with pytest.raises(DeviceError, match="is of camera"):
        again.refuse_other(NumpyCamera(seed=1).camera_fingerprint(), NOW)


@pytest.mark.parametrize(
    "options",
    [
        {"dark_frames": 63},
        {"dark_frames": 101},
        {"dark_frames": 2_000_000},
        {"confidence": 0.2},
        {"confidence": 1.0},
        {"confidence": float("nan")},
        {"beta": 0.0},
        {"beta": 0.5},
        {"valid_days": 0.0},
        {"valid_days": float("inf")},
    ],
)
def test_wrong_values_are_named_before_a_frame_is_taken(options: dict[str, Any]) -> None:
    camera = NumpyCamera()
    with pytest.raises(UsageError) as caught:
        run(camera, **options)
    assert "\n" not in str(caught.value)
    assert camera.taken == 0


def test_small_frames_and_nonsense_from_the_driver_are_refused() -> None:
    with pytest.raises(UsageError, match="1024"):
        run(NumpyCamera(shape=(8, 8)))

    class Short(NumpyCamera):
        def expose(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().expose(*args, **kwargs)[:, :-1]

    with pytest.raises(DeviceError, match="shape"):
        run(Short())


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format": 1, "camera": "x"}'])
def test_what_is_no_calibration_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cal.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"cal\.json is no calibration") as caught:
        Calibration.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        Calibration.load(tmp_path / "none.json")
