"""Networks that read a sequence of characters, each without those after it, and give logits of the next at each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from noise_models.errors import UsageError
from optical_dfa.networks.recurrent import Unrolled

HEADS = 4


class RecurrentNetwork(nn.Module):
    """Characters as one-hot vectors, unrolled cells one above the other, a linear read-out at every position."""

    def __init__(self, characters: int, units: Sequence[int], cell: type[Unrolled]) -> None:
        """
        Args:
            characters: number of different ones.
            units: of each layer, lowest first.
            cell: kind of the layers.
        """
        super().__init__()
        self.characters = characters
        self.cells = nn.Sequential(*(cell(*sizes) for sizes in pairwise([characters, *units])))
        self.read_out = nn.Linear(units[-1], characters)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, T), whole numbers, -> logits (m, T, characters)."""
        hot = functional.one_hot(x, self.characters).to(self.read_out.weight.dtype)
        out: Tensor = self.read_out(self.cells(hot))
        return out


class Attention(nn.Module):
    """Causal self-attention with `HEADS` heads (Vaswani et al. 2017): position t reads positions up to t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (m, T, width) -> the same."""
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.into(h).chunk(3, 2))
        later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).triu(1)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -math.inf)
        read: Tensor = self.out((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
        return read


class Block(nn.Module):
    """Attention, then a hidden layer of 4 widths, each added to what it read and normalised afterwards.

    As in Launay et al. 2020 (post-normalisation): what leaves `attended`, `activation` and the block itself is all
    that goes on, so that a cut there cuts the skip connection as well.
    """

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.attention, self.attended = Attention(width), nn.LayerNorm(width)
        self.widen, self.activation, self.narrow = (
            nn.Linear(width, 4 * width),
            activation(),
            nn.Linear(4 * width, width),
        )
        self.left = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (m, T, width) -> the same."""
        h = self.attended(h + self.attention(h))
        out: Tensor = self.left(h + self.narrow(self.activation(self.widen(h))))
        return out


class Transformer(nn.Module):
    """A causal Transformer: characters and places embedded, `Block`s, a linear read-out at every position.

    Where a rule cuts it is a choice (`points_of`): Launay et al. 2020 (arXiv 2006.12878) teach a block by one feedback
    point at its output (macro), or by three, after attention, the activation and at the output (micro). Within a
    segment the gradient is backpropagated; the lowest one has the embeddings.
    """

    LEVELS = ("macro", "micro")

    def __init__(
        self, characters: int, length: int, width: int, layers: int, activation: type[nn.Module]
    ) -> None:
        """
        Args:
            characters: number of different ones.
            length: T, the longest sequence.
            width: of every block; a multiple of `HEADS`.
            layers: number of blocks.
            activation: of the blocks' hidden layers.
        """
        super().__init__()
        self.embedding, self.place = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, activation) for _ in range(layers)))
        self.read_out = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, T), whole numbers, -> logits (m, T, characters)."""
        places = torch.arange(x.shape[1], device=x.device).expand_as(
            x
        )  # a row a record, as private capture asks
        out: Tensor = self.read_out(self.blocks(self.embedding(x) + self.place(places)))
        return out

    def points_of(self, level: str) -> list[str]:
        """Names of the feedback points of `macro` or `micro`, lowest first."""
        inside = ("attended", "activation") if level == "micro" else ()
        return [
            name
            for block in range(len(self.blocks))
            for name in (*(f"blocks.{block}.{part}" for part in inside), f"blocks.{block}")
        ]


def transformer(
    shape: Sequence[int], characters: int, widths: Sequence[int], activation: type[nn.Module]
) -> nn.Module:
    """`Transformer` of (width, number of blocks)."""
    if len(widths) != 2 or widths[0] % HEADS:
        raise UsageError(
            f"model transformer has {','.join(map(str, widths))}; it must be the width, a multiple of {HEADS}, and the "
            "number of blocks, for example transformer:128,2"
        )
    return Transformer(characters, shape[0], widths[0], widths[1], activation)
