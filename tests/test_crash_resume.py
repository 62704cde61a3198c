"""Runs that are killed, interrupted and resumed: the budget holds and nothing is released unrecorded.

A fork server imports the program once; each child is one process of `optical-dfa train`, killed by itself at a
chosen place (a line, or a call or return of a function) or by the server after a chosen time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

# Where the children's lines are counted: everything that touches the folder, the ledger or the weights.
_WATCHED = tuple(
    str(ROOT / part)
    for part in (
        "optical_dfa/capture",
        "optical_dfa/runs",
        "optical_dfa/training",
        "optical_dfa/cli/train.py",
        "optical_dfa/feedback/rules/dfa.py",
        "optical_dfa/config.py",
        "privacy/checkpoint.py",
        "privacy/engine.py",
        "privacy/ledger.py",
        "privacy/optimizer.py",
        "privacy/records.py",
        "privacy/sampling.py",
        "privacy/workers.py",
        "privacy/releases",
    )
)


def strike_at(number: int, line: int | None, place: Sequence[str] | None) -> Callable[..., Any]:
    """A trace function that sends the process `number` at the `line`-th line, or at a place (function, event, nth)."""
    known: dict[str, bool] = {}
    left = line if line is not None else int(place[2]) if place is not None else 0

    def strike() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if line is not None:
            if event == "line":
                strike()
        elif place is not None and event == "return" == place[1]:
            strike()
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        watched = known.get(frame.f_code.co_filename)
        if watched is None:
            watched = known[frame.f_code.co_filename] = frame.f_code.co_filename.startswith(_WATCHED)
        if not watched:
            return None
        if line is not None:
            return local
        if place is not None and frame.f_code.co_qualname == place[0]:
            if place[1] == "call":
                strike()
                return None
            return local
        return None

    return trace


def serve() -> None:
    """Reads jobs from standard input, a JSON object a line; answers the child's exit code (negative: a signal)."""
    import torch

    import optical_dfa.report.page  # noqa: F401
    from optical_dfa.cli import main

    torch.set_num_threads(1)
    # A shell that runs the tests in the background has them, and so this program, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One run here, so that the children need not import what is imported on first use.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warm = ["--batch-size", "1000", "--epochs", "1", "--release", "digital", "--backend", "digital"]
        warm += ["--model", "mlp:8", "--noise-multiplier", "1"]
        assert main(["train", "--dataset", "digits", *warm]) == 0
    for text in sys.stdin:
        job = json.loads(text)
        number = job.get("signal", signal.SIGKILL)
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 0)
            os.dup2(quiet, 1)
            os.dup2(os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            code = 99
            try:
                if job.get("line") or job.get("place"):
                    sys.settrace(strike_at(number, job.get("line"), job.get("place")))
                code = main(job["arguments"])
            finally:
                sys.stderr.flush()
                os._exit(code)
        if job.get("after"):
            time.sleep(job["after"])
            os.kill(child, number)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Program:
    """`optical-dfa` in children of the fork server."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "stderr"
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, **job: Any) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(
            json.dumps({"arguments": arguments, "errors": str(self.errors), **job}),
            file=self.server.stdin,
            flush=True,
        )
        return int(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("server"))
    yield program
    program.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "two.npz"
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


STEPS_AN_EPOCH = 16
TARGET = 20.0


def arguments(data: str, run: Path, *more: str) -> list[str]:
    sizes = ["--model", "mlp:8", "--batch-size", "4", "--epochs", "4", "--momentum", "0.5"]
    return ["train", "--dataset", data, *sizes, "--backend", "digital", "--out", str(run), *more]


PRIVATE = ["--release", "digital", "--delta", "1e-3"]


def checkpoint(run: Path) -> dict[str, str] | None:
    from safetensors import safe_open

    path = run / "checkpoint.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="np") as stored:
        return dict(stored.metadata())


def tensors(run: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(run / "checkpoint.safetensors")


def digest(run: Path) -> str:
    from safetensors.torch import load_file

    from privacy.weights import tensors_digest

    kept = load_file(run / "checkpoint.safetensors")
    return tensors_digest(kept, kept.__getitem__)


def examine(run: Path) -> int:
    """What must hold of a run folder at any moment. Returns the number of recorded releases."""
    from privacy.auditing.audit import audit
    from privacy.ledger import Ledger
    from privacy.weights import names_weights

    kept = checkpoint(run)
    if not (run / "ledger.sqlite").exists():
        assert kept is None  # weights are never kept before there is a ledger
        return 0
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.verify() == []
        keys = [event["fingerprint"] for event in ledger.events("key")]
        assert len(keys) == len(set(keys))
        releases = ledger.count()
        if kept is not None:
            recorded = ledger.count_at(kept["ledger_head"])
            assert recorded == int(kept["releases"])
            assert int(kept["step"]) <= recorded <= releases
            assert names_weights(ledger, kept["ledger_head"], digest(run), int(kept["step"])) is True
        assert releases <= ledger.header()["settings"]["epochs"] * STEPS_AN_EPOCH
    report = audit(run)
    assert report.findings == ()
    assert report.releases == releases
    return releases


def finished(program: Program, run: Path, planned: int) -> dict[str, Any]:
    """Resume to the end, the `planned`-th step; the summary."""
    from privacy.auditing.audit import audit

    code = program("train", "--resume", "--out", str(run))
    assert code == 0, program.errors.read_text()
    assert examine(run) == planned
    report = audit(run)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    assert report.reported_epsilon == summary["guarantee"]["epsilon"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    return summary


PLACES = [
    *("RunFolder.begin", "write", "Ledger.create", "Ledger._begin"),
    *("Ledger.register_key", "PrivacyEngine._make"),
]
STEP_PLACES = [
    "PrivateOptimizer.step",
    "StepRelease.absorb",
    "Ledger.append_release",
    "Ledger._append",
    "StepRelease.release",
]
KEEP_PLACES = ["_Run._keep", "save", "Ledger.append_event", "RunFolder.add_metrics"]


@pytest.mark.parametrize(
    "places",
    [
        [
            *(("RunFolder.begin", "call"), ("write", "return")),
            *(("Ledger.create", "call"), ("Ledger.register_key", "return")),
        ],
        pytest.param([*product(PLACES, ("call", "return"))], marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_kill_9_while_a_run_starts(
    places: list[tuple[str, str]], program: Program, data: str, tmp_path: Path
) -> None:
    """A start that dies leaves nothing, or a run that can be resumed."""
    started = 0
    for place, event in places:
        run = tmp_path / f"{place} {event}"
        given = arguments(data, run, *PRIVATE, "--noise-multiplier", "2")
        assert program(*given, place=[place, event, 1]) == -signal.SIGKILL, place
        assert examine(run) == 0
        if (run / "config.toml").exists():
            started += 1
            again = ["train", "--resume", "--out", str(run)]
        else:
            again = given
        assert program(*again, place=["Ledger.append_release", "return", 2]) == -signal.SIGKILL
        assert examine(run) == 2
    assert 0 < started < len(places)


@pytest.mark.parametrize(
    ("every", "epochs"), [(5, 8), pytest.param(1, 24, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_kill_9_anywhere_stays_within_the_budget(
    every: int, epochs: int, program: Program, data: str, tmp_path: Path
) -> None:
    """Kills at seeded random places of one run; then it finishes, with every lost step paid for."""
    rng = random.Random(20240611)
    planned = epochs * STEPS_AN_EPOCH
    run = tmp_path / "run"
    given = arguments(data, run, *PRIVATE, "--epsilon", str(TARGET), "--epochs", str(epochs))
    assert program(*given, place=["Ledger.append_release", "call", 1]) == -signal.SIGKILL
    jobs: list[dict[str, Any]] = [
        *({"place": [p, e, rng.randint(1, 12)]} for p in STEP_PLACES for e in ("call", "return")),
        *({"place": [p, e, 1]} for p in KEEP_PLACES for e in ("call", "return")),
        *({"place": [p, "call", 1]} for p in ("RunFolder.begin", "Ledger.open", "Ledger.register_key")),
        *({"line": int(10 ** rng.uniform(1, 3.6))} for _ in range(7)),
        *({"after": rng.uniform(0.01, 0.3)} for _ in range(4)),
    ]
    rng.shuffle(jobs)
    jobs = jobs[::every]
    releases = killed = 0
    older = tmp_path / "older.sqlite"
    for number, job in enumerate(jobs):
        killed += program("train", "--resume", "--out", str(run), **job) == -signal.SIGKILL
        now = examine(run)
        assert now >= releases
        releases = now
        if number == len(jobs) // 2:
            assert program("train", "--resume", "--out", str(run), place=["save", "return", 1]) < 0
            shutil.copy(run / "ledger.sqlite", older)
    assert killed >= len(jobs) - 2  # the timed ones may come too late
    assert releases < planned  # or the last kills were of a finished run
    summary = finished(program, run, planned)
    assert summary["releases"] == planned
    assert summary["steps"] < planned  # lost steps were paid for, not taken again
    assert summary["guarantee"]["kind"] == "record-dp"
    assert 0.98 * TARGET < summary["guarantee"]["epsilon"] <= TARGET

    # The ledger of half-way, put back to regain its budget:
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (run / name).unlink(missing_ok=True)
    shutil.copy(older, run / "ledger.sqlite")
    assert program("train", "--resume", "--out", str(run)) == 2
    assert "newer than its ledger" in program.errors.read_text()
    assert program("audit", str(run)) == 1


@pytest.mark.parametrize("private", [True, False])
def test_kill_9_between_the_row_that_names_the_weights_and_their_file(
    private: bool, program: Program, data: str, tmp_path: Path
) -> None:
    """The ledger knows weights that are not there; what is there are the ones before, or none, and known as well."""
    from privacy.auditing.audit import audit
    from privacy.ledger import Ledger

    run = tmp_path / "run"
    more = [*PRIVATE, "--noise-multiplier", "2"] if private else ["--release", "none"]
    given = arguments(data, run, *more)
    kept: list[dict[str, str] | None] = []
    named: list[int] = []
    for nth in (1, 2, 1):
        assert program(*given, place=["Ledger.append_event", "return", nth]) == -signal.SIGKILL
        given = ["train", "--resume", "--out", str(run)]
        assert audit(run).findings == ()
        if private:
            assert examine(run) > 0
        kept.append(checkpoint(run))
        with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
            named.append(len(ledger.events("checkpoint")))
    assert named == [1, 3, 4]
    assert kept[0] is None
    assert kept[1] == kept[2] is not None
    assert int((kept[2] or {})["step"]) == STEPS_AN_EPOCH
    assert program(*given) == 0, program.errors.read_text()
    assert audit(run).findings == ()


@pytest.mark.parametrize(
    ("every", "epochs"), [(3, 5), pytest.param(1, 24, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_ctrl_c_loses_no_step(every: int, epochs: int, program: Program, data: str, tmp_path: Path) -> None:
    rng = random.Random(5)
    run = tmp_path / "run"
    given = arguments(data, run, *PRIVATE, "--noise-multiplier", "2", "--epochs", str(epochs))
    jobs: list[dict[str, Any]] = [
        *({"place": [p, rng.choice(("call", "return")), rng.randint(1, 12)]} for p in STEP_PLACES),
        *({"place": [p, "call", 1]} for p in KEEP_PLACES),
        {"after": 0.2},
    ]
    rng.shuffle(jobs)
    done = 0
    for job in jobs[::every]:
        again = ["train", "--resume", "--out", str(run)] if done else given
        assert program(*again, signal=signal.SIGINT, **job) == 130
        if "after" not in job:  # which may strike before the run is found
            assert "--resume" in program.errors.read_text()
        kept = checkpoint(run)
        assert kept is not None
        assert int(kept["step"]) == int(kept["releases"]) == examine(run)
        assert int(kept["step"]) > done or "after" in job
        done = int(kept["step"])
    planned = epochs * STEPS_AN_EPOCH
    summary = finished(program, run, planned)
    assert summary["steps"] == summary["releases"] == planned


def test_ctrl_c_while_a_run_starts_leaves_nothing(program: Program, data: str, tmp_path: Path) -> None:
    for place in ("RunFolder.begin", "Ledger.create", "Ledger.register_key"):
        run = tmp_path / place
        given = arguments(data, run, *PRIVATE, "--noise-multiplier", "2")
        assert program(*given, signal=signal.SIGINT, place=[place, "call", 1]) == 130
        assert not run.exists()


@pytest.mark.parametrize("backend", ["digital", "simulated-opu"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_an_interrupted_run_without_privacy_equals_the_uninterrupted_one(
    number: signal.Signals, backend: str, program: Program, data: str, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ["--release", "none", "--backend", backend]
    assert program(*arguments(data, whole, *more)) == 0
    given = arguments(data, parts, *more)
    code = 130 if number == signal.SIGINT else -number
    for place in (
        ["_Run._keep", "return", 1],
        ["DirectFeedbackAlignment.feedback", "call", 5],
        ["save", "call", 2],
    ):
        assert program(*given, signal=number, place=place) == code
        given = ["train", "--resume", "--out", str(parts)]
    assert program(*given) == 0
    one, other = tensors(whole), tensors(parts)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, parts)
    ]
    accuracies = [{row["step"]: row["test_accuracy"] for row in some} for some in rows]
    assert accuracies[0].items() <= accuracies[1].items()


if __name__ == "__main__":
    serve()
