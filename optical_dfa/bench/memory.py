"""Peak memory of a training step: private training against plain backpropagation and Opacus.

Every contestant steps in a fresh process of its own, whose resident set is looked at. What a first step loads for good
(code, threads) is loaded by a step of a few records before.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from optical_dfa.bench.contestants import CONTESTANTS, CannotTrainError, contestant, records_of
from optical_dfa.bench.findings import cell, check, document
from optical_dfa.bench.networks import DEFAULT, NETWORKS
from optical_dfa.bench.step import BATCHES
from optical_dfa.progress import progress_for

FEW, STEPS = 8, 3  # records of the step before; steps over which the peak is taken
# glibc gives every array back when it is freed, so that the resident set is what is in use.
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_RESET = Path("/proc/self/clear_refs")


def run(
    network: Sequence[str] = DEFAULT,
    batch: Sequence[int] = BATCHES,
    rounds: int = 3,
    contestants: Sequence[str] = tuple(CONTESTANTS),
) -> dict[str, Any]:
    """Every network at every batch size.

    Args:
        network: names of `NETWORKS`.
        batch: records a step.
        rounds: fresh processes of each contestant.
        contestants: who takes part.
    Returns:
        `findings.document` of MiB.
    Raises:
        UsageError: there is no such network, a batch has no records, or the system is not Linux.
    """
    check(network, batch)
    if not _RESET.exists():
        raise UsageError(f"bench memory needs {_RESET}, which {sys.platform} does not have; run it on Linux")
    sizes = [(name, size) for name in network for size in batch]
    progress = progress_for(sys.stderr, "bench memory")
    cells = []
    try:
        progress.start(len(sizes))
        for number, (name, size) in enumerate(sizes):
            progress.update(number, {"network": name, "batch": str(size)})
            cells.append(_cell(name, size, rounds, contestants))
    finally:
        progress.finish()
    return document("memory", cells)


def _cell(name: str, batch: int, rounds: int, contestants: Sequence[str]) -> dict[str, Any]:
    measured: dict[str, list[float]] = {}
    cannot: dict[str, str] = {}
    for _ in range(rounds):
        for each in contestants:
            if each in cannot:
                continue
            told = _fresh_process(name, batch, each)
            if isinstance(told, str):
                cannot[each] = told
            else:
                measured.setdefault(each, []).append(told)
    return cell(name, batch, measured, cannot)


def _fresh_process(network: str, batch: int, name: str) -> float | str:
    """MiB, or why the contestant cannot train the network."""
    ended = subprocess.run(
        [sys.executable, "-m", "optical_dfa.bench.memory", network, str(batch), name],
        env={**os.environ, **_GIVEN_BACK},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: float | str = json.loads(ended.stdout.splitlines()[-1])
    return told


def step_peak(network: str, batch: int, name: str) -> float:
    """Peak of this process's first steps of a contestant, MiB.

    Raises:
        CannotTrainError: the contestant cannot train this network here.
    """
    contestant(name, NETWORKS[network], records_of(NETWORKS[network], FEW), FEW)()
    gc.collect()
    step = contestant(name, NETWORKS[network], records_of(NETWORKS[network], batch), batch)

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return peak(steps)


def peak(action: Callable[[], object]) -> float:
    """How far this process's resident set rises during `action` above what it was before, MiB; Linux alone."""
    before = _resident("VmRSS")
    _RESET.write_text("5")  # the high-water mark starts again from here
    action()
    return max(0, _resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    """KiB, of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1])


if __name__ == "__main__":
    try:
        print(json.dumps(step_peak(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
    except CannotTrainError as refused:
        print(json.dumps(str(refused)))
