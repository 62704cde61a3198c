"""A frame of an earlier part of the run that comes again is found before it is released, whichever frame it was."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.base import Frame
from noise_models.errors import HealthError
from noise_models.health.min_entropy import MinEntropy
from noise_models.health.replays import frame_digest
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from privacy import health_log
from privacy.engine import PrivacyEngine
from privacy.ledger import Ledger
from privacy.releases import device_entropy

PIXELS = 1 << 14
N, BATCH = 24, 8
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))


class Recorder(SimulatedOpuBackend):
    """Keeps every frame it showed; `replay` has it show one of an earlier device's in place of its `at`-th."""

    def __init__(self) -> None:
        super().__init__(4, 6, seed=0, noise=NoiseGenerator.secure("device"), dark_pixels=PIXELS)
        self.shown: list[tuple[Frame, Tensor]] = []
        self.at, self.replay = math.inf, torch.zeros(0)

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        codes = super().expose(frames, light=light, seconds=seconds, setting=setting)
        for i in range(frames):
            if len(self.shown) == self.at:
                codes[i] = self.replay
            self.shown.append((setting, codes[i].clone()))
        return codes


def private(
    ledger: Path, device: Recorder, release: str, *, resume: bool
) -> tuple[PrivacyEngine, Any, Any, Any]:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    engine = PrivacyEngine(ledger=ledger, resume=resume)
    made = engine.make_private(
        module=align(net, rule="dfa", backend=device, show=None), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=BATCH), noise_multiplier=1.0, max_grad_norm=0.5,
        release=release,
    )  # fmt: skip
    return engine, *made


def epoch(module: Any, optimizer: Any, loader: Any) -> None:
    for x, y in loader:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """The assessment of the entropy takes seconds, and is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_entropy, "assess", lambda samples: MinEntropy(1.2, {}, len(samples), 54))
        patch.setattr(device_entropy, "RESEED_RELEASES", 1)
        yield


class FirstPart(NamedTuple):
    """A part of two epochs: its ledger, its frames, and how many of them its start-up took."""

    ledger: Path
    shown: list[tuple[Frame, Tensor]]
    begun: int


@pytest.fixture(scope="module", params=["dark-frame", "device-entropy"])
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def first(release: str, quick: None, tmp_path_factory: pytest.TempPathFactory) -> FirstPart:
    path, device = tmp_path_factory.mktemp("first") / "ledger.sqlite", Recorder()
    engine, *loop = private(path, device, release, resume=False)
    begun = len(device.shown)
    epoch(*loop)
    epoch(*loop)
    engine.close()
    return FirstPart(path, device.shown, begun)


def test_every_dark_frame_of_a_part_is_known_to_the_next(first: FirstPart) -> None:
    path, shown, begun = first
    with Ledger.open(path, read_only=True) as ledger:
        known = set(health_log.known_digests(ledger))
        rows, releases = len(ledger.events(health_log.FRAMES)), ledger.count()
    dark = {frame_digest(frame.numpy()).hex() for setting, frame in shown if setting is Frame.DARK}
    assert dark < known  # and the lamp's
    assert rows == releases + 1  # the start-up's, and one a step
    assert len(shown) > begun + releases


@pytest.mark.parametrize("which", ["of the start-up", "of the first step", "the last one"])
@pytest.mark.parametrize("when", ["start-up", "step"])
def test_a_replay_is_found_before_the_release(
    first: FirstPart, release: str, which: str, when: str, tmp_path: Path
) -> None:
    path = Path(shutil.copy(first.ledger, tmp_path))
    shown, begun = first.shown, first.begun
    dark = [i for i, (setting, _) in enumerate(shown) if setting is Frame.DARK]
    chosen = {
        "of the start-up": [i for i in dark if i < begun][3],
        "of the first step": next(i for i in dark if i >= begun),
        "the last one": dark[-1],
    }[which]
    device = Recorder()
    device.replay = shown[chosen][1]
    if when == "start-up":
        device.at = 4
        with pytest.raises(HealthError, match="replay"):
            private(path, device, release, resume=True)
    else:
        engine, *loop = private(path, device, release, resume=True)
        assert engine.ledger is not None
        before = engine.ledger.count()
        device.at = len(device.shown)
        with pytest.raises(HealthError, match="replay"):
            epoch(*loop)
        assert engine.ledger.count() == before  # nothing was released


def test_releases_without_a_device_log_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    device = Recorder()
    engine, *loop = private(path, device, "digital", resume=False)
    epoch(*loop)
    assert engine.ledger is not None
    assert engine.ledger.events(health_log.FRAMES) == []
