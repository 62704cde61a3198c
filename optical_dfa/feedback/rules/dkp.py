"""Direct Kolen-Pollack (Webster, Choi & Ahn 2021): the direct feedback matrix learns as the output layer's weight does.

g_l = e B_l,    B_l <- B_l - eta (mean_n e_n^T h_{l,n} + lambda B_l)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Tape
from optical_dfa.feedback.rule import Point, Requires
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Noted, rows_of


@RuleCard(
    summary="direct Kolen-Pollack (direct feedback that learns beside the output layer)", projects=False
)
class DirectKolenPollack(LearnedFeedback):
    """`dkp`: eta is the option `rate` (0.1 unless given), lambda the option `decay` (1e-6 unless given).

    Where the top layer's weight W is trained on the mean loss by plain SGD with learning rate eta and weight decay
    lambda, W - B shrinks by the factor 1 - eta lambda a step: the two become one.
    """

    name = "dkp"
    requires = frozenset({Requires.ROOT_ERROR})
    default_rate = 0.1
    default_decay = 1e-6

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return error.T @ part.to(error.dtype) / len(error)

    def state(
        self, module: nn.Module, points: Sequence[Point], output: Tensor, example: Sequence[Tensor], seed: int
    ) -> LearnedState:
        return _CorrelatingState(self, points, output, seed)


class _CorrelatingState(LearnedState):
    """Notes h_l; summed over the calls of a point, as a shared weight's gradient would be."""

    def observe(
        self,
        module: nn.Module,
        tape: Tape,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        kept: Sequence[tuple[int, Tensor]],
        output: Tensor,
    ) -> Noted:
        noted = Noted({})
        rows = output.shape[:-1].numel() if output.ndim > 1 else len(output)
        for index, point in enumerate(self.points):
            calls = [h.detach() for i, h in kept if i == index]
            noted.parts[index] = torch.stack(rows_of(calls, point.width, rows)).sum(0)
        return noted
