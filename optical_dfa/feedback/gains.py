"""The feedback scale of a point where the user gives none, from shapes and activation alone.

    1                             after an activation that saturates, after a normalisation, or without an activation
    3^(-1/2) 6^(-k/2) P^(-3/2)    after another activation (ReLU and its kind), k such points above it

B_l's entries have standard deviation gain / sqrt(n_l). Where nothing bounds what a layer puts out, random feedback as
large as the error itself moves it until its units are dead (or it grows without end). So the signal is made as large as
backpropagation's under PyTorch's default initialisation: a matrix of entries of variance 1/(3 fan-in) returns
1/sqrt(3) of an error that enters it, and such an activation half of that's square. P is the number of places that share
the weights right below the point (1 in a fully connected layer, height times width after a convolution): a kernel adds
up the random signals of P places, sqrt(P) of one, and what it changes it changes at all P.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from optical_dfa.feedback.cuts import Below
from optical_dfa.networks.markers import ACTIVATIONS, SATURATING


def gains(module: nn.Module, names: Sequence[str], below: Mapping[str, Below]) -> dict[str, float]:
    """The gain of each feedback point.

    Args:
        module: the plain module.
        names: of its feedback points, in the order in which they are called.
        below: what stands below each.
    """
    found, above = dict.fromkeys(names, 1.0), 0
    for name in reversed(names):
        if name in below and unbounded(module.get_submodule(name)) and not below[name].normalised:
            found[name] = 3**-0.5 * 6 ** (-above / 2) * below[name].places ** -1.5
            above += 1
    return found


def unbounded(part: nn.Module) -> bool:
    """Whether the last activation of a part does not saturate; of a point that is no activation, False."""
    parts = [p for p in part.modules() if next(p.children(), None) is None]
    last = parts[-1]
    return isinstance(last, nn.ReLU6) or (isinstance(last, ACTIVATIONS) and not isinstance(last, SATURATING))
