"""The loss of training runs, and that it does not tell how many records there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.training import loss


def example(*shape: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, classes, generator=generator), torch.randint(
        0, classes, shape, generator=generator
    )


@pytest.mark.parametrize("shape", [(200,), (130, 7)])
def test_private_training_takes_the_sum_over_records_of_means_over_positions(shape: tuple[int, ...]) -> None:
    logits, targets = example(*shape)
    mean = loss.cross_entropy(logits, targets)
    assert torch.allclose(loss.private_loss(logits, targets), mean * shape[0], rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 65, 1000])
def test_the_loss_of_a_run_is_tried_to_the_bit(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = example(200, classes=classes)
    loss.refuse_by_number(logits, targets)
    exact = loss.cross_entropy
    monkeypatch.setattr(loss, "private_loss", lambda z, y: exact(z, y, "sum") * (1 + 1e-3 / len(z)))
    with pytest.raises(UsageError, match="otherwise than among 200"):
        loss.refuse_by_number(logits, targets)
