"""What the engine does with a device's health: everything is tested and written down before anything is released."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.base import Frame
from noise_models.calibration.document import Calibration
from noise_models.errors import DeviceError, HealthError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from optical_dfa import align
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from optical_dfa.config import TrainConfig
from optical_dfa.training.trainer import train
from privacy import health_log
from privacy.engine import PrivacyEngine
from privacy.ledger import Ledger
from privacy.releases import RELEASES
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.source import Departure, NoiseSource, Parts, WholeNormals

N, BATCH = 60, 12
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))


class Device(SimulatedOpuBackend):
    """Notes what is asked of it; `break_at` is the frame at which it stops answering."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, dark_pixels=1024, **options)
        self.asked: list[str] = []
        self.break_at = math.inf

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        self.asked += [f"{setting.value} {light:g}"] * frames
        if len(self.asked) >= self.break_at:
            raise DeviceError("the camera was unplugged; plug it in")
        return super().expose(frames, light=light, seconds=seconds, setting=setting)


START_UP = ["dark 0"] * 1024 + ["data 0", "data 1"]
LOOK = ["dark 0"] * 128 + ["data 1"]


class Run:
    """A private run on a device of its own."""

    def __init__(self, ledger: Path | None = None, release: str = "dark-frame", **engine: Any) -> None:
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.device = Device(4, 6, seed=0, noise=NoiseGenerator.secure("device"))
        self.engine = PrivacyEngine(ledger=ledger, **engine)
        self.plain = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.release = release
        self.aligned: nn.Module | None = None

    def begin(self) -> None:
        if self.aligned is None:
            self.aligned = align(self.net, rule="dfa", backend=self.device, show=None)
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=self.aligned, optimizer=self.plain, noise_multiplier=1.0, max_grad_norm=0.5,
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=BATCH), release=self.release,
        )  # fmt: skip
        self.batches = iter(self.loader)

    def step(self) -> None:
        x, y = next(self.batches)
        self.optimizer.zero_grad()
        cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    @property
    def ledger(self) -> Ledger:
        assert self.engine.ledger is not None
        return self.engine.ledger

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.net.parameters()]


def test_the_last_look_is_after_the_noise_and_before_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    append = Ledger.append_release
    monkeypatch.setattr(Ledger, "append_release", lambda *a: (run.device.asked.append("row"), append(*a))[1])
    run.begin()
    assert run.device.asked == START_UP
    before = run.weights()
    run.step()
    assert run.device.asked[len(START_UP) :] == ["dark 0", *LOOK, "row"]
    assert any(not torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))


@pytest.mark.parametrize("frame", [1, 2, 129, 130])
def test_a_failure_at_any_frame_of_a_step_releases_nothing_and_ends_the_run(frame: int) -> None:
    """The frame of Z, the first and last dark frame after it, the lit one."""
    run = Run()
    run.begin()
    run.step()
    before = run.weights()
    kept = [(p.grad, p.grad.clone()) for p in run.net.parameters() if p.grad is not None]
    run.device.break_at = len(run.device.asked) + frame
    with pytest.raises(DeviceError, match="unplugged"):
        run.step()
    assert run.ledger.count() == 1
    assert run.ledger.events("health")[-1]["message"] == "the camera was unplugged; plug it in"
    assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
    assert all(p.grad is None for p in run.net.parameters())
    # Whoever kept the last release holds that one, and nothing of this batch, which is forgotten.
    assert len(kept) == 4
    assert all(torch.equal(grad, copy) for grad, copy in kept)
    assert isinstance(run.engine.step, ClippedRelease)
    assert not run.engine.step._sum.total.any()
    run.device.break_at = math.inf
    with pytest.raises(UsageError, match="earlier step failed"):
        run.step()
    assert run.ledger.count() == 1


def test_a_start_up_that_fails_leaves_the_module_as_it_was_and_a_row(tmp_path: Path) -> None:
    run = Run(tmp_path / "ledger.sqlite")
    run.device.break_at = 5
    with pytest.raises(DeviceError, match="unplugged"):
        run.begin()
    with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        (row,) = ledger.events("health")
        assert (row["passed"], row["phase"], row["test"]) == (False, "start-up", "device")
        assert (ledger.count(), ledger.verify()) == (0, [])
    assert run.engine.ledger is None
    # What was refused can be made private by another engine, once the device answers.
    run.device.break_at = math.inf
    run.engine = PrivacyEngine()
    run.begin()
    run.step()
    assert run.ledger.count() == 1


def test_every_part_of_a_run_begins_with_a_start_up_and_knows_the_frames_of_the_others(
    tmp_path: Path,
) -> None:
    """A device that begins with the same frames after every restart (a seeded driver) is found by the second part."""
    path = tmp_path / "ledger.sqlite"
    for part in (1, 2):
        run = Run(path, resume=part == 2)
        run.device._generator = NoiseGenerator(bytes(32), "device", None, secret=True)
        if part == 1:
            run.begin()
            run.step()
            run.engine.close()
        else:
            with pytest.raises(HealthError, match="replay"):
                run.begin()
    with Ledger.open(path, read_only=True) as ledger:
        assert [row["passed"] for row in ledger.events("health")] == [True, False]
        assert ledger.count() == 1
    run = Run(path, resume=True)
    run.begin()
    assert run.device.asked == START_UP
    run.step()
    assert run.ledger.count() == 2


def test_a_calibration_that_expires_in_training_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    credit, now = run.device.noise.credit(Frame.DARK), datetime.now(UTC)
    light = float(run.device.expose(1, light=1.0, seconds=None, setting=Frame.DATA).double().mean())
    calibration = Calibration(
        camera="simulated-opu", camera_fingerprint=run.device.camera_fingerprint(), taken_at=now.isoformat(),
        expires_at=(now + timedelta(hours=1)).isoformat(), frames=10, confidence=0.999, beta=1e-9, parameters={},
        credit_dn=credit.std, credit_lower_dn=0.95 * credit.std, step_dn=1.0, clipped_mass=credit.clipped_mass,
        dark_level_dn=credit.level, light_level_dn=light, saturation_dn=255.0, passed=True, findings=(),
        assumptions=("the read noise is Gaussian",), curves={},
    )  # fmt: skip
    run.engine = PrivacyEngine(calibration=calibration)
    run.begin()
    run.step()
    assert run.ledger.header()["calibration"] == health_log.identity(calibration)
    refuse = Calibration.refuse_other
    later = now + timedelta(hours=2)
    monkeypatch.setattr(Calibration, "refuse_other", lambda self, camera: refuse(self, camera, later))
    with pytest.raises(HealthError, match="expired") as error:
        run.step()
    assert error.value.finding["test"] == "calibration"
    assert (run.ledger.count(), run.ledger.events("health")[-1]["passed"]) == (1, False)


# ---- a release is one file and one line


class Rekeyed(NoiseSource):
    """Takes a new key with every release."""

    name = "rekeyed"
    _changing = frozenset({"_generator"})

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._generator = parts.generator("noise")
        self._normals = WholeNormals()

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._generator,)

    def cost(self, dimension: int) -> Departure:
        return Departure(0.0, 0.0, dimension * TAIL_MASS)

    def add_noise(self, total: Tensor, std: float) -> None:
        self._generator = self._parts.generator("noise")
        self._normals.add(total, std, self._generator)

    def rekeyed(self) -> tuple[NoiseGenerator, ...]:
        return (self._generator,)


def make_rekeyed(monkeypatch: pytest.MonkeyPatch, make: Callable[[Parts], NoiseSource]) -> Run:
    module = types.ModuleType("privacy.releases.rekeyed")
    module.make = lambda parts: ClippedRelease.of(parts, make(parts))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(RELEASES.built_in, "rekeyed", f"{module.__name__}:make")
    card = ReleaseCard(summary="a new key with every release", statement="")
    monkeypatch.setitem(RELEASES._cards, "rekeyed", card)
    return Run(release="rekeyed")


def test_a_new_key_is_registered_before_the_release_that_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fresh(Rekeyed):
        def rekeyed(self) -> tuple[NoiseGenerator, ...]:
            return super().rekeyed() if seen else ()

    seen: list[int] = []
    run = make_rekeyed(monkeypatch, Fresh)
    run.begin()
    seen.append(1)
    run.step()
    run.step()
    kinds = [(kind, row.get("name")) for kind, row in run.ledger.history()]
    assert kinds[-4:] == [("key", "noise"), ("release", None)] * 2


def test_a_key_used_before_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []

    class Stale(Rekeyed):
        def add_noise(self, total: Tensor, std: float) -> None:
            self._normals.add(total, std, self._generator)

        def rekeyed(self) -> tuple[NoiseGenerator, ...]:
            return (self._generator,) if begun else ()

    run = make_rekeyed(monkeypatch, Stale)
    run.begin()
    begun.append(True)
    with pytest.raises(UsageError, match="used before"):
        run.step()
    assert run.ledger.count() == 0


# ---- public time


@pytest.mark.parametrize("physical", [None, 50])
def test_the_device_ages_by_the_public_time_of_a_step(
    physical: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a logical step, by the EXPECTED batch, whatever the realised one and its parts are (THEORY T3)."""
    passed: list[float] = []
    monkeypatch.setattr(SimulatedOpuBackend, "advance", lambda self, seconds: passed.append(seconds))
    config = TrainConfig(
        dataset="digits", model="mlp:8", epochs=1, batch_size=256, max_physical_batch_size=physical
    )
    summary = train(config)
    device = SimulatedOpuBackend(10, 8, seed=0, noise=NoiseGenerator.secure("device"))
    assert passed == [256 * device.frames_per_record / device.frame_rate_hz] * summary["steps"]
    assert summary["steps"] == 6
