"""The adapter of LightOn's library. These tests FAIL where lightonml cannot be imported: it is part of the set-up."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch

from noise_models.base import Frame
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create, lightonml_library
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.lightonml_calibration import calibrate
from optical_dfa.backends.lightonml_library import import_lightonml
from optical_dfa.backends.lightonml_opu import LightonmlSimulatedBackend
from optical_dfa.testing import BackendConformance, Limits


def device(seed: int = 1, n_in: int = 10, n_out: int = 200, **options: Any) -> LightonmlSimulatedBackend:
    return LightonmlSimulatedBackend(n_in, n_out, seed=seed, noise=NoiseGenerator.seeded(1, "n"), **options)


def test_lightonml_is_importable_and_leaves_no_stand_in_behind() -> None:
    before = "pkg_resources" in sys.modules
    opu_class, device_class = import_lightonml()
    assert opu_class.__name__ == "OPU"
    assert device_class.__name__ == "SimulatedOpuDevice"
    assert ("pkg_resources" in sys.modules) == before


def test_stand_in_for_package_resources() -> None:
    stand_in = lightonml_library._PackageResources
    assert stand_in.get_distribution("lightonml").version == "1.4.3"
    stand_in.require("numpy>=1")
    with pytest.raises(DeviceError, match="numpy"):
        stand_in.require("numpy>=1000")
    with pytest.raises(stand_in.ResolutionError):
        stand_in.get_distribution("no-such-distribution")


def test_it_is_the_library_that_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    opu = device(encoding="ternary")
    calls: list[np.ndarray] = []
    plain = opu._opu.linear_transform

    def spy(frames: np.ndarray) -> np.ndarray:
        calls.append(frames)
        return plain(frames)

    monkeypatch.setattr(opu._opu, "linear_transform", spy)
    e = torch.tensor([[0.5, -0.5] + [0.0] * 8])
    out = opu.project(e)
    assert len(calls) == 1
    assert calls[0].dtype == np.uint8
    assert calls[0].tolist() == [[1] + [0] * 9, [0, 1] + [0] * 8]
    torch.testing.assert_close(out, e @ opu.matrix().T, rtol=1e-5, atol=1e-5)


def test_the_gain_gives_unit_variance_whatever_the_size() -> None:
    for n_in, n_out in ((1, 3000), (10, 300), (1100, 40)):
        opu = device(n_in=n_in, n_out=n_out)
        # The probes show at most 1024 of the inputs: 6 sigma of the rest's variance.
        assert float(opu.matrix().double().square().mean()) == pytest.approx(1.0, rel=0.05)


def test_two_seeds_are_two_matrices() -> None:
    one, two = device(1).matrix().flatten(), device(2).matrix().flatten()
    assert abs(float(torch.corrcoef(torch.stack((one, two)))[0, 1])) < 6 / np.sqrt(len(one))


def test_large_batches_are_sent_in_chunks() -> None:
    opu = device(n_out=16, encoding="bit-planes", bits=2)
    e = torch.randn(2000, 10, generator=torch.Generator().manual_seed(1))
    decoded = opu.encoding.decode(opu.encoding.encode(e))
    torch.testing.assert_close(opu.project(e), decoded @ opu.matrix().T, rtol=1e-4, atol=1e-4)


def test_a_failing_device_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    opu = device()

    def fail(frames: np.ndarray) -> np.ndarray:
        raise RuntimeError("camera timeout\nat frame 7")

    monkeypatch.setattr(opu._opu, "linear_transform", fail)
    with pytest.raises(DeviceError, match="camera timeout") as caught:
        opu.project(torch.ones(1, 10))
    assert "\n" not in str(caught.value)


def test_a_dark_device_is_noticed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    opu_class, _ = import_lightonml()
    closed: list[bool] = []
    monkeypatch.setattr(opu_class, "linear_transform", lambda self, frames: np.zeros((len(frames), 200)))
    monkeypatch.setattr(opu_class, "close", lambda self: closed.append(True))
    with pytest.raises(DeviceError, match="probe"):
        device()
    assert closed == [True]


def test_hardware_without_a_device_says_what_to_do() -> None:
    with pytest.raises(DeviceError) as caught:
        create("lightonml", in_features=10, out_features=50, seed=1, noise=NoiseGenerator.seeded(1, "n"))
    message = str(caught.value)
    assert "\n" not in message
    assert "lightonopu" in message
    assert "simulated-opu" in message


def test_without_lightonml_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "lightonml"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightonml", None)
    with pytest.raises(DeviceError) as caught:
        device()
    assert "\n" not in str(caught.value)
    assert "pip install --no-deps lightonml==1.4.3" in str(caught.value)


def test_the_calibration_of_a_noiseless_device() -> None:
    found = device(n_out=500).calibration
    assert found.noise < 1e-6
    assert found.nonlinearity < 1e-5
    assert found.offset == 0.0


class TestPhysicsBehindTheFrontEnd(BackendConformance):
    limits = Limits(relative_noise=0.13, noise_by_position=False)

    def make(self, in_features: int, out_features: int, seed: int) -> ProjectionBackend:
        return physics(seed, in_features, out_features)


def physics(seed: int = 1, n_in: int = 10, n_out: int = 200, **options: Any) -> LightonmlSimulatedBackend:
    return device(seed, n_in, n_out, device="physics", **options)


def test_our_optics_behind_lightonmls_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    opu = physics(encoding="ternary")
    _, base = import_lightonml()
    injected = opu._opu.device
    assert isinstance(injected, base)
    assert type(injected).__name__ == "SimulatedOpuDevice" != type(injected).__mro__[1].__name__
    shown: list[np.ndarray] = []
    plain = type(injected).transform1

    def spy(self: Any, frames: np.ndarray) -> np.ndarray:
        shown.append(frames)
        return plain(self, frames)

    monkeypatch.setattr(type(injected), "transform1", spy)
    opu.project(torch.tensor([[0.5, -0.5] + [0.0] * 8]))
    assert [frames.tolist() for frames in shown] == [[[1] + [0] * 9, [0, 1] + [0] * 8]]
    with pytest.raises(DeviceError, match="linear_transform"):
        opu._call(opu._opu.transform, np.ones((1, 10), dtype=np.uint8))


def test_physics_has_simulated_opus_matrix_and_noise() -> None:
    opu = physics(n_in=64, n_out=1000, encoding="ternary", threshold=0.0)
    twin = create(
        "simulated-opu", in_features=64, out_features=1000, seed=1, noise=NoiseGenerator.seeded(2, "n"),
        options={"fidelity": "physics", "encoding": "ternary", "threshold": 0.0},
    )  # fmt: skip
    assert opu.gain == pytest.approx(1.0, abs=0.02)  # of unit variance to begin with
    torch.testing.assert_close(opu.matrix() * opu.gain, twin.matrix())
    e = torch.randint(0, 2, (400, 64), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    ours, theirs = (device.project(e) - e @ device.matrix().T for device in (opu, twin))
    # Two samples of 4e5 errors; a variance's relative error is at most sqrt(3 / 4e5), of which 8.
    assert float(ours.var() * opu.gain**2 / theirs.var()) == pytest.approx(1.0, abs=8 * np.sqrt(2 * 3 / 4e5))
    assert opu.calibration.noise * opu.gain * np.sqrt(2) == pytest.approx(float(theirs.std()), rel=0.1)


def test_physics_has_simulated_opus_camera() -> None:
    opu = physics(n_out=50, dark_pixels=4096, camera="scientific-cmos", frame_rate_hz=50.0, bits=3)
    camera = {"dark_pixels": 4096, "camera": "scientific-cmos", "frame_rate_hz": 50.0}
    inner = create(
        "simulated-opu", in_features=10, out_features=50, seed=1, noise=NoiseGenerator.seeded(2, "n"),
        options={"fidelity": "physics", "bits": 3, **camera},
    )  # fmt: skip
    assert opu.dark_pixels == 4096 == opu.frame_shape[0] * opu.frame_shape[1]
    assert opu.frames_per_record == inner.frames_per_record == 2 * 3 * 4
    assert opu.frame_rate_hz == 50.0
    assert opu.camera_fingerprint() == inner.camera_fingerprint()
    assert opu.dark(2).shape == (2, 4096)
    assert (
        opu.expose(1, light=1.0, seconds=None, setting=Frame.DATA).float().mean()
        > opu.noise.camera.data_black_dn
    )
    assert opu.noise.credit(Frame.DARK).std > 0
    assert [generator.name for generator in opu.generators] == ["n"]


def test_the_medium_ages_behind_the_front_end() -> None:
    opu = physics(n_out=400, decorrelation_seconds=100.0)
    before = opu.matrix()
    opu.advance(10.0)
    kept = float(torch.corrcoef(torch.stack((before.flatten(), opu.matrix().flatten())))[0, 1])
    assert kept == pytest.approx(np.exp(-0.1), abs=0.02)
    e = torch.eye(10)
    assert (
        float(torch.corrcoef(torch.stack((opu.project(e).flatten(), opu.matrix().T.flatten())))[0, 1]) > 0.99
    )


def test_physics_survives_pickling() -> None:
    opu = physics(n_out=30, decorrelation_seconds=100.0, grain=2.0, method="phase-3")
    opu.advance(5.0)
    twin = pickle.loads(pickle.dumps(opu))
    assert twin.calibration == opu.calibration
    assert twin.fingerprint() == opu.fingerprint()
    torch.testing.assert_close(twin.matrix(), opu.matrix())
    e = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(twin.project(e), opu.project(e))


def test_the_devices_differ_in_description_and_camera() -> None:
    plain, optical = device(), physics()
    assert plain.describe()["device"] == "noiseless"
    assert optical.describe()["device"] == "physics"
    assert optical.describe()["optics"]["method"] == "phase-4"
    assert optical.describe()["backend"] == "lightonml-simulated"
    assert plain.fingerprint() != optical.fingerprint()
    assert plain.camera() == {}
    assert plain.dark_pixels == 0
    with pytest.raises(UsageError, match="no dark frames"):
        plain.dark(1)
    with pytest.raises(UsageError, match="no camera"):
        plain.expose(1, light=1.0, seconds=None, setting=Frame.DATA)
    optical.close()
    with pytest.raises(UsageError, match="closed"):
        optical.dark(1)


def test_answers_that_do_not_add_up_are_refused() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((40, 300)).astype(np.float32)
    good = calibrate(lambda frames: 2.5 * (frames @ matrix) + 7, 40, "probe")
    rms = float(np.sqrt(np.mean(matrix.astype(np.float64) ** 2)))
    assert good.gain == pytest.approx(2.5 * rms, rel=0.02)
    assert good.offset == pytest.approx(7 / good.gain, rel=1e-5)
    assert good.nonlinearity < 1e-3
    noisy = calibrate(lambda frames: frames @ matrix + rng.normal(0, 20, (len(frames), 300)), 40, "probe")
    assert noisy.gain == pytest.approx(rms, rel=0.1)
    assert noisy.noise * noisy.gain == pytest.approx(20, rel=0.02)
    with pytest.raises(DeviceError, match="not linear"):
        calibrate(lambda frames: np.square(frames @ matrix), 40, "probe")
    with pytest.raises(DeviceError, match="probe"):
        calibrate(lambda frames: np.full((len(frames), 300), np.nan), 40, "probe")
