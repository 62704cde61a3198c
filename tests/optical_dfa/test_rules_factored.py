"""ldfa and pfa: errors through P^T Q, both learned, written out in float64; and what the two converge to."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, cross_entropy, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback import make_rule
from optical_dfa.feedback.rules.factored import FactoredFeedback, FactoredState

RULES = {
    "ldfa": {"rank": 3, "tracking": 0.2, "rate": 0.3, "decay": 0.1},
    "pfa": {"expansion": 1.5, "rate": 0.3, "decay": 0.1},
}
Factors = tuple[Tensor, Tensor]


def factors(aligned: AlignedModule, name: str) -> Factors:
    assert isinstance(aligned.state, FactoredState)
    left, right = aligned.state.factors(name)
    return left.clone(), right.clone()


def learned(rule: str, pair: Factors, delta: Tensor, dw: Tensor) -> Factors:
    """One step of sgd by the equations."""
    p, q = pair
    if rule == "pfa":
        new = p - 0.3 * (q @ dw.T + 0.1 * p)
    else:
        s = delta.T @ delta / torch.trace(delta.T @ delta)
        new = p + 0.2 * (p @ s - p @ s @ p.T @ p)
    return new, q - 0.3 * (p @ dw + 0.1 * q)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", list(RULES))
def test_they_are_their_equations(rule: str, bias: bool, reduction: str) -> None:
    net = mlp(bias)
    aligned = align(net, rule=rule, rule_options=RULES[rule], loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    lowest = factors(aligned, "0")
    for _ in range(3):
        two, four = factors(aligned, "2"), factors(aligned, "4")
        found = gradients(aligned, reduction=reduction)
        with torch.no_grad():
            h1 = torch.tanh(net[0](X))
            h2 = torch.tanh(net[2](h1))
            d3 = (torch.softmax(net[4](h2), -1) - one_hot(Y, 4)) / (M if reduction == "mean" else 1)
            d2 = (d3 @ four[0].T @ four[1]) * (1 - h2**2)
            d1 = (d2 @ two[0].T @ two[1]) * (1 - h1**2)
        weights = {"0.weight": d1.T @ X, "2.weight": d2.T @ h1, "4.weight": d3.T @ h2}
        biases = {"0.bias": d1.sum(0), "2.bias": d2.sum(0), "4.bias": d3.sum(0)} if bias else {}
        assert_same(found, {n: (weights | biases)[n] for n in found})
        for name, pair, delta in (("2", two, d2), ("4", four, d3)):
            expected = learned(rule, pair, delta, weights[f"{name}.weight"])
            for now, value in zip(factors(aligned, name), expected, strict=True):
                torch.testing.assert_close(now, value, **EXACT)
    for now, value in zip(factors(aligned, "0"), lowest, strict=True):
        assert torch.equal(now, value)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_convolutional_network_is_its_equation(rule: str) -> None:
    """Padding, stride and groups; the transposed convolution by P^T Q as a kernel, dW by autograd."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(54, 4),
        )
    )  # fmt: skip
    assert isinstance(net, nn.Sequential)
    x = normal(M, 2, 8, 8)
    aligned = align(net, rule=rule, rule_options=RULES[rule], example=x, show=None)
    for _ in range(2):
        two, five = factors(aligned, "2"), factors(aligned, "5")
        found = gradients(aligned, x)
        weight = net[2].weight.detach().clone().requires_grad_()
        with torch.no_grad():
            h1 = torch.tanh(net[0](x))
            h2 = torch.tanh(net[2](h1))
            d3 = (torch.softmax(net[5](h2.flatten(1)), -1) - one_hot(Y, 4)) / M
            d2 = (d3 @ five[0].T @ five[1]).view_as(h2) * (1 - h2**2)
            kernel = (two[0].T @ two[1]).view_as(weight)
            below = conv_transpose2d(d2, kernel, stride=2, padding=1, groups=2, output_padding=1)
            d1 = below * (1 - h1**2)
        again = conv2d(h1, weight, stride=2, padding=1, groups=2)
        (dw,) = torch.autograd.grad(again, weight, d2)
        assert_same(
            {n: found[n] for n in ("0.bias", "2.weight", "5.weight")},
            {"0.bias": d1.sum((0, 2, 3)), "2.weight": dw, "5.weight": d3.T @ h2.flatten(1)},
        )
        expected = learned(rule, two, d2.movedim(1, -1).reshape(-1, 6), dw.flatten(1))
        for now, value in zip(factors(aligned, "2"), expected, strict=True):
            torch.testing.assert_close(now, value, **EXACT)


@pytest.mark.parametrize("rule", list(RULES))
def test_where_the_product_is_the_weight_it_is_backpropagation(rule: str) -> None:
    options = {"ldfa": {"rank": 8}, "pfa": {"expansion": 1.0}}[rule]
    aligned = align(mlp(), rule=rule, rule_options=options, show=None)
    assert isinstance(aligned.state, FactoredState)
    found = gradients(aligned)
    exact = gradients(mlp())
    assert (
        abs(float(torch.cosine_similarity(found["0.weight"].flatten(), exact["0.weight"].flatten(), 0))) < 0.9
    )
    torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)
    for name in ("2", "4"):
        left, right = aligned.state.factors(name)
        left.copy_(torch.eye(len(left)))
        right.copy_(aligned.module.get_submodule(name).weight.detach())  # type: ignore[operator]
    assert_same(gradients(aligned), exact)


def test_at_full_rank_the_weight_and_the_product_become_one() -> None:
    """Kolen and Pollack: P W - Q shrinks by 1 - rate · decay a step; and P, whose rows span everything, stands."""
    options = {"rank": 8, "rate": 0.1, "decay": 0.5}
    aligned = align(mlp(), rule="ldfa", rule_options=options, show=None)
    step = torch.optim.SGD(aligned.parameters(), lr=0.1, weight_decay=0.5)
    weight = aligned.module.get_submodule("2").weight
    assert isinstance(weight, Tensor)
    left, right = factors(aligned, "2")
    apart = left @ weight.detach() - right
    for _ in range(20):
        step.zero_grad()
        cross_entropy(aligned(X), Y).backward()
        step.step()
    p, q = factors(aligned, "2")
    torch.testing.assert_close(p, left, **EXACT)
    torch.testing.assert_close(p @ weight.detach() - q, apart * 0.95**20, **EXACT)


def test_p_finds_the_principal_subspace_of_the_errors() -> None:
    rule = make_rule("ldfa", {"rank": 2, "tracking": 0.5})
    assert isinstance(rule, FactoredFeedback)
    delta = normal(200, 6, seed=3) * torch.tensor([0.1, 3.0, 0.2, 0.1, 4.0, 0.3], dtype=torch.float64)
    left = rule.first(6, 2, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(left @ left.T, torch.eye(2).double(), rtol=0.0, atol=1e-6)
    for _ in range(400):
        assert rule.learn_left(left, left, delta * 1e-3, left) is None
    top = torch.linalg.eigh(delta.T @ delta)[1][:, -2:]
    torch.testing.assert_close(left.T @ left, top @ top.T, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_second_backward_pass_teaches_the_matrices_nothing(rule: str) -> None:
    aligned = align(mlp(), rule=rule, show=None)
    loss = cross_entropy(aligned(X), Y)
    loss.backward(retain_graph=True)
    once = factors(aligned, "2")
    loss.backward()
    for a, b in zip(once, factors(aligned, "2"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", list(RULES))
def test_adam(rule: str) -> None:
    aligned = align(mlp(), rule=rule, rule_options={"optimizer": "adam", "rate": 0.01, "decay": 0}, show=None)
    _, right = factors(aligned, "4")
    free = right.clone().requires_grad_()
    other = torch.optim.Adam([free], lr=0.01)
    for _ in range(3):
        left, _ = factors(aligned, "4")
        free.grad = left @ gradients(copy.deepcopy(aligned))["4.weight"]
        gradients(aligned)
        other.step()
    torch.testing.assert_close(factors(aligned, "4")[1], free.detach(), **EXACT)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("ldfa", {"rank": 0}, "rank=0: it must be at least 1"),
        ("ldfa", {"tracking": 1.5}, r"tracking=1.5: .* at most 1"),
        ("ldfa", {"decay": -1.0}, "decay=-1.0: it must be zero or"),
        ("pfa", {"expansion": 0}, "expansion=0: .* at most 100"),
        ("pfa", {"rate": 2}, "rate=2: with optimizer sgd it must be at most 1"),
        ("pfa", {"optimizer": "lion"}, "optimizer='lion': it must be one of sgd, adam"),
    ],
)
def test_wrong_options_are_refused(rule: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        align(mlp(), rule=rule, rule_options=options, show=None)


def test_the_rank_is_the_number_of_classes_and_at_most_the_layers() -> None:
    aligned = align(mlp(), rule="ldfa", show=None)
    assert [factors(aligned, name)[0].shape for name in ("0", "2", "4")] == [(4, 6), (4, 8), (4, 4)]
    assert factors(align(mlp(), rule="pfa", show=None), "2")[1].shape == (16, 6)
