"""A training step of each contestant, through its library's ordinary loop, on the same network and records.

Plain PyTorch `loss.backward(); optimizer.step()`; PrivacyEngine's loop with Poisson sampling and secure noise; Opacus'
PrivacyEngine in the modes hooks and ghost, with Poisson sampling, its loader not counted.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa.aligning import align
from optical_dfa.bench.networks import Network
from privacy.engine import PrivacyEngine

BATCHES = 30  # in the set of records
CONTESTANTS = {
    "private": "Private",
    "backprop": "Plain backpropagation",
    "opacus_hooks": "Opacus hooks",
    "opacus_ghost": "Opacus ghost",
}

Step = Callable[[], float]


class CannotTrainError(UsageError):
    """A contestant refuses a network, or this machine does not hold its step; the message says why."""


def records_of(network: Network, batch: int) -> TensorDataset:
    """`BATCHES` batches of records, the same in every call."""
    return TensorDataset(*network.records(BATCHES * batch, torch.Generator().manual_seed(0)))


def contestant(name: str, network: Network, data: TensorDataset, batch: int) -> Step:
    """A function that takes one training step and returns the seconds it took.

    Args:
        name: of `CONTESTANTS`.
        network: to train, from weights that are the same for all.
        data: `records_of` the network.
        batch: records a step; with Poisson sampling the expected number.
    Raises:
        CannotTrainError: it cannot train this network here; the function raises it too, in a step.
    """
    make, refusing = _MADE[name]
    torch.manual_seed(0)
    with _told(refusing):
        step = make(network, data, batch)

    def told() -> float:
        with _told(refusing), warnings.catch_warnings():
            # Of Opacus' hooks, at every layer that reads the records.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            return step()

    return told


@contextmanager
def _told(refusing: type[Exception] | tuple[()]) -> Iterator[None]:
    """An error of this class, inside, is a refusal."""
    try:
        yield
    except CannotTrainError:
        raise
    except refusing as error:
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        raise CannotTrainError(f"{kind}{' '.join(str(error).split())}") from error


def _loop(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    criterion: Callable[[Tensor, Tensor], Any],
) -> Step:
    """One ordinary training step, batch included."""

    def step() -> float:
        started = time.perf_counter()
        x, y = next(batches)
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def _backprop(network: Network, data: TensorDataset, batch: int) -> Step:
    x, y = data.tensors

    def batches() -> Iterator[Any]:
        order = torch.randperm(len(x))
        while True:
            for records in torch.split(order, batch):
                yield x[records], y[records]

    module = network.build()
    return _loop(module, _sgd(module), batches(), _loss)


def _private(network: Network, data: TensorDataset, batch: int) -> Step:
    module = align(
        network.build(), rule=network.rule, backend="digital", example=data.tensors[0][:2], show=None
    )
    module, optimizer, loader = PrivacyEngine().make_private(
        module=module,
        optimizer=_sgd(module),
        data_loader=DataLoader(data, batch_size=batch),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    return _loop(module, optimizer, batches(), _loss)


def _hooks(network: Network, data: TensorDataset, batch: int) -> Step:
    module = network.build()
    # The system would end this process, and perhaps others, before PyTorch could refuse. Opacus copies a layer's
    # gradients once before it drops the first ones.
    gradients = 4 * batch * sum(p.numel() for p in module.parameters()) / 2**30
    free = _free_bytes() / 2**30
    if 2 * gradients > free:
        raise CannotTrainError(
            f"a gradient of every record takes {gradients:.1f} GiB, and a step up to twice that, of which {free:.1f} "
            "are free; use a smaller batch"
        )
    module, optimizer, loader = _opacus("hooks", module, data, batch)
    return _loop(module, optimizer, _again_and_again(loader), _loss)


def _ghost(network: Network, data: TensorDataset, batch: int) -> Step:
    module, optimizer, criterion, loader = _opacus("ghost", (network.ghost or network.build)(), data, batch)

    def loss(logits: Tensor, y: Tensor) -> Any:
        # By the shape it adds up the losses of a record's positions.
        return criterion(logits.flatten(0, -2), y.flatten(), shape=logits.shape)

    return _loop(module, optimizer, _again_and_again(loader), loss)


def _opacus(mode: str, module: nn.Module, data: TensorDataset, batch: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus warns of its non-secure generator; this is a speed test
        from opacus import PrivacyEngine as OpacusEngine

        return OpacusEngine().make_private(
            module=module,
            optimizer=_sgd(module),
            data_loader=DataLoader(data, batch_size=batch),
            criterion=nn.CrossEntropyLoss(),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
        )


def _again_and_again(loader: Any) -> Iterator[Any]:
    """A few of Opacus' batches, collated outside of the step: its loader takes them record by record."""
    ready = [batch for batch, _ in zip(loader, range(4), strict=False)]
    while True:
        yield from ready


def _free_bytes() -> int:
    """Memory that can be had without swapping; of another system than Linux, all there is."""
    table = Path("/proc/meminfo")
    if table.is_file():
        (line,) = (line for line in table.read_text().splitlines() if line.startswith("MemAvailable:"))
        return 1024 * int(line.split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# How a step is made, and the class of the errors that are refusals: Opacus has none of its own.
_MADE: dict[str, tuple[Callable[[Network, TensorDataset, int], Step], type[Exception] | tuple[()]]] = {
    "backprop": (_backprop, ()),
    "private": (_private, UsageError),
    "opacus_hooks": (_hooks, Exception),
    "opacus_ghost": (_ghost, Exception),
}
