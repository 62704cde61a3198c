"""The paired projection bench, at a small size: what it compares and what it reports."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optical_dfa.backends.simulated_opu import SimulatedOpuOptions
from optical_dfa.bench import projection


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INPUTS": 12, "OUTPUTS": 40, "BATCH": 6}.items():
        monkeypatch.setattr(projection, name, value)


@pytest.mark.usefixtures("small")
def test_what_is_reported() -> None:
    found = projection.run(rounds=3)
    assert (found["inputs"], found["outputs"], found["batch_size"], found["rounds"]) == (12, 40, 6, 3)
    assert found["threads"] == torch.get_num_threads()
    for name in ("physics", "effective", "lightonml", "matmul"):
        assert 0 < found[f"{name}_ms"] < math.inf
    assert found["ratio_effective_over_matmul"] > 1  # what it does besides the product
    assert found["encoding"] == SimulatedOpuOptions().encoding
    assert set(found["ternary"]) < set(found)


@pytest.mark.usefixtures("small")
def test_every_contestant_projects_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []
    encodings: list[str] = []
    build = projection._device

    def spy(backend: str, options: dict[str, Any]) -> Any:
        device = build(backend, options)
        encodings.append(device.encoding.name)
        plain = device.project
        device.project = lambda e: (
            seen.append((device.describe().get("fidelity", backend), e.clone())) or plain(e)
        )
        return device

    monkeypatch.setattr(projection, "_device", spy)
    projection.run(rounds=2)
    order = [name for name, _ in seen]
    assert order == ["physics", "effective", "lightonml-simulated"] * 2 * (projection.WARM_UP + 2)
    assert encodings == ["bit-planes"] * 3 + ["ternary"] * 3
    first = seen[0][1]
    assert set(first.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert all(torch.equal(first, e) for _, e in seen)


class _Taking:
    """Takes its own time on a clock, and ever longer: the machine's drift, which hits all alike."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def project(self, e: Any) -> Any:
        self.calls += 1
        self.clock[0] += self.seconds * self.calls
        return e

    def __rmatmul__(self, e: Any) -> Any:
        return self.project(e)


def test_ratios_are_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    seconds = {"physics": 6.0, "effective": 0.2, "lightonml-simulated": 0.8}
    monkeypatch.setattr(projection, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(
        projection, "_device", lambda name, options: _Taking(clock, seconds[options.get("fidelity", name)])
    )
    monkeypatch.setattr(projection.torch, "randn", lambda *size, generator: _Taking(clock, 0.1))
    found = projection.run(rounds=5)
    assert found["ratio_physics_over_effective"] == pytest.approx(30.0)
    assert found["ratio_lightonml_over_effective"] == pytest.approx(4.0)
    assert found["ratio_effective_over_matmul"] == pytest.approx(2.0)
    # Rounds 2 to 6 were measured: the median is the fourth's.
    assert found["effective_ms"] == pytest.approx(1000 * 0.2 * 4)
    assert found["ternary"]["ratio_physics_over_effective"] == pytest.approx(30.0)


def test_noise_is_measured_beside_what_it_replaces() -> None:
    from optical_dfa.bench.noise import run

    found = run(rounds=1, normals=1024, side=16, records=8)
    assert set(found["normals_float32"]) == {"torch", "secret", "secret_added"}
    assert set(found["outputs"]) == {"digital", "simulated-opu", "lightonml-simulated"}
    assert min(found["coins"], *found["pixels_camera"].values(), *found["outputs"].values()) > 0
