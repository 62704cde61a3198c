"""Modules whose hooks would not run, or whose points have no record axis, are refused when they are aligned."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.feedback.advice import own_class
from optical_dfa.feedback.cuts import OUTPUT
from optical_dfa.networks.recurrent import LSTM
from privacy import PrivacyEngine

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2])


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))


def refusal(make: Callable[[], object], example: Tensor = X, **options: object) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    with pytest.raises(UsageError) as error:
        align(module, example=example, show=None, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- compiled, scripted, wrapped, unfinished


def compiled() -> nn.Module:
    net = torch.compile(mlp(), backend="eager")
    net(X)
    return net  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    net = mlp()
    net.compile(backend="eager")
    net(X)
    return net


def compiled_part() -> nn.Module:
    net = mlp()
    net[1] = torch.compile(net[1], backend="eager")  # type: ignore[assignment]
    return net


def part_compiled_in_place() -> nn.Module:
    net = mlp()
    net[3].compile(backend="eager")
    return net


def compiled_forward() -> nn.Module:
    net = mlp()
    net.forward = torch.compile(net.forward, backend="eager")  # type: ignore[method-assign]
    return net


def partly_compiled_forward() -> nn.Module:
    net = mlp()
    net[2].forward = functools.partial(torch.compile(net[2].forward, backend="eager"))  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (compiled, "the module is compiled already"),
        (compiled_in_place, "the module is compiled already"),
        (compiled_part, "1 is compiled already"),
        (part_compiled_in_place, "3 is compiled already"),
        (compiled_forward, "the module is compiled already"),
        (partly_compiled_forward, "2 is compiled already"),
        (lambda: torch.jit.script(mlp()), "TorchScript"),
        (lambda: torch.jit.trace(mlp(), X), "TorchScript"),
        (lambda: nn.Sequential(nn.Linear(5, 6), torch.jit.script(nn.Tanh()), nn.Linear(6, 4)), "1 is a TorchScript"),
        (lambda: nn.DataParallel(mlp()), "DataParallel"),
        (lambda: nn.Sequential(nn.DataParallel(mlp())), "0 is wrapped in DataParallel"),
        (lambda: nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 4)), "weight of 0 (LazyLinear) has no shape"),
        (lambda: torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}), "0 is quantised"),
        (lambda: functional.relu, "align() takes a torch.nn.Module"),
    ],
)  # fmt: skip
def test_what_hooks_may_not_run_in_is_refused(make: Callable[[], object], words: str) -> None:
    assert words in refusal(make)


def gradients(module: Callable[[Tensor], Tensor], net: nn.Module) -> list[Tensor | None]:
    net.zero_grad()
    functional.cross_entropy(module(X), Y).backward()
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def same(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all(
        (x is None) == (y is None) and (x is None or y is None or torch.allclose(x, y))
        for x, y in zip(a, b, strict=True)
    )


def test_a_graph_module_and_an_aligned_module_compiled_afterwards_learn_as_ever() -> None:
    plain = mlp()
    expected = gradients(align(plain, show=None), plain)
    traced = torch.fx.symbolic_trace(mlp())
    assert same(gradients(align(traced, example=X, show=None), traced), expected)
    net = mlp()
    assert same(gradients(torch.compile(align(net, show=None), backend="eager"), net), expected)


def compile_later(net: nn.Sequential) -> None:
    net.forward = lambda x: functional.linear(torch.tanh(functional.linear(torch.tanh(functional.linear(x, net[0].weight)), net[2].weight)), net[4].weight)  # type: ignore  # noqa: E501  # fmt: skip


def replace_a_point(net: nn.Sequential) -> None:
    net[1] = nn.Tanh()


def skip_the_call(net: nn.Sequential) -> None:
    net.forward = lambda x: net[4](net[3](net[2](torch.tanh(net[0](x)))))  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [compile_later, replace_a_point, skip_the_call])
def test_hooks_that_no_longer_run_are_noticed_in_the_pass(change: Callable[[nn.Sequential], None]) -> None:
    net = mlp()
    aligned = align(net, show=None)
    change(net)
    with pytest.raises(UsageError, match="did not run") as error:
        aligned(X)
    assert "\n" not in str(error.value)


def test_a_forward_that_holds_on_to_the_module_itself_is_refused() -> None:
    def make() -> nn.Module:
        net = mlp()
        net.forward = lambda x: net[4](net[3](net[2](net[1](net[0](x)))))  # type: ignore[method-assign]
        return net

    assert "of the module itself" in refusal(make)


def test_what_a_module_raises_is_one_line() -> None:
    assert "does not run on 2 random records" in refusal(mlp, torch.zeros(2, 7))


# ---- activation checkpointing


class Checkpointed(nn.Module):
    """The lower part of `mlp` runs again in the backward pass."""

    def __init__(self, reentrant: bool | None, parts: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 6), nn.Tanh())
        self.top, self.reentrant, self.parts = nn.Linear(6, 4), reentrant, parts

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.top(self.low(x))
        if self.parts:
            return self.top(checkpoint_sequential(self.low, self.parts, x, use_reentrant=self.reentrant))
        return self.top(checkpoint(self.low, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("parts", [0, 2])
@pytest.mark.parametrize("rule", ["dfa", "ternary", "dkp", "fdfa", "pepita", "shallow", "bp"])
def test_checkpointed_parts_learn_the_same(rule: str, parts: int, dropout: float) -> None:
    found = []
    for reentrant in (None, False):
        net = Checkpointed(reentrant, parts, dropout)
        aligned = align(net, rule=rule, example=X, show=None)
        torch.manual_seed(1)
        found.append((gradients(aligned, net), gradients(aligned, net)))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("rule", ["fa", "usf", "brsf", "modular", "hybrid"])
def test_rules_that_cannot_follow_it_say_so(rule: str) -> None:
    assert "activation checkpointing" in refusal(lambda: Checkpointed(False), rule=rule)


@pytest.mark.parametrize("parts", [0, 2])
@pytest.mark.parametrize(
    ("rule", "words"),
    [("dfa", "use_reentrant=True"), ("dkp", "use_reentrant=True"), ("fa", "use_reentrant=True")],
)
def test_reentrant_checkpoints_are_refused(rule: str, words: str, parts: int) -> None:
    assert words in refusal(lambda: Checkpointed(True, parts), rule=rule)


# ---- the record axis


class Tokens(nn.Module):
    """A classifier of T tokens with their places."""

    def __init__(self, length: int, how: str) -> None:
        super().__init__()
        self.length, self.how = length, how
        self.embed, self.place = nn.Embedding(7, 8), nn.Embedding(9, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix, self.phi, self.pre, self.out = nn.Linear(8, 8), nn.Tanh(), nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, places = self.embed(x), torch.arange(self.length)
        if self.how == "positions":
            h = h + self.place(places)
        elif self.how == "expanded":
            h = h + self.place(places.expand(len(x), self.length))
        elif self.how == "token":
            h = torch.cat([self.pre(self.token).expand(len(x), 1, 8), h], 1)
        elif self.how == "expanded token":
            h = torch.cat([self.pre(self.token.expand(len(x), 1, 8)), h], 1)
        elif self.how == "reduced":
            h = h + self.pre(self.mix(h).sum(0, keepdim=True))
        elif self.how == "times first":
            return self.out(self.phi(self.mix(h.transpose(0, 1))).mean(0))
        elif self.how == "flat":
            return self.out(self.phi(self.mix(h.flatten(0, 1))).unflatten(0, (len(x), -1)).mean(1))
        return self.out(self.phi(self.mix(h)).mean(1))


@pytest.mark.parametrize("length", [2, 3, 4, 7])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("positions", "point place has shape"),
        ("token", "self.pre(p.expand(len(x)"),
        ("reduced", "the same for any number of records"),
        ("times first", "records are in dimension 1"),
        ("flat", "rows a record"),
    ],
)
def test_points_without_a_row_a_record_are_refused(how: str, length: int, words: str) -> None:
    message = refusal(lambda: Tokens(length, how), torch.zeros(2, length, dtype=torch.int64))
    assert words in message
    if how == "positions":
        assert f"self.place(torch.arange({length}).expand(len(x), {length}))" in message


@pytest.mark.parametrize("how", ["expanded", "expanded token", "none"])
def test_points_with_a_row_a_record_take_any_batch(how: str) -> None:
    aligned = align(Tokens(4, how), example=torch.zeros(2, 4, dtype=torch.int64), show=None)
    for records in (1, 4, 5):
        functional.cross_entropy(
            aligned(torch.zeros(records, 4, dtype=torch.int64)), torch.zeros(records, dtype=torch.int64)
        ).backward()


# ---- what to write instead


class Functional(nn.Module):
    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.phi = phi
        self.conv1, self.fc1, self.fc2 = nn.Conv1d(1, 4, 2), nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.max_pool1d(self.phi(self.conv1(x.unsqueeze(1))), 1)
        return self.fc2(self.phi(self.fc1(h.flatten(1))))


@pytest.mark.parametrize(
    ("phi", "made"),
    [
        (functional.relu, "nn.ReLU()"),
        (torch.relu, "nn.ReLU()"),
        (lambda x: x.relu(), "nn.ReLU()"),
        (functional.relu_, "nn.ReLU()"),
        (lambda x: x.clamp(min=0), "nn.ReLU()"),
        (torch.tanh, "nn.Tanh()"),
        (torch.sigmoid, "nn.Sigmoid()"),
        (functional.gelu, "nn.GELU()"),
        (functional.silu, "nn.SiLU()"),
        (functional.softplus, "nn.Softplus()"),
        (functional.relu6, "nn.ReLU6()"),
        (functional.hardtanh, "nn.Hardtanh()"),
        (functional.selu, "nn.SELU()"),
        (functional.mish, "nn.Mish()"),
        (lambda x: functional.leaky_relu(x, 0.2), "nn.LeakyReLU(0.2)"),
        (torch.sin, "class Sin(nn.Module)"),
        (torch.abs, "class Abs(nn.Module)"),
    ],
)  # fmt: skip
def test_functional_activations_are_refused_with_the_lines_to_write(
    phi: Callable[[Tensor], Tensor], made: str
) -> None:
    message = refusal(lambda: Functional(phi))
    assert made in message
    assert "x = self.act1(self.conv1(x)), x = self.act2(self.fc1(x))" in message
    assert "x = self.act1(self.conv1(x))" in refusal(lambda: Functional(phi), points=["conv1", "fc1"])


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.out((h[0] if isinstance(h, tuple) else h)[:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_fused_recurrent_layer_names_the_class_to_use(kind: type[nn.RNNBase]) -> None:
    message = refusal(lambda: Recurrent(kind(5, 6, batch_first=True)), torch.zeros(2, 3, 5))
    assert f"optical_dfa.networks.recurrent.{kind.__name__}" in message
    assert "nn.Tanh" not in message
    align(Recurrent(LSTM(5, 6)), example=torch.zeros(2, 3, 5), show=None)


class Attentive(nn.Module):
    """Attention as it is, or as the refusal says."""

    def __init__(self, follow: bool) -> None:
        super().__init__()
        self.embed, self.att = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.attended, self.out = nn.Identity() if follow else None, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.att(h, h, h)[0]
        return self.out((self.attended(h) if self.attended is not None else h).mean(1))


class Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.out = nn.Embedding(7, 8), nn.Linear(8, 4)
        self.enc = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else layer

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enc(self.embed(x)).mean(1))


TEXT = torch.zeros(2, 4, dtype=torch.int64)


def test_attention_and_encoders_name_the_points_and_these_work() -> None:
    message = refusal(lambda: Attentive(follow=False), TEXT)
    assert "self.attended(self.att(q, k, v)[0])" in message
    assert "points=['embed', 'attended']" in message
    align(Attentive(follow=True), points=["embed", "attended"], example=TEXT, show=None)
    assert "points=['embed', 'enc']" in refusal(lambda: Encoder(0), TEXT)
    align(Encoder(0), points=["embed", "enc"], example=TEXT, show=None)
    assert "points=['embed', 'enc.layers.0', 'enc.layers.1']" in refusal(lambda: Encoder(2), TEXT)
    align(Encoder(2), points=["embed", "enc.layers.0", "enc.layers.1"], example=TEXT, show=None)


class Residual(nn.Module):
    def __init__(self, follow: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.phi = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4), nn.ReLU()
        self.sum1, self.sum2 = (nn.Identity(), nn.Identity()) if follow else (None, None)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.phi(self.a(x))
        h = h if self.sum1 is None else self.sum1(h)
        h = h + self.phi(self.b(h))
        return self.c(h if self.sum2 is None else self.sum2(h))


def test_a_residual_addition_names_the_point_after_it_and_that_works() -> None:
    message = refusal(lambda: Residual(follow=False))
    for words in ("skip connection goes around", "ResidualBlock", "self.sum = nn.Identity()"):
        assert words in message
    aligned = align(Residual(follow=True), points=["sum1", "sum2"], example=X, show=None)
    assert {cut.root for cut in aligned.cuts} == {OUTPUT, "sum1", "sum2"}


def in_a_row() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))


def after_others() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)
    )


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh()),
                         nn.Linear(6, 4))  # fmt: skip


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x))


@pytest.mark.parametrize("make", [in_a_row, after_others, nested, Body])
def test_what_is_said_of_two_layers_in_a_row_is_code_that_works(make: Callable[[], nn.Module]) -> None:
    message = refusal(make)
    assert "no activation module stands between" in message
    tanh, identity = re.findall(r"module\S*\.insert\(\d+, nn\.\w+\(\)\)", message)
    (points,) = re.findall(r"points=(\[.*?\])$", message)
    module = make()
    exec(tanh, {"module": module, "nn": nn})
    align(module, example=X, show=None)
    module = make()
    exec(identity, {"module": module, "nn": nn})
    aligned = align(module, example=X, points=ast.literal_eval(points), show=None)
    assert all(len(cut.parameters) == 2 for cut in aligned.cuts)  # a weight and a bias each


class Bare(nn.Module):
    """Two layers in a row in a forward of its own, or two matrices of its own; `follow`: as the refusal says."""

    def __init__(self, own: bool, follow: bool) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(5, 6), nn.Linear(6, 4)
        self.w = nn.Parameter(torch.randn(6, 6)) if own else None
        self.v = nn.Parameter(torch.randn(6, 5)) if own else None
        self.point = nn.Identity() if follow else None

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.v.T if self.v is not None else self.a(x)
        x = self.point(x) if self.point is not None else x
        return x @ self.w.T if self.w is not None else self.out(x)


@pytest.mark.parametrize(
    ("own", "words"), [(False, "in forward x = self.point(self.a(x))"), (True, "h = self.point(h), h being what v")]
)  # fmt: skip
def test_layers_in_a_forward_of_their_own_are_told_of_a_point(own: bool, words: str) -> None:
    message = refusal(lambda: Bare(own, follow=False))
    assert words in message
    assert "points=['point']" in message
    align(Bare(own, follow=True), points=["point"], example=X, show=None)


def test_a_named_sequential_is_told_where() -> None:
    parts: dict[str, nn.Module] = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 4)}
    message = refusal(lambda: nn.Sequential(OrderedDict(parts)))
    assert "('point', nn.Identity()) after 'a' in its nn.Sequential and points=['point']" in message


@pytest.mark.parametrize("points", ["macro", "1", 3, [1], ["1", None], {"1": 2}])
def test_points_that_are_no_list_of_names(points: object) -> None:
    message = refusal(mlp, points=points)
    assert f"points is {points!r}" in message
    assert "such as ['0'] (there are 0, 1, 2, 3, 4)" in message


def test_an_assumption_is_not_taken_letter_by_letter() -> None:
    with pytest.raises(UsageError, match="assumptions is 'public'; it must be a list"):
        PrivacyEngine(assumptions="public")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_what_is_refused_of_a_segment_is_always_the_same(kind: type[nn.RNNBase], layers: int) -> None:
    def said() -> str:
        return refusal(lambda: Recurrent(kind(5, 6, layers, batch_first=True)), torch.zeros(2, 3, 5))

    first, second = re.match(r"(\S+) and (\S+) are in one segment", said()).groups()  # type: ignore[union-attr]
    assert first != second
    assert first == "layer.weight_ih_l0"
    assert len({said() for _ in range(5)}) == 1


class Twice(nn.Module):
    """One matrix, twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(self.a(x)).tanh())


def test_a_matrix_that_is_used_twice_is_no_pair() -> None:
    assert refusal(Twice).startswith("two uses of a.weight are in one segment below output")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (nn.LSTM(2, 3), "optical_dfa.networks.recurrent.LSTM"),
        (nn.LSTMCell(2, 3), "optical_dfa.networks.recurrent.LSTM"),
        (nn.GRU(2, 3), "optical_dfa.networks.recurrent.GRU"),
        (nn.GRUCell(2, 3), "optical_dfa.networks.recurrent.GRU"),
        (nn.RNN(2, 3), "optical_dfa.networks.recurrent.RNN"),
        (nn.RNNCell(2, 3), "optical_dfa.networks.recurrent.RNN"),
        (nn.MultiheadAttention(4, 2), "optical_dfa.networks.text.Attention"),
        (nn.TransformerEncoderLayer(4, 2), "optical_dfa.networks.text.Block"),
    ],
)  # fmt: skip
def test_a_fused_layer_has_a_class_of_ours(part: nn.Module, words: str) -> None:
    assert words in str(own_class(part))
    place, _, name = words.rpartition(".")
    assert hasattr(importlib.import_module(place), name)


def test_other_layers_have_no_class_of_ours() -> None:
    assert own_class(nn.Linear(2, 2)) is None
