"""What a classifier gets right on a test set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from noise_models.places import moved, on_cpu, place_of
from optical_dfa.training.loss import cross_entropy

POSITIONS = 4096  # evaluated at once


def accuracy_and_loss(module: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross entropy (nats), over all positions.

    Args:
        module: left in training mode.
        x, y: records, wherever they are, and their classes of shape (records, [positions]).
    """
    right, loss = 0, 0.0
    for logits, classes in _outputs(module, x, y):
        right += int((logits.argmax(-1) == classes).sum())
        loss += float(cross_entropy(logits, classes, "sum"))
    return right / y.numel(), loss / y.numel()


def area_under_curve(module: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """Area under the ROC curve of two classes; None where it is not defined.

    Args:
        module: left in training mode.
        x, y: records, and their classes 0 or 1.
    """
    from sklearn.metrics import roc_auc_score

    scores = [
        on_cpu((logits[..., 1] - logits[..., 0]).double()).flatten() for logits, _ in _outputs(module, x, y)
    ]
    score, target = torch.cat(scores), on_cpu(y).flatten()
    if not bool(score.isfinite().all()) or not 0 < int(target.sum()) < len(target):
        return None
    return float(roc_auc_score(target.numpy(), score.numpy()))


def _outputs(module: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, classes), in parts."""
    rows, place = max(1, POSITIONS // max(1, y.numel() // len(y))), place_of(module)
    module.eval()
    try:
        with torch.no_grad():
            for records, classes in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
                yield module(moved(records, place)), moved(classes, place)
    finally:
        module.train()
