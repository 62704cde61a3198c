"""Speed of a training step: private training against plain backpropagation and Opacus, in one paired run.

The contestants take turns, step by step, so that the machine's drift hits all of them alike; a ratio is the median of
the ratios of neighbouring steps.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

from optical_dfa.bench.busy import busy as busy_processes
from optical_dfa.bench.contestants import CONTESTANTS, CannotTrainError, Step, contestant, records_of
from optical_dfa.bench.findings import cell, check, document
from optical_dfa.bench.networks import DEFAULT, NETWORKS
from optical_dfa.progress import progress_for

BATCHES = (256, 2048)
WARM_UP = 2
# A contestant leaves a cell's rounds when it has taken this long in them, but not before it took part in a few.
SECONDS, LEAST = 8.0, 3


def run(
    network: Sequence[str] = DEFAULT,
    batch: Sequence[int] = BATCHES,
    rounds: int = 31,
    busy: int = 0,
    contestants: Sequence[str] = tuple(CONTESTANTS),
) -> dict[str, Any]:
    """Every network at every batch size.

    Args:
        network: names of `NETWORKS`.
        batch: records a step.
        rounds: measured steps of each contestant, at most; slow ones take fewer.
        busy: processes that spin on this machine meanwhile.
        contestants: who takes part.
    Returns:
        `findings.document` of milliseconds a step.
    Raises:
        UsageError: there is no such network, or a batch has no records.
    """
    check(network, batch)
    sizes = [(name, size) for name in network for size in batch]
    progress = progress_for(sys.stderr, "bench step")
    cells = []
    try:
        progress.start(len(sizes))
        with busy_processes(busy):
            for number, (name, size) in enumerate(sizes):
                progress.update(number, {"network": name, "batch": str(size)})
                cells.append(_cell(name, size, rounds, contestants))
                gc.collect()  # of modules in circles, Opacus' with a gradient of every record
    finally:
        progress.finish()
    return document("step", cells, busy)


def _cell(name: str, batch: int, rounds: int, contestants: Sequence[str]) -> dict[str, Any]:
    network = NETWORKS[name]
    data = records_of(network, batch)
    steps: dict[str, Step] = {}
    cannot: dict[str, str] = {}
    for each in contestants:
        try:
            step = contestant(each, network, data, batch)
            for _ in range(WARM_UP):
                step()
        except CannotTrainError as error:
            cannot[each] = str(error)
        else:
            steps[each] = step
    return cell(name, batch, _turns(steps, rounds), cannot)


def _turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant, round by round from the first one on."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            # Who leaves does not come back: the first rounds of any two are the same ones.
            if number < LEAST or sum(times[name]) < 1000 * SECONDS:
                times[name].append(1000 * step())
    return times
