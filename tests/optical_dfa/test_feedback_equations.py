"""DFA's gradients against the equations written out by hand, in float64: delta_l = (B_l e) * phi'(a_l)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_networks import M, labels, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def feedback(aligned: AlignedModule, name: str) -> Tensor:
    """B_l as the equation has it: entries of standard deviation gain/sqrt(n_l) (gains: test_feedback_gains)."""
    point = next(p for p in aligned.points if p.name == name)
    assert aligned.backend is not None
    matrix = aligned.backend.matrix()
    assert matrix is not None
    return matrix[point.start : point.start + point.width].double() * point.gain / math.sqrt(point.width)


def error(z: Tensor, y: Tensor) -> Tensor:
    """softmax(z) - onehot(y), a record (or position) a row."""
    return torch.softmax(z.detach(), -1) - nn.functional.one_hot(y, z.shape[-1])


def assert_grads(module: nn.Module, expected: dict[str, Tensor]) -> None:
    found = dict(module.named_parameters())
    assert found.keys() == expected.keys()
    for name, p in found.items():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, expected[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")


# phi and its derivative, from the definitions
PHI: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "tanh": (nn.Tanh, lambda a: 1 - torch.tanh(a) ** 2),
    "relu": (nn.ReLU, lambda a: (a > 0).double()),
    "sigmoid": (nn.Sigmoid, lambda a: torch.sigmoid(a) * (1 - torch.sigmoid(a))),
    "softplus": (nn.Softplus, torch.sigmoid),
    "leaky": (lambda: nn.LeakyReLU(0.1), lambda a: torch.where(a > 0, 1.0, torch.full_like(a, 0.1))),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("phi", list(PHI))
def test_sequential(phi: str, reduction: str) -> None:
    make, slope = PHI[phi]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), make(), nn.Linear(6, 8), make(), nn.Linear(8, 4))
    net.double()
    aligned = align(net, example=normal(2, 5), loss_reduction=reduction, show=None)
    x, y = normal(M, 5, seed=1), labels(M)
    cross_entropy(aligned(x), y, reduction=reduction).backward()

    with torch.no_grad():
        a1 = net[0](x)
        h1 = make()(a1)
        a2 = net[2](h1)
        h2 = make()(a2)
        e = error(net[4](h2), y) / (M if reduction == "mean" else 1)
        d1 = (e @ feedback(aligned, "1").T) * slope(a1)
        d2 = (e @ feedback(aligned, "3").T) * slope(a2)
    assert_grads(
        net,
        {
            "0.weight": d1.T @ x, "0.bias": d1.sum(0),
            "2.weight": d2.T @ h1, "2.bias": d2.sum(0),
            "4.weight": e.T @ h2, "4.bias": e.sum(0),
        },
    )  # fmt: skip


def test_it_is_not_backpropagation() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = normal(M, 5), labels(M)
    plain = torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))
    cross_entropy(align(net, show=None)(x), y).backward()
    hidden, output = net[0].weight.grad, net[2].weight.grad
    assert hidden is not None
    assert abs(torch.cosine_similarity(hidden.flatten(), plain[0].flatten(), dim=0)) < 0.9
    torch.testing.assert_close(
        output, plain[2], **EXACT
    )  # the output layer's gradient is the same under both


def test_the_exact_backward_product_gives_backpropagation() -> None:
    """B_l = W_L ... W_{l+1} transposed, on a linear network."""

    class Exact(DirectFeedbackAlignment):
        def feedback(self, error, points, backend):
            back = [error @ net[4].weight.detach() @ net[2].weight.detach(), error @ net[4].weight.detach()]
            return back[-len(points) :]

    net = nn.Sequential(
        nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 4)
    ).double()
    x, y = normal(M, 5), labels(M)
    plain = torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))
    cross_entropy(align(net, rule=Exact(), points=["1", "3"], show=None)(x), y).backward()
    for p, expected in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, expected, **EXACT)


class Residual(nn.Module):
    """Activation after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.first, self.second = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.enter(x))
        return self.leave(self.second(h + self.inner(h)))


def test_residual() -> None:
    net = Residual().double()
    aligned = align(net, example=normal(2, 5), show=None)
    x, y = normal(M, 5), labels(M)
    cross_entropy(aligned(x), y, reduction="mean").backward()
    with torch.no_grad():
        h1 = torch.tanh(net.enter(x))
        h2 = torch.tanh(h1 + net.inner(h1))
        e = error(net.leave(h2), y) / M
        d1 = (e @ feedback(aligned, "first").T) * (1 - h1**2)  # nothing comes through the skip
        d2 = (e @ feedback(aligned, "second").T) * (1 - h2**2)
    assert_grads(
        net,
        {
            "enter.weight": d1.T @ x, "enter.bias": d1.sum(0),
            "inner.weight": d2.T @ h1, "inner.bias": d2.sum(0),
            "leave.weight": e.T @ h2, "leave.bias": e.sum(0),
        },
    )  # fmt: skip


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(12, 4)
        self.phi, self.psi = nn.Tanh(), nn.ReLU()

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.join(torch.cat([self.phi(self.left(x)), self.psi(self.right(u))], 1))


def test_two_inputs() -> None:
    net = TwoInputs().double()
    aligned = align(net, example=(normal(2, 5), normal(2, 3)), show=None)
    x, u, y = normal(M, 5), normal(M, 3, seed=3), labels(M)
    cross_entropy(aligned(x, u), y).backward()
    with torch.no_grad():
        a, b = net.left(x), net.right(u)
        h = torch.cat([torch.tanh(a), torch.relu(b)], 1)
        e = error(net.join(h), y) / M
        da = (e @ feedback(aligned, "phi").T) * (1 - torch.tanh(a) ** 2)
        db = (e @ feedback(aligned, "psi").T) * (b > 0)
    assert_grads(
        net,
        {
            "left.weight": da.T @ x, "left.bias": da.sum(0),
            "right.weight": db.T @ u, "right.bias": db.sum(0),
            "join.weight": e.T @ h, "join.bias": e.sum(0),
        },
    )  # fmt: skip


class Recurrent(nn.Module):
    """An unrolled cell: one weight, one feedback point, used at every time."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.over, self.out = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.phi(self.into(x[:, t]) + self.over(h))
        return self.out(h)


def test_a_weight_used_at_several_times() -> None:
    net = Recurrent().double()
    aligned = align(net, example=normal(2, 4, 3), show=None)
    x, y = normal(M, 4, 3), labels(M)
    cross_entropy(aligned(x), y).backward()
    with torch.no_grad():
        states = [torch.zeros(M, 6, dtype=torch.float64)]
        for t in range(4):
            states.append(torch.tanh(net.into(x[:, t]) + net.over(states[-1])))
        e = error(net.out(states[-1]), y) / M
        signal = e @ feedback(aligned, "phi").T  # every time is taught the same
        deltas = [signal * (1 - h**2) for h in states[1:]]
    assert_grads(
        net,
        {
            "into.weight": sum(d.T @ x[:, t] for t, d in enumerate(deltas)),
            "into.bias": sum(d.sum(0) for d in deltas),
            "over.weight": sum(d.T @ h for d, h in zip(deltas, states[:-1], strict=True)),
            "out.weight": e.T @ states[-1],
            "out.bias": e.sum(0),
        },
    )


def test_tied_linear_layers() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    net[2].weight = net[0].weight
    aligned = align(net, example=normal(2, 6), show=None)
    x, y = normal(M, 6), labels(M)
    cross_entropy(aligned(x), y).backward()
    with torch.no_grad():
        h1 = torch.tanh(net[0](x))
        h2 = torch.tanh(net[2](h1))
        e = error(net[4](h2), y) / M
        d1 = (e @ feedback(aligned, "1").T) * (1 - h1**2)
        d2 = (e @ feedback(aligned, "3").T) * (1 - h2**2)
    torch.testing.assert_close(net[0].weight.grad, d1.T @ x + d2.T @ h1, **EXACT)


class LanguageModel(nn.Module):
    """Token-level outputs (m, T, c); the decoder's weight is the embedding's table."""

    def __init__(self, entries: int = 4, width: int = 5) -> None:
        super().__init__()
        self.embed, self.mix, self.phi = nn.Embedding(entries, width), nn.Linear(width, width), nn.Tanh()
        self.decode = nn.Linear(width, entries, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.phi(self.mix(self.embed(tokens))))


def test_tokens_and_a_decoder_tied_to_the_embedding() -> None:
    net = LanguageModel().double()
    tokens, y = labels(M, 3), labels(M, 3).flip(0)
    aligned = align(net, example=tokens, show=None)
    assert [point.shape for point in aligned.points] == [(5,), (5,)]  # per position
    cross_entropy(aligned(tokens).flatten(0, 1), y.flatten(), reduction="mean").backward()
    with torch.no_grad():
        h0 = net.embed(tokens)
        h1 = torch.tanh(net.mix(h0))
        e = error(net.decode(h1), y) / (3 * M)
        d0 = e @ feedback(aligned, "embed").T
        d1 = (e @ feedback(aligned, "phi").T) * (1 - h1**2)
        table = torch.einsum("mtc,mtd->cd", e, h1)
        for row, token in zip(d0.flatten(0, 1), tokens.flatten(), strict=True):
            table[token] += row
    assert_grads(
        net,
        {
            "embed.weight": table,
            "mix.weight": torch.einsum("mtn,mtd->nd", d1, h0),
            "mix.bias": d1.sum((0, 1)),
        },
    )


def test_convolutions_as_detached_segments() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.GroupNorm(1, 3), nn.ReLU(),
        nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4),
    ).double()  # fmt: skip
    x, y = normal(M, 2, 8, 8), labels(M)
    aligned = align(net, example=x, show=None)
    cross_entropy(aligned(x), y).backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    twin = nn.Sequential(*net.double())
    for part in twin:
        part._forward_hooks.clear()
    twin.zero_grad()
    h1 = twin[:3](x)
    h2 = twin[3:6](h1.detach())
    z = twin[6:](h2.detach())
    e = error(z, y) / M
    signals = [(e @ feedback(aligned, name).T).view(h.shape) for name, h in (("2", h1), ("5", h2))]
    torch.autograd.backward([z, h1, h2], [e, *signals])
    for p, g in zip(twin.parameters(), found, strict=True):
        torch.testing.assert_close(g, p.grad, **EXACT)


def test_frozen_parameters_and_squared_error() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    aligned = align(net, show=None)
    assert [point.name for point in aligned.points] == ["3"]  # the first point would teach nobody
    x, y = normal(M, 5), normal(M, 1, seed=4)
    mse_loss(aligned(x), y).backward()
    with torch.no_grad():
        h1 = torch.tanh(net[0](x))
        h2 = torch.tanh(net[2](h1))
        e = 2 * (net[4](h2) - y) / M
        d2 = (e @ feedback(aligned, "3").T) * (1 - h2**2)
    assert net[0].weight.grad is None
    assert net[2].bias.grad is None
    torch.testing.assert_close(net[2].weight.grad, d2.T @ h1, **EXACT)
    torch.testing.assert_close(net[4].weight.grad, e.T @ h2, **EXACT)


def test_a_device_sees_errors_of_single_records_whatever_the_reduction() -> None:
    """A camera's thresholds are for |e| of one record: a mean loss is undone before the projection."""
    seen: dict[str, Tensor] = {}
    x, y = normal(M, 5), labels(M)
    for reduction in ("mean", "sum"):
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
        net.load_state_dict(WEIGHTS)
        aligned = align(net, loss_reduction=reduction, show=None)
        assert aligned.backend is not None
        project = aligned.backend.project
        aligned.backend.project = lambda e, r=reduction, f=project: f(seen.setdefault(r, e))
        cross_entropy(aligned(x), y, reduction=reduction).backward()
    torch.testing.assert_close(seen["mean"], seen["sum"], **EXACT)


WEIGHTS = {
    "0.weight": normal(6, 5, seed=10), "0.bias": normal(6, seed=11),
    "2.weight": normal(4, 6, seed=12), "2.bias": normal(4, seed=13),
}  # fmt: skip


def test_bp_is_plain_pytorch_after_50_steps() -> None:
    def run(aligned: bool) -> list[Tensor]:
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
        net.load_state_dict(WEIGHTS)
        model: nn.Module = align(net, rule="bp", show=None) if aligned else net
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(50):
            optimizer.zero_grad()
            cross_entropy(model(normal(M, 5, seed=step)), labels(M)).backward()
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_shallow_trains_the_output_layer_alone() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    net.load_state_dict(WEIGHTS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    aligned = align(net, rule="shallow", show=None)
    x, y = normal(M, 5), labels(M)
    cross_entropy(aligned(x), y).backward()
    with torch.no_grad():
        h = torch.tanh(net[0](x))
        e = error(net[2](h), y) / M
    assert net[0].weight.grad is None or not net[0].weight.grad.any()
    torch.testing.assert_close(net[2].weight.grad, e.T @ h, **EXACT)
    optimizer.step()
    assert torch.equal(net[0].weight, WEIGHTS["0.weight"])
    assert torch.equal(net[0].bias, WEIGHTS["0.bias"])
