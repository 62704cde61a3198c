"""RNN, GRU and LSTM written as unrolled cells of linear layers, so that a feedback rule can cut them at every time.

A fused `nn.GRU` or `nn.LSTM` is one operation: nothing inside can be taught directly. These have the same equations and
weights in the same order (tested), so a fused network's weights can be copied in.

h_t passes through a `State` module, a default feedback point, and is read by the matrices and by what lies above. What
is carried over elementwise, without a matrix (z * h_{t-1} in a GRU, c_{t-1} in an LSTM), passes through `Memory`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from optical_dfa.networks.markers import Memory, State


class Unrolled(nn.Module, ABC):
    """One recurrent layer, shape (m, T, inputs) -> (m, T, units)."""

    gates: int

    def __init__(self, inputs: int, units: int, bias: bool = True) -> None:
        """
        Args:
            inputs, units: sizes of x_t and h_t.
            bias: of both matrices.
        """
        super().__init__()
        self.units = units
        self.into = nn.Linear(inputs, self.gates * units, bias=bias)
        self.over = nn.Linear(units, self.gates * units, bias=bias)
        self.state, self.memory = State(), Memory()

    def forward(self, x: Tensor) -> Tensor:
        """h_1, ..., h_T from h_0 = 0."""
        reads = x.new_zeros(len(x), self.units)
        carried = reads
        outputs = []
        for x_t in x.unbind(1):
            # One call of each matrix a time, as private capture counts them.
            h, carried = self.step(self.into(x_t), self.over(reads), self.memory(carried))
            reads = self.state(h)
            outputs.append(reads)
        return torch.stack(outputs, 1)

    @staticmethod
    @abstractmethod
    def step(x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """h_t and what is carried on, from W x_t + b, U h_{t-1} + b' and what was carried."""


class RNN(Unrolled):
    """h_t = tanh(W x_t + U h_{t-1}) (Elman 1990)."""

    gates = 1

    @staticmethod
    def step(x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x + h), carried


class GRU(Unrolled):
    """Gates r, z, candidate n, in PyTorch's form: n = tanh(W_n x + r * (U_n h)), h_t = (1 - z) n + z h_{t-1}."""

    gates = 3

    @staticmethod
    def step(x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        x_r, x_z, x_n = x.chunk(3, 1)
        h_r, h_z, h_n = h.chunk(3, 1)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        new = (1 - z) * n + z * carried
        return new, new


class LSTM(Unrolled):
    """Gates i, f, g, o: c_t = f c_{t-1} + i g, h_t = o tanh(c_t) (Hochreiter, Schmidhuber 1997; Gers et al. 2000)."""

    gates = 4

    @staticmethod
    def step(x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (x + h).chunk(4, 1)
        c = torch.sigmoid(f) * carried + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
