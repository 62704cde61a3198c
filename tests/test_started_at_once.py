"""Two runs that are started at once in one folder: one trains, the other is refused and takes nothing with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from noise_models.errors import UsageError
from optical_dfa.config import TrainConfig, merge
from optical_dfa.runs.folder import RunFolder
from privacy.auditing.audit import audit
from privacy.ledger import Ledger

ROOT = Path(__file__).parents[1]
# The library is imported once; then two processes are made, and both begin when the pipe is closed.
STARTER = """
import json, os, sys
import torch
import optical_dfa.report.page
from optical_dfa.cli import main
torch.set_num_threads(1)
quiet, answers = os.open(os.devnull, os.O_RDWR), os.fdopen(os.dup(1), "w")
os.dup2(quiet, 1)
warm = ["--batch-size", "1000", "--epochs", "1", "--model", "mlp:8"]  # what is imported on first use
assert main(["train", "--dataset", "digits", *warm, "--noise-multiplier", "1"]) == 0
for text in sys.stdin:
    job = json.loads(text)
    reader, writer = os.pipe()
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.dup2(os.open(job["errors"] + str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.read(reader, 1)
            code = 99
            try:
                code = main(job["arguments"])
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    os.close(reader)
    os.close(writer)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), file=answers, flush=True)
"""
SIZES = ["--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--epochs", "1", "--delta", "1e-4"]
ARGUMENTS = {
    "digital": ["--backend", "digital"],
    "dark-frame": [],
    "device-entropy": [],
    "skellam": ["--backend", "digital"],
    "aggregate": ["--backend", "digital", "--rule", "gated-dfa"],
    "label": ["--backend", "digital"],
    "per-record": ["--backend", "digital"],
    "none": ["--backend", "digital"],
}


def started_at_once(folder: Path, releases: Sequence[str], trials: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        for release, trial in product(releases, range(trials)):
            noise = [] if release == "none" else ["--noise-multiplier", "2"]
            run, errors = folder / f"{release}{trial}", folder / "errors"
            sizes = SIZES if release != "none" else SIZES[:-2]
            arguments = [
                "train",
                *sizes,
                *noise,
                "--release",
                release,
                *ARGUMENTS[release],
                "--out",
                str(run),
            ]
            print(json.dumps({"arguments": arguments, "errors": str(errors)}), file=starter.stdin, flush=True)
            codes = json.loads(starter.stdout.readline())
            said = [(folder / f"errors{number}").read_text() for number in range(2)]
            assert sorted(codes) == [0, 2], said
            loser = codes.index(2)
            assert "another process trains" in said[loser] or "already holds a run" in said[loser], said
            report = audit(run)
            assert report.findings == ()
            assert report.releases == (0 if release == "none" else 6)
            assert json.loads((run / "summary.json").read_text())["steps"] == 6
        starter.stdin.close()


def test_of_two_runs_started_at_once_one_trains(tmp_path: Path) -> None:
    started_at_once(tmp_path, ["digital", "dark-frame"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("release", sorted(ARGUMENTS))
def test_of_two_runs_started_at_once_one_trains_whatever_is_released(release: str, tmp_path: Path) -> None:
    started_at_once(tmp_path, [release], 20)


# ---- the order of events, one by one


def config(**values: Any) -> TrainConfig:
    return merge({}, values)


def test_a_start_that_is_refused_leaves_the_folder_to_the_one_that_has_it(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.begin(config(), resume=False, overwrite=False)
    Ledger.create(first.path / "ledger.sqlite", {"release": "digital"}).close()
    before = sorted(path.name for path in first.path.iterdir())
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="another process trains"):
            second.begin(config(), resume=False, overwrite=overwrite)
        second.undo()
        assert sorted(path.name for path in first.path.iterdir()) == before
    first.close()
    with pytest.raises(UsageError, match="already holds a run"):
        second.begin(config(), resume=False, overwrite=False)
    second.undo()
    second.close()
    assert sorted(path.name for path in first.path.iterdir()) == before


def test_the_one_that_made_the_folder_may_be_the_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process takes the folder between its making and its lock."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    make = RunFolder._make

    def make_and_lose(self: RunFolder) -> None:
        make(self)
        if self is first:
            second.begin(config(), resume=False, overwrite=False)

    monkeypatch.setattr(RunFolder, "_make", make_and_lose)
    with pytest.raises(UsageError, match="another process trains"):
        first.begin(config(), resume=False, overwrite=False)
    first.undo()
    first.close()
    assert (tmp_path / "run" / "config.toml").is_file()
    second.undo()  # the run could not begin: what it wrote goes, the folder was not its own
    assert not list((tmp_path / "run").iterdir())
    second.close()


def test_a_folder_that_goes_while_it_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gone = RunFolder(tmp_path / "run"), threading.Event()
    opened = os.open

    def open_and_lose(path: Any, *rest: Any) -> int:
        descriptor = opened(path, *rest)
        if path == folder.path and not gone.is_set():
            gone.set()
            folder.path.rmdir()  # of the other process, whose run could not begin
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    folder.begin(config(), resume=False, overwrite=False)
    assert gone.is_set()
    other = RunFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="another process trains"):
        other.take()
    folder.undo()
    assert not folder.path.exists()
    folder.close()


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """A user's own files, in a folder that the run did not make."""
    run = tmp_path / "mine"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    folder = RunFolder(run)
    folder.begin(config(), resume=False, overwrite=False)
    folder.undo()
    folder.close()
    assert (run / "notes.txt").read_text() == "mine"
    (run / "config.toml").unlink(missing_ok=True)
    for name in ("report.html", "metrics.jsonl", "ledger.sqlite-wal", "certificate.json"):
        (run / name).write_text("mine")
        with pytest.raises(UsageError, match="already holds a run"):
            RunFolder(run).refuse_run()
        other = RunFolder(run)
        with pytest.raises(UsageError, match="already holds a run"):
            other.begin(config(), resume=False, overwrite=False)
        other.undo()
        other.close()
        assert (run / name).read_text() == "mine"
        (run / name).unlink()


def test_a_resume_takes_the_folder_before_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optical_dfa.cli import main

    run = tmp_path / "run"
    sizes = [*SIZES, "--noise-multiplier", "2", "--release", "digital", "--backend", "digital"]
    assert main(["train", *sizes, "--out", str(run)]) == 0
    kept = Path(shutil.copytree(run, tmp_path / "kept"))
    other = RunFolder(run)
    other.take()
    capsys.readouterr()
    assert main(["train", "--resume", "--epochs", "2", "--out", str(run)]) == 2
    assert "another process trains" in capsys.readouterr().err
    other.close()
    for file in kept.iterdir():
        assert (run / file.name).read_bytes() == file.read_bytes()
    assert main(["train", "--resume", "--epochs", "2", "--out", str(run)]) == 0
