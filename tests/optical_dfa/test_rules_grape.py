"""grape: B_l down 1 - cos(B_l, E_l), rows of norm 1, in float64 against autograd; and its exact batches."""

from __future__ import annotations

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, labels, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback.rules.learned import LearnedState
from optical_dfa.networks.recurrent import GRU

RULE = "grape"


def state(aligned: AlignedModule) -> LearnedState:
    assert isinstance(aligned.state, LearnedState)
    return aligned.state


def matrices(aligned: AlignedModule) -> list[Tensor]:
    return [state(aligned).matrix(point).clone() for point in aligned.points]


def descended(matrix: Tensor, estimate: Tensor, rate: float) -> Tensor:
    free = matrix.clone().requires_grad_()
    distance = 1 - torch.nn.functional.cosine_similarity(free.flatten(), estimate.flatten(), 0)
    (gradient,) = torch.autograd.grad(distance, free)
    moved = matrix - rate * gradient
    return moved / moved.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("phi", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("perturb", ["all", "one"])
def test_it_is_its_equation(perturb: str, reduction: str, phi: type[nn.Module]) -> None:
    """J by autograd, one record at a time."""
    net = mlp(phi=phi)
    options = {"rate": 0.3, "perturb": perturb}
    aligned = align(net, rule=RULE, rule_options=options, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    gain = {nn.Tanh: [1.0, 1.0], nn.ReLU: [(3 * 6) ** -0.5, 3**-0.5]}[phi]
    for turn in range(2):
        before = matrices(aligned)
        for b in before:
            torch.testing.assert_close(b.norm(dim=1), torch.ones(4).double(), **EXACT)
        stream = state(aligned).draws()
        moved = [0, 1] if perturb == "all" else [turn]
        u = {i: torch.randn(M, (6, 8)[i], generator=stream, dtype=torch.float64) for i in moved}
        found = gradients(aligned, reduction=reduction)
        h1 = phi()(net[0](X)).detach().requires_grad_()
        a2 = net[2](h1)
        h2 = phi()(a2)
        z = net[4](h2)
        d = torch.zeros(M, 4, dtype=torch.float64)
        for k in range(4):
            rows = torch.autograd.grad(z[:, k].sum(), [h1, h2], retain_graph=True)
            d[:, k] = sum((rows[i] * v).sum(1) for i, v in u.items())
        with torch.no_grad():
            e = (torch.softmax(z, -1) - one_hot(Y, 4)) / (M if reduction == "mean" else 1)
            gates = [(1 - h**2) if phi is nn.Tanh else (h > 0).double() for h in (h1, h2)]
            d1, d2 = (e @ b * s * gate for b, s, gate in zip(before, gain, gates, strict=True))
            expected = {
                "0.weight": d1.T @ X, "0.bias": d1.sum(0), "2.weight": d2.T @ h1, "2.bias": d2.sum(0),
                "4.weight": e.T @ h2, "4.bias": e.sum(0),
            }  # fmt: skip
        assert_same(found, expected)
        for index, (now, old) in enumerate(zip(matrices(aligned), before, strict=True)):
            after = descended(old, d.T @ u[index] / M, 0.3) if index in u else old
            torch.testing.assert_close(now, after, **EXACT)


def test_it_turns_to_the_jacobian() -> None:
    """Of a linear network, whose Jacobian is one: the cosine rises from below 0.5 to above 0.9."""
    net = mlp(phi=nn.Identity)
    top, middle = net[4].weight.detach(), net[2].weight.detach()
    aligned = align(net, rule=RULE, rule_options={"rate": 0.1}, points=["1", "3"], show=None)
    x = normal(256, 5)

    def cosines() -> list[float]:
        found = []
        for b, j in zip(matrices(aligned), [top @ middle, top], strict=True):
            rows = j / j.norm(dim=1, keepdim=True)  # all that rows of norm 1 can tell
            found.append(float(torch.cosine_similarity(b.flatten(), rows.flatten(), 0)))
        return found

    assert max(cosines()) < 0.5
    for _ in range(300):
        output = aligned(x)
        output.backward(torch.zeros_like(output))
    assert min(cosines()) > 0.9


def recurrent() -> nn.Module:
    return seeded(lambda: nn.Sequential(GRU(5, 6), nn.Linear(6, 4)))


def dropped() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 4)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("make", "x", "y"), [(mlp, X, Y), (recurrent, normal(M, 3, 5), labels(M, 3)), (dropped, X, Y)]
)
def test_every_second_batch_is_exact(make: type[nn.Module], x: Tensor, y: Tensor, reduction: str) -> None:
    """Backpropagation's own gradients, through time and under the same dropout masks, in every second pass."""

    def step(model: nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        z = model(x)
        # The mean is over records: the positions of one add up.
        loss = cross_entropy(z.flatten(0, -2), y.flatten(), reduction="sum") / (
            M if reduction == "mean" else 1
        )
        loss.backward()
        inner = model.module if isinstance(model, AlignedModule) else model
        return {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}  # type: ignore[union-attr]

    options = {"exact_every": 2}
    aligned = align(make(), rule=RULE, rule_options=options, example=x, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
    for turn in range(4):
        before = matrices(aligned)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(turn)
            found = step(aligned)
            torch.manual_seed(turn)
            exact = step(make())
        assert not torch.equal(before[0], matrices(aligned)[0])  # they learn all the same
        if turn % 2:
            assert_same(found, exact)
        else:
            name = next(iter(exact))
            assert not torch.allclose(found[name], exact[name])


def test_what_is_described_and_refused() -> None:
    said = align(mlp(), rule=RULE, rule_options={"exact_every": 3}, show=None).describe()["rule_options"]
    assert said == {"exact_every": 3, "scale": None, "perturb": "all", "optimizer": "sgd", "rate": 0.1}
    for options, message in (
        ({"exact_every": -1}, "exact_every=-1: it must be 0 or"),
        ({"scale": 0.0}, "scale=0.0: it must be a positive number"),
        ({"decay": 0.1}, "no option 'decay'"),
    ):
        with pytest.raises(UsageError, match=message):
            align(mlp(), rule=RULE, rule_options=options, show=None)
