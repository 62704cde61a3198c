"""Error broadcast and decorrelation (EBD; Erdogan, Pehlevan & Erdogan 2025, arXiv 2504.11558).

    R_l <- (1 - rate) R_l + rate · mean_n e_n^T g(h_{l,n}),    g_l = (e R_l) ∘ g'(h_l)

The error of the best estimator (least mean squares) is uncorrelated with every function of its input. So each layer
descends |R_l|^2, the correlation of its activities with the error, R_l after this step's change as in the paper; the
error is taken as given, so that nothing goes backwards. 1 - rate is the paper's lambda.

Published, DFA / EBD / backpropagation: MNIST MLP 98.1 / 98.2 / 98.7; CIFAR-10 MLP 52.1 / 55.5 / 56.4, CNN 58.4 / 66.4 /
75.2, locally connected 62.2 / 64.3 / 67.8; CIFAR-100 CNN 41.9 / 45.9 / 60.5 % (at second hand).

[R] The equation is at second hand; the authors' code was not at hand. Their terms against collapse (the layer's power
and entropy) are not here, and their first R and lambda are not known to us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Lesson, rows_of
from optical_dfa.feedback.state import Placement, check_once

# g and its derivative.
FUNCTIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        "identity": (lambda h: h, torch.ones_like),
        "square": (torch.square, lambda h: 2 * h),
        "tanh": (torch.tanh, lambda h: 1 - torch.tanh(h).square()),
    }
)


@RuleCard(
    summary="error broadcast and decorrelation (direct feedback by the correlation of activities and errors; a "
    "reconstruction)",
    projects=False,
    refused=Refusal.LEARNS,
)
class ErrorBroadcastDecorrelation(LearnedFeedback):
    """`ebd`: R_l, shape (c, n_l), starts random (`initial_scale`) and becomes the running correlation. [R]"""

    name = "ebd"
    default_rate = 0.001

    def __init__(
        self, function: str = "identity", rate: float | None = None, initial_scale: float = 1.0
    ) -> None:
        """
        Args:
            function: g, "identity", "square" or "tanh".
            rate: of the running mean, above 0 and at most 1.
            initial_scale: standard deviation of the first R_l's entries times sqrt(n_l).
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__("sgd", rate, 0.0, initial_scale)
        if function not in FUNCTIONS:
            raise UsageError(f"rule option function={function!r}: it must be one of {', '.join(FUNCTIONS)}")
        self.function = function

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return matrix - error.T @ FUNCTIONS[self.function][0](part) / len(error)

    def state(self, placed: Placement) -> LearnedState:
        check_once(placed, self.name)
        return _DecorrelatingState(self, placed)


class _DecorrelatingState(LearnedState):
    """Notes h_l."""

    rule: ErrorBroadcastDecorrelation

    def observe(self, passed: ForwardPass) -> Lesson:
        noted, output = Lesson({}), passed.output
        rows = output.shape[:-1].numel() if output.ndim > 1 else len(output)
        for index, point in enumerate(self.points):
            calls = [h.detach().to(self.matrix(point).dtype) for i, h in passed.kept if i == index]
            if calls:
                (noted.parts[index],) = rows_of(calls, point.width, rows)
        return noted

    def teach(
        self, error: Tensor, noted: Lesson, device: ProjectionBackend | None
    ) -> Sequence[Tensor | None]:
        if len(error):
            self.learn(noted, dict.fromkeys(noted.parts, error))
        signals = list(self.signals(error, device))
        for index, h in noted.parts.items():
            signal = signals[index]
            assert signal is not None
            signals[index] = signal * FUNCTIONS[self.rule.function][1](h)
        return signals
