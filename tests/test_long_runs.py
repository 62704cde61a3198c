"""Runs that a scheduler ends and begins again: signals, minutes, checkpoints between epochs, lines of progress."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise_models.errors import UsageError
from optical_dfa.cli import main
from optical_dfa.config import TrainConfig
from optical_dfa.progress import LineProgress, SilentProgress
from optical_dfa.training import trainer
from optical_dfa.training.ending import EndedError, Ending, Interval
from privacy import checkpoint
from privacy.auditing.audit import audit

RUN = ["train", "--dataset", "digits", "--model", "mlp:16", "--noise-multiplier", "1", "--epochs", "2"]
RUN += ["--batch-size", "256"]
CONFIG = TrainConfig(dataset="digits", model="mlp:16", noise_multiplier=1.0, epochs=2, batch_size=256)


class Signalling(SilentProgress):
    """Sends this process a signal once so many steps are taken."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step
        self.planned = 0

    def start(self, total_steps: int) -> None:
        self.planned = total_steps

    def update(self, step: int, fields: Mapping[str, float | str]) -> None:
        if step == self.step:
            self.step = -1
            os.kill(os.getpid(), self.number)


def steps_kept(folder: Path) -> int:
    return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130)])
def test_a_signal_ends_a_run_between_two_steps_and_it_goes_on_to_its_budget(
    name: str, code: int, tmp_path: Path
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    progress = Signalling(number, 3)
    with pytest.raises(EndedError) as caught:
        trainer.train(CONFIG, tmp_path / "run", progress=progress)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert steps_kept(tmp_path / "run") in (3, 4)  # the handler runs between two bytecodes
    summary = trainer.train(CONFIG, tmp_path / "run", resume=True)
    assert summary["releases"] == summary["steps"] == progress.planned
    assert audit(tmp_path / "run").consistent


def test_a_second_signal_ends_it_at_once() -> None:
    ending = Ending(None, None)
    with ending.watching():
        os.kill(os.getpid(), signal.SIGTERM)
        assert ending.signalled
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)


def test_minutes_that_are_over_and_resume_auto_take_a_run_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a scheduler's loop has it: the same command until it exits with 0."""
    out = ["--out", str(tmp_path / "run"), "--resume", "auto"]
    assert main([*RUN, *out, "--max-minutes", "1e-6"]) == 75
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "ended after 1e-06 minutes; go on with: optical-dfa train --resume" in shown
    assert steps_kept(tmp_path / "run") == 1
    assert main([*RUN, *out, "--max-minutes", "1e-6"]) == 75
    assert steps_kept(tmp_path / "run") == 2
    assert main([*RUN, *out, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["releases"] == summary["steps"]
    assert main([*RUN, *out]) == 0  # a run that is done stays so
    assert audit(tmp_path / "run").consistent


@pytest.mark.parametrize("private", [True, False])
def test_other_settings_on_a_finished_run_are_refused_and_change_no_file(
    private: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would be written down as the run's, though nothing was trained under them."""
    command = [
        *RUN[:5],
        "--epochs",
        "2",
        "--batch-size",
        "256",
        "--out",
        str(tmp_path / "run"),
        "--resume",
        "auto",
    ]
    command += ["--epsilon", "3"] if private else ["--release", "none"]
    assert main(command) == 0
    capsys.readouterr()
    # Longer or not: of a private run's budget nothing is left.
    for other in [["--lr", "0.01"], ["--epochs", "1"], *([["--epochs", "9"]] if private else [])]:
        before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
        assert main([*command, *other]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is finished" in said
        assert other[0].strip("-") in said
        assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert main(command) == 0
    if not private:  # here there is something left to train
        assert main([*command, "--epochs", "3", "--lr", "0.01"]) == 0
    assert audit(tmp_path / "run").consistent


def test_checkpoints_between_epochs_are_written_and_evaluate_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = checkpoint.save

    def noted(path: Path, module: Any, optimizer: Any, position: checkpoint.Position, ledger: Any) -> Any:
        saved.append(position.step)
        return save(path, module, optimizer, position, ledger)

    monkeypatch.setattr(checkpoint, "save", noted)
    summary = trainer.train(CONFIG, tmp_path / "run", checkpoint_every=Interval(steps=3))
    epoch = summary["steps"] // CONFIG.epochs if CONFIG.epochs else 0
    assert saved == [step for step in range(1, summary["steps"] + 1) if step % 3 == 0 or step % epoch == 0]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [epoch, 2 * epoch]


def test_minutes_between_checkpoints_are_counted_from_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    ending = Ending(Interval.parsed("2min"), 10.0)
    now += 119
    assert not ending.checkpoint_due(7)
    now += 1
    assert ending.checkpoint_due(8)
    ending.kept()
    assert not ending.checkpoint_due(9)
    assert ending.reason() is None
    now += 480
    reason = ending.reason()
    assert reason is not None
    assert reason.exit_code == 75


@given(st.integers(1, 10**8), st.sampled_from(["", " ", "min"]))
def test_intervals_are_steps_or_minutes(number: int, unit: str) -> None:
    found = Interval.parsed(f"{number}{unit}")
    assert found == (Interval(seconds=60.0 * number) if unit == "min" else Interval(steps=number))


@pytest.mark.parametrize("text", ["0", "0min", "-5", "1.5", "min", "", "10s", "1e3", "nan", "9999999999"])
def test_no_other_interval_is_understood(text: str) -> None:
    with pytest.raises(UsageError, match="give steps, such as 500, or minutes"):
        Interval.parsed(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "auto"], "--resume auto needs the run's folder"),
        (["--resume", "auto", "--overwrite", "--out", "x"], "give one of the two"),
        (["--max-minutes", "0"], "max_minutes is 0.0; it must be above 0"),
        (["--max-minutes", "nan"], "max_minutes is nan"),
        (["--checkpoint-every", "often"], "checkpoint_every is 'often'"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_progress_is_a_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--progress-lines"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert rows[-1]["step"] == rows[-1]["steps"]
    assert 0 < rows[-1]["test accuracy"] <= 1
    assert {"step", "steps", "seconds", "epsilon"} <= rows[-1].keys()
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_lines_come_once_a_second_and_where_something_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.start(10)
    progress.update(1, {})
    progress.update(2, {})
    now += 1
    progress.update(3, {})
    progress.update(4, {"epsilon": 1.0})
    progress.update(10, {})
    progress.finish()
    rows = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 4, 10]
    assert rows[-1] == {"step": 10, "steps": 10, "seconds": 1.0, "epsilon": 1.0}
