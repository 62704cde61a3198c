"""Workers of one torch.distributed group (gloo), for tests: forked from a server that has the library loaded."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from privacy import workers

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["optical_dfa.cli.train", "optical_dfa.training.trainer", "optical_dfa.attacks.distinguish"]
)
_WAIT = 60.0  # seconds, for one that hangs


class Job:
    """One function in several workers, each with `given`; the group is there before it is called.

    `seconds` are what they wait for each other.
    """

    def __init__(
        self, function: Callable[..., Any], count: int, folder: Path, *given: Any, seconds: float = _WAIT
    ) -> None:
        self._folder = folder
        folder.mkdir()
        self.workers = [
            CONTEXT.Process(target=_work, args=(function, rank, count, folder, given, seconds))  # type: ignore[attr-defined]
            for rank in range(count)
        ]
        for worker in self.workers:
            worker.start()

    def outcomes(self) -> list[Any]:
        """What the workers returned, or the one line of what they raised, by number; None of one that was killed."""
        for worker in self.workers:
            worker.join()
        files = [self._folder / str(rank) for rank in range(len(self.workers))]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def together(
    function: Callable[..., Any], count: int, folder: Path, *given: Any, seconds: float = _WAIT
) -> list[Any]:
    """The outcomes of a job."""
    return Job(function, count, folder, *given, seconds=seconds).outcomes()


def _work(
    function: Callable[..., Any], rank: int, count: int, folder: Path, given: tuple[Any, ...], seconds: float
) -> None:
    torch.set_num_threads(1)
    workers.WAITING = datetime.timedelta(seconds=seconds)
    errors = os.open(folder / f"{rank}.errors", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    try:
        if count > 1:
            torch.distributed.init_process_group(
                "gloo",
                f"file://{folder}/group",
                rank=rank,
                world_size=count,
                timeout=datetime.timedelta(seconds=_WAIT),
            )
        outcome = function(*given)
    except Exception as error:
        traceback.print_exc()
        outcome = f"{type(error).__name__}: {error}"
    (folder / str(rank)).write_bytes(pickle.dumps(outcome))
