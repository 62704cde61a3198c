"""Gated linear networks: what lets a unit through is a public function of the record's input, not of its weights.

    h_l = r(x) ⊙ (W_l h_{l-1} + b_l),    r_k(x) = r_{g(k)}(x) in {0, 1}

G gates, of which the first is always open and the others tell on which side of a random hyperplane the record lies
(gated linear networks: Veness et al. 2019, arXiv 1910.01526); units take turns at them, in G groups. For a pattern of
gates the network is linear in its input, and in each layer's weights, so that Direct Feedback Alignment needs no
derivative of it: under rule `gated-dfa` nothing is dropped (THEORY T5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from optical_dfa.networks.scattering import LEAST_SIDE, Scattering

GATES = 4


class PublicGates(nn.Module):
    """The gates of a record: r_1 = 1, the others say whether the record lies above a random hyperplane.

    Attributes:
        normals: of the hyperplanes, through the mean of the record's own entries, shape (gates - 1, width).
    """

    normals: Tensor

    def __init__(self, width: int, gates: int = GATES, seed: int = 0) -> None:
        """
        Args:
            width: entries of a record.
            gates: G, 1 or more.
            seed: public, of the hyperplanes.
        """
        super().__init__()
        self.register_buffer("normals", torch.empty(gates - 1, width))
        self.draw(torch.Generator().manual_seed(seed))

    @property
    def gates(self) -> int:
        """G."""
        return len(self.normals) + 1

    def draw(self, generator: torch.Generator) -> None:
        """Draw the hyperplanes; of a normal that sums to 0 a record's mean is of no account."""
        self.normals.copy_(torch.empty(self.normals.shape, device="cpu").normal_(generator=generator))
        self.normals -= self.normals.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, ...) -> (m, G), zeros and ones."""
        flat = x.flatten(1)
        above = (flat @ self.normals.to(flat.dtype).T > 0).to(flat.dtype)
        return torch.cat([torch.ones_like(flat[:, :1]), above], 1)

    def of_units(self, opened: Tensor, units: int) -> Tensor:
        """Gates, shape (m, G), as so many units of a layer see them, which take turns at them; shape (m, units)."""
        return opened.repeat(1, -(-units // self.gates))[:, :units]


class Gate(nn.Module):
    """Lets a layer's units through, or not; its output is a feedback point by default, as an activation's is."""

    def forward(self, h: Tensor, opened: Tensor) -> Tensor:
        """Shapes (m, n), (m, n) -> (m, n)."""
        return h * opened


class GatedNetwork(nn.Module):
    """Linear layers whose units public gates let through, on the scattering coefficients of images.

    Attributes:
        gates: of the record as it comes.
        front: nothing in it is trained: `Scattering` of images of `LEAST_SIDE` pixels a side, else as the record is.
        mean_square: of the norm of what the front hands on, about.
        layers, opened: the hidden layers, and what each one's gates let through.
        logits: the output layer.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
        """
        Args:
            input_shape: of a record.
            classes: number of logits.
            widths: of the hidden layers.
        """
        super().__init__()
        image = len(input_shape) == 3 and min(input_shape[1:]) >= LEAST_SIDE
        width = math.prod(input_shape)
        self.gates = PublicGates(width)
        self.front = Scattering(input_shape) if image else nn.Flatten()
        self.mean_square = float(self.front.maps if isinstance(self.front, Scattering) else width)
        sizes = [self.front.width if isinstance(self.front, Scattering) else width, *widths]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.opened = nn.ModuleList(Gate() for _ in widths)
        self.logits = nn.Linear(sizes[-1], classes)
        self.enlarge()

    def enlarge(self) -> None:
        """Bring hidden weights of PyTorch's default law, of variance 1/(3 inputs), to units of mean square 1.

        A record's clipped update is then mostly the output layer's, whose part of it is as large as h: the G parts of a
        hidden layer, as large as what enters it, take little of what the clipping norm allows.
        """
        square = self.mean_square
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.mul_(math.sqrt(3 * layer.in_features / square))
            square = (
                layer.out_features * (self.gates.gates + 1) / (2 * self.gates.gates)
            )  # most are half open

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, *input_shape) -> (m, classes)."""
        gates, h = self.gates(x), self.front(x)
        for layer, gate in zip(self.layers, self.opened, strict=True):
            h = layer(h)
            h = gate(h, self.gates.of_units(gates, h.shape[1]))
        found: Tensor = self.logits(h)
        return found
