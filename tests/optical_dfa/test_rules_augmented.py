"""dfa's option derivative: delta_l = (B_l e) ∘ g(a_l), written out in float64; and its private step."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal, seeded
from test_capture_sums import alone, clip
from test_every_rule import private_step
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.augmented import DERIVATIVES

BY_HAND = {
    "one": lambda a: 1.0,
    "step": lambda a: 1.0 if a > 0 else 0.0,
    "tanh": lambda a: 1 / math.cosh(a) ** 2,
    "gaussian": lambda a: math.exp(-a * a),
    "triangle": lambda a: max(0.0, 1 - abs(a)),
    "cosine": math.cos,
    "sine": math.sin,
}


def augmented(net: nn.Module, name: str, rule: str = "dfa", **options: object) -> AlignedModule:
    return align(net, rule=rule, rule_options={"derivative": name}, show=None, **options)  # type: ignore[arg-type]


def feedback(aligned: AlignedModule, index: int) -> Tensor:
    """B_l, shape (c, n_l)."""
    assert aligned.backend is not None
    matrix, point = aligned.backend.matrix(), aligned.points[index]
    assert matrix is not None
    return matrix[point.start : point.start + point.width].double().T / math.sqrt(point.width) * point.gain


@pytest.mark.parametrize("phi", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", list(DERIVATIVES))
def test_it_is_its_equation(name: str, reduction: str, phi: type[nn.Module]) -> None:
    net = mlp(phi=phi)
    aligned = augmented(net, name, loss_reduction=reduction)
    found = gradients(aligned, reduction=reduction)
    with torch.no_grad():
        a1 = net[0](X)
        h1 = phi()(a1)
        a2 = net[2](h1)
        h2 = phi()(a2)
        e = (torch.softmax(net[4](h2), -1) - one_hot(Y, 4)) / (M if reduction == "mean" else 1)
        gates = [
            torch.tensor([[BY_HAND[name](v) for v in row] for row in a.tolist()], dtype=torch.float64)
            for a in (a1, a2)
        ]
        d1, d2 = (e @ feedback(aligned, i) * gate for i, gate in enumerate(gates))
    expected = {
        "0.weight": d1.T @ X, "0.bias": d1.sum(0), "2.weight": d2.T @ h1, "2.bias": d2.sum(0),
        "4.weight": e.T @ h2, "4.bias": e.sum(0),
    }  # fmt: skip
    assert_same(found, expected)


def test_its_own_derivative_is_dfa_and_others_are_neither_dfa_nor_backpropagation() -> None:
    plain, exact = gradients(align(mlp(), rule="dfa", show=None)), gradients(mlp())
    assert_same(gradients(augmented(mlp(), "tanh")), plain)
    for name in set(DERIVATIVES) - {"tanh"}:
        found = gradients(augmented(mlp(), name))
        assert not torch.allclose(found["0.weight"], plain["0.weight"])
        assert (
            abs(float(torch.cosine_similarity(*(g["0.weight"].flatten() for g in (found, exact)), 0))) < 0.9
        )
        torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)


@pytest.mark.parametrize("conv", ["dense", "shared-kernel"])
def test_convolutions_and_tables(conv: str) -> None:
    """The same with the activation written out as one whose derivative is g."""
    make = lambda: seeded(  # noqa: E731
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)
        )
    )  # fmt: skip
    x, options = normal(M, 2, 4, 4), {"conv": conv}
    plain = align(make(), rule="dfa", rule_options=options, example=x, show=None)
    step = align(make(), rule="dfa", rule_options={**options, "derivative": "step"}, example=x, show=None)
    assert_same(gradients(step, x), gradients(plain, x))
    one = align(make(), rule="dfa", rule_options={**options, "derivative": "one"}, example=x, show=None)
    assert not torch.allclose(gradients(one, x)["0.weight"], gradients(plain, x)["0.weight"])
    table = nn.Sequential(
        nn.Embedding(4, 5), nn.Flatten(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4)
    ).double()
    aligned = augmented(table, "tanh", example=torch.randint(0, 4, (M, 2)))
    assert gradients(aligned, torch.randint(0, 4, (M, 2)))["0.weight"].any()


@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize("rule", ["dfa", "sign-dfa"])
def test_a_private_step_is_the_clipped_sum_of_single_records(rule: str, parts: int | None) -> None:
    aligned = augmented(mlp(), "triangle", rule)
    stacks = alone(aligned, [X], Y, list(aligned.trained_parameters()))
    norm = float(stacks.norm(dim=1).median())
    found = private_step(aligned, X, max_grad_norm=norm, max_physical_batch_size=parts)
    assert float((found - clip(stacks, norm).sum(0)).norm()) < 0.06 * M * norm


def test_releases_that_use_the_derivative_refuse_another() -> None:
    with pytest.raises(UsageError, match=r"derivative='sine' replaces .* leave the option out") as error:
        augmented(mlp(dtype=torch.float32), "sine").start_capture("separated")
    assert "\n" not in str(error.value)


def test_a_state_is_that_of_its_derivative_and_old_ones_go_on() -> None:
    aligned = augmented(mlp(), "cosine")
    assert aligned.describe()["rule_options"]["derivative"] == "cosine"
    assert "derivative" not in align(mlp(), show=None).describe()["rule_options"]
    with pytest.raises(UsageError, match="rule_options"):
        augmented(mlp(), "sine").load_state_dict(aligned.state_dict())
    found = gradients(aligned)
    assert_same(gradients(copy.deepcopy(aligned)), found)
    assert_same(gradients(pickle.loads(pickle.dumps(aligned))), found)


@pytest.mark.slow
def test_it_compiles() -> None:
    aligned, twin = augmented(mlp(), "cosine"), augmented(mlp(), "cosine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross_entropy(torch.compile(aligned, backend="aot_eager", fullgraph=True)(X), Y).backward()
    found = {n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}
    assert_same(found, gradients(twin))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.ReLU(inplace=True), "works in place"),
        (nn.PReLU(), "has a parameter"),
        (nn.Sequential(nn.Tanh(), nn.Identity()), "is no activation module"),
    ],
)
def test_points_without_a_derivative_to_replace_are_refused(part: nn.Module, message: str) -> None:
    net = nn.Sequential(nn.Linear(5, 6), part, nn.Linear(6, 4))
    with pytest.raises(UsageError, match=rf"feedback point 1 \(\w+\) {message}.* derivative='one'") as error:
        align(net, rule="dfa", rule_options={"derivative": "one"}, points=["1"], show=None)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="derivative='other': it must be one of one, step"):
        augmented(mlp(), "other")
