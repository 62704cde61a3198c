"""Fused layers of torch's taken apart for a private run: the same outputs, the same state, put back afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from small_networks import seeded
from test_capture_sums import CLASSES, M, alone, captured, clip, clipped_sum, normal, whole
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import align, unalign
from optical_dfa.capture.unfused import UNFUSED, restore, unfuse

T, D, H = 5, 4, 6
X = normal(M, T, D, seed=1)


def apart(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer, and what is put in its place."""
    whole = nn.Sequential(seeded(lambda: layer))
    replaced = unfuse(whole)
    assert replaced == [(whole, "0", layer)]
    return layer, whole[0]


def same(one: Any, two: Any) -> None:
    if isinstance(one, tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same(a, b)
    elif one is None:
        assert two is None
    else:
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)


RECURRENT = [
    (kind, {"num_layers": layers, "bidirectional": both, "batch_first": first, "bias": bias})
    for kind, layers, both, first, bias in product(
        (nn.RNN, nn.GRU, nn.LSTM), (1, 3), (False, True), (True, False), (True, False)
    )
] + [
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2, "batch_first": True}),
    (nn.LSTM, {"proj_size": 3, "num_layers": 2, "bidirectional": True, "batch_first": True}),
]


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
@pytest.mark.parametrize("given", [False, True])
def test_recurrent_layers_give_what_torch_gives(
    kind: type[nn.RNNBase], options: dict[str, Any], given: bool
) -> None:
    fused, ours = apart(seeded(lambda: kind(D, H, **options)))
    x = X if options["batch_first"] else X.transpose(0, 1)
    ends = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    h = normal(ends, M, options.get("proj_size", 0) or H, seed=2)
    hx = None if not given else (h, normal(ends, M, H, seed=3)) if kind is nn.LSTM else h
    same(fused(x, hx), ours(x, hx))
    assert list(ours.state_dict()) == list(fused.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.RNNCell(D, H), lambda: nn.RNNCell(D, H, bias=False, nonlinearity="relu"),
        lambda: nn.GRUCell(D, H), lambda: nn.LSTMCell(D, H), lambda: nn.LSTMCell(D, H, bias=False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", [False, True])
def test_cells_give_what_torch_gives(make: Callable[[], nn.RNNCellBase], given: bool) -> None:
    fused, ours = apart(seeded(make))
    h = normal(M, H, seed=2)
    hx = None if not given else (h, normal(M, H, seed=3)) if isinstance(fused, nn.LSTMCell) else h
    same(fused(X[:, 0], hx), ours(X[:, 0], hx))


CAUSAL = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
PADDED = torch.arange(T) >= torch.tensor([5, 2, 4, 1, 3, 5]).unsqueeze(1)
ATTENTION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "without bias": ({"bias": False}, {}),
    "positions first": ({"batch_first": False}, {}),
    "positions first, other keys": ({"batch_first": False}, {"key": 3, "value": 3}),
    "other keys and values": ({}, {"key": 7, "value": 7}),
    "values as keys": ({}, {"key": 7, "value": "key"}),
    "other widths": ({"kdim": 3, "vdim": 5}, {"key": 7, "value": 7}),
    "other widths without bias": ({"kdim": 3, "vdim": 5, "bias": False}, {"key": 7, "value": 7}),
    "added positions": ({"add_bias_kv": True, "add_zero_attn": True}, {}),
    "causal": ({}, {"attn_mask": CAUSAL, "is_causal": True}),
    "causal, no weights": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "Booleans": ({}, {"attn_mask": CAUSAL < 0, "key_padding_mask": PADDED}),
    "a mask a head": ({}, {"attn_mask": normal(M * 2, T, T, seed=6), "average_attn_weights": False}),
    "padding": ({}, {"key_padding_mask": PADDED}),
    "numbers for padding": ({}, {"key_padding_mask": PADDED.double() * -3}),
    "padding and added positions": (
        {"add_bias_kv": True, "add_zero_attn": True}, {"key_padding_mask": PADDED, "attn_mask": CAUSAL},
    ),
    "nothing to read": ({}, {"key_padding_mask": PADDED | (torch.arange(M) == 2).unsqueeze(1), "need_weights": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention_gives_what_torch_gives(name: str) -> None:
    options, named = ATTENTION[name]
    options, named = {"batch_first": True, **options}, dict(named)
    fused, ours = apart(seeded(lambda: nn.MultiheadAttention(D, 2, **options)))
    assert isinstance(fused, nn.MultiheadAttention)
    for p in fused.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    inputs = {"query": X}
    for key, width in (("key", fused.kdim), ("value", fused.vdim)):
        length = named.pop(key, 0)
        if length == "key":
            inputs[key] = inputs["key"]
        else:
            inputs[key] = normal(M, length, width, seed=length) if length else X
    if not options["batch_first"]:
        inputs = {key: x.transpose(0, 1) for key, x in inputs.items()}
        if len(named) == 0 and inputs["key"].shape == inputs["query"].shape:
            inputs = dict.fromkeys(inputs, inputs["query"])
    same(fused(**inputs, **named), ours(**inputs, **named))
    assert list(ours.state_dict()) == list(fused.state_dict())
    assert [id(p) for p in ours.parameters()] == [id(p) for p in fused.parameters()]


# ---- in a private run


class Reader(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, ends = self.layer(x)
        every = ends if isinstance(ends, tuple) else (ends,)
        return self.out(torch.cat([states.mean(1), *(end.sum(0) for end in every)], 1))


class Stepwise(nn.Module):
    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(H, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Attentive(nn.Module):
    def __init__(self, other: bool = False, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.enter, self.other, self.weights = nn.Linear(D, D), other, weights
        width = 3 if other else None
        self.attention = nn.MultiheadAttention(
            D, 2, kdim=width, vdim=width, **{"batch_first": True, **options}
        )
        self.out = nn.Linear(D, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        keys = h[:, 1:, :3] if self.other else h
        read, weights = self.attention(h, keys, keys, need_weights=self.weights)
        return self.out(read.mean(1)) + (weights.square().sum((1, 2)).unsqueeze(1) if self.weights else 0.0)


class Padded(nn.Module):
    """Text of several lengths: 0 is padding."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 8, padding_idx=0), nn.Linear(8, CLASSES)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(x), src_key_padding_mask=x == 0).mean(1))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
        self.embed, self.out = nn.Embedding(7, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(self.whole(h[:, :3], h[:, 2:]).mean(1))


def lazy(net: nn.Module) -> nn.Module:
    """With its read-out as wide as what it reads."""
    with torch.no_grad():
        net(torch.zeros(T, T, D))
    return net


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)


TOKENS = whole(M, T, high=6) + 1
PADDED_TOKENS = TOKENS.masked_fill(PADDED, 0)
Case = tuple[Callable[[], nn.Module], Sequence[Tensor]]
CASES: dict[str, Case] = {
    "rnn": (lambda: lazy(Reader(nn.RNN(D, H, 2, nonlinearity="relu", batch_first=True))), [X]),
    "gru": (lambda: lazy(Reader(nn.GRU(D, H, 2, batch_first=True, bidirectional=True))), [X]),
    "gru without bias": (lambda: lazy(Reader(nn.GRU(D, H, bias=False, batch_first=True))), [X]),
    "lstm": (lambda: lazy(Reader(nn.LSTM(D, H, 2, batch_first=True, bidirectional=True))), [X]),
    "lstm, projected": (lambda: lazy(Reader(nn.LSTM(D, H, 2, batch_first=True, proj_size=3))), [X]),
    "rnn cell": (lambda: Stepwise(nn.RNNCell(D, H)), [X]),
    "gru cell": (lambda: Stepwise(nn.GRUCell(D, H, bias=False)), [X]),
    "lstm cell": (lambda: Stepwise(nn.LSTMCell(D, H)), [X]),
    "attention": (Attentive, [X]),
    "attention to others": (lambda: Attentive(other=True), [X]),
    "attention, its weights too": (lambda: Attentive(weights=True, bias=False), [X]),
    "attention, added positions": (lambda: Attentive(add_bias_kv=True, add_zero_attn=True), [X]),
    "encoder": (lambda: Padded(encoder()), [PADDED_TOKENS]),
    "encoder, norm first": (lambda: Padded(encoder(norm_first=True, activation="gelu")), [PADDED_TOKENS]),
    "decoder": (Translator, [TOKENS]),
}


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(CASES))
def test_sum_of_each_record_alone(name: str, training: bool) -> None:
    """Against torch's own layers: the reference is taken before anything is taken apart."""
    make, inputs = CASES[name]
    aligned = align(seeded(make).train(training), rule="bp", example=inputs, show=None)
    names = list(aligned.trained_parameters())
    y = whole(M)
    stacks = alone(aligned, inputs, y, names)
    norm = float(stacks.norm(dim=1).median())
    capture = captured(aligned)
    assert list(capture.parameters) == names
    cross_entropy(aligned(*inputs), y).backward()
    norms, total = clipped_sum(capture, norm)
    torch.testing.assert_close(norms, stacks.norm(dim=1), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(total, clip(stacks, norm).sum(0), rtol=0.0, atol=1e-8 * norm)


def test_direct_feedback_between_an_encoders_blocks() -> None:
    points = ["encoder.layers.0", "encoder.layers.1"]
    net = seeded(lambda: Padded(encoder()))
    aligned = align(net, rule="dfa", example=[PADDED_TOKENS], points=points, show=None)
    names, y = list(aligned.trained_parameters()), whole(M)
    stacks = alone(aligned, [PADDED_TOKENS], y, names)
    capture = captured(aligned)
    cross_entropy(aligned(PADDED_TOKENS), y).backward()
    torch.testing.assert_close(clipped_sum(capture, 0.1)[1], clip(stacks, 0.1).sum(0), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", list(CASES))
def test_checkpoints_load_both_ways_and_torchs_own_come_back(name: str) -> None:
    make, inputs = CASES[name]
    net = seeded(make)
    before, parts = list(net.state_dict()), list(net.modules())
    aligned = align(net, rule="bp", example=inputs, show=None)
    aligned.start_capture()
    assert not any(type(part) in UNFUSED for part in net.modules())
    assert list(net.state_dict()) == before
    other = seeded(lambda: make()).requires_grad_(False)
    for p in other.parameters():
        p.add_(0.1)
    net.load_state_dict(other.state_dict())
    with torch.no_grad():
        private = aligned(*inputs)
    torch.testing.assert_close(private, other(*inputs), rtol=1e-5, atol=1e-5)
    assert unalign(aligned) is net
    assert list(net.modules()) == parts
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(*inputs), other(*inputs))


@pytest.mark.parametrize(
    "make",
    [
        lambda: lazy(Reader(nn.GRU(D, H, 3, batch_first=True, dropout=0.4, bidirectional=True))),
        lambda: lazy(Reader(nn.LSTM(D, H, 2, batch_first=True, dropout=0.4))),
        lambda: Attentive(dropout=0.4),
        lambda: Attentive(dropout=0.4, weights=True),
    ],
)
def test_masks_are_torchs(make: Callable[[], nn.Module]) -> None:
    """check_sums compares with torch's own layers under the same masks; and whole steps have secret ones."""
    aligned = align(seeded(make), rule="bp", example=X, show=None)
    capture = captured(aligned)
    first, second = aligned(X), aligned(X)
    assert not torch.equal(first, second)
    cross_entropy(first, whole(M)).backward()
    assert bool(clipped_sum(capture, 1.0)[1].any())


def test_a_copy_that_stops_has_torchs_own_again() -> None:
    aligned = align(seeded(CASES["gru"][0]), rule="bp", example=X, show=None)
    aligned.start_capture()
    twin = copy.deepcopy(aligned)
    twin.stop_capture()
    assert isinstance(twin.module.layer, nn.GRU)
    assert not isinstance(aligned.module.layer, nn.GRU)


def test_a_refused_module_has_torchs_own_again() -> None:
    class Mixing(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    aligned = align(
        seeded(lambda: lazy(Mixing(nn.GRU(D, H, batch_first=True)))), rule="bp", example=X, show=None
    )
    with pytest.raises(UsageError, match="mixes records"):
        aligned.start_capture()
    assert isinstance(aligned.module.layer, nn.GRU)


def test_a_layer_that_is_there_twice_stays_one() -> None:
    layer = nn.GRU(D, D)
    net = nn.ModuleDict({"a": layer, "b": layer})
    replaced = unfuse(net)
    assert net["a"] is net["b"] is not layer
    restore(replaced)
    assert net["a"] is net["b"] is layer


class Calling(nn.Module):
    """Calls a recurrent layer in some way."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor], batch_first: bool = True) -> None:
        super().__init__()
        self.layer, self.how, self.out = nn.GRU(D, H, batch_first=batch_first), how, nn.Linear(H, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self.layer, x))


def packed(layer: nn.Module, x: Tensor) -> Tensor:
    given = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), T), batch_first=True)
    states, _ = nn.utils.rnn.pad_packed_sequence(layer(given)[0], batch_first=True)
    return states.mean(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Calling(packed), "is given PackedSequence; a private run takes padded sequences"),
        (
            lambda: Calling(lambda layer, x: layer(x[:, 0])[0]),
            "a single sequence; a private run takes padded",
        ),
        (lambda: Calling(lambda layer, x: layer(x)[0].mean(1), batch_first=False), "batch_first=True"),
        (lambda: Attentive(batch_first=False), "batch_first=True"),
    ],
)
def test_what_is_not_records_first_is_refused_by_name(make: Callable[[], nn.Module], words: str) -> None:
    aligned = align(seeded(make), rule="bp", example=X, show=None)
    with pytest.raises(UsageError) as error:
        aligned.start_capture()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_records_in_the_second_axis_are_taken_where_the_module_puts_them_there() -> None:
    make = lambda: Calling(lambda layer, x: layer(x.transpose(0, 1))[0].mean(0), batch_first=False)  # noqa: E731
    aligned = align(seeded(make), rule="bp", example=X, show=None)
    y, names = whole(M), list(aligned.trained_parameters())
    stacks = alone(aligned, [X], y, names)
    capture = captured(aligned)
    cross_entropy(aligned(X), y).backward()
    torch.testing.assert_close(clipped_sum(capture, 0.1)[1], clip(stacks, 0.1).sum(0), rtol=0.0, atol=1e-10)


def test_a_layer_with_hooks_is_refused() -> None:
    net = seeded(CASES["gru"][0])
    net.layer.register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match=r"layer \(nn.GRU\) has hooks"):
        align(net, rule="bp", example=X, show=None).start_capture()
