"""mono-forward against reverse-mode gradients of the layers' own losses, in float64."""

from __future__ import annotations

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, labels, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.learned import LearnedState
from optical_dfa.measure.costs import cost
from optical_dfa.networks.recurrent import RNN

RULE = "mono-forward"


def classifiers(aligned: AlignedModule) -> list[Tensor]:
    assert isinstance(aligned.state, LearnedState)
    return [aligned.state.matrix(point).clone() for point in aligned.points]


def cnn() -> nn.Sequential:
    found = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(),
            nn.Linear(16, 4),
        )
    )  # fmt: skip
    assert isinstance(found, nn.Sequential)
    return found


def in_blocks(
    net: nn.Sequential, ends: list[int], x: Tensor, heads: list[Tensor], share: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients by autograd, every block with its own loss; and those of the mean losses by the classifiers."""
    expected: dict[str, Tensor] = {}
    learned, h, start = [], x, 0
    for end, head in zip([*ends, len(net) - 1], [*heads, None], strict=True):
        matrix = None if head is None else head.clone().requires_grad_()
        h = net[start : end + 1](h.detach())
        z = h if matrix is None else h.flatten(1) @ matrix.T
        inside = {f"{n}": p for n, p in net.named_parameters() if start <= int(n.split(".")[0]) <= end}
        found = torch.autograd.grad(
            cross_entropy(z, Y, reduction="sum"), [*inside.values(), *([] if matrix is None else [matrix])]
        )
        expected |= {n: g * share for n, g in zip(inside, found, strict=False)}
        learned += [] if matrix is None else [found[-1] / M]
        start = end + 1
    return expected, learned


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("make", "ends", "x"),
    [
        (mlp, [1, 3], X),
        (lambda: mlp(bias=False), [1, 3], X),
        (lambda: mlp(phi=nn.ReLU), [1, 3], X),
        (cnn, [1, 4], normal(M, 1, 8, 8)),
    ],
)
def test_it_is_its_equation(make: type[nn.Sequential], ends: list[int], x: Tensor, reduction: str) -> None:
    """Two steps: the second with what the classifiers learned from the first."""
    options = {"rate": 0.3, "decay": 0.2}
    aligned = align(make(), rule=RULE, rule_options=options, example=x, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    for _ in range(2):
        before = classifiers(aligned)
        found = gradients(aligned, x, reduction=reduction)
        expected, learned = in_blocks(make(), ends, x, before, 1 / M if reduction == "mean" else 1.0)
        assert_same(found, expected)
        for now, old, g in zip(classifiers(aligned), before, learned, strict=True):
            torch.testing.assert_close(now, old - 0.3 * (g + 0.2 * old), **EXACT)


def test_a_recurrent_network_has_a_loss_at_every_position() -> None:
    """A state learns from its own position alone: the one before it is a constant."""
    make = lambda: seeded(lambda: nn.Sequential(RNN(3, 5), nn.Linear(5, 4)))  # noqa: E731
    x, y = normal(M, 4, 3), labels(M, 4)
    aligned = align(make(), rule=RULE, example=x, loss_reduction="sum", show=None)
    (head,), (point,) = classifiers(aligned), aligned.points
    assert point.shape == (5,)
    cross_entropy(aligned(x).flatten(0, 1), y.flatten(), reduction="sum").backward()
    found = {n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None and n[0] == "0"}
    cell = make()[0]  # type: ignore[index]
    before, losses = torch.zeros(M, 5, dtype=torch.float64), []
    for t in range(4):
        h = torch.tanh(cell.into(x[:, t]) + cell.over(before))
        losses.append(cross_entropy(h @ head.T, y[:, t], reduction="sum"))
        before = h.detach()
    free = {f"0.{n}": p for n, p in cell.named_parameters()}
    assert_same(found, dict(zip(free, torch.autograd.grad(sum(losses), list(free.values())), strict=True)))


def test_it_is_not_backpropagation_but_for_the_output() -> None:
    exact, found = gradients(mlp()), gradients(align(mlp(), rule=RULE, show=None))
    torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)
    assert (
        abs(float(torch.cosine_similarity(found["0.weight"].flatten(), exact["0.weight"].flatten(), 0))) < 0.9
    )


def test_no_error_passes_from_block_to_block() -> None:
    """Whatever the layers above are, a layer learns the same."""
    other = mlp()
    for name, p in other.named_parameters():
        if name.startswith(("2.", "4.")):
            p.data.mul_(-2)
    found = [gradients(align(net, rule=RULE, show=None))["0.weight"] for net in (mlp(), other)]
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_ignored_labels_teach_nothing_and_other_losses_are_refused() -> None:
    y = Y.clone()
    y[2:] = -100
    aligned = align(mlp(), rule=RULE, loss_reduction="sum", show=None)
    found = gradients(aligned, y=y)
    few = gradients(align(mlp(), rule=RULE, loss_reduction="sum", show=None), X[:2], Y[:2])
    assert_same(found, few)
    binary_cross_entropy_with_logits(aligned(X), one_hot(Y, 4).double()).backward()
    with pytest.raises(UsageError, match="rule mono-forward reads a record's target off its error"):
        mse_loss(aligned(X), normal(M, 4)).backward()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.phi, self.out = (
            nn.Linear(5, 6),
            nn.Linear(6, 6),
            nn.Tanh(),
            nn.Linear(6, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.phi(self.second(self.phi(self.first(x)))))
        return found


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Twice(), "feedback point phi is called 2 times"),
        (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)), "needs two of them"),
    ],
)
def test_networks_it_is_not_defined_on_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        align(net, rule=RULE, example=X.float(), show=None)
    assert "\n" not in str(error.value)


def test_what_a_step_costs() -> None:
    """Of 5-6-8-4: classifiers of 4 x 6 and 4 x 8, each used three times."""
    found = cost(align(mlp(), rule=RULE, show=None))
    assert (found.forward, found.error, found.words) == (5 * 6 + 6 * 8 + 8 * 4, 3 * 4 * 14, 4 * 14)
