"""The learning rate over a run: `lr_schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optical_dfa.config import TrainConfig
from optical_dfa.training import trainer
from optical_dfa.training.trainer import train

PLAIN: dict[str, Any] = {
    "model": "mlp:8",
    "backend": "digital",
    "release": "none",
    "batch_size": 128,
    "lr": 0.3,
}


def rates_of(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[float]:
    """The learning rate of every step that a run takes."""
    seen: list[float] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        seen.extend(group["lr"] for group in self.param_groups)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    train(TrainConfig(**{**PLAIN, **settings}))
    return seen


@pytest.mark.parametrize(
    ("steps", "private"),
    [(24, {}), (22, {"release": "digital", "noise_multiplier": 2.0, "max_physical_batch_size": 60})],
)
def test_cosine_is_pytorchs(steps: int, private: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    twin = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(twin, T_max=steps)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        twin.step()
        schedule.step()
    seen = rates_of(monkeypatch, epochs=2, lr_schedule="cosine", **private)
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["constant", None])
def test_constant_stays(schedule: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(rates_of(monkeypatch, epochs=1, lr_schedule=schedule)) == {0.3}


def test_an_interrupted_run_goes_on_along_the_same_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**PLAIN, epochs=2, lr_schedule="cosine")
    whole = train(config, tmp_path / "whole")
    keep = trainer._Run._keep
    with monkeypatch.context() as patch:

        def stop(self: trainer._Run, *args: Any) -> None:
            keep(self, *args)
            raise KeyboardInterrupt

        patch.setattr(trainer._Run, "_keep", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "parts")
    parts = train(config, tmp_path / "parts", resume=True)
    assert (parts["steps"], parts["test_accuracy"]) == (24, whole["test_accuracy"])
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
