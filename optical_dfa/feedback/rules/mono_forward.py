"""Mono-Forward (Gong, Li & Abdulla 2025, arXiv 2501.09238): each layer has a classifier of its own, no other error.

    p_l = softmax(h_l M_l^T),    g_l = (p_l - t) M_l,    M_l <- M_l - rate · mean_n (p_l - t)^T h_l

g_l = dL_l/dh_l of the layer's own loss L_l = CE(p_l, t), so delta_l = g_l ∘ phi'(a_l) is exact for it. Published (v2):
Fashion-MNIST 90.5 % and CIFAR-10 58.3 % (fully connected), CIFAR-100 63.3 % (convolutions).

[R] From the paper's abstract and its equations at second hand; no code of the authors was at hand. There the prediction
is the last layer's; here that layer is the network's output layer, which learns from the exact error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal, RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rules.drtp import check_targets, onehot_targets
from optical_dfa.feedback.rules.learned import LearnedFeedback, LearnedState, Lesson, rows_of
from optical_dfa.feedback.state import Placement, check_once


@RuleCard(
    summary="Mono-Forward (a classifier and a loss of each layer's own; no error from above; a reconstruction)",
    projects=False,
    refused=Refusal.LEARNS,
)
class MonoForward(LearnedFeedback):
    """`mono-forward`: M_l, shape (c, n_l), reads all units of a point (of a convolution all places too). [R]

    The target t is read off the error at the output, as `drtp` does and for the same losses; the local loss is the
    cross-entropy of single records (or positions) whatever the loss's weights are. The classifiers are the rule's, not
    the module's: an optimizer never sees them. They start random (`initial_scale`), for at 0 a layer learns nothing.
    """

    name = "mono-forward"
    default_rate = 0.1

    def __init__(
        self,
        optimizer: str = "sgd",
        rate: float | None = None,
        decay: float | None = None,
        initial_scale: float = 1.0,
    ) -> None:
        """
        Args:
            optimizer, rate, decay, initial_scale: of the classifiers, as for every learned feedback.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(optimizer, rate, decay, initial_scale)

    def difference(self, matrix: Tensor, part: Tensor, error: Tensor) -> Tensor:
        return error.T @ part.to(error.dtype) / len(error)

    def check_error(self, error: Tensor) -> None:
        check_targets(error, self.name)

    def state(self, placed: Placement) -> LearnedState:
        if placed.components < 2:
            raise UsageError(
                f"rule {self.name} reads which of the output's components is the target, and needs two of them or "
                "more; use rule dfa"
            )
        check_once(placed, self.name)
        return _ClassifyingState(self, placed)


class _ClassifyingState(LearnedState):
    """Notes h_l; a record (or position) without a target teaches nothing."""

    def observe(self, passed: ForwardPass) -> Lesson:
        noted, output = Lesson({}), passed.output
        rows = output.shape[:-1].numel()
        for index, point in enumerate(self.points):
            calls = [h.detach() for i, h in passed.kept if i == index]
            if calls:
                (noted.parts[index],) = rows_of(calls, point.width, rows)
        return noted

    def signals(self, error: Tensor, device: ProjectionBackend | None) -> list[Tensor | None]:
        """Without the layers' own outputs there is nothing to say."""
        return [None for _ in self.points]

    def teach(self, error: Tensor, noted: Lesson, device: ProjectionBackend | None) -> list[Tensor | None]:
        signals = self.signals(error, device)
        if not len(error):
            return signals
        target = onehot_targets(error)
        errors: dict[int, Tensor] = {}
        for index, h in noted.parts.items():
            classifier = self.matrix(self.points[index])
            wanted = target.to(classifier.dtype)
            own = torch.softmax(h.to(classifier.dtype) @ classifier.T, 1)
            errors[index] = (own - wanted) * wanted.sum(1, keepdim=True)
            signals[index] = errors[index] @ classifier
        self.learn(noted, errors)
        return signals

    def work(self, components: int, positions: int) -> tuple[int, int]:
        """Of each classifier c n_l for its answer, for the signal and for what it learns."""
        work = positions * components * sum(point.width for point in self.points)
        return 3 * work, work
