"""The speed and memory experiments: tables say what was measured, and the kept ones are of the kept results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.harness.experiment import TABLE
from experiments.memory import study as memory_study
from experiments.speed import study
from optical_dfa.bench.contestants import CONTESTANTS
from optical_dfa.bench.findings import RESULTS, cell, document
from optical_dfa.bench.findings import table as table_of
from optical_dfa.bench.networks import DEFAULT
from optical_dfa.bench.step import BATCHES


def steps(
    network: tuple[str, ...] = DEFAULT,
    batch: tuple[int, ...] = BATCHES,
    busy: int = 0,
    contestants: tuple[str, ...] = tuple(CONTESTANTS),
) -> dict[str, Any]:
    times = {"private": [3.0 + busy], "backprop": [2.0], "opacus_hooks": [6.0], "opacus_ghost": [4.0]}
    kept = {name: times[name] for name in contestants}
    return document("step", [cell(name, size, kept, {}) for name in network for size in batch], busy)


def test_the_command_writes_results_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "PICTURE", tmp_path / "speed.png")
    monkeypatch.setattr(study.step, "run", steps)
    assert study.main([]) == 0
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert text.splitlines()[0] == f"| {' | '.join(study.HEAD)} |"
    measured = "3 ms | 2 ms, × 1.50 | 6 ms, × 0.50 | 4 ms, × 0.75"
    for name in DEFAULT:
        for size in BATCHES:
            assert f"| {name} | {size} | {measured} | 5 ms, × 2.50 |" in text
    assert f"| mlp-4096 | 2048 | {measured} | – |" in text
    assert set(json.loads((tmp_path / RESULTS).read_text(encoding="utf-8"))) == {"quiet", "busy"}
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_kept_table_is_that_of_the_kept_results() -> None:
    """So the documents' table, a copy of it, has the columns that the command writes."""
    kept = json.loads((study.FOLDER / RESULTS).read_text(encoding="utf-8"))
    text = study.table(kept["quiet"], kept["busy"])
    assert (study.FOLDER / TABLE).read_text(encoding="utf-8") == text
    rows = {(each["network"], each["batch_size"]) for each in kept["quiet"]["cells"]}
    assert rows == {(name, size) for name in DEFAULT for size in BATCHES} | {(study.LARGE, study.LARGE_BATCH)}
    assert kept["busy"]["busy"] == study.BUSY


def test_the_memory_command_writes_results_table_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"private": [12.0], "backprop": [10.0], "opacus_hooks": [24.0], "opacus_ghost": [8.0]}
    found = document("memory", [cell(name, size, measured, {}) for name in DEFAULT for size in BATCHES])
    monkeypatch.setattr(memory_study, "FOLDER", tmp_path)
    monkeypatch.setattr(memory_study, "IMAGE", tmp_path / "memory.png")
    monkeypatch.setattr(memory_study.memory, "run", lambda: found)
    assert memory_study.main([]) == 0
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert "| gru | 256 | 12 MiB | 10 MiB, × 1.20 | 24 MiB, × 0.50 | 8 MiB, × 1.50 |" in text
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_the_kept_memory_table_is_that_of_the_kept_results() -> None:
    kept = json.loads((memory_study.FOLDER / RESULTS).read_text(encoding="utf-8"))
    text = (memory_study.FOLDER / TABLE).read_text(encoding="utf-8")
    assert text == table_of(kept, memory_study.COMMAND)
    assert {(each["network"], each["batch_size"]) for each in kept["cells"]} == {
        (name, size) for name in DEFAULT for size in BATCHES
    }
