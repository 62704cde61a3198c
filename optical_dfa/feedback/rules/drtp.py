"""Direct random target projection: g_l = B_l onehot(t) (DRTP; Frenkel et al. 2021, arXiv 1909.01311)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(summary="Direct Random Target ProjectingState", projects=True)
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """`drtp`: hidden layers are taught by a fixed random projection of the target itself, not of the error.

    Which target a record has is read off its error at the output, so that a loop stays as it is: under cross-entropy
    (softmax, or sigmoid and one-hot targets) dL/dz_j is below 0 for the target alone. Other losses are refused as soon
    as an error shows them. A record (or position) whose error is nowhere below 0 teaches nothing: an ignored label, or
    an output so sure of the target that its error is rounded to 0.

    The published B is Kaiming-uniform: `law="uniform"`. The signal's size does not shrink as the error does, so a
    learning rate for `dfa` is too large here.
    """

    name = "drtp"

    def work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """A look-up: each component of the frame hears which target it is."""
        operations, words = super().work(points, 1)
        return operations - max((point.start + point.outputs for point in points), default=0), words

    def check_error(self, error: Tensor) -> None:
        check_targets(error, self.name)

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        return onehot_targets(error)


def check_targets(error: Tensor, rule: str) -> None:
    """Refuse errors that show no target.

    Args:
        error: dL/dz, a row for each record or position.
        rule: name of the rule that asks.
    Raises:
        UsageError: an error that is below 0 in several components: another loss than is said there.
    """
    if bool(((error < 0).sum(1) > 1).any()):
        raise UsageError(
            f"rule {rule} reads a record's target off its error, which must be below 0 for the target alone; "
            "use cross_entropy without label smoothing, or binary cross-entropy with one-hot targets"
        )


def onehot_targets(error: Tensor) -> Tensor:
    """onehot(t) from errors of shape (rows, c), as `DirectRandomTargetProjection` says; 0 for rows without a target.

    A row that is below 0 in several components, or not finite, is NaN.

    Args:
        error: dL/dz, a row for each record or position.
    """
    below = error < 0
    several = below.sum(1, keepdim=True) > 1
    broken = several | ~error.isfinite().all(1, keepdim=True)
    return below.to(error.dtype).masked_fill(broken, torch.nan)
