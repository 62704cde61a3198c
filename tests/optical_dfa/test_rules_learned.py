"""fdfa and dkp: their equations in float64, and what forward mode estimates."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from small_networks import EXACT, M, X, Y, forward_pass, gradients, mlp, normal
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.feedback import make_rule
from optical_dfa.feedback.forward_mode import directional_derivative
from optical_dfa.feedback.rules.learned import LearnedState, Lesson
from optical_dfa.measure.costs import cost
from privacy import checkpoint
from privacy.ledger import Ledger


def state(aligned: AlignedModule) -> LearnedState:
    assert isinstance(aligned.state, LearnedState)
    return aligned.state


def matrices(aligned: AlignedModule) -> list[Tensor]:
    return [state(aligned).matrix(point).clone() for point in aligned.points]


def directions(aligned: AlignedModule) -> list[Tensor]:
    """u_l of the pass that comes next."""
    stream = state(aligned).draws()
    return [torch.randn(M, p.width, generator=stream, dtype=torch.float64) for p in aligned.points]


def random_matrices(aligned: AlignedModule) -> None:
    for seed, point in enumerate(aligned.points):
        state(aligned).matrix(point).copy_(normal(4, point.width, seed=30 + seed))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
def test_they_are_their_equations(rule: str, bias: bool, reduction: str) -> None:
    net = mlp(bias)
    options = {"rate": 0.3, "decay": 0.2}
    aligned = align(net, rule=rule, rule_options=options, loss_reduction=reduction, seed=3, show=None)  # type: ignore[arg-type]
    random_matrices(aligned)
    for _ in range(2):
        b1, b2 = matrices(aligned)
        u1, u2 = directions(aligned)
        found = gradients(aligned)
        with torch.no_grad():
            h1 = torch.tanh(net[0](X))
            h2 = torch.tanh(net[2](h1))
            e = torch.softmax(net[4](h2), -1) - nn.functional.one_hot(Y, 4)
            part = e / (M if reduction == "mean" else 1)
            d2, d1 = (part @ b2) * (1 - h2**2), (part @ b1) * (1 - h1**2)
            if rule == "fdfa":
                moved = (u2 + (u1 @ net[2].weight.T) * (1 - h2**2)) @ net[4].weight.T
                g1, g2 = b1 - moved.T @ u1 / M, b2 - moved.T @ u2 / M
            else:
                g1, g2 = e.T @ h1 / M, e.T @ h2 / M
            expected = [b - 0.3 * (g + 0.2 * b) for b, g in ((b1, g1), (b2, g2))]
        weights = {"0.weight": d1.T @ X, "2.weight": d2.T @ h1, "4.weight": part.T @ h2}
        biases = {"0.bias": d1.sum(0), "2.bias": d2.sum(0), "4.bias": part.sum(0)} if bias else {}
        for name, value in {**weights, **biases}.items():
            torch.testing.assert_close(found[name], value, **EXACT)
        for matrix, value in zip(matrices(aligned), expected, strict=True):
            torch.testing.assert_close(matrix, value, **EXACT)


@pytest.mark.parametrize("rule", ["fdfa", "ddfa", "dkp"])
def test_the_first_step_teaches_the_output_alone_exactly(rule: str) -> None:
    aligned = align(mlp(), rule=rule, show=None)
    net = mlp()
    exact = torch.autograd.grad(cross_entropy(net(X), Y), [net[4].weight, net[4].bias])
    first = gradients(aligned)
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert not first[name].any()
    torch.testing.assert_close(first["4.weight"], exact[0], **EXACT)
    second = gradients(aligned)
    assert all(second[name].any() for name in second)


def test_ddfa_is_fdfas_other_name() -> None:
    assert type(make_rule("ddfa")) is type(make_rule("fdfa"))
    assert make_rule("ddfa").name == "fdfa"
    align(mlp(), rule="ddfa", show=None).load_state_dict(align(mlp(), rule="fdfa", show=None).state_dict())


def jacobians(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """dy/dh_l of one record, by autograd."""
    with torch.no_grad():
        h1 = net[:2](x)
        h2 = net[2:4](h1)
    return [
        torch.autograd.functional.jacobian(above, h.squeeze(0)) for above, h in ((net[2:], h1), (net[4:], h2))
    ]


def estimates(aligned: AlignedModule, x: Tensor, count: int, only: int | None = None) -> list[Tensor]:
    """d^T u_l of `count` draws for one record."""
    stream = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(count, p.width, generator=stream, dtype=torch.float64) if only in (None, index) else None
        for index, p in enumerate(aligned.points)
    ]
    d = directional_derivative(forward_pass(aligned, x.expand(count, -1)), drawn)
    return [torch.einsum("nc,nu->ncu", d, u) for u in drawn if u is not None]


def test_the_estimate_is_unbiased_and_its_variance_is_the_formulas() -> None:
    """Var_ij = sum_m |J_m[i]|^2 + J_l[i,j]^2, within 2 % (all of a layer's entries together)."""
    count = 200_000
    exact = jacobians(mlp(), X[:1])
    noise = sum(j.square().sum(1, keepdim=True) for j in exact)
    for j, found in zip(exact, estimates(align(mlp(), rule="fdfa", show=None), X[:1], count), strict=True):
        predicted = noise + j.square()
        assert ((found.mean(0) - j).abs() < 5 * (predicted / count).sqrt()).all()
        assert float(found.var(0).sum() / predicted.sum()) == pytest.approx(1.0, abs=0.02)


def test_one_point_a_step_is_free_of_the_others_noise() -> None:
    """For three similar layers the variance is about 0.35 of that of all at once."""

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [part for _ in range(3) for part in (nn.Linear(12, 12), nn.Identity())]
        for layer in layers[::2]:
            nn.init.orthogonal_(layer.weight)
        return nn.Sequential(*layers, nn.Linear(12, 4)).double()

    net = make()
    above = [net[6].weight @ net[4].weight @ net[2].weight, net[6].weight @ net[4].weight, net[6].weight]
    noise = sum(j.detach().square().sum(1, keepdim=True) for j in above)
    x, points = normal(1, 12), ["1", "3", "5"]
    aligned = align(net, rule="fdfa", points=points, show=None)
    together = estimates(aligned, x, 60_000)
    for index, (j, found) in enumerate(zip(above, together, strict=True)):
        alone = estimates(aligned, x, 60_000, only=index)[0]
        square = j.detach().square()
        predicted = float((square.sum(1, keepdim=True) + square).sum() / (noise + square).sum())
        measured = float(alone.var(0).sum() / found.var(0).sum())
        assert measured == pytest.approx(predicted, rel=0.02)
        assert measured == pytest.approx(0.35, abs=0.03)
        assert ((alone.mean(0) - j).abs() < 5 * (alone.var(0) / 60_000).sqrt()).all()


def test_a_step_moves_one_point_in_turn() -> None:
    aligned = align(mlp(), rule="fdfa", rule_options={"perturb": "one"}, show=None)
    for turn in (0, 1, 0):
        before = matrices(aligned)
        gradients(aligned)
        changed = [not torch.equal(a, b) for a, b in zip(before, matrices(aligned), strict=True)]
        assert changed == [index == turn for index in range(2)]


@pytest.mark.parametrize("perturb", ["all", "one"])
def test_the_moving_average_follows_the_jacobian(perturb: str) -> None:
    """With weights as they are: mean J, and a / (2 - a) of one estimate's variance."""
    rate, options = 0.05, {"perturb": perturb, "rate": 0.05}
    aligned = align(mlp(phi=nn.Identity), rule="fdfa", rule_options=options, points=["1", "3"], show=None)
    net = mlp(phi=nn.Identity)
    j = net[4].weight.detach()
    seen = []
    for step in range(1000):
        noted = state(aligned).observe(forward_pass(aligned, X))
        state(aligned).teach(torch.zeros(M, 4, dtype=torch.float64), noted, None)
        if step >= 100:
            seen.append(matrices(aligned)[1])
    taken = torch.stack(seen)
    others = net[4].weight.detach() @ net[2].weight.detach()
    noise = j.square().sum(1, keepdim=True)
    if perturb == "all":
        noise = noise + others.square().sum(1, keepdim=True)
    predicted = (noise + j.square()) / M * rate / (2 - rate)
    torch.testing.assert_close(
        taken.mean(0), j, rtol=0.0, atol=4 * float((predicted.max() * 40 / 900).sqrt())
    )
    assert float(taken.var(0).sum() / predicted.sum()) == pytest.approx(1.0, abs=0.25)


def test_the_exact_product_gives_backpropagation_on_a_linear_network() -> None:
    net = mlp(phi=nn.Identity)
    exact = torch.autograd.grad(cross_entropy(net(X), Y), list(net.parameters()))
    aligned = align(net, rule="fdfa", points=["1", "3"], show=None)
    state(aligned).matrix(aligned.points[0]).copy_(net[4].weight.detach() @ net[2].weight.detach())
    state(aligned).matrix(aligned.points[1]).copy_(net[4].weight.detach())
    for found, expected in zip(gradients(aligned).values(), exact, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
        assert float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)) == pytest.approx(
            1.0
        )


def test_it_is_not_backpropagation() -> None:
    net = mlp()
    exact = torch.autograd.grad(cross_entropy(net(X), Y), list(net.parameters()))[0].flatten()
    aligned = align(net, rule="fdfa", show=None)
    for _ in range(5):
        found = gradients(aligned)["0.weight"].flatten()
    assert abs(float(torch.cosine_similarity(found, exact, dim=0))) < 0.99


def test_kolen_pollack_makes_top_weight_and_feedback_one() -> None:
    """W - B shrinks by 1 - eta lambda a step (the bioflax documentation's identity)."""
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4, bias=False)).double()
    options = {"rate": 0.1, "decay": 0.5, "initial_scale": 1.0}
    aligned = align(net, rule="dkp", rule_options=options, show=None)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1, weight_decay=0.5)
    apart = net[2].weight.detach() - matrices(aligned)[0]
    assert apart.norm() > 1
    for step in range(1, 30):
        gradients(aligned)
        optimizer.step()
        now = net[2].weight.detach() - matrices(aligned)[0]
        torch.testing.assert_close(now, apart * (1 - 0.1 * 0.5) ** step, **EXACT)


def test_adam_is_adam() -> None:
    options = {"optimizer": "adam", "rate": 0.02, "decay": 0.1, "initial_scale": 1.0}
    aligned = align(mlp(), rule="dkp", rule_options=options, show=None)
    twin = nn.Parameter(matrices(aligned)[1])
    adam = torch.optim.Adam([twin], lr=0.02, weight_decay=0.1)
    for seed in range(6):
        e, h = normal(M, 4, seed=seed), normal(M, 8, seed=seed + 50)
        twin.grad = e.T @ h / M
        adam.step()
        state(aligned).teach(e, Lesson({1: h}), None)
        torch.testing.assert_close(matrices(aligned)[1], twin.detach(), **EXACT)


# ---- passes


@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
def test_training_goes_on_from_a_state(rule: str) -> None:
    options = {"optimizer": "adam", "rate": 0.01}
    aligned = align(mlp(), rule=rule, rule_options=options, seed=3, show=None)
    for _ in range(3):
        gradients(aligned)
    other = align(mlp(), rule=rule, rule_options=options, seed=4, show=None)
    other.load_state_dict(copy.deepcopy(aligned.state_dict()))
    copies = [other, copy.deepcopy(aligned), pickle.loads(pickle.dumps(aligned))]
    for _ in range(3):
        expected = gradients(aligned)
        for twin in copies:
            for name, value in gradients(twin).items():
                assert torch.equal(value, expected[name])
    for twin in copies:
        assert all(torch.equal(a, b) for a, b in zip(matrices(twin), matrices(aligned), strict=True))


def test_a_checkpoint_keeps_the_matrices(tmp_path: object) -> None:
    first, second = (
        align(mlp(), rule="fdfa", rule_options={"optimizer": "adam"}, seed=s, show=None) for s in (1, 2)
    )
    gradients(first)
    optimizers = [torch.optim.SGD(a.parameters(), lr=0.1) for a in (first, second)]
    path = tmp_path / "checkpoint.safetensors"  # type: ignore[operator]
    with Ledger.create(None, {}) as ledger:
        kept = checkpoint.save(path, first, optimizers[0], checkpoint.Position(1, 0, "", 0.0), ledger)
        assert checkpoint.load(path, second, optimizers[1], ledger) == kept
    expected = gradients(first)
    assert all(torch.equal(value, expected[name]) for name, value in gradients(second).items())
    assert [p.shape for p in second.parameters()] == [
        p.shape for p in mlp().parameters()
    ]  # B is no parameter


def test_a_forward_pass_teaches_the_matrices_once() -> None:
    aligned = align(mlp(), rule="fdfa", show=None)
    aligned(X)
    with torch.no_grad():
        aligned(X)
    assert not any(matrix.any() for matrix in matrices(aligned))
    loss = cross_entropy(aligned(X), Y)
    loss.backward(retain_graph=True)
    once = matrices(aligned)
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(once, matrices(aligned), strict=True))
    first, second = aligned(X[:3]), aligned(X[3:])
    cross_entropy(torch.cat([first, second]), Y).backward()
    assert int(state(aligned).get_buffer("updates")) == 3
    cross_entropy(aligned(X[:0]), Y[:0], reduction="sum").backward()  # nobody to learn from
    assert int(state(aligned).get_buffer("updates")) == 3


class Dropped(nn.Module):
    """The output shows the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.phi, self.drop = nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5)
        self.leave = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.drop(self.phi(self.enter(x))))


def test_the_second_pass_repeats_the_masks_and_leaves_the_stream_alone() -> None:
    aligned = align(Dropped().double(), rule="fdfa", rule_options={"rate": 1.0}, example=X, show=None)
    for seed in range(5):
        torch.manual_seed(seed)
        (u,) = directions(aligned)
        output = aligned(X)
        after = torch.get_rng_state()
        output.backward(torch.zeros_like(output))
        mask = (output.detach() != 0) * 2.0
        torch.testing.assert_close(matrices(aligned)[0], (u * mask).T @ u / M, **EXACT)
        torch.manual_seed(seed)
        nn.Dropout(0.5)(torch.zeros(M, 4, dtype=torch.float64))
        assert torch.equal(torch.get_rng_state(), after)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, stride=2), nn.GroupNorm(2, 4),
        nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip


def test_batch_statistics_are_updated_once() -> None:
    torch.manual_seed(0)
    net = convolutional().double()
    plain, x = copy.deepcopy(net), normal(M, 2, 8, 8)
    aligned = align(net, rule="fdfa", example=x, show=None)
    gradients(aligned, x)
    plain(x)
    for (name, a), b in zip(plain.named_buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert all(matrix.any() for matrix in matrices(aligned))


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


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.first, self.second = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.enter(x))
        return self.leave(self.second(h + self.inner(h)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.phi, self.decode = (
            nn.Embedding(4, 5),
            nn.Linear(5, 5),
            nn.Tanh(),
            nn.Linear(5, 4),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.phi(self.mix(self.embed(tokens))))


@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (convolutional, normal(M, 2, 8, 8)),
        (Recurrent, normal(M, 4, 3)),
        (Residual, X),
        (Tokens, torch.randint(0, 4, (M, 3), generator=torch.Generator().manual_seed(2))),
    ],
)
def test_any_module_learns(make: Callable[[], nn.Module], x: Tensor, rule: str) -> None:
    torch.manual_seed(0)
    net = make().double()
    aligned = align(net, rule=rule, example=x, show=None)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        output = aligned(x)
        loss = cross_entropy(output.flatten(0, -2), Y if output.ndim == 2 else x.flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(matrix.isfinite().all() and matrix.any() for matrix in matrices(aligned))


def test_a_point_of_several_calls_learns_their_mean_jacobian() -> None:
    net, x = Recurrent().double(), normal(1, 3, 3)
    with torch.no_grad():
        states = [torch.zeros(1, 6, dtype=torch.float64)]
        for t in range(3):
            states.append(torch.tanh(net.into(x[:, t]) + net.over(states[-1])))
        back = [net.out.weight]
        for h in states[:1:-1]:
            back.insert(0, back[0] * (1 - h**2) @ net.over.weight)
        mean = torch.stack(back).mean(0)
    aligned = align(net, rule="fdfa", rule_options={"rate": 1.0}, example=x, show=None)
    output = aligned(x.expand(100_000, -1, -1))
    output.backward(torch.zeros_like(output))
    torch.testing.assert_close(matrices(aligned)[0], mean, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
def test_it_compiles_with_breaks(rule: str) -> None:
    aligned, twin = (align(mlp(), rule=rule, show=None) for _ in range(2))
    for a in (aligned, twin):
        random_matrices(a)
    expected = gradients(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager")
        cross_entropy(compiled(X), Y).backward()
    for name, p in aligned.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], **EXACT)
    for a, b in zip(matrices(aligned), matrices(twin), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


# ---- refusals


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.phi = nn.Linear(5, 6), nn.Tanh()
        self.lstm, self.out = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.phi(self.enter(x)))[0][:, -1])


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: align(mlp(), rule="fdfa", rule_options={"perturb": "two"}, show=None), ("perturb='two'", "all, one")),
        (lambda: align(mlp(), rule="dkp", rule_options={"optimizer": "rms"}, show=None), ("='rms'", "sgd, adam")),
        (lambda: align(mlp(), rule="dkp", rule_options={"rate": 0.0}, show=None), ("rate=0.0", "positive")),
        (lambda: align(mlp(), rule="fdfa", rule_options={"rate": 1.5}, show=None), ("rate=1.5", "at most 1")),
        (lambda: align(mlp(), rule="dkp", rule_options={"decay": -1.0}, show=None), ("decay=-1.0", "zero or a")),
        (lambda: align(mlp(), rule="dkp", rule_options={"perturb": "all"}, show=None), ("'perturb'", "optimizer")),
        (
            lambda: align(Lstm(), rule="fdfa", points=["phi"], example=torch.zeros(2, 3, 5), show=None),
            ("rule fdfa needs a forward-mode pass", "or use rule dfa"),
        ),
        (lambda: align(mlp(), rule="fdfa", show=None).start_capture(), ("learns its feedback", "fixed feedback")),
        (lambda: align(mlp(), rule="dkp", show=None).start_capture(), ("learns its feedback", "fixed feedback")),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(call: Callable[[], object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
def test_it_learns_the_digits(rule: str) -> None:
    from optical_dfa.config import TrainConfig
    from optical_dfa.training.trainer import train

    config = TrainConfig(rule=rule, backend="digital", release="none", model="mlp:64,64", epochs=8)
    assert train(config)["test_accuracy"] > 0.94


@pytest.mark.parametrize("rule", ["fdfa", "dkp"])
def test_signals_are_asked_for_without_learning(rule: str) -> None:
    aligned = align(mlp(), rule=rule, show=None)
    random_matrices(aligned)
    before = matrices(aligned)
    error = normal(3, 4)
    for signal, matrix in zip(aligned.signals(error), before, strict=True):
        torch.testing.assert_close(signal, error @ matrix, **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(before, matrices(aligned), strict=True))


@pytest.mark.parametrize(
    ("rule", "forward", "error", "words"),
    [("fdfa", 2, 2 * 4 * 14, 4 * 14), ("dkp", 1, 2 * 4 * 14, 4 * 14), ("fg-a", 2, 4 + 14, 14), ("fg-w", 2, 4, 1),
     ("pepita", 2, 5 * 4, 5 * 4), ("fa", 1, 6 * 8 + 8 * 4, 2 * (6 * 8 + 8 * 4))],
)  # fmt: skip
def test_what_a_step_costs(rule: str, forward: int, error: int, words: int) -> None:
    """By the counting rule of `costs`, for 5-6-8-4."""
    weights = 5 * 6 + 6 * 8 + 8 * 4
    found = cost(align(mlp(), rule=rule, show=None))
    assert (found.forward, found.weight_gradient) == (forward * weights, weights)
    assert (found.error, found.words) == (error, words)
