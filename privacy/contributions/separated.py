"""Contributions with the gate apart from the signal: for mechanisms whose noise stands INSIDE a record's projection.

DFA's contribution of record i to layer l is `((B_l e_i + g_i) ⊙ φ'(a_i)) (h_i, 1)^T` (THEORY, Setting). A release that
draws g_i itself needs the three factors: `signal = (B_l e_i) ⊙ φ'(a_i)`, `gate = φ'(a_i)` and `inputs = (h_i, 1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from privacy.contributions.protocols import Contributions


@dataclass(frozen=True)
class SeparatedLayer:
    """One trained linear layer's factors for the batch now handed out; its update is `rows^T inputs`.

    Attributes:
        name: of the layer.
        weight, bias: names of the released parameters among `Contributions.parameters`; None where frozen or absent.
        inputs: shape (m, d): the layer's input, then a column of ones if there is a bias.
        taught: shape (m, n): the teaching signal at the feedback point, of single records (a mean over the batch
            undone); the error itself for the output layer.
        signal: shape (m, n): `taught` times the gate, as autograd formed it.
        gate: shape (m, n): φ' at the pre-activations; ones for the output layer.
        point: name of the feedback point that teaches it; None for the output layer.
    """

    name: str
    weight: str | None
    bias: str | None
    inputs: Tensor
    taught: Tensor
    signal: Tensor
    gate: Tensor
    point: str | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The layer with every factor, records first, changed alike."""
        return replace(
            self,
            inputs=change(self.inputs),
            taught=change(self.taught),
            signal=change(self.signal),
            gate=change(self.gate),
        )

    def parameters(self, update: Tensor) -> dict[str, Tensor]:
        """The flat updates of weight and bias, by name, from that of their joint matrix, shape (n, d)."""
        found: dict[str, Tensor] = {}
        if self.bias is not None:
            found[self.bias] = update[:, -1]
            update = update[:, :-1]
        if self.weight is not None:
            found[self.weight] = update.flatten()
        return found


def joined(batches: Sequence[Sequence[SeparatedLayer]]) -> list[SeparatedLayer]:
    """The layers of a step from those of its physical batches."""
    if len(batches) == 1:
        return list(batches[0])
    return [
        replace(
            parts[0],
            inputs=torch.cat([part.inputs for part in parts]),
            taught=torch.cat([part.taught for part in parts]),
            signal=torch.cat([part.signal for part in parts]),
            gate=torch.cat([part.gate for part in parts]),
        )
        for parts in zip(*batches, strict=True)
    ]


class SeparatedContributions(Contributions, Protocol):
    """What `start_capture("separated")` gives.

    Attributes:
        widths: units of every trained layer, by name.
        matrices: B_l with the rule's scale, shape (n_l, c), by feedback point; None unless the rule's feedback is a
            fixed matrix and the device has no noise.
    """

    widths: dict[str, int]
    matrices: dict[str, Tensor] | None

    def separated(self) -> list[SeparatedLayer]:
        """Every trained layer's factors after one backward pass, in the order of `parameters`, output layer last.

        Raises:
            UsageError: not exactly one forward and one backward pass have been through this batch.
        """

    def logits(self) -> Tensor:
        """The network's output for this batch, shape (m, c)."""
