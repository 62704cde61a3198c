"""Low-dimensional feedback alignment (Hanut & Kadmon 2025, arXiv 2502.20580): errors go down through few dimensions.

    g_{l-1} = delta_l P_l^T Q_l,    P_l of shape (r, n_l),    Q_l of shape (r, n_{l-1})
    P_l <- P_l + tracking (P_l S - P_l S P_l^T P_l),    S = delta_l^T delta_l / |delta_l|^2
    Q_l <- Q_l - rate (P_l dW_l + decay Q_l),    dW_l = delta_l^T h_{l-1}

P_l follows the principal subspace of the errors (Oja's rule, 1989), Q_l the weight seen through it (Kolen, Pollack).
Published: a rank of about the number of classes reaches backpropagation on convolutional networks and vision
transformers (CIFAR-10 and CIFAR-100), in words; no table was at hand.

[R] From the abstract and the equation B = QP at second hand; no code of the authors was at hand. That S has trace 1, so
that `tracking` does not depend on the size of the errors, is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.rules.factored import FactoredFeedback


@RuleCard(
    summary="low-dimensional feedback alignment (errors go down through few learned dimensions; a reconstruction)",
    projects=False,
    refused=Refusal.LEARNS,
)
class LowDimensionalFeedbackAlignment(FactoredFeedback):
    """`ldfa`: B_l = P_l^T Q_l of rank r, both learned. The rows of the first P_l are orthonormal. [R]"""

    name = "ldfa"

    def __init__(
        self,
        rank: int | None = None,
        tracking: float = 0.1,
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float = 1e-4,
        scale: float = 1.0,
    ) -> None:
        """
        Args:
            rank: r, at most n_l of a layer; None is c, the components of the network's output.
            tracking: of P_l, above 0 and at most 1.
            optimizer, rate, decay, scale: of Q_l, as for every factored feedback.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(optimizer, rate, decay, scale)
        if rank is not None and rank < 1:
            raise UsageError(f"rule option rank={rank}: it must be at least 1")
        if not 0 < tracking <= 1:
            raise UsageError(f"rule option tracking={tracking!r}: it must be a number above 0 and at most 1")
        self.given, self.tracking = rank, float(tracking)

    def rank(self, outputs: int, components: int) -> int:
        return min(outputs, components if self.given is None else self.given)

    def first(self, outputs: int, rank: int, stream: torch.Generator) -> Tensor:
        drawn = torch.randn(outputs, rank, generator=stream, dtype=torch.float64)
        rows: Tensor = torch.linalg.qr(drawn)[0].T
        return rows.contiguous()

    def learn_left(self, left: Tensor, right: Tensor, delta: Tensor, gradient: Tensor) -> None:
        size = delta.square().sum()
        if size > 0:
            seen = delta @ left.T
            left.add_((seen.T @ delta - seen.T @ seen @ left) / size, alpha=self.tracking)
