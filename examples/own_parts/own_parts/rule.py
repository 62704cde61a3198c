"""A rule: half of what `dfa` teaches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(summary="half of Direct Feedback Alignment", projects=True)
class HalfFeedback(DirectFeedbackAlignment):
    """`half-dfa`: g_l = B_l e / 2."""

    name = "half-dfa"

    def feedback(self, lifted: Tensor, points: Sequence[Point], device: ProjectionBackend) -> list[Tensor]:
        return [signal / 2 for signal in super().feedback(lifted, points, device)]
