"""The networks that training steps are compared on, and records of their shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from optical_dfa.networks.recurrent import GRU
from optical_dfa.networks.text import Block

CLASSES = 10
TIMES, INPUTS, UNITS = 32, 28, 64  # of the recurrent network
TOKENS, CHARACTERS, WIDTH = 32, 65, 64  # of the Transformer


@dataclass(frozen=True)
class Network:
    """
    Attributes:
        what: the network in words.
        build: it, with new weights.
        records: a number of them and a generator -> inputs and targets.
        rule: of its private training.
        ghost: the same network as Opacus' ghost mode takes it, where it refuses what `build` makes.
    """

    what: str
    build: Callable[[], nn.Module]
    records: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    rule: str = "dfa"
    ghost: Callable[[], nn.Module] | None = None


class Recurrent(nn.Module):
    """A recurrent layer, and a linear read-out of its last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.read_out = layer, nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, T, inputs) -> logits (m, classes)."""
        found = self.layer(x)
        states = found if isinstance(found, Tensor) else found[0]  # Opacus' layers return the last state too
        out: Tensor = self.read_out(states[:, -1])
        return out


def _connected(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for d, n in pairwise(widths):
        layers += [nn.Linear(d, n), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, CLASSES),
    )  # fmt: skip


def _transformer() -> nn.Module:
    blocks = (Block(WIDTH, nn.GELU) for _ in range(2))
    return nn.Sequential(nn.Embedding(CHARACTERS, WIDTH), *blocks, nn.Linear(WIDTH, CHARACTERS))


def _opacus_gru() -> nn.Module:
    from opacus.layers import DPGRU

    return Recurrent(DPGRU(INPUTS, UNITS, batch_first=True))


def _numbers(*shape: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
    def records(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, *shape, generator=generator)
        return x, torch.randint(CLASSES, (count,), generator=generator)

    return records


def _text(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    read = torch.randint(CHARACTERS, (count, TOKENS + 1), generator=generator)
    return read[:, :-1].contiguous(), read[
        :, 1:
    ].contiguous()  # Opacus takes no view of an embedding's inputs


NETWORKS = {
    "mlp": Network("784-1024-1024-10, tanh", lambda: _connected(784, 1024, 1024, CLASSES), _numbers(784)),
    "cnn": Network(
        "16, 32 and 32 channels of 3×3 on 28×28, two poolings", _convolutional, _numbers(1, 28, 28)
    ),
    "gru": Network(
        f"{UNITS} units, {TIMES} times of {INPUTS} inputs",
        lambda: Recurrent(GRU(INPUTS, UNITS)),
        _numbers(TIMES, INPUTS),
        ghost=_opacus_gru,
    ),
    "transformer": Network(f"width {WIDTH}, 2 blocks, {TOKENS} tokens", _transformer, _text, rule="bp"),
    "mlp-4096": Network(
        "784-4096-4096-4096-10, tanh", lambda: _connected(784, 4096, 4096, 4096, CLASSES), _numbers(784)
    ),
}
DEFAULT = ("mlp", "cnn", "gru", "transformer")
