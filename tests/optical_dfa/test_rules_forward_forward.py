"""forward-forward: each layer's own loss of records with their label and with another, in float64 by autograd."""

from __future__ import annotations

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.forward_forward import ForwardForwardState

RULE = "forward-forward"


def wrong_labels(aligned: AlignedModule) -> Tensor:
    """Of the pass that comes next."""
    assert isinstance(aligned.state, ForwardForwardState)
    stream = aligned.state.draws()
    return (Y + torch.randint(1, 4, (M,), generator=stream)) % 4


def cnn() -> nn.Sequential:
    found = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4)
        )
    )
    assert isinstance(found, nn.Sequential)
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("make", "x"), [(mlp, X), (lambda: mlp(bias=False, phi=nn.ReLU), X), (cnn, normal(M, 1, 6, 6))]
)
def test_it_is_its_equation(make: type[nn.Sequential], x: Tensor, reduction: str) -> None:
    options = {"threshold": 0.3, "label": 2.0}
    aligned = align(make(), rule=RULE, rule_options=options, example=x, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    for _ in range(2):
        wrong = wrong_labels(aligned)
        found = gradients(aligned, x, reduction=reduction)
        net, losses = make(), []
        for y, sign in ((Y, 1.0), (wrong, -1.0)):
            h = x.flatten(1).clone()
            h[:, :4] = 2.0 * one_hot(y, 4)
            h = h.view_as(x)
            for number, part in enumerate(net):
                h = part(h)
                if isinstance(part, nn.Tanh | nn.ReLU):
                    goodness = h.flatten(1).pow(2).sum(1) / h[0].numel()
                    losses.append(torch.log1p(torch.exp(sign * (0.3 - goodness))).sum())
                    h = h.detach()
                if number == len(net) - 2:
                    break
        exact = gradients(make(), x, reduction="sum")
        hidden = {n: p for n, p in net.named_parameters() if int(n.split(".")[0]) < len(net) - 1}
        own = dict(zip(hidden, torch.autograd.grad(sum(losses), list(hidden.values())), strict=True))
        share = 1 / M if reduction == "mean" else 1.0
        assert_same(found, {n: (exact | own)[n] * share for n in found})


def test_it_is_not_backpropagation_but_for_the_output() -> None:
    exact, found = gradients(mlp()), gradients(align(mlp(), rule=RULE, show=None))
    torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)
    assert (
        abs(float(torch.cosine_similarity(found["0.weight"].flatten(), exact["0.weight"].flatten(), 0))) < 0.9
    )


def test_wrong_labels_are_wrong_and_even() -> None:
    """12,000 draws for three wrong labels: within 4.5 standard errors (false alarm below 3e-5)."""
    aligned = align(mlp(), rule=RULE, show=None)
    found = []
    for _ in range(12_000 // M + 1):
        found.append((wrong_labels(aligned) - Y) % 4)
        aligned.state.get_buffer("passes").add_(1)
    steps = torch.cat(found)
    counts = torch.bincount(steps, minlength=4)
    assert counts[0] == 0
    assert float((counts[1:] - len(steps) / 3).abs().max()) < 4.5 * (len(steps) * 2 / 9) ** 0.5


def test_ignored_labels_teach_nothing_and_other_losses_are_refused() -> None:
    aligned = align(mlp(), rule=RULE, loss_reduction="sum", show=None)
    y = Y.clone()
    y[:] = -100
    y[0] = Y[0]
    found = gradients(aligned, y=y)
    first = gradients(align(mlp(), rule=RULE, loss_reduction="sum", show=None), X[:1], Y[:1])
    assert_same(found, first)
    with pytest.raises(UsageError, match="rule forward-forward reads a record's target off its error"):
        mse_loss(aligned(X), normal(M, 4)).backward()


def test_the_module_is_left_as_it_is_and_masks_come_again() -> None:
    """Buffers of the passes are not kept but for those of the first; the output's mask is that of its own pass."""
    net = seeded(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 4))
    )
    aligned = align(net, rule=RULE, example=X, show=None)
    plain = seeded(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 4))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        cross_entropy(aligned(X), Y).backward()
        torch.manual_seed(3)
        exact = gradients(plain)
    torch.testing.assert_close(net[4].weight.grad, exact["4.weight"], **EXACT)  # type: ignore[index]
    for (name, found), (_, expected) in zip(net.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize(
    ("net", "x", "message"),
    [
        (nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)), normal(2, 3), "one of 4 labels over an input"),
        (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)), normal(2, 5), "use rule mono-forward"),
    ],
)  # fmt: skip
def test_networks_it_is_not_defined_on_are_refused(net: nn.Module, x: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        align(net, rule=RULE, example=x.float(), show=None)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"threshold=-1.0: it must be a positive number"):
        align(mlp(), rule=RULE, rule_options={"threshold": -1.0}, show=None)
