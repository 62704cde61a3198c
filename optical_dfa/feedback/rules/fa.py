"""Feedback alignment (Lillicrap et al. 2016, Nat. Commun. 7:13276): g_{l-1} = delta_l B_l, B_l fixed and random."""

from __future__ import annotations

from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.matrix import DISTRIBUTIONS
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.layerwise import LayerwiseFeedback


@RuleCard(summary="feedback alignment (layer by layer, through fixed random matrices)", projects=False)
class FeedbackAlignment(LayerwiseFeedback):
    """`fa`: the error goes down layer by layer through fixed random matrices shaped like the weights.

    Entries of B_l have standard deviation `scale · sqrt(2 / (fan_in + fan_out))`.
    """

    name = "fa"

    def __init__(self, scale: float = 1.0, law: str = "normal") -> None:
        """
        Args:
            scale: size of the entries, relative to the layer's Xavier standard deviation.
            law: of the entries: "normal", "uniform", "binary" or "orthogonal".
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale)
        if law not in DISTRIBUTIONS:
            raise UsageError(f"rule option law={law!r}: it must be one of {', '.join(DISTRIBUTIONS)}")
        self.law = law

    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        assert drawn is not None
        return drawn * size
