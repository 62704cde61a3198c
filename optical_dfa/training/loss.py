"""The loss of every training run: cross entropy, the mean over records, and over the positions of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from noise_models.errors import UsageError

_NUMBERS = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65)  # of records, at which kernels change their way


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Of logits (m, classes) and targets (m,), or of every position: (m, T, classes) and (m, T)."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def private_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over records, of means over positions: a mean over records, undone, would tell how many there are."""
    return cross_entropy(logits, targets, "sum") / targets.shape[1:].numel()


def refuse_by_number(logits: Tensor, targets: Tensor) -> None:
    """Try whether each record's error has the same bits among fewer records.

    Args:
        logits, targets: random ones, of more records than any of the numbers tried.
    Raises:
        UsageError: it has not.
    """
    whole = _errors(logits, targets)
    for records in (*_NUMBERS, len(logits) - 1):
        if not torch.equal(_errors(logits[:records], targets[:records]), whole[:records]):
            raise UsageError(
                f"the loss computes a record's error among {records} records otherwise than among {len(logits)}, so "
                "that a record that joins would move the others'; try OMP_NUM_THREADS=1"
            )


def _errors(logits: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        taught = logits.detach().clone().requires_grad_()
        (errors,) = torch.autograd.grad(private_loss(taught, targets), taught)
    return errors
