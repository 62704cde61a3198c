"""The running average of released weights: its equation, what it leaves alone, and how a run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from optical_dfa.config import TrainConfig
from optical_dfa.training.average import WeightAverage
from optical_dfa.training.trainer import train

SMALL: dict[str, Any] = {"model": "mlp:16", "backend": "digital", "epochs": 2, "batch_size": 256}
PRIVATE: dict[str, Any] = {**SMALL, "release": "digital", "epsilon": 4.0, "reproducible": True}


def moved(make: type[Optimizer], decay: float, steps: int, **options: float) -> tuple[nn.Module, Any, Any]:
    """A module after some steps, its average, and the average by the equation in float64."""
    net = nn.Linear(3, 2)
    optimizer = make(net.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    average = WeightAverage(optimizer, decay)
    expected: list[torch.Tensor] = []
    for step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(step)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        average.take(step)
        now = [p.detach().double().clone() for p in net.parameters()]
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * a + (1 - d) * w for a, w in zip(expected, now, strict=True)] if expected else now
    return net, average, expected


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(("make", "options"), [(SGD, {}), (SGD, {"momentum": 0.9}), (Adam, {})])
def test_it_is_its_equation_and_the_weights_stay(
    make: type[Optimizer], options: dict[str, float], decay: float
) -> None:
    net, average, expected = moved(make, decay, 30, **options)
    weights = [p.detach().clone() for p in net.parameters()]
    with average.in_place():
        for p, wanted in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    for p, w in zip(net.parameters(), weights, strict=True):
        assert torch.equal(p, w)
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert torch.equal(next(net.parameters()), weights[0])


def test_parameters_that_never_move_do_not_disturb_adam() -> None:
    still, moving = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adam([still, moving], lr=0.1)
    average = WeightAverage(optimizer, 0.9)
    for step in (1, 2):
        moving.grad = torch.ones(2)
        if step == 2:
            still.grad = torch.ones(2)  # later than the others
        optimizer.step()
        average.take(step)
    with average.in_place():
        assert torch.isfinite(still).all()


@pytest.mark.parametrize("settings", [{**SMALL, "release": "none"}, PRIVATE], ids=["plain", "private"])
def test_a_run_has_the_weights_that_it_has_without(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = train(TrainConfig(**settings), tmp_path / "plain")
    averaged = train(TrainConfig(**settings, average=0.9), tmp_path / "averaged")
    before, after = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("plain", "averaged"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert sorted(after.keys() - before.keys()) == [f"optimizer.{k}.average" for k in range(4)]
    assert averaged["test_loss"] != plain["test_loss"]
    assert averaged["guarantee"] == plain["guarantee"]


def test_a_run_goes_on_with_its_average(tmp_path: Path) -> None:
    settings = {**SMALL, "release": "none", "average": 0.9}
    whole = train(TrainConfig(**settings), tmp_path / "whole")
    train(TrainConfig(**{**settings, "epochs": 1}), tmp_path / "parts")
    parts = train(TrainConfig(**settings), tmp_path / "parts", resume=True)
    assert parts["test_loss"] == whole["test_loss"]
    rows = [json.loads(row) for row in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_loss"] == whole["test_loss"]
