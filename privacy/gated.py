"""Contributions with the gate apart from the signal: for mechanisms whose noise stands INSIDE a record's projection.

DFA's contribution of record i to layer l is `((B_l e_i + g_i) ⊙ φ'(a_i)) (h_i, 1)^T` (THEORY §0). A release that draws
g_i itself needs the three factors: `signal = (B_l e_i) ⊙ φ'(a_i)`, `gate = φ'(a_i)` and `inputs = (h_i, 1)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from privacy.protocols import Contributions


@dataclass(frozen=True)
class GatedLayer:
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


class GatedContributions(Contributions, Protocol):
    """What `start_capture("gated")` gives.

    Attributes:
        widths: units of every trained layer, by name.
        matrices: B_l with the rule's scale, shape (n_l, c), by feedback point; None unless the rule's feedback is a
            fixed matrix and the device has no noise.
    """

    widths: dict[str, int]
    matrices: dict[str, Tensor] | None

    def gated(self) -> list[GatedLayer]:
        """Every trained layer's factors after one backward pass, in the order of `parameters`, output layer last.

        Raises:
            UsageError: not exactly one forward and one backward pass have been through this batch.
        """

    def logits(self) -> Tensor:
        """The network's output for this batch, shape (m, c)."""
