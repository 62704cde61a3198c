"""Training-step speed: private DFA against plain backpropagation and Opacus' ghost clipping, in one paired run.

The three take turns, step by step, so that the machine's drift hits all of them alike; a ratio is the
median of the ratios of neighbouring steps. Each is its library's ordinary loop: plain PyTorch
`loss.backward(); optimizer.step()`, PrivacyEngine's loop with Poisson sampling and secure noise, and Opacus'
PrivacyEngine with `grad_sample_mode="ghost"` on its own loader.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optical_dfa.aligning import align
from privacy.engine import PrivacyEngine

WIDTHS = (784, 1024, 1024, 10)
BATCH = 2048
RECORDS = 30 * BATCH
WARM_UP = 3


def run(rounds: int = 31) -> dict[str, Any]:
    """Median milliseconds a step, and medians of paired ratios: private DFA's step over the others' of its round.

    Args:
        rounds: measured steps of each contestant.
    Returns:
        `backprop_ms, private_dfa_ms, opacus_ghost_ms, ratio_vs_backprop, ratio_vs_opacus_ghost`, and the setting.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(RECORDS, WIDTHS[0], generator=generator)
    y = torch.randint(0, WIDTHS[-1], (RECORDS,), generator=generator)
    steps = {
        "backprop": _backprop(x, y),
        "private_dfa": _private_dfa(x, y),
        "opacus_ghost": _opacus_ghost(x, y),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        for name, step in steps.items():
            seconds = step()
            if number >= WARM_UP:
                times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    paired = {
        name: statistics.median(p / q for p, q in zip(times["private_dfa"], times[name], strict=True))
        for name in ("backprop", "opacus_ghost")
    }
    return {
        "network": "-".join(map(str, WIDTHS)),
        "batch_size": BATCH,
        "rounds": rounds,
        **{f"{name}_ms": round(1000 * value, 2) for name, value in median.items()},
        "ratio_vs_backprop": round(paired["backprop"], 3),
        "ratio_vs_opacus_ghost": round(paired["opacus_ghost"], 3),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d, n in pairwise(WIDTHS):
        layers += [nn.Linear(d, n), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _loop(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    criterion: Callable[[Tensor, Tensor], Any],
) -> Callable[[], float]:
    """One ordinary training step, batch included, returning the seconds it took."""

    def step() -> float:
        started = time.perf_counter()
        x, y = next(batches)
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _backprop(x: Tensor, y: Tensor) -> Callable[[], float]:
    def batches() -> Iterator[Any]:
        order = torch.randperm(len(x))
        while True:
            for records in torch.split(order, BATCH):
                yield x[records], y[records]

    module = _network()
    return _loop(module, torch.optim.SGD(module.parameters(), lr=0.1), batches(), nn.CrossEntropyLoss())


def _private_dfa(x: Tensor, y: Tensor) -> Callable[[], float]:
    module = align(_network(), rule="dfa", backend="digital", show=None)
    module, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=BATCH),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    return _loop(module, optimizer, _endless(loader), nn.CrossEntropyLoss())


def _opacus_ghost(x: Tensor, y: Tensor) -> Callable[[], float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns of its non-secure generator; this is a speed test
        from opacus import PrivacyEngine as OpacusEngine

        network = _network()
        module, optimizer, criterion, loader = OpacusEngine().make_private(
            module=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=BATCH),
            criterion=nn.CrossEntropyLoss(),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            grad_sample_mode="ghost",
        )
    return _loop(module, optimizer, _prefetched(loader), criterion)


def _prefetched(loader: Any) -> Iterator[Any]:
    """Opacus' batches, collated outside the timed step: its loader takes them record by record."""
    ready = [batch for batch, _ in zip(loader, range(4), strict=False)]
    while True:
        yield from ready
