"""A rule: half of what `dfa` teaches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import Point
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(summary="half of Direct Feedback Alignment", projects=True)
class HalfFeedback(DirectFeedbackAlignment):
    """`half-dfa`: g_l = B_l e / 2."""

    name = "half-dfa"

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        return [None if s is None else s / 2 for s in super().feedback(error, points, backend)]
