"""The simulated device: its camera is in the loop, and its noise is what the model says."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from noise_models.base import Frame
from noise_models.data_sheet import CAMERAS
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.interferometry import METHODS
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend

IDEAL: dict[str, float] = {"prnu": 0.0, "dsnu_electrons": 0.0, "dark_current_electrons_per_second": 0.0}


def device(noise: NoiseGenerator | None = None, n_in: int = 10, n_out: int = 64, **options: Any) -> Any:
    generator = noise or NoiseGenerator.seeded(1, "noise")
    return SimulatedOpuBackend(n_in, n_out, seed=1, noise=generator, **options)


@pytest.mark.parametrize("fidelity", ["effective", "physics"])
def test_noise_of_a_ternary_projection(fidelity: str) -> None:
    # Default camera, one mirror on in one of two frames: shot noise of reference and speckle, read noise, rounding,
    # phase-4. Variance at 6 sigma: false alarm 2e-9.
    opu = device(
        n_out=2000, encoding="ternary", fidelity=fidelity, **(IDEAL if fidelity == "physics" else {})
    )
    e = torch.eye(10).repeat(10, 1)
    residual = (opu.project(e) - e @ opu.matrix().T).double()
    well, gain = 10_000, 247 / 10_000
    reference = well / 4
    amplitude = 0.5 * np.sqrt(2 * well) / (3.909 * np.sqrt(10))
    image = amplitude**2 / 2 + reference + 5**2 + 1 / (12 * gain**2)
    expected = 2 * image / (8 * reference) * 2 / amplitude**2
    assert float(residual.var()) == pytest.approx(expected, rel=6 * np.sqrt(2.2 / residual.numel()))
    assert float(residual.mean()) == pytest.approx(0, abs=6 * np.sqrt(expected / residual.numel()))
    assert stats.kstest(residual[:, 0].numpy() / np.sqrt(expected), "norm").pvalue > 1e-6


def test_answers_are_differences_of_codes() -> None:
    opu = device(encoding="ternary", fidelity="physics")
    e = torch.tensor([[0.25, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25]], dtype=torch.float64)
    reference = opu.optics.interferometer.reference
    codes = opu.project(e) / 0.25 / opu.optics.unit * 4 * reference * (247 / 10_000)
    assert float((codes - codes.round()).abs().max()) < 1e-3
    assert float(codes.abs().max()) > 5


def test_saturation_clips() -> None:
    # A hundred times the exposure: every image is at an end of the range, no answer is beyond what codes allow.
    opu = device(full_scale=0.1, fidelity="physics", encoding="ternary")
    answer = opu.project(torch.ones(50, 10)) / opu.optics.unit
    most = 2 * 247 / (4 * opu.optics.interferometer.reference * 247 / 10_000)
    assert float(answer.abs().max()) <= most
    with pytest.raises(UsageError, match="saturate"):
        device(full_scale=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_many_outputs_and_records_are_read_in_chunks(method: str) -> None:
    # 40 records of 20,001 outputs: more pixels than one chunk holds, and an odd number of outputs.
    opu = device(n_out=20_001, fidelity="physics", encoding="ternary", method=method)
    e = torch.randint(-1, 2, (40, 10), generator=torch.Generator().manual_seed(3)).double()
    e[:, 0] = 1
    answer, ideal = opu.project(e), e.float() @ opu.matrix().T
    cosine = torch.nn.functional.cosine_similarity(answer, ideal.double(), dim=1)
    assert answer.shape == (40, 20_001)
    assert float(cosine.min()) > 0.97


def test_dark_frames_come_from_the_injected_generator() -> None:
    one, two = device(NoiseGenerator.seeded(5, "dark")), device(NoiseGenerator.seeded(5, "dark"))
    assert torch.equal(one.dark(2), two.dark(2))
    assert not torch.equal(one.dark(2), device(NoiseGenerator.seeded(6, "dark")).dark(2))
    assert one.dark(1).dtype == torch.uint8
    assert one.dark(1).shape == (1, 131_072)
    assert one.frame_shape == (256, 512)
    assert one.noise.credit(Frame.DARK).std == pytest.approx(5 * 32 * 247 / 10_000)
    with pytest.raises(UsageError):
        one.dark(-1)


def test_lit_frames_show_the_reference_alone() -> None:
    # A quarter of the full well, shot and read noise; variance over frames, 6 standard errors (2e-9).
    opu = device(dark_pixels=20_000)
    codes = opu.expose(10, light=1.0, seconds=None, setting=Frame.DATA).double()
    gain = 247 / 10_000
    expected = gain**2 * (2500 + 25) + 1 / 12
    n = codes.numel()
    assert float(codes.mean()) == pytest.approx(8 + gain * 2500, abs=6 * np.sqrt(expected / n))
    assert float(codes.var()) == pytest.approx(expected, rel=6 * np.sqrt(2 / n))
    half = opu.expose(1, light=1.0, seconds=opu.noise.camera.data_exposure_seconds / 2, setting=Frame.DATA)
    assert float(half.double().mean()) == pytest.approx(8 + gain * 1250, abs=0.05)
    for light, seconds in ((-1.0, None), (float("nan"), None), (1.0, -1.0)):
        with pytest.raises(UsageError):
            opu.expose(1, light=light, seconds=seconds, setting=Frame.DATA)


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_named_camera_reads(camera: str) -> None:
    opu = device(camera=camera, fidelity="physics", dark_pixels=1000, encoding="ternary")
    answer = opu.project(torch.eye(10))
    assert float((answer - opu.matrix().T).std()) < 0.5
    assert opu.camera()["name"] == camera
    assert opu.dark(1).float().mean() == pytest.approx(opu.noise.credit(Frame.DARK).level, abs=2)


def test_a_restored_device_never_repeats_secret_noise() -> None:
    opu = device(NoiseGenerator.secure("noise"), encoding="bit-planes", bits=3, dark_pixels=64)
    twin = pickle.loads(pickle.dumps(opu))
    assert twin.describe() == opu.describe()
    assert torch.equal(twin.matrix(), opu.matrix())
    assert not torch.equal(twin.dark(1), opu.dark(1))


def test_exposure_is_a_public_constant() -> None:
    assert device().optics.full_scale == pytest.approx(3.909 * np.sqrt(10))
    assert device(full_scale=17.0).fingerprint() != device(full_scale=18.0).fingerprint()
    assert device().noise.describe() != device(read_noise_electrons=4.0).noise.describe()


def test_camera_and_network_have_their_own_identities() -> None:
    base = device(fidelity="physics")
    assert device(n_out=65, fidelity="physics").camera_fingerprint() == base.camera_fingerprint()
    assert device(fidelity="physics", method="anchor").camera_fingerprint() == base.camera_fingerprint()
    for other in ({"serial": 1}, {"camera": "industrial"}, {"prnu": 0.02}, {"dark_pixels": 1024}):
        assert device(fidelity="physics", **other).camera_fingerprint() != base.camera_fingerprint()
    assert device().camera_fingerprint() != base.camera_fingerprint()
    assert device(fault="lamp-off").fingerprint() == device().fingerprint()


@pytest.mark.parametrize(
    ("method", "encoding", "frames"),
    [
        ("phase-4", "bit-planes", 32), ("phase-3", "bit-planes", 24), ("anchor", "bit-planes", 16),
        ("balanced", "bit-planes", 16), ("phase-4", "ternary", 8), ("balanced", "ternary", 4),
        ("off-axis", "bit-planes", 8), ("homodyne", "ternary", 2),
    ],
)  # fmt: skip
def test_frames_and_hardware_time(method: str, encoding: str, frames: int) -> None:
    opu = device(method=method, encoding=encoding, frame_rate_hz=500.0)
    assert opu.frames_per_record == opu.describe()["frames_per_record"] == frames
    assert opu.hardware_seconds(4096) == pytest.approx(4096 * frames / 500)
    assert device(camera="high-speed").frame_rate_hz == CAMERAS["high-speed"].frame_rate_hz


@pytest.mark.parametrize("fidelity", ["effective", "physics"])
def test_gain_drifts_in_public_time(fidelity: str) -> None:
    opu = device(drift_per_hour=0.08, fidelity=fidelity, encoding="ternary", n_out=4000)
    e = torch.eye(10)
    before = float((opu.project(e) * opu.matrix().T).mean())
    opu.project(e)
    opu.advance(1800.0)
    after = float((opu.project(e) * opu.matrix().T).mean())
    assert after / before == pytest.approx(np.exp(0.04), abs=0.01)
    assert opu.noise.credit(Frame.DARK).std == pytest.approx(0.95 * 5 * 32 * 247 / 10_000)
    twin = pickle.loads(pickle.dumps(opu))
    assert twin.noise.gain_factor == opu.noise.gain_factor == pytest.approx(np.exp(0.04))
    with pytest.raises(DeviceError, match="drift"):
        opu.advance(1800.0)
    with pytest.raises(UsageError):
        opu.advance(-1.0)


@pytest.mark.parametrize("method", ["phase-4", "anchor"])
def test_medium_ages_with_the_device(method: str) -> None:
    opu = device(decorrelation_seconds=100.0, method=method, n_out=4000, encoding="ternary")
    e = torch.eye(10)
    old = opu.matrix()
    first, same = opu.project(e), opu.project(e)
    assert float((first - same).std()) < 0.6
    assert torch.equal(opu.matrix(), old)
    opu.advance(50.0)
    new = opu.matrix()
    # 40,000 entries (the anchor's phase ages too, along with the inputs' columns): 6 standard errors.
    expected = np.exp(-0.5) if method == "phase-4" else np.exp(-1.0)
    assert float((old * new).mean()) == pytest.approx(expected, abs=6 / np.sqrt(40_000) + 0.02)
    assert float((opu.project(e) - new.T).std()) < 0.4
    twin = pickle.loads(pickle.dumps(opu))
    assert torch.equal(twin.matrix(), new)
    twin.advance(10.0)
    opu.advance(10.0)
    assert torch.equal(twin.matrix(), opu.matrix())
    assert (
        opu.fingerprint()
        == device(decorrelation_seconds=100.0, method=method, n_out=4000, encoding="ternary").fingerprint()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"fidelity": "exact"}, {"method": "phase-5"}, {"camera": "phone"}, {"contrast": 0.5}, {"grain": 0.5},
        {"decorrelation_seconds": 0.0}, {"prnu": 0.01}, {"dnl_lsb": 0.1}, {"dark_pixels": 0},
        {"fidelity": "physics", "dark_pixels": 16}, {"adc_bits": 1}, {"fault": "fire"}, {"full_scale": -1.0},
        {"frame_rate_hz": 0.0}, {"drift_limit": 0.9, "drift_per_hour": 0.1},
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        device(**options)
    assert "\n" not in str(caught.value)


def test_a_fault_strikes_frames_without_data() -> None:
    opu = device(fault="lamp-off", fault_after=3, dark_pixels=1000)
    lit = [opu.expose(1, light=1.0, seconds=None, setting=Frame.DATA).float().mean() for _ in range(5)]
    assert [bool(level > 50) for level in lit] == [True, True, True, False, False]
    assert opu.project(torch.eye(10)).isfinite().all()


@pytest.mark.parametrize("seed", [1, 2])
def test_default_encoding_keeps_the_direction_of_the_error(seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    e = torch.softmax(2 * torch.randn(1000, 10, generator=stream), 1)
    e -= torch.eye(10)[torch.randint(10, (1000,), generator=stream)]
    opu = device(n_out=1000)
    cosine = torch.nn.functional.cosine_similarity(opu.project(e), e @ opu.matrix().T, dim=1)
    assert float(cosine.mean()) > 0.9
