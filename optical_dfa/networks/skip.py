"""Hidden layers beside a linear layer: what is linear in the input passes by, what is not is taught by direct feedback.

    z = W x + b + V h_L,    h_l = φ(W_l h_{l-1} + b_l),    h_0 = x, or its maps averaged over 2 x 2 places

On features that a linear layer reads well (scattering coefficients), hidden layers in series with it lose what they
cannot carry; beside it they add. W, b and V begin at 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

LEAST_MAPS, LEAST_SIDE = 16, 4  # of records that are maps of features, not pictures


class SkipNetwork(nn.Module):
    """Logits of a linear layer plus those of hidden layers beside it.

    Attributes:
        direct: from the record to the logits.
        coarse: what the hidden layers see of a record.
        hidden: linear layers and activations in turns.
        read_out: from the last of them to the logits.
    """

    def __init__(
        self, input_shape: Sequence[int], classes: int, widths: Sequence[int], activation: type[nn.Module]
    ) -> None:
        """
        Args:
            input_shape: of a record.
            classes: number of logits.
            widths: of the hidden layers.
            activation: of the hidden layers.
        """
        super().__init__()
        maps = len(input_shape) == 3 and input_shape[0] >= LEAST_MAPS and min(input_shape[1:]) >= LEAST_SIDE
        self.direct = nn.Linear(math.prod(input_shape), classes)
        self.coarse = nn.Sequential(*([nn.AvgPool2d(2, ceil_mode=True)] if maps else []), nn.Flatten())
        places = [-(-side // 2) for side in input_shape[1:]]
        sizes = [input_shape[0] * math.prod(places) if maps else math.prod(input_shape), *widths]
        self.hidden = nn.Sequential(
            *(part for before, after in pairwise(sizes) for part in (nn.Linear(before, after), activation()))
        )
        self.read_out = nn.Linear(sizes[-1], classes, bias=False)
        self.begin_at_zero()

    def begin_at_zero(self) -> None:
        """Set both layers of logits to 0: what is random in them would have to be unlearned under noise."""
        with torch.no_grad():
            for parameter in (*self.direct.parameters(), *self.read_out.parameters()):
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, *input_shape) -> (m, classes)."""
        found: Tensor = self.direct(x.flatten(1)) + self.read_out(self.hidden(self.coarse(x)))
        return found
