"""Workers of `optical-dfa train` that are killed, either of them, anywhere: the ledger is never behind the weights."""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Job, together
from test_crash_resume import PRIVATE, STEPS_AN_EPOCH, TARGET, arguments, examine, strike_at
from test_workers import command, rank

pytestmark = pytest.mark.slow

KILLS = 24
# Where a worker may die, and how often it may have been there before.
EITHER = [
    *((place, 12) for place in ("Workers._meet", "Workers.told", "Workers.total", "Workers.add_up")),
    *((place, 12) for place in ("Workers.hand_out", "StepRelease.absorb", "PrivateOptimizer.step")),
    *(("Workers.gather", 1), ("ClippedSum.add_up", 12)),
]
FIRST = [
    *((place, 12) for place in ("Ledger.append_release", "Ledger._append", "StepRelease.release")),
    *((place, 1) for place in ("_Run._keep", "save", "RunFolder.add_metrics", "RunFolder.begin")),
]
OTHERS = [("Ledger.follow", 12), ("Ledger.copy", 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "two.npz"
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return str(path)


def trained(
    folder: Path, victim: int | None, place: list[Any] | None, line: int | None, given: list[str]
) -> Any:
    """`optical-dfa train` in every worker, of whom the victim kills itself at a place or after so many lines."""
    if rank() == victim:
        sys.settrace(strike_at(signal.SIGKILL, line, place))
    return command(folder, *given)


def test_kill_9_of_either_worker_anywhere_stays_within_the_budget(data: str, tmp_path: Path) -> None:
    """Whoever dies where, the run goes on with two workers, with one or with four, to the budget it began with."""
    rng = random.Random(20260115)
    epochs, run = 24, tmp_path / "run"
    planned = epochs * STEPS_AN_EPOCH
    begin = arguments(data, run, *PRIVATE, "--epsilon", str(TARGET), "--epochs", str(epochs))
    resume = ["train", "--resume", "--out", str(run)]
    releases = killed = 0
    victims = set()
    for number in range(KILLS):
        count = rng.choice((2, 2, 2, 4))
        victim = rng.randrange(count)
        where, most = rng.choice(EITHER + (OTHERS if victim else FIRST))
        place: list[Any] | None = [where, rng.choice(("call", "return")), rng.randint(1, most)]
        line = None
        if number % 3 == 2:
            place, line = None, int(10 ** rng.uniform(1, 3.6))
        given = resume if (run / "config.toml").exists() else begin
        outcomes = together(trained, count, tmp_path / f"job {number}", tmp_path, victim, place, line, given)
        if outcomes[victim] is None:
            killed += 1
            victims.add(victim)
            for other, outcome in enumerate(outcomes):
                assert other == victim or outcome[0] in (0, 2), outcome  # one may have ended before
        now = examine(run)
        assert releases <= now < planned
        releases = now
    assert killed >= 20
    assert {0, 1} <= victims
    # And killed from outside, at a random time.
    for number, wait in enumerate((0.5, 1.5, 3.0)):
        job = Job(trained, 2, tmp_path / f"timed {number}", tmp_path, None, None, None, resume)
        job.workers[number % 2].join(wait)
        job.workers[number % 2].kill()
        job.outcomes()
        assert examine(run) >= releases
        releases = examine(run)
    assert command(tmp_path, *resume)[0] == 0  # by one worker
    assert examine(run) == planned
    summary = json.loads((run / "summary.json").read_text())
    assert summary["releases"] == planned
    assert summary["guarantee"]["kind"] == "record-dp"
    assert 0.98 * TARGET < summary["guarantee"]["epsilon"] <= TARGET
