"""fg-a, fg-w and pepita: no backward pass; their equations and variances in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, forward_pass, gradients, mlp, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.state import DrawingState

RULES = ["fg-a", "fg-w", "pepita"]


def stream(aligned: AlignedModule) -> torch.Generator:
    assert isinstance(aligned.state, DrawingState)
    return aligned.state.draws()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_activity_is_its_equation(bias: bool, reduction: str) -> None:
    net = mlp(bias)
    aligned = align(net, rule="fg-a", loss_reduction=reduction, seed=3, show=None)  # type: ignore[arg-type]
    assert [point.name for point in aligned.points] == ["0", "2"]
    drawn = stream(aligned)
    u1, u2 = (torch.randn(M, n, generator=drawn, dtype=torch.float64) for n in (6, 8))
    found = gradients(aligned, reduction=reduction)
    with torch.no_grad():
        h1 = torch.tanh(nn.functional.linear(X, net[0].weight, net[0].bias))
        h2 = torch.tanh(nn.functional.linear(h1, net[2].weight, net[2].bias))
        z = nn.functional.linear(h2, net[4].weight, net[4].bias)
        e = torch.softmax(z, -1) - nn.functional.one_hot(Y, 4)
        # The exact gradients, by the chain rule; the estimate is their product with u, times u.
        a2 = (e @ net[4].weight) * (1 - h2**2)
        a1 = (a2 @ net[2].weight) * (1 - h1**2)
        along = (a1 * u1).sum(1) + (a2 * u2).sum(1)
        part = 1 / (M if reduction == "mean" else 1)
        d1, d2, d3 = along[:, None] * u1 * part, along[:, None] * u2 * part, e * part
    expected = {"0.weight": d1.T @ X, "2.weight": d2.T @ h1, "4.weight": d3.T @ h2}
    if bias:
        expected |= {"0.bias": d1.sum(0), "2.bias": d2.sum(0), "4.bias": d3.sum(0)}
    assert_same(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_their_equation(bias: bool, reduction: str) -> None:
    exact = gradients(mlp(bias), reduction=reduction)
    aligned = align(mlp(bias), rule="fg-w", loss_reduction=reduction, seed=3, show=None)  # type: ignore[arg-type]
    for _ in range(2):
        drawn = stream(aligned)
        v = {n: torch.randn(g.shape, generator=drawn, dtype=torch.float64) for n, g in exact.items()}
        along = sum((g * v[n]).sum() for n, g in exact.items())
        assert_same(gradients(aligned, reduction=reduction), {n: v[n] * along for n in exact})


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_pepita_is_its_equation(bias: bool, reduction: str) -> None:
    net = mlp(bias)
    aligned = align(
        net, rule="pepita", loss_reduction=reduction, seed=3, rule_options={"scale": 0.7}, show=None
    )  # type: ignore[arg-type]
    assert aligned.state is not None
    projection = aligned.state.get_buffer("projection")
    assert projection.shape == (5, 4)
    assert 0.3 < float(projection.abs().max()) <= 0.7 * (6 / 5) ** 0.5
    found = gradients(aligned, reduction=reduction)

    def layer(x: Tensor, index: int) -> Tensor:
        return nn.functional.linear(x, net[index].weight, net[index].bias)

    with torch.no_grad():
        h1 = torch.tanh(layer(X, 0))
        h2 = torch.tanh(layer(h1, 2))
        e = torch.softmax(layer(h2, 4), -1) - nn.functional.one_hot(Y, 4)
        x = X + e @ projection.T
        k1 = torch.tanh(layer(x, 0))
        k2 = torch.tanh(layer(k1, 2))
        part = 1 / (M if reduction == "mean" else 1)
        d1, d2, d3 = (h1 - k1) * part, (h2 - k2) * part, e * part
    expected = {"0.weight": d1.T @ x, "2.weight": d2.T @ k1, "4.weight": d3.T @ k2}
    if bias:
        expected |= {"0.bias": d1.sum(0), "2.bias": d2.sum(0), "4.bias": d3.sum(0)}
    assert_same(found, expected)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_not_backpropagation(rule: str) -> None:
    exact = gradients(mlp())["0.weight"].flatten()
    found = gradients(align(mlp(), rule=rule, show=None))["0.weight"].flatten()
    assert abs(float(torch.cosine_similarity(found, exact, dim=0))) < 0.95


def test_activity_is_unbiased_and_its_variance_is_the_formulas() -> None:
    """Var_ij = h_i^2 (sum_m |dL/da_m|^2 + (dL/da_j)^2) for one record, within 2 % (a layer's entries together)."""
    count = 100_000
    aligned = align(mlp(), rule="fg-a", show=None)
    assert isinstance(aligned.state, DrawingState)
    passed = forward_pass(aligned, X[:1].expand(count, -1))
    aligned.state.begin()
    noted = aligned.state.observe(passed)
    error = torch.softmax(passed.output.detach(), 1) - nn.functional.one_hot(Y[:1], 4)
    signals = aligned.state.teach(error, noted, None)
    exact = gradients(mlp(), X[:1], Y[:1])
    total = exact["0.bias"].square().sum() + exact["2.bias"].square().sum()
    for name, samples in zip(("0.bias", "2.bias"), signals, strict=True):
        assert samples is not None
        predicted = total + exact[name].square()
        assert ((samples.mean(0) - exact[name]).abs() < 5 * (predicted / count).sqrt()).all()
        assert float(samples.var(0).sum() / predicted.sum()) == pytest.approx(1.0, abs=0.02)


def test_weights_are_unbiased_and_their_variance_is_the_formulas() -> None:
    """Var = |grad L|^2 + (dL/dw)^2 of the batch's gradient: far above the activities' for as many weights."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    x = X[:, :3]
    exact = torch.cat([g.flatten() for g in gradients(copy.deepcopy(net), x).values()])
    aligned = align(net, rule="fg-w", show=None)
    samples = torch.stack(
        [torch.cat([g.flatten() for g in gradients(aligned, x).values()]) for _ in range(1500)]
    )
    predicted = exact.square().sum() + exact.square()
    assert ((samples.mean(0) - exact).abs() < 5 * (predicted / len(samples)).sqrt()).all()
    # (grad·v)^2 v^2 has heavy tails, common to all entries: 1500 draws know the sum to about 6 %
    assert float(samples.var(0).sum() / predicted.sum()) == pytest.approx(1.0, abs=0.2)


def test_learned_feedback_has_a_forward_gradients_signal_averaged() -> None:
    """With B_l from one pass over one record, e B_l = (e · d) u_l: the forward gradient of h_l, term by term.

    So the variance of fdfa's signal is that of a forward gradient times a / (2 - a), over the records.
    """
    aligned = align(mlp(), rule="fdfa", rule_options={"rate": 1.0}, show=None)
    drawn = stream(aligned)
    u1, u2 = (torch.randn(1, n, generator=drawn, dtype=torch.float64) for n in (6, 8))
    output = aligned(X[:1])
    e = normal(1, 4, seed=4)
    output.backward(torch.zeros_like(output))
    signals = aligned.signals(e)
    net = mlp()
    with torch.no_grad():
        h1 = torch.tanh(net[0](X[:1]))
        h2 = torch.tanh(net[2](h1))
        g2 = e @ net[4].weight
        g1 = (g2 * (1 - h2**2)) @ net[2].weight
    along = (g1 * u1).sum() + (g2 * u2).sum()
    for signal, u in zip(signals, (u1, u2), strict=True):
        torch.testing.assert_close(signal, along * u, **EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_from_a_state(rule: str) -> None:
    aligned = align(mlp(), rule=rule, seed=3, show=None)
    gradients(aligned)
    other = align(mlp(), rule=rule, seed=4, show=None)
    other.load_state_dict(copy.deepcopy(aligned.state_dict()))
    copies = [other, copy.deepcopy(aligned), pickle.loads(pickle.dumps(aligned))]
    first = gradients(aligned)
    for twin in copies:
        assert_same(gradients(twin), first)
    again = gradients(aligned)
    assert torch.equal(again["0.weight"], first["0.weight"]) == (rule == "pepita")  # the others draw anew


@pytest.mark.parametrize("rule", RULES)
def test_passes_and_graphs(rule: str) -> None:
    aligned = align(mlp(), rule=rule, loss_reduction="sum", show=None)
    twin = copy.deepcopy(aligned)
    loss = cross_entropy(aligned(X), Y, reduction="sum")
    found = torch.autograd.grad(loss, list(aligned.parameters()), retain_graph=True)
    assert all(p.grad is None for p in aligned.parameters())
    loss.backward()
    for p, g in zip(aligned.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)
    parts = [gradients(twin, X[:3], Y[:3], "sum")]
    parts.append(gradients(twin, X[3:], Y[3:], "sum"))
    other = align(mlp(), rule=rule, loss_reduction="sum", show=None)
    cross_entropy(torch.cat([other(X[:3]), other(X[3:])]), Y, reduction="sum").backward()
    for name, p in other.module.named_parameters():
        torch.testing.assert_close(p.grad, parts[0][name] + parts[1][name], **EXACT)
    with torch.no_grad():
        assert torch.equal(other(X), mlp()(X))


@pytest.mark.parametrize("rule", RULES)
def test_it_compiles_with_breaks(rule: str) -> None:
    aligned, twin = (align(mlp(), rule=rule, show=None) for _ in range(2))
    expected = gradients(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager")
        cross_entropy(compiled(X), Y).backward()
    assert_same({n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}, expected)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.first, self.second, self.drop = nn.Tanh(), nn.Tanh(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.first(self.enter(x)))
        return self.leave(self.second(h + self.inner(h)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("make", "x"), [(Residual, X), (convolutional, normal(M, 1, 8, 8))])
def test_other_modules_learn(make: Callable[[], nn.Module], x: Tensor, rule: str) -> None:
    points = ["first", "second"] if rule == "fg-a" and make is Residual else None
    torch.manual_seed(0)
    net = make().double()
    plain = copy.deepcopy(net)
    aligned = align(net, rule=rule, example=x, points=points, show=None)
    gradients(aligned, x)
    plain(x)
    for a, b in zip(plain.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(a, b)  # updated once
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(aligned(x), Y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_frozen_parameters_and_one_number_a_record() -> None:
    for rule in RULES:
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).double()
        net[0].bias.requires_grad_(False)
        aligned = align(net, rule=rule, show=None)
        mse_loss(aligned(X), normal(M)).backward()
        assert net[0].bias.grad is None
        assert net[0].weight.grad is not None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.over, self.out, self.phi = (
            nn.Linear(3, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 4),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.phi(self.into(x[:, t]) + self.over(h))
        return self.out(h)


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(4, 5), nn.Flatten(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: align(mlp(), rule="pepita", rule_options={"scale": 0.0}, show=None), ("scale=0.0", "positive")),
        (
            lambda: align(tokens(), rule="pepita", example=torch.zeros(2, 2, dtype=torch.int64), show=None),
            ("one floating-point input", "use rule dfa"),
        ),
        (
            lambda: align(nn.Sequential(nn.Linear(5, 6), nn.ReLU(True), nn.Linear(6, 4)), rule="pepita", show=None),
            ("point 1 works in place", "inplace=False"),
        ),
        (
            lambda: align(Recurrent(), rule="fg-a", points=["phi"], example=torch.zeros(2, 3, 3), show=None),
            ("phi is called 3 times", "called once"),
        ),
        (lambda: align(mlp(), rule="fg-a", show=None).start_capture(), ("rule fg-a", "cannot be recorded")),
        (lambda: align(mlp(), rule="fg-w", show=None).start_capture(), ("rule fg-w", "use rule dfa")),
        (lambda: align(mlp(), rule="pepita", show=None).start_capture(), ("rule pepita", "use rule dfa")),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(call: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(("rule", "least"), [("fg-a", 0.7), ("pepita", 0.85)])
def test_it_learns_the_digits(rule: str, least: float) -> None:
    from optical_dfa.config import TrainConfig
    from optical_dfa.training.trainer import train

    config = TrainConfig(rule=rule, backend="digital", release="none", model="mlp:64,64", epochs=8)
    assert train(config)["test_accuracy"] > least
