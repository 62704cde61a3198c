"""Backpropagation: the baseline. Nothing is cut; autograd does everything."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import FeedbackRule, Point, Requires


@RuleCard(summary="backpropagation", projects=False)
class Backpropagation(FeedbackRule):
    """Exact gradients (`bp`)."""

    name = "bp"
    requires = frozenset({Requires.BACKWARD})
    cuts = False

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        return [None for _ in points]
