"""Private training on `device-entropy`: keys in the ledger before what they draw, and none from a faulty device."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import DeviceError
from noise_models.health.min_entropy import MinEntropy
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.aligning import align
from optical_dfa.backends import create
from optical_dfa.backends.faults import FAULTS
from privacy.engine import PrivacyEngine
from privacy.releases import device_entropy

RESEED = 3
ENTROPY_FRAMES = 16 + 2  # 131 072 pixels: a million samples of frame differences, then the first key
START_UP_FRAMES = 8 + 2 + ENTROPY_FRAMES  # health tests and lamp before that
LOOK_FRAMES = 3  # two dark and a lit one before each release


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the assessment for granted, for tests of what follows it."""
    monkeypatch.setattr(device_entropy, "assess", lambda samples: MinEntropy(1.2, {}, len(samples), 54))


@pytest.fixture(autouse=True)
def frequent_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_entropy, "RESEED_RELEASES", RESEED)


def train(folder: Path, steps: int, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the ledger after as many private steps as went well."""
    torch.manual_seed(1)
    device = create(
        "simulated-opu", in_features=3, out_features=5, seed=1, noise=NoiseGenerator.secure("device"),
        options=options,
    )  # fmt: skip
    module = align(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), rule="dfa", backend=device, show=None
    )
    data = TensorDataset(torch.randn(60, 4), torch.randint(0, 3, (60,)))
    engine = PrivacyEngine(ledger=folder / "ledger.sqlite")
    try:
        private, optimizer, loader = engine.make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=20),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            release="device-entropy",
        )
        while steps:
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(private(x), y, reduction="sum").backward()
                optimizer.step()
                steps -= 1
                if not steps:
                    break
    finally:
        engine.close()
    return rows(folder)


def rows(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        found = ledger.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    return [(kind, json.loads(body)) for kind, body in found]


def test_every_key_is_registered_before_what_it_draws(tmp_path: Path) -> None:
    found = train(tmp_path, 2 * RESEED + 1)
    named = [kind if body.get("name") != "noise" else "noise key" for kind, body in found]
    kinds = [kind for kind in named if kind != "frames"]  # digests of the frames come before each
    health = kinds.index("health")
    steps = ["noise key", *["release"] * RESEED]
    assert kinds[health + 1 :] == [*steps, *steps, "noise key", "release"]
    keys = [body["fingerprint"] for kind, body in found if kind == "key"]
    assert (
        len(set(keys)) == len(keys) == 5 + 3
    )  # system, device, sampling, masks, rounding; three of the noise
    row = next(body for kind, body in found if kind == "health")
    assert row["passed"]
    assert row["min_entropy_bits_per_sample"] > 0.5
    header = found[0][1]
    assert header["release"] == "device-entropy"
    assert header["device_share"] == 0.0
    assert not header["reproducible"]


@pytest.mark.usefixtures("assessed")
@pytest.mark.parametrize("fault", FAULTS)
def test_no_release_after_a_fault(tmp_path: Path, fault: str) -> None:
    # The device is looked at before every release: two go well, with three frames each.
    with pytest.raises(DeviceError) as caught:
        train(tmp_path, 2 * RESEED, fault=fault, fault_after=START_UP_FRAMES + 2 * LOOK_FRAMES)
    assert "\n" not in str(caught.value)
    found = rows(tmp_path)
    assert sum(kind == "release" for kind, _ in found) == 2
    assert found[-1][0] == "health"
    assert not found[-1][1]["passed"]


@pytest.mark.usefixtures("assessed")
@pytest.mark.parametrize("fault", ["frozen-frame", "replayed-frame", "stuck-rows"])
def test_an_uncredited_device_that_fails_gives_no_further_key(tmp_path: Path, fault: str) -> None:
    # Its converter is uneven, so that its noise earns no credit and SP 800-90B's tests alone stand guard.
    uneven = {"fidelity": "physics", "dnl_lsb": 0.2}
    with pytest.raises(DeviceError):
        train(tmp_path, 2 * RESEED, fault=fault, fault_after=ENTROPY_FRAMES, **uneven)
    found = rows(tmp_path)
    assert sum(kind == "release" for kind, _ in found) == RESEED
    assert not found[-1][1]["passed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_device_that_is_faulty_from_the_start_releases_nothing(tmp_path: Path, fault: str) -> None:
    with pytest.raises(DeviceError):
        train(tmp_path, 2, fault=fault, fault_after=0)
    found = rows(tmp_path)
    assert [kind for kind, _ in found if kind == "release"] == []
    assert found[-1][0] == "health"
    assert not found[-1][1]["passed"]
