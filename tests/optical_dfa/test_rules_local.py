"""lg-fg-a: forward gradients of losses of the blocks' own; its equations and variances in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal, seeded
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback.rules.learned import LearnedState
from optical_dfa.measure.alignment import alignment
from optical_dfa.measure.costs import cost
from optical_dfa.networks.markers import ACTIVATIONS

RULE = "lg-fg-a"
WARM = {"initial_scale": 1.0}  # classifiers that are not 0, so that the first step teaches
C = 4


IMAGES = normal(M, 1, 8, 8, seed=2)


def convolutional(phi: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Normalisation and pooling lie between the convolution and the activation, which has 4 channels of 3x3."""
    found = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.MaxPool2d(2), phi(),
            nn.Conv2d(4, 6, 2), phi(), nn.Flatten(), nn.Linear(24, C),
        )
    )  # fmt: skip
    assert isinstance(found, nn.Sequential)
    return found


def state(aligned: AlignedModule) -> LearnedState:
    assert isinstance(aligned.state, LearnedState)
    return aligned.state


def classifiers(aligned: AlignedModule) -> list[Tensor]:
    return [state(aligned).matrix(point).clone() for point in aligned.points]


def directions(aligned: AlignedModule, records: int = M) -> list[Tensor]:
    """u_l of the pass that comes next."""
    stream = state(aligned).draws()
    return [torch.randn(records, *p.shape, generator=stream, dtype=torch.float64) for p in aligned.points]


def local_losses(h: Tensor, classifier: Tensor, y: Tensor = Y) -> Tensor:
    """Of each record; h has channels first."""
    z = h.flatten(2).mean(2) if h.ndim > 2 else h
    return cross_entropy(z @ classifier[:, :-1].T + classifier[:, -1], y, reduction="none")


def in_blocks(
    net: nn.Sequential, ends: list[int], x: Tensor, found: list[Tensor], us: list[Tensor], groups: int
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The equation, by reverse mode: sums over the records; and the gradients of the mean losses by [A_l c_l].

    Args:
        ends: indices of the activations that are points.
        found, us: classifiers and directions, by point.
    """
    expected: dict[str, Tensor] = {}
    learned = []
    named = dict(net.named_parameters())
    h, start = x, 0
    for end, classifier, u in zip(ends, found, us, strict=True):
        inside = {n: p for n, p in named.items() if start <= int(n.split(".")[0]) < end}
        a = net[start:end](h.detach())
        a_free = a.detach().requires_grad_()
        matrix = classifier.clone().requires_grad_()
        h = net[end](a_free)
        exact, by_classifier = torch.autograd.grad(local_losses(h, matrix).sum(), [a_free, matrix])
        if isinstance(net[end], nn.ReLU):
            u = u * (a > 0)
        parts = [
            (g * v).reshape(len(g), -1).sum(1).view(-1, *[1] * (v.ndim - 1)) * v
            for g, v in zip(exact.chunk(groups, 1), u.chunk(groups, 1), strict=True)
        ]
        grads = torch.autograd.grad(a, list(inside.values()), torch.cat(parts, 1))
        expected |= dict(zip(inside, grads, strict=True))
        learned.append(by_classifier / len(x))
        start = end + 1
    top = {n: p for n, p in named.items() if int(n.split(".")[0]) > ends[-1]}
    loss = cross_entropy(net[start:](h.detach()), Y, reduction="sum")
    return expected | dict(zip(top, torch.autograd.grad(loss, list(top.values())), strict=True)), learned


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("make", "ends", "x"),
    [
        (mlp, [1, 3], X),
        (lambda: mlp(bias=False), [1, 3], X),
        (lambda: mlp(phi=nn.ReLU), [1, 3], X),
        (convolutional, [3, 5], IMAGES),
        (lambda: convolutional(nn.ReLU), [3, 5], IMAGES),
    ],
)
def test_it_is_its_equation(
    make: Callable[[], nn.Sequential], ends: list[int], x: Tensor, groups: int, reduction: str
) -> None:
    """Two steps: the second with what the classifiers learned from the first."""
    net = make()
    options = {**WARM, "groups": groups, "rate": 0.3, "decay": 0.2}
    aligned = align(
        net, rule=RULE, example=x, rule_options=options, loss_reduction=reduction, seed=3, show=None
    )  # type: ignore[arg-type]
    assert [point.name for point in aligned.points] == [str(end) for end in ends]
    for _ in range(2):
        before, us = classifiers(aligned), directions(aligned)
        found = gradients(aligned, x, reduction=reduction)
        expected, learned = in_blocks(make(), ends, x, before, us, groups)
        part = 1 / (M if reduction == "mean" else 1)
        assert_same(found, {name: g * part for name, g in expected.items()})
        assert any(bool(g.any()) for name, g in found.items() if name.startswith("0."))
        for now, old, g in zip(classifiers(aligned), before, learned, strict=True):
            torch.testing.assert_close(now, old - 0.3 * (g + 0.2 * old), **EXACT)


def test_the_first_step_teaches_the_output_and_the_classifiers_alone() -> None:
    aligned = align(mlp(), rule=RULE, show=None)
    exact, first = gradients(mlp()), gradients(aligned)
    torch.testing.assert_close(first["4.weight"], exact["4.weight"], **EXACT)
    assert not first["0.weight"].any()
    assert all(bool(matrix.any()) for matrix in classifiers(aligned))
    assert gradients(aligned)["0.weight"].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_unbiased_for_the_local_losses_and_its_variance_is_the_formulas(groups: int) -> None:
    """Var_j = |dL_l/da_l|^2 + (dL_l/da_lj)^2 over the units of j's group; other layers add nothing.

    100,000 draws: the 14 means within 5 standard errors (false alarm below 1e-5), the variances within 2 %.
    """
    count = 100_000
    aligned = align(mlp(), rule=RULE, rule_options={**WARM, "groups": groups}, show=None)
    net, x, y = mlp(), X[:1], Y[:1]
    exact = {}
    a1 = net[0](x).detach().requires_grad_()
    a2 = net[2](net[1](a1)).detach().requires_grad_()
    for name, phi, a, matrix in zip(
        ("0", "2"), (net[1], net[3]), (a1, a2), classifiers(aligned), strict=True
    ):
        exact[name] = torch.autograd.grad(local_losses(phi(a), matrix, y).sum(), a)[0][0]
    roots: list[Tensor] = []

    def keep(layer: nn.Module, args: object, a: Tensor) -> None:
        a.retain_grad()
        roots.append(a)

    for name in exact:  # the signal at a layer's output, record by record
        aligned.module.get_submodule(name).register_forward_hook(keep)
    cross_entropy(aligned(x.expand(count, -1)), y.expand(count), reduction="mean").backward()
    for g, a in zip(exact.values(), roots, strict=True):
        assert a.grad is not None
        samples = a.grad * count
        squares = torch.cat([part.square().sum().expand(len(part)) for part in g.chunk(groups)])
        predicted = squares + g.square()
        assert ((samples.mean(0) - g).abs() < 5 * (predicted / count).sqrt()).all()
        assert float(samples.var(0).sum() / predicted.sum()) == pytest.approx(1.0, abs=0.02)


def test_it_is_not_backpropagation_and_what_lies_above_teaches_nothing() -> None:
    exact = gradients(mlp())["0.weight"].flatten()
    one, other = (align(mlp(), rule=RULE, rule_options=WARM, show=None) for _ in range(2))
    with torch.no_grad():
        for name, p in other.module.named_parameters():
            if not name.startswith("0."):
                p.mul_(-1.5)
    first, second = gradients(one), gradients(other)
    assert abs(float(torch.cosine_similarity(first["0.weight"].flatten(), exact, dim=0))) < 0.95
    torch.testing.assert_close(first["0.weight"], second["0.weight"], **EXACT)
    assert not torch.allclose(first["2.weight"], second["2.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_from_a_state(optimizer: str) -> None:
    options = {"optimizer": optimizer, **WARM}
    aligned = align(mlp(), rule=RULE, seed=3, rule_options=options, show=None)
    gradients(aligned)
    other = align(mlp(), rule=RULE, seed=4, rule_options=options, show=None)
    other.load_state_dict(copy.deepcopy(aligned.state_dict()))
    copies = [other, copy.deepcopy(aligned), pickle.loads(pickle.dumps(aligned))]
    first = gradients(aligned)
    for twin in copies:
        assert_same(gradients(twin), first)
        for a, b in zip(classifiers(twin), classifiers(aligned), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(gradients(aligned)["0.weight"], first["0.weight"])  # drawn anew


def test_passes_and_graphs() -> None:
    options = {**WARM, "rate": 1e-30}  # the classifiers stay as they are
    aligned, twin, other = (
        align(mlp(), rule=RULE, rule_options=options, loss_reduction="sum", show=None) for _ in range(3)
    )
    loss = cross_entropy(aligned(X), Y, reduction="sum")
    found = torch.autograd.grad(loss, list(aligned.parameters()), retain_graph=True)
    assert all(p.grad is None for p in aligned.parameters())
    loss.backward()
    assert int(state(aligned).get_buffer("updates")) == 1  # one forward pass teaches once
    for p, g in zip(aligned.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)
    parts = [gradients(twin, X[:3], Y[:3], "sum"), gradients(twin, X[3:], Y[3:], "sum")]
    cross_entropy(torch.cat([other(X[:3]), other(X[3:])]), Y, reduction="sum").backward()
    for name, p in other.module.named_parameters():
        torch.testing.assert_close(p.grad, parts[0][name] + parts[1][name], **EXACT)
    with torch.no_grad():
        assert torch.equal(other(X), mlp()(X))
    gradients(align(mlp(), rule=RULE, show=None), X[:0], Y[:0], "sum")  # an empty batch is no error


def test_it_compiles_with_breaks() -> None:
    aligned, twin = (align(mlp(), rule=RULE, rule_options=WARM, show=None) for _ in range(2))
    expected = gradients(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager")
        cross_entropy(compiled(X), Y).backward()
    assert_same({n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}, expected)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, C)
        self.first, self.second, self.drop = nn.Tanh(), nn.Tanh(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.first(self.enter(x)))
        return self.leave(self.second(h + self.inner(h)))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, C)
    )


@pytest.mark.parametrize(("make", "x"), [(Residual, X), (normalised, IMAGES)])
def test_other_modules_learn(make: Callable[[], nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    net = make().double()
    plain = copy.deepcopy(net)
    aligned = align(net, rule=RULE, example=x, show=None)
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
    assert unalign(aligned) is net
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("phi", [a for a in ACTIVATIONS if a not in (nn.PReLU, nn.RReLU)])
def test_every_fixed_activation_serves(phi: type[nn.Module]) -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 6), phi(), nn.Linear(6, C)))
    aligned = align(net, rule=RULE, rule_options=WARM, show=None)
    (u,), (matrix,) = directions(aligned), classifiers(aligned)
    a = net[0](X).detach().requires_grad_()  # type: ignore[index]
    exact = torch.autograd.grad(local_losses(phi()(a), matrix).sum(), a)[0]
    v = u * (a > 0) if phi is nn.ReLU else u
    expected = ((exact * v).sum(1, keepdim=True) * v).mean(0)
    torch.testing.assert_close(gradients(aligned)["0.bias"], expected, **EXACT)


def test_positions_have_losses_of_their_own() -> None:
    """Rows of a sequence are taught as records are, under a loss that adds them."""
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C)))
    x, y = normal(2, 3, 5, seed=5), torch.tensor([[0, 1, 2], [3, 0, 1]])
    found = []
    for given, target in ((x, y), (x.reshape(6, 5), y.reshape(6))):
        aligned = align(
            copy.deepcopy(net), rule=RULE, example=given, rule_options=WARM, loss_reduction="sum", show=None
        )
        cross_entropy(aligned(given).reshape(-1, C), target.reshape(-1), reduction="sum").backward()
        found.append({n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None})
    assert_same(*found)


def test_targets_are_read_off_the_error() -> None:
    """Binary cross-entropy with one-hot targets tells the same; a record without a label teaches no hidden layer."""
    options = {**WARM, "rate": 1e-30}
    by_softmax, by_sigmoid, ignoring, without = (
        align(mlp(), rule=RULE, rule_options=options, loss_reduction="sum", show=None) for _ in range(4)
    )
    expected = gradients(by_softmax, reduction="sum")
    binary_cross_entropy_with_logits(by_sigmoid(X), one_hot(Y, C).double(), reduction="sum").backward()
    p = by_sigmoid.module.get_submodule("2").weight
    assert isinstance(p, Tensor)
    torch.testing.assert_close(p.grad, expected["2.weight"], **EXACT)
    unlabelled = Y.clone()
    unlabelled[-1] = -100
    found = gradients(ignoring, y=unlabelled, reduction="sum")
    cross_entropy(without(X)[:-1], Y[:-1], reduction="sum").backward()
    assert_same(found, {n: p.grad for n, p in without.module.named_parameters() if p.grad is not None})


@pytest.mark.parametrize(
    "loss",
    [lambda z: mse_loss(z, normal(M, C)), lambda z: cross_entropy(z, torch.full((M, C), 1 / C).double())],
)
def test_losses_that_do_not_tell_the_target_are_refused(loss: Callable[[Tensor], Tensor]) -> None:
    aligned = align(mlp(), rule=RULE, show=None)
    with pytest.raises(UsageError, match=r"rule lg-fg-a reads a record's target"):
        loss(aligned(X)).backward()
    assert not any(bool(matrix.any()) for matrix in classifiers(aligned))  # nothing was learned


def test_frozen_parameters_get_none() -> None:
    net = mlp()
    net[0].bias.requires_grad_(False)
    found = gradients(align(net, rule=RULE, show=None))
    assert found.keys() == {"0.weight", "2.weight", "2.bias", "4.weight", "4.bias"}


def test_alignment_compares_before_the_activation() -> None:
    """cos(delta_l, dL/da_l), record by record, of the same draws."""
    aligned = align(mlp(), rule=RULE, rule_options=WARM, show=None)
    found = alignment(aligned, X, lambda z: cross_entropy(z, Y))
    us, matrices, net = directions(aligned), classifiers(aligned), mlp()
    a1 = net[0](X)
    a2 = net[2](net[1](a1))
    exact = torch.autograd.grad(cross_entropy(net[4](net[3](a2)), Y), [a1, a2])
    for name, a, u, matrix, g in zip(("1", "3"), (a1, a2), us, matrices, exact, strict=True):
        free = a.detach().requires_grad_()
        local = torch.autograd.grad(local_losses(torch.tanh(free), matrix).sum(), free)[0]
        delta = (local * u).sum(1, keepdim=True) * u
        cosines = torch.cosine_similarity(delta, g, dim=1)
        assert found.points[name].cosine == pytest.approx(float(cosines.mean()), rel=1e-10)
        assert found.points[name].records == M


def test_what_a_step_costs() -> None:
    """By the counting rule of `costs`, for 5-6-8-4: 3 c n_l in the classifiers, c for s_l, n_l for s_l u_l."""
    found = cost(align(mlp(), rule=RULE, show=None))
    weights = 5 * 6 + 6 * 8 + 8 * C
    assert (found.forward, found.weight_gradient) == (weights, weights)
    assert (found.error, found.words) == (3 * C * 14 + 2 * C + 14, 14)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out, self.phi = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, C), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.phi(self.two(self.phi(self.one(x)))))


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: align(mlp(), rule=RULE, rule_options={"groups": 0}, show=None), ("groups=0", "at least 1")),
        (lambda: align(mlp(), rule=RULE, rule_options={"groups": 4}, show=None), ("groups=4", "divide the 6 units")),
        (lambda: align(mlp(), rule=RULE, rule_options={"rate": -1.0}, show=None), ("rate=-1.0", "positive")),
        (lambda: align(Shared(), rule=RULE, example=X.float(), show=None), ("phi", "is called 2 times")),
        (lambda: align(mlp(phi=nn.PReLU), rule=RULE, show=None), ("PReLU", "parameters")),
        (lambda: align(mlp(phi=nn.RReLU), rule=RULE, show=None), ("RReLU", "is random")),
        (lambda: align(mlp(phi=lambda: nn.ReLU(True)), rule=RULE, show=None), ("ReLU", "works in place")),
        (lambda: align(mlp(), rule=RULE, points=["0", "2"], show=None), ("point 0", "before its nonlinearity")),
        (
            lambda: align(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)), rule=RULE, show=None),
            ("needs two", "use rule fg-a"),
        ),
        (lambda: align(mlp(), rule=RULE, show=None).start_capture(), ("learns its feedback", "fixed feedback")),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(call: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_it_learns_the_digits_and_is_refused_privately() -> None:
    from optical_dfa.config import TrainConfig
    from optical_dfa.training.trainer import train

    settings = {"rule": RULE, "backend": "digital", "model": "mlp:64,64", "epochs": 8}
    assert train(TrainConfig(**settings, release="none", lr=0.05))["test_accuracy"] > 0.85
    with pytest.raises(UsageError, match="rule lg-fg-a learns its feedback"):
        train(TrainConfig(**settings, release="digital", epsilon=3.0))
