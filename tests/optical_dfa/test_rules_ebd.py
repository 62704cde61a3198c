"""ebd: the running correlation of activities and errors, and the descent of its square, in float64."""

from __future__ import annotations

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.learned import LearnedState

RULE = "ebd"
G = {"identity": lambda h: h, "square": lambda h: h * h, "tanh": torch.tanh}


def matrices(aligned: AlignedModule) -> list[Tensor]:
    assert isinstance(aligned.state, LearnedState)
    return [aligned.state.matrix(point).clone() for point in aligned.points]


@pytest.mark.parametrize("phi", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("function", list(G))
def test_it_is_its_equation(function: str, reduction: str, phi: type[nn.Module]) -> None:
    """Each layer's gradient is that of |R_l|^2 / 2 by autograd, over the share that the batch has of R_l."""
    net = mlp(phi=phi)
    options = {"function": function, "rate": 0.2}
    aligned = align(net, rule=RULE, rule_options=options, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    for _ in range(2):
        before = matrices(aligned)
        found = gradients(aligned, reduction=reduction)
        divisor = M if reduction == "mean" else 1
        inputs, named, expected = X, dict(net.named_parameters()), {}
        with torch.no_grad():
            z = net(X)
        e = torch.softmax(z, -1) - one_hot(Y, 4)
        for layer, old, now in zip(("0", "2"), before, matrices(aligned), strict=True):
            h = phi()(net[int(layer)](inputs.detach()))
            correlation = 0.8 * old + 0.2 * e.T @ G[function](h) / M
            own = [named[f"{layer}.weight"], named[f"{layer}.bias"]]
            parts = torch.autograd.grad(correlation.square().sum() / 2, own)
            share = 0.2 / M * divisor
            expected |= {f"{layer}.{n}": g / share for n, g in zip(("weight", "bias"), parts, strict=True)}
            torch.testing.assert_close(now, correlation.detach(), **EXACT)
            inputs = h
        expected |= {"4.weight": e.T @ inputs.detach() / divisor, "4.bias": e.sum(0) / divisor}
        assert_same(found, expected)


def test_a_convolutional_network_is_its_equation() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)))
    assert isinstance(net, nn.Sequential)
    x = normal(M, 2, 6, 6)
    aligned = align(net, rule=RULE, rule_options={"rate": 0.2}, example=x, show=None)
    (old,) = matrices(aligned)
    found = gradients(aligned, x)
    with torch.no_grad():
        h = torch.tanh(net[0](x))
        e = torch.softmax(net[3](h.flatten(1)), -1) - one_hot(Y, 4)
        now = 0.8 * old + 0.2 * e.T @ h.flatten(1) / M
        signal = (e / M @ now).view_as(h) * (1 - h**2)
    torch.testing.assert_close(matrices(aligned)[0], now, **EXACT)
    torch.testing.assert_close(found["0.bias"], signal.sum((0, 2, 3)), **EXACT)


def test_it_is_not_backpropagation_but_for_the_output() -> None:
    exact, found = gradients(mlp()), gradients(align(mlp(), rule=RULE, show=None))
    torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)
    assert (
        abs(float(torch.cosine_similarity(found["0.weight"].flatten(), exact["0.weight"].flatten(), 0))) < 0.9
    )


def test_a_second_backward_pass_teaches_the_same_and_changes_nothing() -> None:
    aligned = align(mlp(), rule=RULE, rule_options={"rate": 0.5}, show=None)
    loss = nn.functional.cross_entropy(aligned(X), Y)
    loss.backward(retain_graph=True)
    once, seen = (
        matrices(aligned),
        {n: p.grad.clone() for n, p in aligned.module.named_parameters() if p.grad is not None},
    )
    loss.backward()
    for a, b in zip(once, matrices(aligned), strict=True):
        assert torch.equal(a, b)
    assert_same({n: p.grad / 2 for n, p in aligned.module.named_parameters() if p.grad is not None}, seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": "cube"}, "function='cube': it must be one of identity, square, tanh"),
        ({"rate": 1.5}, "rate=1.5: .* at most 1"),
        ({"initial_scale": -1.0}, "initial_scale=-1.0: it must be zero"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        align(mlp(), rule=RULE, rule_options=options, show=None)
