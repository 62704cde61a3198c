"""lightonml's hardware branch over emulated drivers: bit packing, region of interest, acquisition, 8-bit camera."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated_drivers
import numpy as np
import pytest
import torch

from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import backends
from optical_dfa.backends import create
from optical_dfa.backends.lightonml_opu import LightonmlBackend

Build = Callable[..., LightonmlBackend]


@pytest.fixture
def opu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Opens the backend over freshly built drivers."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    devices: list[LightonmlBackend] = []

    def build(n_in: int = 10, n_out: int = 300, drivers: dict[str, Any] | None = None, **options: Any) -> Any:
        config = emulated_drivers.build(tmp_path, **(drivers or {}))
        device = create(
            "lightonml",
            in_features=n_in,
            out_features=n_out,
            seed=1,
            noise=NoiseGenerator.seeded(1, "n"),
            options={"config_file": str(config), **options},
        )
        devices.append(device)  # type: ignore[arg-type]
        return device

    yield build
    for device in devices:
        device.close()
    for name in [name for name in sys.modules if name.split(".")[0] == "lightonopu"]:
        del sys.modules[name]


def truth(opu: LightonmlBackend) -> np.ndarray:
    """B of the emulated medium: Re(conj(M 1) M x) with every input on as many mirrors as fit."""
    medium = opu._opu.device.medium[: opu.out_features]
    factor = medium.shape[1] // opu.in_features
    fields = medium[:, : factor * opu.in_features].reshape(opu.out_features, opu.in_features, factor).sum(2)
    found: np.ndarray = (fields.sum(1, keepdims=True).conj() * fields).real
    return found


@pytest.mark.parametrize("n_in", [10, 50, 768])
def test_it_projects_through_the_drivers(opu: Build, n_in: int) -> None:
    # 768 inputs use every mirror, and lightonml's plain formatter. What is left is camera noise and rounding.
    device = opu(n_in=n_in, encoding="ternary", threshold=0.0)
    e = torch.randint(0, 2, (200, n_in), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    answer = device.project(e).numpy()
    expected = e.numpy() @ truth(device).T
    assert np.corrcoef(answer.ravel(), expected.ravel())[0, 1] > 0.98
    # The gain: E (B e)² is n for unit variance and signs e.
    assert np.mean(answer**2) / n_in == pytest.approx(1.0, abs=0.1)


def test_what_the_start_measures(opu: Build) -> None:
    device = opu()
    assert device.levels is not None
    assert device.levels.dark == pytest.approx(3.0, abs=0.1)
    # Half the mirrors, each with E|T|² = 1/768, at 400 µs and a tenth of a DN a µs.
    assert device.levels.signal == pytest.approx(400 / 10 / 2, rel=0.2)
    assert device.levels.saturated < 0.005
    assert 0 <= device.calibration.nonlinearity < 0.2
    assert device.calibration.noise > 0
    assert device.noise.describe() == {"model": "uncalibrated"}


def test_large_batches_are_cut_to_the_devices_passes(opu: Build) -> None:
    device = opu(n_out=20, drivers={"pass_size": 64}, encoding="ternary", threshold=0.0)
    e = torch.randint(0, 2, (1700, 10), generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    answer = device.project(e)
    assert answer.shape == (1700, 20)
    assert np.corrcoef(answer.numpy().ravel(), (e.numpy() @ truth(device).T).ravel())[0, 1] > 0.98
    assert device.project(e[:0]).shape == (0, 20)
    assert device.project(e[:1]).shape == (1, 20)


def test_it_says_what_it_is(opu: Build) -> None:
    device = opu()
    found = device.describe()
    assert "emulated device bench" in found["device"]
    assert "OPU bench-1-test" in found["device"]
    assert "seed" not in found
    assert device.matrix() is None
    assert device.fingerprint() == opu_fingerprint(found)
    with pytest.raises(UsageError, match="pickled"):
        device.__reduce__()


def opu_fingerprint(description: dict[str, Any]) -> str:
    from optical_dfa.backends.base import digest

    return digest(description)


def held() -> list[Any]:
    from lightonopu.internal import device  # type: ignore[import-not-found]

    found: list[Any] = device.OPEN
    return found


def test_closing_hands_the_device_back(opu: Build) -> None:
    with opu() as device:
        assert len(held()) == 1
    assert held() == []
    with pytest.raises(UsageError, match="closed"):
        device.project(torch.ones(1, 10))


@pytest.mark.parametrize(("exposure_us", "words"), [(0, "shutter"), (6000, "saturated")])
def test_light_that_does_not_serve_is_refused_and_the_device_handed_back(
    opu: Build, exposure_us: int, words: str
) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        opu(drivers={"exposure_us": exposure_us})
    assert "\n" not in str(caught.value)
    assert held() == []


def test_a_driver_that_fails_is_one_line(opu: Build) -> None:
    device = opu()
    driver: Any = device._opu.device
    driver.fail_after = driver.shown
    with pytest.raises(DeviceError, match="camera timeout") as caught:
        device.project(torch.ones(1, 10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drivers": {"version": "1.4.0"}}, "1.4.0"),
        ({"n_in": 769}, "769"),
        ({"n_out": 48 * 40 + 1}, "maximum"),
    ],
)
def test_what_the_hardware_cannot_do_is_one_line(opu: Build, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        opu(**options)
    assert "\n" not in str(caught.value)


def test_no_configuration_is_one_line(tmp_path: Path, opu: Build) -> None:
    with pytest.raises(DeviceError) as caught:
        opu(config_file=str(tmp_path / "absent.json"))
    assert "absent.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_may_be_named_from_here(
    tmp_path: Path, opu: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "bench" in opu(config_file="opu.json").describe()["device"]


def test_backends_finds_the_drivers(opu: Build) -> None:
    opu()
    rows = {name: (there, detail) for name, there, detail in backends.available()}
    assert rows["lightonml"] == (True, "a LightOn OPU through lightonml and its drivers")
