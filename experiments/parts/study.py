"""`python -m experiments parts`: where a private training step's time goes, part by part, beside plain training.

The step is `bench step`'s; its parts are timed where they are called. Beside it stands what its products alone would
take: of plain backpropagation's multiplications a step by direct feedback needs two thirds, as no error goes back
through the layers. Writes table.md.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from experiments.harness.experiment import TABLE
from optical_dfa.bench.contestants import contestant, records_of
from optical_dfa.bench.networks import NETWORKS, Network
from optical_dfa.bench.step import BATCHES, WARM_UP
from optical_dfa.capture import factors
from privacy.contributions.integers import WholeSum
from privacy.contributions.rounding import Rounding
from privacy.optimizer import PrivateOptimizer
from privacy.releases.digital import DigitalNoise

FOLDER = Path(__file__).parent
COMMAND = "python -m experiments parts"
ROUNDS = 15
CELLS = [
    *((name, batch) for name in ("mlp", "cnn", "gru", "transformer") for batch in BATCHES),
    ("mlp-4096", 2048),
]
# Each within the one before it, or beside it; what is left of the step is the last column.
PARTS: dict[str, tuple[object, str]] = {
    "step": (PrivateOptimizer, "step"),
    "gradients": (factors, "_factors"),
    "whole": (WholeSum, "whole"),
    "rounding": (Rounding, "__call__"),
    "sums": (WholeSum, "_add"),
    "noise": (DigitalNoise, "add_noise"),
}
HEAD = (
    "Network",
    "Batch",
    "Plain",
    "Private",
    "×",
    "Passes",
    "Of records",
    "Rounding",
    "Norms and clip",
    "Sums",
    "Noise",
    "Rest",
    "Products alone, ×",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write table.md."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name, batch in CELLS:
        lines.append(f"| {' | '.join(row(name, batch, ROUNDS if name != 'mlp-4096' else 3))} |")
        print(lines[-1], flush=True)
    text = "\n".join(
        [
            *lines,
            "",
            "Milliseconds, medians of private and plain steps that take turns; × of plain. Passes: the batch, the "
            "forward and the backward pass, followed and recorded. Of records: sums over a record's positions. "
            "Rounding: scaling to the grid, coins, checks of the range. Norms and clip: the rest of what makes whole "
            "numbers. Sums: exact products over the records. Noise: drawn and added. Rest: of the step; parameters, "
            "ledger, overwriting. Products alone: multiplications of the forward pass and of the sums, and under bp "
            "(transformer) of the backward pass too, over plain training's.",
            "",
            f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}. Made by `{COMMAND}`.",
            "",
        ]
    )
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    return 0


def row(name: str, batch: int, rounds: int) -> list[str]:
    """A line of the table."""
    network = NETWORKS[name]
    data = records_of(network, batch)
    private, plain = (contestant(each, network, data, batch) for each in ("private", "backprop"))
    for _ in range(WARM_UP):
        private()
        plain()
    parts: dict[str, list[float]] = defaultdict(list)
    wholes, plains = [], []
    for _ in range(rounds):
        with timed() as spent:
            wholes.append(private())
        for part in PARTS:
            parts[part].append(spent[part])
        plains.append(plain())
    found = {part: median(times) for part, times in parts.items()}
    whole = median(wholes)
    rest = found["step"] - found["gradients"] - found["whole"] - found["sums"] - found["noise"]
    times = (
        median(plains), whole, None, whole - found["step"], found["gradients"], found["rounding"],
        found["whole"] - found["rounding"], found["sums"], found["noise"], rest,
    )  # fmt: skip
    over = median(ours / theirs for ours, theirs in zip(wholes, plains, strict=True))
    shown = [f"{over:.2f}" if each is None else f"{1000 * each:.1f}" for each in times]
    return [name, str(batch), *shown, f"{products_alone(network):.2f}"]


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds in each of `PARTS`, while inside."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timing(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return measured

    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            call = getattr(owner, name)
            setattr(owner, name, timing(part, call))
            stack.callback(setattr, owner, name, call)
        yield spent


def products_alone(network: Network) -> float:
    """Multiplications that a private step cannot do without, over plain training's; of a few records."""
    x, y = network.records(2, torch.Generator().manual_seed(0))
    module = network.build()
    with FlopCounterMode(display=False) as forward:
        loss = cross_entropy(module(x).flatten(0, -2), y.flatten())
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(loss)
    once, back = int(forward.get_total_flops()), int(backward.get_total_flops())
    return (2 * once if network.rule == "dfa" else once + back) / (once + back)
