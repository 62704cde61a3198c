"""Backpropagation: the baseline. Nothing is cut; autograd does everything."""

from __future__ import annotations

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.feedback.state import FeedbackState, Placement


@RuleCard(summary="backpropagation", projects=False)
class Backpropagation(Rule):
    """Exact gradients (`bp`)."""

    name = "bp"
    requires = frozenset({Requires.BACKWARD})
    cuts = False

    def state(self, placed: Placement) -> FeedbackState:
        return FeedbackState(placed.points)
