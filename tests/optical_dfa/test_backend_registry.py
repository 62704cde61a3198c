"""Devices by name: what is known, what is refused, and that looking costs nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from noise_models import cards
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import backends
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.digital import DigitalBackend


def build(name: str, options: dict[str, Any] | None = None) -> Any:
    return backends.create(
        name, in_features=4, out_features=6, seed=1, noise=NoiseGenerator.seeded(1, "noise"), options=options
    )


@BackendCard(summary="another's device", part="A device of another package took part.", camera=False)
class OutsideBackend(DigitalBackend):
    name = "outside"


def test_names() -> None:
    assert list(backends.BACKENDS) == [
        "digital",
        "streamed",
        "structured",
        "simulated-opu",
        "lightonml-simulated",
        "lightonml",
    ]
    for name in backends.BACKENDS:
        assert backends.BACKENDS.load(name).name == name


def test_the_registry_loads_neither_torch_nor_a_device() -> None:
    code = (
        "import sys, optical_dfa.backends as b; rows = b.available(); "
        "assert len(rows) >= 4 and 'torch' not in sys.modules and 'lightonml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_available_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: (there, detail) for name, there, detail in backends.available()}
    assert rows["digital"] == (True, "a matrix product on the computer, without noise")
    assert rows["lightonml-simulated"][0]
    assert not rows["lightonml"][0]
    assert rows["lightonml"][1].startswith("needs lightonopu: the drivers of a LightOn OPU")
    monkeypatch.setattr(backends.util, "find_spec", lambda name: None)
    rows = {name: (there, detail) for name, there, detail in backends.available()}
    assert rows["simulated-opu"][0]
    assert not rows["lightonml-simulated"][0]
    assert "needs lightonml, numexpr, attr" in rows["lightonml-simulated"][1]
    assert "pip install --no-deps lightonml==1.4.3" in rows["lightonml-simulated"][1]
    assert all(word in rows["lightonml"][1] for word in ("pip install", "lightonopu"))
    monkeypatch.setattr(backends.util, "find_spec", lambda name: None if name == "numexpr" else name)
    rows = {name: (there, detail) for name, there, detail in backends.available()}
    assert rows["lightonml-simulated"][1].startswith("needs numexpr: pip install")


def test_third_party_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("outside", f"{__name__}:OutsideBackend", backends.BACKENDS.group),
        EntryPoint("gone", "no_such_module:Device", backends.BACKENDS.group),
        EntryPoint("digital", f"{__name__}:OutsideBackend", backends.BACKENDS.group),
    ]
    monkeypatch.setattr(cards, "entry_points", lambda group: points)
    assert type(build("outside")) is OutsideBackend
    assert type(build("digital")) is DigitalBackend  # a built-in name cannot be taken over
    assert ("outside", True, "another's device") in backends.available()
    [(there, why)] = [row[1:] for row in backends.available() if row[0] == "gone"]
    assert not there
    assert "no_such_module" in why
    with pytest.raises(DeviceError, match="no_such_module"):
        build("gone")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("quantum", None, ["quantum", "digital", "simulated-opu", "lightonml"]),
        ("streamed", {"distribution": "uniform"}, ["streamed", "distribution"]),
        ("digital", {"encoding": "ternary"}, ["encoding", "distribution"]),
        ("digital", {"seed": 4}, ["seed", "distribution"]),
        ("digital", {"distribution": "cauchy"}, ["cauchy", "normal", "uniform"]),
        ("simulated-opu", {"treshold": 0.1}, ["treshold", "threshold"]),
        ("simulated-opu", {"encoding": "analog"}, ["analog", "ternary", "bit-planes"]),
        ("simulated-opu", {"encoding": "ternary", "bits": 4}, ["bits", "threshold"]),
        ("simulated-opu", {"full_scale": 0.0}, ["full_scale", "positive"]),
        ("simulated-opu", {"full_well_electrons": -5.0}, ["full_well_electrons", "positive"]),
        ("simulated-opu", {"full_scale": "2"}, ["full_scale", "'2'", "a finite number"]),
        ("simulated-opu", {"full_scale": 10**400}, ["full_scale", "a finite number"]),
        ("simulated-opu", {"dark_black": float("nan")}, ["dark_black", "a finite number"]),
        ("simulated-opu", {"adc_bits": True}, ["adc_bits", "True", "a whole number"]),
        ("simulated-opu", {"encoding": None}, ["encoding", "None", "text"]),
        ("simulated-opu", {"in_features": 3}, ["in_features", "threshold"]),
        ("simulated-opu", {"dark_pixels": 0}, ["dark_pixels", "1"]),
        ("simulated-opu", {"adc_bits": 40}, ["40", "16"]),
        ("simulated-opu", {"dark_amplification": 1000.0}, ["10 sigma", "dark_amplification"]),
        ("simulated-opu", {"read_noise_electrons": -1.0}, ["read_noise_electrons", "-1"]),
        ("lightonml-simulated", {"encoding": "ternary", "threshold": 3.0}, ["3.0", "below 1"]),
        ("lightonml-simulated", {"adc_bits": 10}, ["adc_bits", "encoding"]),
        ("lightonml-simulated", {"dark_pixels": 10}, ["dark_pixels", "device=physics"]),
        ("lightonml-simulated", {"device": "effective"}, ["effective", "noiseless", "physics"]),
        ("lightonml-simulated", {"device": "physics", "method": "guess"}, ["guess", "phase-4"]),
        ("lightonml-simulated", {"device": "physics", "camera": "pinhole"}, ["pinhole", "machine-vision"]),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any] | None, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        build(name, options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
