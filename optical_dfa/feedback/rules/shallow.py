"""The control: hidden layers frozen at their initial weights, only the output segment learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import FeedbackRule, Point, Requires


@RuleCard(summary="its hidden layers frozen (the control experiment)", projects=False)
class Shallow(FeedbackRule):
    """No feedback at all (`shallow`): what a rule must beat to show that it teaches hidden layers anything."""

    name = "shallow"
    requires = frozenset({Requires.ROOT_ERROR})
    teaches_hidden = False

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        return [None for _ in points]
