"""What a network says of itself by types: activations, and the states of unrolled cells."""

from __future__ import annotations

from torch import nn

from optical_dfa.networks.gated import Gate

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
    nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign,
    nn.Tanh, nn.Tanhshrink,
)  # fmt: skip

SATURATING: tuple[type[nn.Module], ...] = (nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Softsign, nn.Tanh)


class State(nn.Identity):
    """Marks h_t of an unrolled recurrent cell: called once a time, in the order of the positions; cut by default."""


class Memory(nn.Identity):
    """Marks what an unrolled cell carries over without a matrix; a rule may let errors go back along it."""


# An embedding has no activation, and what follows it would otherwise backpropagate into it.
DEFAULT_POINTS = (*ACTIVATIONS, Gate, nn.Embedding, State)
