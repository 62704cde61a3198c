"""The adapter of LightOn's library. These tests FAIL where lightonml cannot be imported: it is part of the set-up."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from noise_models.errors import DeviceError, UsageError
from noise_models.generator import NoiseGenerator
from optical_dfa.backends import create, lightonml_opu
from optical_dfa.backends.lightonml_opu import LightonmlBackend, LightonmlSimulatedBackend, import_lightonml


def device(seed: int = 1, n_in: int = 10, n_out: int = 200, **options: Any) -> LightonmlSimulatedBackend:
    return LightonmlSimulatedBackend(n_in, n_out, seed=seed, noise=NoiseGenerator.seeded(1, "n"), **options)


def test_lightonml_is_importable_and_leaves_no_stand_in_behind() -> None:
    before = "pkg_resources" in sys.modules
    opu_class, device_class = import_lightonml()
    assert opu_class.__name__ == "OPU"
    assert device_class.__name__ == "SimulatedOpuDevice"
    assert ("pkg_resources" in sys.modules) == before


def test_stand_in_for_package_resources() -> None:
    stand_in = lightonml_opu._PackageResources
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


def test_hardware_adapter_over_an_injected_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # lightonml's own simulated device stands in for the drivers: the adapter, not the optics, is under test.
    monkeypatch.setattr(LightonmlBackend, "_open", LightonmlSimulatedBackend._open)
    opu = LightonmlBackend(10, 50, seed=1, noise=NoiseGenerator.seeded(1, "n"))
    monkeypatch.setattr(opu._opu, "version", lambda devices: "stand-in 1.0")
    twin = device(n_out=50)
    e = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(opu.project(e), twin.project(e))
    assert opu.matrix() is None
    assert "seed" not in opu.describe()
    assert opu.describe()["device"] == "stand-in 1.0"
    assert opu.describe()["noise"] == {"model": "uncalibrated"}
    with pytest.raises(UsageError):
        opu.__reduce__()
    opu.close()
