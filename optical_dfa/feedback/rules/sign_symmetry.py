"""Sign symmetry (Liao, Leibo & Poggio 2016; Moskovitz et al. 2018): feedback has the weights' signs, not their sizes.

    g_{l-1} = delta_l B_l,    B_l = s sign(W_l)  or  |M_l| * sign(W_l)

The names are those of Sanfiz & Akrout 2021 (arXiv 2108.13446). A weight of zero hands nothing down.
"""

from __future__ import annotations

from torch import Tensor

from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.rules.layerwise import LayerwiseFeedback


@RuleCard(summary="sign symmetry of uniform size", projects=False)
class UniformSignSymmetry(LayerwiseFeedback):
    """`usf`: every entry is as large as any other, B_l = s sign(W_l) with s = scale · sqrt(2 / (fan_in + fan_out))."""

    name = "usf"
    draws = "never"

    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        return weight.sign() * size


@RuleCard(summary="sign symmetry of fixed random sizes", projects=False)
class FixedRandomSignSymmetry(LayerwiseFeedback):
    """`frsf`: |M_l| * sign(W_l) with M_l normal of standard deviation s, drawn once."""

    name = "frsf"

    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        assert drawn is not None
        return drawn.abs() * weight.sign() * size


@RuleCard(
    summary="sign symmetry whose sizes are drawn anew every step", projects=False, refused=Refusal.NO_SUM
)
class BatchRandomSignSymmetry(FixedRandomSignSymmetry):
    """`brsf`: as `frsf`, with M_l drawn anew for every forward pass that has gradients.

    `torch.compile` leaves its graph for the draw, so `fullgraph=True` is not for this rule. Nor are private releases:
    in how many passes a batch comes, and with which records a record shares its matrix, depends on the other records.
    """

    name = "brsf"
    draws = "every pass"
