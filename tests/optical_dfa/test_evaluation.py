"""Accuracy, loss and area under the curve of a test set, against a direct computation."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optical_dfa.training import evaluation
from optical_dfa.training.evaluation import accuracy_and_loss, area_under_curve

ROWS = 37


class Positions(nn.Module):
    """Logits of shape (records, positions, classes), and how many records came at once."""

    def __init__(self, positions: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(4, *positions, classes, generator=torch.Generator().manual_seed(0))
        )
        self.dropout = nn.Dropout(0.5)
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.rows.append(len(x))
        out: Tensor = torch.tensordot(self.dropout(x), self.weight, 1)
        return out


def records(positions: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(ROWS, 4, generator=generator),
        torch.randint(0, classes, (ROWS, *positions), generator=generator),
    )


@pytest.mark.parametrize("positions", [(), (5,)])
def test_equals_a_direct_computation_in_parts(
    positions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "POSITIONS", 10)
    x, y = records(positions, 3)
    net = Positions(positions, 3)
    accuracy, loss = accuracy_and_loss(net, x, y)
    assert max(net.rows) == (2 if positions else 10)  # positions count
    assert net.training
    logits = torch.tensordot(x, net.weight.detach(), 1).flatten(0, -2)
    assert accuracy == pytest.approx(float((logits.argmax(-1) == y.flatten()).double().mean()))
    assert loss == pytest.approx(float(cross_entropy(logits, y.flatten())), rel=1e-6)


def test_the_area_is_scikit_learns_and_none_where_it_is_not_defined() -> None:
    x, y = records((), 2)
    net = Positions((), 2)
    with torch.no_grad():
        logits = torch.tensordot(x, net.weight, 1)
    assert area_under_curve(net, x, y) == pytest.approx(roc_auc_score(y, logits[:, 1] - logits[:, 0]))
    assert net.training
    assert area_under_curve(net, x, torch.ones_like(y)) is None
    net.weight.data.fill_(float("nan"))
    assert area_under_curve(net, x, y) is None


def test_a_failing_pass_leaves_the_module_in_training() -> None:
    x, y = records((), 2)
    net = Positions((), 2)
    with pytest.raises(RuntimeError):
        accuracy_and_loss(net, x[:, :3], y)
    assert net.training
