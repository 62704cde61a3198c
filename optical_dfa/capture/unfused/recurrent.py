"""nn.RNN, nn.GRU, nn.LSTM and their cells, one step after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from noise_models.errors import UsageError
from optical_dfa.capture.unfused.product import Product
from optical_dfa.networks.recurrent import GRU, LSTM, RNN

State = Tensor | tuple[Tensor, Tensor]


def _step(kind: str, x: Tensor, h: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """h_t and what is carried on, of a layer whose mode or type has this name."""
    if kind.startswith("LSTM"):
        return LSTM.step(x, h, carried)
    if kind.startswith("GRU"):
        return GRU.step(x, h, carried)
    if kind == "RNN_RELU":
        return torch.relu(x + h), carried
    return RNN.step(x, h, carried)


class Recurrent(nn.Module):
    """A recurrent layer of torch's: several layers, both directions, dropout between layers, projected states."""

    def __init__(self, fused: nn.RNNBase) -> None:
        """
        Args:
            fused: whose parameters and settings are taken.
        """
        super().__init__()
        self.mode, self.hidden_size, self.proj_size = fused.mode, fused.hidden_size, fused.proj_size
        self.num_layers, self.dropout = fused.num_layers, fused.dropout
        self.bias, self.bidirectional, self.batch_first = fused.bias, fused.bidirectional, fused.batch_first
        for name, p in fused.named_parameters(recurse=False):
            self.register_parameter(name, p)
        self.product = Product()

    def flatten_parameters(self) -> None:
        """Nothing: there is no fused memory."""

    def forward(self, x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """As of the fused layer.

        Raises:
            UsageError: a packed sequence, or a single one.
        """
        if not isinstance(x, Tensor) or x.ndim != 3:
            raise UsageError(
                f"a recurrent layer is given {type(x).__name__ if not isinstance(x, Tensor) else 'a single sequence'}; "
                "a private run takes padded sequences of shape (records, times, inputs), with batch_first=True"
            )
        x = x if self.batch_first else x.transpose(0, 1)
        first, cells = hx if isinstance(hx, tuple) else (hx, None)
        last: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:  # times first, as torch draws its masks
                x = dropout(x.transpose(0, 1), self.dropout).transpose(0, 1)
            read = []
            for suffix in ("", "_reverse") if self.bidirectional else ("",):
                h = (
                    x.new_zeros(len(x), self.proj_size or self.hidden_size)
                    if first is None
                    else first[len(last)]
                )
                if self.mode == "LSTM":
                    carried = x.new_zeros(len(x), self.hidden_size) if cells is None else cells[len(last)]
                else:
                    carried = h
                states, ended = self._pass(x, h, carried, f"l{layer}{suffix}")
                read.append(states)
                last.append(ended)
            x = torch.cat(read, 2)
        ends = torch.stack([h for h, _ in last])
        x = x if self.batch_first else x.transpose(0, 1)
        return x, (ends, torch.stack([c for _, c in last])) if self.mode == "LSTM" else ends

    def _pass(
        self, x: Tensor, h: Tensor, carried: Tensor, which: str
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One layer in one direction: h_t of all times, in their order, and the last state."""
        weights: dict[str, Any] = {
            name: getattr(self, f"{name}_{which}", None)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        }
        given = self.product(x, weights["weight_ih"], weights["bias_ih"]).unbind(1)
        backwards = which.endswith("_reverse")
        states = []
        for x_t in reversed(given) if backwards else given:
            h, carried = _step(
                self.mode, x_t, self.product(h, weights["weight_hh"], weights["bias_hh"]), carried
            )
            if weights["weight_hr"] is not None:
                h = self.product(h, weights["weight_hr"], None)
            states.append(h)
        return torch.stack(states[::-1] if backwards else states, 1), (h, carried)


class Cell(nn.Module):
    """A cell of torch's: one step."""

    def __init__(self, fused: nn.RNNCellBase) -> None:
        """
        Args:
            fused: whose parameters and settings are taken.
        """
        super().__init__()
        self.hidden_size, self.bias = fused.hidden_size, fused.bias
        relu = getattr(fused, "nonlinearity", "tanh") == "relu"
        self.kind = "RNN_RELU" if relu else type(fused).__name__
        for name, p in fused.named_parameters(recurse=False):
            self.register_parameter(name, p)
        for name in ("bias_ih", "bias_hh"):
            if not fused.bias:
                self.register_parameter(name, None)
        self.product = Product()

    def forward(self, x: Tensor, hx: State | None = None) -> State:
        """As of the fused cell.

        Raises:
            UsageError: a single input.
        """
        if x.ndim != 2:
            raise UsageError(
                f"a recurrent cell is given {x.ndim} axes; a private run takes inputs of shape (records, inputs)"
            )
        zeros = x.new_zeros(len(x), self.hidden_size)
        h, carried = hx if isinstance(hx, tuple) else (zeros if hx is None else hx,) * 2
        h, carried = _step(
            self.kind,
            self.product(x, self.weight_ih, self.bias_ih),
            self.product(h, self.weight_hh, self.bias_hh),
            carried,
        )
        return (h, carried) if self.kind == "LSTMCell" else h
