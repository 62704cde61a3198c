"""One cell of the study: a device of one size projects one batch, in a fresh process."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, NamedTuple

import torch

from experiments.harness.fresh import answer_of
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.bench.memory import peak

DEVICES: Final = ("digital", "streamed", "structured")
ROUNDS: Final = 5
PARTS: Final = 20
LONG: Final = 2.0  # seconds: what takes longer is measured once, its first call


class Cell(NamedTuple):
    """What is measured: a device of a size, and how many records it projects at once.

    Attributes:
        part: which of `PARTS` of the outputs, from 1, where a device's whole answer takes an hour; 0 is all of them.
    """

    device: str
    inputs: int
    outputs: int
    batch: int
    part: int = 0


def measured(cell: Cell) -> dict[str, Any]:
    """Processor seconds of a projection, the least of `ROUNDS`, whatever else the machine does; and MiB by which the
    process's memory rises while the device is built and projects."""
    torch.ones(64, 64) @ torch.ones(64, 64)  # loads what the first product loads for good
    e = torch.randn(cell.batch, cell.inputs, generator=torch.Generator().manual_seed(0))
    seconds: list[float] = []

    def projected() -> None:
        device = create(
            cell.device,
            in_features=cell.inputs,
            out_features=cell.outputs,
            seed=0,
            noise=NoiseGenerator.seeded(0, "noise"),
        )
        if cell.part:
            device.keep(range(*(cell.outputs * n // PARTS for n in (cell.part - 1, cell.part))))
        while len(seconds) < ROUNDS and max(seconds, default=0.0) < LONG:
            started = time.process_time()
            device.project(e)
            seconds.append(time.process_time() - started)

    risen = peak(projected)
    return {**cell._asdict(), "seconds": min(seconds), "peak": risen}


def in_a_fresh_process(cell: Cell) -> dict[str, Any]:
    """`measured` on one thread, where nothing was measured before."""
    return answer_of("experiments.scaling.cells", *map(str, cell))


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *sizes = sys.argv[1:]
    print(json.dumps(measured(Cell(name, *map(int, sizes)))))
