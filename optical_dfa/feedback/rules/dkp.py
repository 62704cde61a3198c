"""Direct Kolen-Pollack (Webster, Choi & Ahn 2021): the direct feedback matrix learns as the output layer's weight does.

g_l = e B_l,    B_l <- B_l - eta (mean_n e_n^T h_{l,n} + lambda B_l)
"""

from __future__ import annotations

import torch
from torch import Tensor

from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Lesson, rows_of
from optical_dfa.feedback.state import Placement


@RuleCard(
    summary="direct Kolen-Pollack (direct feedback that learns beside the output layer)",
    projects=False,
    refused=Refusal.LEARNS,
)
class DirectKolenPollack(LearnedFeedback):
    """`dkp`: eta is the option `rate` (0.1 unless given), lambda the option `decay` (1e-6 unless given).

    Where the top layer's weight W is trained on the mean loss by plain SGD with learning rate eta and weight decay
    lambda, W - B shrinks by the factor 1 - eta lambda a step: the two become one.
    """

    name = "dkp"
    default_rate = 0.1
    default_decay = 1e-6

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return error.T @ part.to(error.dtype) / len(error)

    def state(self, placed: Placement) -> LearnedState:
        return _CorrelatingState(self, placed)


class _CorrelatingState(LearnedState):
    """Notes h_l; summed over the calls of a point, as a shared weight's gradient would be."""

    def observe(self, passed: ForwardPass) -> Lesson:
        noted, output = Lesson({}), passed.output
        rows = output.shape[:-1].numel() if output.ndim > 1 else len(output)
        for index, point in enumerate(self.points):
            calls = [h.detach() for i, h in passed.kept if i == index]
            noted.parts[index] = torch.stack(rows_of(calls, point.width, rows)).sum(0)
        return noted
