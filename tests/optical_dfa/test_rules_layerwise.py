"""fa, usf, frsf and brsf against delta_{l-1} = (delta_l B_l) * phi'(a_{l-1}), written out in float64."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import EXACT, M, X, Y, assert_same, gradients, mlp, normal
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, pad

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align, unalign
from optical_dfa.feedback.rules.layerwise import LayerwiseFeedback, xavier

RULES = ["fa", "usf", "frsf", "brsf"]


def matrices(aligned: AlignedModule, rule: str) -> dict[str, Tensor]:
    """B_l of the pass that comes next, from the definitions and what the state holds."""
    found = {}
    assert aligned.state is not None
    buffers = dict(aligned.state.named_buffers())
    for name, layer in aligned.module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            weight = layer.weight.detach()
            fan_out, fan_in = weight.shape[0], weight.shape[1]
            s = (2 / (weight[0, 0].numel() * (fan_in + fan_out))) ** 0.5
            drawn = buffers.get(name.replace(".", "/"))
            if rule == "fa":
                found[name] = drawn * s
            elif rule == "usf":
                found[name] = s * torch.sign(weight)
            elif rule == "frsf":
                found[name] = s * drawn.abs() * torch.sign(weight)
            else:
                drawn = aligned.state._draw_anew(name, weight)  # type: ignore[operator]
                found[name] = s * drawn.abs() * torch.sign(weight)
    return found


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_its_equation(rule: str, bias: bool, reduction: str) -> None:
    net = mlp(bias)
    aligned = align(net, rule=rule, loss_reduction=reduction, seed=3, show=None)  # type: ignore[arg-type]
    b = matrices(aligned, rule)
    found = gradients(aligned, reduction=reduction)
    with torch.no_grad():
        h1 = torch.tanh(net[0](X))
        h2 = torch.tanh(net[2](h1))
        e = torch.softmax(net[4](h2), -1) - nn.functional.one_hot(Y, 4)
        d3 = e / (M if reduction == "mean" else 1)
        d2 = (d3 @ b["4"]) * (1 - h2**2)
        d1 = (d2 @ b["2"]) * (1 - h1**2)
    expected = {"0.weight": d1.T @ X, "2.weight": d2.T @ h1, "4.weight": d3.T @ h2}
    if bias:
        expected |= {"0.bias": d1.sum(0), "2.bias": d2.sum(0), "4.bias": d3.sum(0)}
    assert_same(found, expected)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_not_backpropagation(rule: str) -> None:
    exact = gradients(mlp())
    found = gradients(align(mlp(), rule=rule, show=None))
    for name in ("0.weight", "2.weight"):
        assert float(torch.cosine_similarity(found[name].flatten(), exact[name].flatten(), dim=0)) < 0.99
    torch.testing.assert_close(found["4.weight"], exact["4.weight"], **EXACT)


class Weights(LayerwiseFeedback):
    """The weights themselves: then it is backpropagation."""

    name = "weights"
    draws = "never"

    def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
        return weight.clone()


class Residual(nn.Module):
    """A skip, normalisation, an activation in the code, a layer used twice, an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(input=x))
        h = h + self.norm(self.inner(h))
        return self.leave(torch.tanh(h + self.inner(h)))


class Sequence1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(4, 3), nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")
        self.out = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(self.embed(tokens).mT)).mean(2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2, bias=False), nn.Tanh(),
        nn.Conv2d(6, 3, 2, padding="same"), nn.GELU(), nn.Conv2d(3, 3, 3, padding=(1, 2), padding_mode="reflect"),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 4, 4),
    )  # fmt: skip


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, X),
    "residual": (Residual, X),
    "cnn": (cnn, normal(M, 2, 16, 16)),
    "conv1d": (Sequence1d, torch.randint(0, 4, (M, 5), generator=torch.Generator().manual_seed(2))),
}


@pytest.mark.parametrize("name", list(MODULES))
def test_the_exact_matrices_give_backpropagation(name: str) -> None:
    """On any network: nothing but the matrices differs."""
    make, x = MODULES[name]
    torch.manual_seed(1)
    net = make().double()
    exact = gradients(copy.deepcopy(net), x)
    aligned = align(net, rule=Weights(), example=x, show=None)
    assert_same(gradients(aligned, x), exact)


@pytest.mark.parametrize("rule", RULES)
def test_a_convolutional_network_is_its_equation(rule: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, stride=2, padding=(1, 0)), nn.Tanh(), nn.Flatten(),
        nn.Linear(4 * 4 * 3, 4),
    ).double()  # fmt: skip
    x = normal(M, 2, 8, 8)
    aligned = align(net, rule=rule, example=x, show=None)
    b = matrices(aligned, rule)
    found = gradients(aligned, x)
    with torch.no_grad():
        h1 = torch.tanh(net[0](x))
        h2 = torch.tanh(net[2](h1))
        d3 = (torch.softmax(net[5](h2.flatten(1)), 1) - nn.functional.one_hot(Y, 4)) / M
        d2 = (d3 @ b["5"]).view_as(h2) * (1 - h2**2)
        # The adjoint of a convolution of stride 2, from its definition: spread out, convolved with the kernel flipped.
        spread = torch.zeros(M, 4, 7, 5, dtype=torch.float64)
        spread[:, :, ::2, ::2] = d2
        flipped = b["2"].flip(2, 3).transpose(0, 1)
        below = conv2d(
            pad(spread, (2, 2, 2, 2)), flipped
        )  # for the input with its row of padding above and below
        g1 = torch.zeros_like(h1)
        g1[:, :, :, : below.shape[3]] = below[:, :, 1:9]
        d1 = g1 * (1 - h1**2)
    assert_same(
        {n: found[n] for n in ("0.bias", "2.bias", "5.weight")},
        {"0.bias": d1.sum((0, 2, 3)), "2.bias": d2.sum((0, 2, 3)), "5.weight": d3.T @ h2.flatten(1)},
    )
    exact = gradients(unalign(aligned), x)
    for name in ("0.weight", "2.weight"):
        assert float(torch.cosine_similarity(found[name].flatten(), exact[name].flatten(), dim=0)) < 0.99


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_geometry_hands_the_error_to_where_it_came_from(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, kernel, stride, padding, dilation, groups), nn.Flatten(), nn.LazyLinear(4)
    ).double()  # fmt: skip
    x = normal(3, 1, 7, 6)
    net(x)
    exact = gradients(copy.deepcopy(net), x, Y[:3])
    assert_same(gradients(align(net, rule=Weights(), example=x, show=None), x, Y[:3]), exact)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_reproducible_from_its_state(rule: str) -> None:
    aligned = align(mlp(), rule=rule, seed=3, show=None)
    gradients(aligned)
    state = copy.deepcopy(aligned.state_dict())
    other = align(mlp(), rule=rule, seed=4, show=None)
    if rule != "usf":
        assert not torch.equal(
            gradients(other)["0.weight"], gradients(align(mlp(), rule=rule, show=None))["0.weight"]
        )
    other.load_state_dict(state)
    assert_same(gradients(other), gradients(aligned))
    assert_same(gradients(other), gradients(pickle.loads(pickle.dumps(aligned))))
    with pytest.raises(UsageError, match="rule_options"):
        align(mlp(), rule=rule, rule_options={"scale": 2.0}, show=None).load_state_dict(state)


def test_only_brsf_draws_anew_every_pass() -> None:
    for rule in RULES:
        aligned = align(mlp(), rule=rule, show=None)
        first = gradients(aligned)["0.weight"]
        with torch.no_grad():
            aligned(X)  # not a pass of training
        again = gradients(copy.deepcopy(aligned))["0.weight"]
        assert torch.equal(first, again) == (rule != "brsf")


@pytest.mark.parametrize("rule", RULES)
def test_it_compiles(rule: str) -> None:
    twin = align(mlp(), rule=rule, show=None)
    aligned = align(mlp(), rule=rule, show=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(aligned, backend="aot_eager", fullgraph=rule != "brsf")
        cross_entropy(compiled(X), Y).backward()
    found = {name: p.grad for name, p in aligned.module.named_parameters() if p.grad is not None}
    assert_same(found, gradients(twin))


def test_several_forward_passes_before_one_backward() -> None:
    aligned = align(mlp(), rule="fa", loss_reduction="sum", show=None)
    expected = gradients(aligned, reduction="sum")
    aligned.zero_grad()
    outputs = torch.cat([aligned(part) for part in X.split([3, 4])])
    cross_entropy(outputs, Y, reduction="sum").backward()
    assert_same({n: p.grad for n, p in aligned.module.named_parameters() if p.grad is not None}, expected)


def test_copies_and_the_plain_module_have_their_own_hooks() -> None:
    net = mlp()
    plain = gradients(copy.deepcopy(net))
    aligned = align(net, rule="fa", show=None)
    expected = gradients(aligned)
    twin = copy.deepcopy(aligned)
    assert unalign(aligned) is net
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert_same(gradients(net), plain)
    assert_same(gradients(twin), expected)
    twin.eval()
    with torch.no_grad():
        assert torch.equal(twin(X), net(X))
    with pytest.raises(UsageError, match="called directly"):
        twin.module(X)


def test_the_size_is_xaviers_and_the_signs_are_the_weights() -> None:
    weight = torch.empty(300, 200, 3, 3)
    assert xavier(weight) == pytest.approx((2 / (300 * 9 + 200 * 9)) ** 0.5)
    assert xavier(torch.empty(4, 6)) == pytest.approx((2 / 10) ** 0.5)
    net = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 4))
    sizes = {}
    for rule, law in (("fa", "normal"), ("fa", "uniform")):
        aligned = align(copy.deepcopy(net), rule=rule, rule_options={"law": law}, show=None)
        assert aligned.state is not None
        drawn = aligned.state.get_buffer("0")
        sizes[law] = float(drawn.std())
        assert (drawn.abs().max() < 3**0.5 + 1e-6) == (law == "uniform")
    assert sizes == pytest.approx({"normal": 1.0, "uniform": 1.0}, rel=0.02)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.free = nn.Linear(5, 6), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.first(x)), self.free)


class Position(nn.Module):
    """A table that is added is no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = nn.Linear(5, 4), nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * (1 + self.table) + self.table


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0][:, -1])


def transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(15, 4))


@pytest.mark.parametrize(
    ("net", "example", "names"),
    [
        (Functional(), X.float(), ["free"]),
        (Gru(), normal(2, 3, 5).float(), ["gru."]),
        (transposed(), normal(2, 2, 4).float(), ["0.weight"]),
        (nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0), normal(2, 3, 8).float(), ["self_attn."]),
    ],
)  # fmt: skip
def test_what_would_be_backpropagated_is_refused(net: nn.Module, example: Tensor, names: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        align(net, rule="fa", example=example, show=None)
    assert "\n" not in str(error.value)
    for part in [*names, "used outside Linear, Conv1d, Conv2d", "use those layers, or rule dfa"]:
        assert part in str(error.value)


def test_what_is_added_or_multiplied_is_allowed() -> None:
    gradients(align(Position(), rule="fa", example=X.float(), show=None), X.float())


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("fa", {"law": "cauchy"}, "law='cauchy': it must be one of normal, uniform"),
        ("fa", {"scale": 0}, "scale=0: it must be a positive number"),
        ("usf", {"law": "normal"}, "no option 'law'"),
    ],
)
def test_wrong_options_are_refused(rule: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        align(mlp(), rule=rule, rule_options=options, show=None)


def test_only_what_a_layer_receives_is_projected_down() -> None:
    """The first layer's input gets B_1's signal, never W_1's."""
    aligned = align(mlp(), rule="fa", show=None)
    b = matrices(aligned, "fa")
    x = X.clone().requires_grad_()
    cross_entropy(aligned(x), Y).backward()
    net = aligned.module
    with torch.no_grad():
        h1 = torch.tanh(net[0](X))  # type: ignore[index]
        h2 = torch.tanh(net[2](h1))  # type: ignore[index]
        d3 = (torch.softmax(net[4](h2), -1) - nn.functional.one_hot(Y, 4)) / M  # type: ignore[index]
        d1 = ((d3 @ b["4"]) * (1 - h2**2)) @ b["2"] * (1 - h1**2)
    torch.testing.assert_close(x.grad, d1 @ b["0"], **EXACT)
