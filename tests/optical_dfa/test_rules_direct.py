"""Rules with fixed direct feedback against their equations, written out by hand in float64."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, labels, mlp, normal
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign

C = 4
RULES = ("dfa", "sign-dfa", "ternary", "bdfa", "ssdfa", "drtp")
NEW = RULES[1:]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, C)
        self.first, self.second = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.enter(x))
        return self.leave(self.second(h + self.inner(h)))


def seen(rule: str, e: Tensor, y: Tensor) -> Tensor:
    """What each rule multiplies by B_l, from the errors of single records."""
    if rule == "sign-dfa":
        return torch.where(e > 0, 1.0, torch.where(e < 0, -1.0, 0.0)).double()
    if rule == "ternary":
        return torch.tensor([[(v > 0.3) - (v < -0.3) for v in row] for row in e.tolist()]).double()
    if rule == "drtp":
        return one_hot(y, e.shape[-1]).double()
    return e


def feedback(rule: str, aligned: AlignedModule, name: str) -> Tensor:
    """B_l of shape (n_l, c), scaled as the rule's default says, from the device's own matrix."""
    point = next(p for p in aligned.points if p.name == name)
    assert aligned.backend is not None
    matrix = aligned.backend.matrix()
    assert matrix is not None
    b = matrix[point.start : point.start + point.width].double()
    if rule == "ssdfa":  # U[-r, r], from U[-sqrt 3, sqrt 3]
        return b / math.sqrt(3) / math.sqrt(point.width / math.sqrt(C * 1))
    return b / math.sqrt(point.width)


def errors(z: Tensor) -> Tensor:
    return torch.softmax(z.detach(), -1) - one_hot(Y, C)


def by_hand(rule: str, net: nn.Sequential, aligned: AlignedModule, divisor: int) -> dict[str, Tensor]:
    with torch.no_grad():
        h1 = torch.tanh(net[0](X))
        h2 = torch.tanh(net[2](h1))
        e = errors(net[4](h2))
        s = seen(rule, e, Y) / divisor
        d1 = (s @ feedback(rule, aligned, "1").T) * (1 - h1**2)
        d2 = (s @ feedback(rule, aligned, "3").T) * (1 - h2**2)
        e = e / divisor
    return {
        "0.weight": d1.T @ X, "0.bias": d1.sum(0), "2.weight": d2.T @ h1, "2.bias": d2.sum(0),
        "4.weight": e.T @ h2, "4.bias": e.sum(0),
    }  # fmt: skip


# ---- the equations


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_its_equation(rule: str, reduction: str, bias: bool) -> None:
    net = mlp(bias)
    aligned = align(net, rule=rule, loss_reduction=reduction, seed=5, show=None)  # type: ignore[arg-type]
    found = gradients(aligned, reduction=reduction)
    expected = by_hand(rule, net, aligned, M if reduction == "mean" else 1)
    assert_same(found, {name: g for name, g in expected.items() if bias or "weight" in name})


@pytest.mark.parametrize("rule", RULES)
def test_residual(rule: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Residual().double()
    aligned = align(net, rule=rule, example=X, show=None)
    found = gradients(aligned)
    with torch.no_grad():
        h1 = torch.tanh(net.enter(X))
        h2 = torch.tanh(h1 + net.inner(h1))
        e = errors(net.leave(h2))
        s = seen(rule, e, Y) / M
        d1 = (s @ feedback(rule, aligned, "first").T) * (1 - h1**2)
        d2 = (s @ feedback(rule, aligned, "second").T) * (1 - h2**2)
    expected = {"enter.weight": d1.T @ X, "inner.weight": d2.T @ h1, "leave.weight": e.T @ h2 / M}
    assert_same({name: found[name] for name in expected}, expected)


@pytest.mark.parametrize("rule", NEW)
def test_it_is_neither_backpropagation_nor_dfa(rule: str) -> None:
    found = {name: gradients(align(mlp(), rule=name, show=None)) for name in (rule, "bp", "dfa")}
    for other in ("bp", "dfa"):
        cosine = torch.cosine_similarity(
            found[rule]["0.weight"].flatten(), found[other]["0.weight"].flatten(), dim=0
        )
        assert abs(cosine) < 0.95, (other, float(cosine))
        torch.testing.assert_close(found[rule]["4.weight"], found[other]["4.weight"], **EXACT)


@pytest.mark.parametrize("rule", ["dfa", "bdfa", "ssdfa"])
def test_the_exact_backward_product_gives_backpropagation(rule: str) -> None:
    """On a linear network, with B_l = (W_L ... W_{l+1})^T in the device."""
    net = mlp(phi=nn.Identity)
    plain = gradients(copy.deepcopy(net))
    aligned = align(net, rule=rule, points=["1", "3"], show=None)
    assert aligned.backend is not None
    top = net[4].weight.detach()
    back = {"1": top @ net[2].weight.detach(), "3": top}
    unit = gradients_scale(aligned)
    frame = torch.cat([back[p.name] / unit[p.name] for p in aligned.points], dim=1)
    aligned.backend.project = lambda e: e @ frame  # type: ignore[method-assign]
    assert_same(gradients(aligned), plain)


def gradients_scale(aligned: AlignedModule) -> dict[str, float]:
    """The rule's factor at each point, from the signals that a device of ones gives."""
    device = aligned.backend
    assert device is not None
    project = device.project
    device.project = lambda e: torch.ones(len(e), device.out_features, dtype=e.dtype)  # type: ignore[method-assign]
    signals = aligned.rule.feedback(normal(1, C), aligned.points, device)
    device.project = project  # type: ignore[method-assign]
    return {p.name: float(s[0, 0]) for p, s in zip(aligned.points, signals, strict=True) if s is not None}


# ---- as a module


@pytest.mark.parametrize("rule", NEW)
def test_the_state_says_which_feedback_it_was(rule: str) -> None:
    aligned = align(mlp(), rule=rule, seed=3, show=None)
    again = align(mlp(), rule=rule, seed=3, show=None)
    again.load_state_dict(aligned.state_dict())
    assert_same(gradients(again), gradients(aligned))
    with pytest.raises(UsageError, match="fingerprint"):
        align(mlp(), rule=rule, seed=4, show=None).load_state_dict(aligned.state_dict())
    with pytest.raises(UsageError, match="rule_options"):
        align(mlp(), rule=rule, rule_options={"scale": 2.0}, seed=3, show=None).load_state_dict(
            aligned.state_dict()
        )
    net = mlp()
    assert unalign(align(net, rule=rule, show=None)) is net
    assert_same(gradients(net), gradients(mlp()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize(("rule", "options"), [*((rule, {}) for rule in NEW), ("dfa", {"law": "orthogonal"})])
def test_copies_teach_alike(rule: str, options: dict[str, Any], how: str) -> None:
    aligned = align(mlp(), rule=rule, rule_options=options, show=None)
    twin = copy.deepcopy(aligned) if how == "deepcopy" else pickle.loads(pickle.dumps(aligned))
    assert twin.describe() == aligned.describe()
    assert_same(gradients(twin), gradients(aligned))


@pytest.mark.parametrize(
    ("rule", "options"), [*((rule, {}) for rule in NEW), ("ssdfa", {"nonzeros": 2, "rank": 2})]
)
def test_compiles_into_one_graph(rule: str, options: dict[str, Any]) -> None:
    expected = gradients(align(mlp(), rule=rule, rule_options=options, show=None))
    aligned = align(mlp(), rule=rule, rule_options=options, show=None)  # whose first use is compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        cross_entropy(compiled(X), Y).backward()
    assert_same({n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}, expected)


def test_compiled_convolutions_with_shared_kernels() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, C)).double()
    x = normal(M, 2, 6, 6)
    aligned = align(net, rule_options={"conv": "shared-kernel"}, example=x, show=None)
    expected = gradients(aligned, x)
    aligned.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        cross_entropy(compiled(x), Y).backward()
    assert_same({n: p.grad for n, p in net.named_parameters() if p.grad is not None}, expected)


def test_hidden_and_output_gradients_scale_alike() -> None:
    """Records handed out twice: a mean stays, a sum doubles, under rules that see signs and targets only as well."""
    for rule in RULES:
        for reduction, factor in (("mean", 1.0), ("sum", 2.0)):
            aligned = align(mlp(), rule=rule, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
            once = gradients(aligned, reduction=reduction)
            aligned.zero_grad()
            cross_entropy(aligned(X.repeat(2, 1)), Y.repeat(2), reduction=reduction).backward()
            twice = {n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}
            assert_same(twice, {name: factor * g for name, g in once.items()})


# ---- what is each rule's own


def test_the_target_is_read_off_any_cross_entropy() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    hot = one_hot(Y, C).double()
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "weighted": lambda z: cross_entropy(z, Y, weight=weights),
        "binary": lambda z: binary_cross_entropy_with_logits(z, hot),
        "probabilities": lambda z: cross_entropy(z, hot),
    }
    net = mlp()
    aligned = align(net, rule="drtp", show=None)
    signal = gradients(aligned)["0.weight"]
    for loss in losses.values():
        aligned.zero_grad()
        loss(aligned(X)).backward()
        torch.testing.assert_close(net[0].weight.grad, signal, **EXACT)


def test_a_target_that_cannot_be_read_off_is_refused() -> None:
    aligned = align(mlp(), rule="drtp", show=None)
    for loss in (
        lambda z: mse_loss(z, normal(M, C)),
        lambda z: cross_entropy(20 * z, Y, label_smoothing=0.2),
        lambda z: -z.sum(),
    ):
        with pytest.raises(UsageError, match="without label smoothing") as error:
            loss(aligned(X)).backward()
        assert "\n" not in str(error.value)


def test_a_compiled_graph_answers_nan_where_it_cannot_refuse() -> None:
    aligned = align(mlp(), rule="drtp", show=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=True)
        mse_loss(compiled(X), normal(M, C)).backward()
    assert aligned.module[0].weight.grad.isnan().all()  # type: ignore[index, union-attr]


def test_ignored_positions_teach_nothing_under_drtp() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C)).double()
    x, y = normal(M, 3, 5), labels(M, 3)
    y[:, 1] = -100
    aligned = align(net, rule="drtp", example=x, loss_reduction="sum", show=None)
    cross_entropy(aligned(x).flatten(0, 1), y.flatten(), reduction="sum").backward()
    found = net[0].weight.grad.clone()
    with torch.no_grad():
        h = torch.tanh(net[0](x[:, ::2]))
        d = (one_hot(y[:, ::2], C).double() @ feedback("drtp", aligned, "1").T) * (1 - h**2)
    torch.testing.assert_close(found, torch.einsum("mtn,mtd->nd", d, x[:, ::2]), **EXACT)


@pytest.mark.parametrize("relative", [False, True])
def test_a_device_shows_the_ternary_error_as_it_is(relative: bool) -> None:
    """The device is built with the rule's encoding, so nothing is quantised twice."""
    options = {"threshold": 0.5, "relative": relative}
    aligned = align(mlp(), rule="ternary", rule_options=options, backend="simulated-opu", show=None)
    encoding = aligned.backend.encoding  # type: ignore[union-attr]
    assert aligned.backend.frames_per_record == 8  # type: ignore[union-attr]  # two signs, four phases
    raw = normal(50, C)
    shown = aligned.rule.lift(raw, None)
    torch.testing.assert_close(encoding.decode(encoding.encode(shown)), shown)
    torch.testing.assert_close(encoding.decode(encoding.encode(raw)), shown)
    assert set(shown.sign().unique().tolist()) == {-1.0, 0.0, 1.0}
    if not relative:
        assert set(shown.unique().tolist()) == {-1.0, 0.0, 1.0}
    gradients(aligned)


def test_an_encoding_that_the_user_names_stays() -> None:
    given = {"encoding": "bit-planes", "bits": 3}
    aligned = align(mlp(), rule="ternary", backend="simulated-opu", backend_options=given, show=None)
    assert aligned.backend.encoding.name == "bit-planes"  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", ["sign-dfa", "ternary", "drtp"])
def test_light_teaches_what_the_matrix_says(rule: str) -> None:
    """Many repetitions through the simulated device average to B T(e), within its noise."""
    aligned = align(mlp(), rule=rule, backend="simulated-opu", seed=2, show=None)
    assert aligned.backend is not None
    rows = aligned.rule.lift(errors(normal(M, C, seed=3)), None).repeat(400, 1)
    for point, signal in zip(
        aligned.points, aligned.rule.feedback(rows, aligned.points, aligned.backend), strict=True
    ):
        assert signal is not None
        mean, spread = signal.view(400, M, -1).mean(0), signal.view(400, M, -1).std(0)
        exact = rows[:M] @ (feedback(rule, aligned, point.name) / aligned.backend.std).T
        assert ((mean - exact).abs() < 6 * spread / 20 + 1e-6).all()


@pytest.mark.parametrize(
    ("rule", "options", "backend", "message"),
    [
        (
            "dfa",
            {"law": "uniform"},
            "simulated-opu",
            "rule dfa wants .* law uniform, but that of backend simulated-opu",
        ),
        ("bdfa", {}, "simulated-opu", "rule bdfa wants .* law binary, but that of backend simulated-opu"),
        (
            "ssdfa",
            {},
            "lightonml-simulated",
            "rule ssdfa wants .* law sparse, but that of backend lightonml-simulated",
        ),
        ("dfa", {"law": "cauchy"}, "digital", "law='cauchy': it must be one of normal, uniform, orthogonal"),
        ("dfa", {"slices": "thin"}, "digital", "slices='thin': it must be one of separate, shared"),
        (
            "dfa",
            {"normalisation": "none"},
            "digital",
            "normalisation='none': it must be one of layer, widest",
        ),
        ("dfa", {"conv": "sparse"}, "digital", "conv='sparse': it must be one of dense, shared-kernel"),
        ("dfa", {"kernel": 4}, "digital", "kernel=4: it must be an odd whole number from 1 to 31"),
        ("ssdfa", {"nonzeros": 5}, "digital", "nonzeros is 5; .* from 1 to the 4 components"),
        ("ssdfa", {"nonzeros": 0}, "digital", "nonzeros is 0"),
        ("ssdfa", {"rank": 3}, "digital", "rank is 3 with nonzeros 1; .* at least the 4 components"),
        ("ternary", {"threshold": -0.1}, "digital", "threshold is -0.1"),
        ("ternary", {"threshold": 1.0, "relative": True}, "digital", "threshold is 1.0"),
    ],
)
def test_wrong_options_are_one_line(rule: str, options: dict[str, Any], backend: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        align(mlp(), rule=rule, rule_options=options, backend=backend, show=None)
    assert "\n" not in str(error.value)


def test_a_law_and_a_device_that_disagree_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"wants a feedback matrix of law uniform, but .* digital is orthogonal"
    ):
        align(
            mlp(), rule_options={"law": "uniform"}, backend_options={"distribution": "orthogonal"}, show=None
        )
    with pytest.raises(UsageError, match=r"threshold is 0\.2 without an encoding"):
        align(mlp(), rule="ternary", backend="simulated-opu", backend_options={"threshold": 0.2}, show=None)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_batch_teaches_nothing(rule: str) -> None:
    aligned = align(mlp(), rule=rule, show=None)
    cross_entropy(aligned(X[:0]), Y[:0], reduction="sum").backward()
    assert all(p.grad is None or not p.grad.any() for p in aligned.parameters())
