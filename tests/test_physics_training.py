"""Training through the physics-level device: nothing but its frames reaches the weights."""

from __future__ import annotations

from typing import Any

import pytest

from optical_dfa.backends.optics import Optics
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from optical_dfa.config import TrainConfig
from optical_dfa.training.trainer import train


def config(**given: Any) -> TrainConfig:
    options = {"fidelity": "physics", "dark_pixels": 65_536}
    return TrainConfig(
        **{"dataset": "digits", "model": "mlp:32", "epochs": 1, "backend_options": options, **given}
    )


def test_no_training_result_uses_b_except_through_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """B is out of reach of everything but the light path, and the same weights come out."""
    seen: list[str] = []

    def forbidden(self: object, *arguments: Any) -> Any:
        seen.append(type(self).__name__)
        raise AssertionError("B was looked at")

    plain = train(config(reproducible=True))
    monkeypatch.setattr(SimulatedOpuBackend, "matrix", forbidden)
    monkeypatch.setattr(Optics, "projection", forbidden)
    again = train(config(reproducible=True))
    assert seen == []
    assert again["test_accuracy"] == plain["test_accuracy"]
    # Eight bit planes, four phase steps each, at the camera's 1000 frames a second.
    assert plain["data_frames"] == plain["steps"] * plain["batch_size"] * 32
    assert plain["hardware_seconds"] == plain["data_frames"] / 1000


def test_the_frames_carry_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutter that stays closed during data frames leaves the hidden layers without a signal."""
    lit = train(config(release="none", epochs=4))
    dark = Optics.fields

    def closed(self: Optics, plane: Any) -> Any:
        return dark(self, plane * 0)

    monkeypatch.setattr(Optics, "fields", closed)
    blind = train(config(release="none", epochs=4))
    assert lit["test_accuracy"] > blind["test_accuracy"] + 0.02
