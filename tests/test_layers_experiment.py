"""The study of workers that own layers: what it counts against closed forms, its table against what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.harness.experiment import TABLE
from experiments.layers import study
from experiments.layers.contest import CLASSES, PARTS, QUICK, STEPS, WHOLE, joint
from experiments.layers.picture import draw_time_lines


@pytest.mark.slow
def test_what_is_sent_is_what_layers_put_out_and_the_error() -> None:
    samples = study.measured(quick=True)
    assert len(samples) == 2 * (1 + len(PARTS))
    forward, error = 4 * QUICK.batch * QUICK.width, 4 * QUICK.batch * CLASSES
    for sample in samples:
        assert sample["seconds"] > 0
        assert 0 <= sample["idle"] < 1
        if sample["workers"] == 1:
            assert set(sample["bytes"].values()) == {0}
            continue
        expected = {"forward": forward, "back": 0, "error": error}
        if sample["rule"] == "bp":
            expected = {"forward": forward, "back": forward, "error": 0}
        assert sample["bytes"] == expected
        counted = [(span[0], span[1]) for span in sample["spans"]]
        for worker in (0, 1):
            assert counted.count((worker, "forward")) == STEPS * sample["parts"]
            assert counted.count((worker, "teach")) == STEPS * sample["parts"]
            assert counted.count((worker, "update")) == STEPS
    assert "| DFA, two workers that own layers | 4 |" in study.table(samples, QUICK)


class Waited:
    rule, workers, parts = "dfa", 2, 1


def test_idle_is_what_is_left_of_the_time() -> None:
    """Two steps in 2 s; one worker computes half of that time, the other a quarter; the later one's pace counts."""

    def seen(began: float, ended: float, *spans: tuple[float, float]) -> dict[str, Any]:
        named = [("forward", begin, end) for begin, end in spans]
        sent = {"forward": 3, "back": 0, "error": 1}
        return {"began": began, "ended": ended, "cpu": 0.5, "bytes": sent, "spans": named}

    found = joint(
        Waited(),  # type: ignore[arg-type]
        [seen(10.0, 12.5, (10.0, 10.5), (11.5, 12.0)), seen(11.0, 13.0, (12.0, 12.5))],
    )
    assert found["seconds"] == 2.0 / STEPS
    assert found["idle"] == pytest.approx(1 - 1.5 / 4)
    assert found["cpu"] == 1.0
    assert found["bytes"] == {"forward": 6, "back": 0, "error": 2}
    assert found["spans"][2] == [1, "forward", 2.0, 2.5]


def invented() -> list[dict[str, Any]]:
    """Three rounds; in the second everything takes twice as long."""
    return [
        {
            "rule": rule,
            "workers": workers,
            "parts": parts,
            "seconds": slow * (1.0 if rule == "dfa" else 1.5) * (1 if workers == 1 else 0.5 + 0.1 * parts),
            "cpu": 1.0,
            "idle": 0.25,
            "bytes": {"forward": 1000, "back": 0 if rule == "dfa" else 2000, "error": 20},
            "spans": [[0, "forward", 0.0, 0.1], [1, "teach", 0.1, 0.3], [0, "update", 0.3, 0.4]],
        }
        for slow in (1, 2, 1)
        for rule in ("dfa", "bp")
        for workers in (1, 2)
        for parts in (PARTS if workers == 2 else (1,))
    ]


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    text = study.table(invented(), WHOLE)
    assert "| DFA, one process | – | 1,000 ms | × 1.00 | 1,000 ms | – | – | – |" in text
    assert "| DFA, two workers that own layers | 2 | 700 ms | × 0.70 | 1,000 ms | 25 % | 1,000 | 20 |" in text
    assert (
        "| BP, a pipeline of two (GPipe) | 4 | 1,350 ms | × 1.35 | 1,000 ms | 25 % | 1,000 | 2,020 |" in text
    )
    assert "6 hidden layers of 4,096" in text
    assert "Medians of 3 rounds" in text
    spans = {rule: study.middle(invented(), rule, 4)["spans"] for rule in ("dfa", "bp")}
    draw_time_lines(spans, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_the_published_table_is_what_was_kept() -> None:
    published = (study.FOLDER / TABLE).read_text(encoding="utf-8")
    assert study.table(study.kept(), WHOLE) == published
