"""The bottleneck experiment's machinery, on digits: what is masked, what is kept, and what the table says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import bottleneck
from experiments.bottleneck import study as experiment
from experiments.bottleneck.mask import LAUNAY_WIDTHS
from experiments.harness.experiment import RESULTS, TABLE
from optical_dfa.data import load
from optical_dfa.progress import SilentProgress

BASE = experiment.Setting("", 0, dataset="digits", width=32, records=600, epochs=6, lr=0.05)


def test_few_learning_units_do_not_align_and_backpropagation_is_itself() -> None:
    data = load("digits")
    runs = {
        (rule, kept): experiment.measure(replace(BASE, rule=rule, kept=kept), data)
        for rule in experiment.RULES
        for kept in (1, 32)
    }
    for kept in (1, 32):
        for layer in experiment.LAYERS:
            assert runs["bp", kept]["cosines"][layer][0] == pytest.approx(1.0)
    narrow, wide = (runs["dfa", kept]["cosines"]["masked"][0] for kept in (1, 32))
    assert wide > narrow + 0.15
    assert min(r["test_accuracy"] for r in runs.values()) > 0.8


def test_finished_runs_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def measure(setting: experiment.Setting, data: object) -> dict[str, Any]:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append((setting.rule, setting.kept))
        cosines = {layer: [0.25, 0.125] for layer in experiment.LAYERS}
        return {"setting": vars(setting), "test_accuracy": 0.5, "cosines": cosines}

    monkeypatch.setattr(experiment, "measure", measure)
    path = tmp_path / RESULTS
    with pytest.raises(KeyboardInterrupt):
        experiment.run(BASE, None, path, SilentProgress())
    assert asked == [("dfa", 1), ("bp", 1), ("dfa", 3)]
    path.write_text(path.read_text() + '{"setting": {"ru\n')  # torn by a crash
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        experiment.run(BASE, None, path, SilentProgress())
    assert asked == [("bp", 3), ("dfa", 5), ("bp", 5)]
    asked.extend([("", 0)])  # goes on to the end now
    found = experiment.run(BASE, None, path, SilentProgress())
    widths = [kept for kept in LAUNAY_WIDTHS if kept <= BASE.width]
    assert [r["setting"]["kept"] for r in found] == [kept for kept in widths for _ in experiment.RULES]
    text = experiment.table(found, BASE)
    assert "| 28 | 50.00 % | 50.00 % | 0.250 ± 0.125 | 0.250 ± 0.125 | 0.250 ± 0.125 |" in text
    experiment.draw_bottleneck(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 3000


def test_the_published_table_is_its_results() -> None:
    folder = Path(bottleneck.__file__).parent
    base = experiment.Setting("", 0)
    done = experiment._read(folder / RESULTS)
    found = [done[json.dumps(vars(s), sort_keys=True)] for s in experiment.settings(base)]
    assert (folder / TABLE).read_text(encoding="utf-8") == experiment.table(found, base)


def test_data_that_are_not_there_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["--dataset", "cifar10", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
