"""The control: hidden layers frozen at their initial weights, only the output segment learns."""

from __future__ import annotations

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rule import Rule
from optical_dfa.feedback.state import FeedbackState, Placement


@RuleCard(summary="its hidden layers frozen (the control experiment)", projects=False)
class Shallow(Rule):
    """No feedback at all (`shallow`): what a rule must beat to show that it teaches hidden layers anything."""

    name = "shallow"
    teaches_hidden = False

    def state(self, placed: Placement) -> FeedbackState:
        return FeedbackState(placed.points)
