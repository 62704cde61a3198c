"""Product feedback alignment (Li & Benna 2024, arXiv 2405.20594): errors go down through units between the layers.

    g_{l-1} = delta_l P_l^T Q_l,    P_l of shape (r, n_l),    Q_l of shape (r, n_{l-1})
    Q_l <- Q_l - rate (P_l dW_l + decay Q_l),    dW_l = delta_l^T h_{l-1}
    P_l <- P_l - rate (Q_l dW_l^T + decay P_l)

W_l^T is replaced by the product of two learned matrices, so that no two units are linked both ways. Where P_l^T P_l
and Q_l^T Q_l are near multiples of 1, for which r is larger than the layers, the product moves as the weight does.
Published: near backpropagation with ResNets on CIFAR-10, in words; no table was at hand.

[R] From the abstract; no code of the authors was at hand. That both matrices descend the same outer product is our
reading of "learned", and so are their first values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.rules.factored import FactoredFeedback


@RuleCard(
    summary="product feedback alignment (errors go down through learned units between the layers; a reconstruction)",
    projects=False,
    refused=Refusal.LEARNS,
)
class ProductFeedbackAlignment(FactoredFeedback):
    """`pfa`: B_l = P_l^T Q_l with r a multiple of n_l. The first P_l has entries N(0, 1/r). [R]"""

    name = "pfa"
    default_rate = 0.03

    def __init__(
        self,
        expansion: float = 2.0,
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float = 1e-4,
        scale: float = 1.0,
    ) -> None:
        """
        Args:
            expansion: r over n_l, rounded up.
            optimizer, rate, decay, scale: of both matrices, as for every factored feedback.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(optimizer, rate, decay, scale)
        if not 0 < expansion <= 100:
            raise UsageError(
                f"rule option expansion={expansion!r}: it must be a number above 0 and at most 100"
            )
        self.expansion = float(expansion)

    def rank(self, outputs: int, components: int) -> int:
        return math.ceil(self.expansion * outputs)

    def first(self, outputs: int, rank: int, stream: torch.Generator) -> Tensor:
        return torch.randn(rank, outputs, generator=stream) / math.sqrt(rank)

    def learn_left(self, left: Tensor, right: Tensor, delta: Tensor, gradient: Tensor) -> Tensor:
        return right @ gradient.T
