"""The loss of every training run: cross entropy, the mean over records, and over the positions of a sequence."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Of logits (m, classes) and targets (m,), or of every position: (m, T, classes) and (m, T)."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)
