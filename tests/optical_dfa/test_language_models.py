"""Networks for text: no look ahead, the cuts of a Transformer and its gradients under DFA, training end to end."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.config import merge
from optical_dfa.data import load
from optical_dfa.feedback.cuts import OUTPUT
from optical_dfa.networks.building import build, feedback_points
from optical_dfa.networks.text import Transformer
from optical_dfa.training.loss import cross_entropy
from optical_dfa.training.trainer import train

T, CHARACTERS, M = 6, 5, 3
SPECS = ["gru:7", "lstm:7,6", "rnn:7", "transformer:8,2", "transformer:4,1/tanh"]


def tokens(rows: int = M, seed: int = 1) -> Tensor:
    return torch.randint(0, CHARACTERS, (rows, T), generator=torch.Generator().manual_seed(seed))


def network(spec: str, seed: int = 0) -> nn.Module:
    return build(spec, (T,), CHARACTERS, seed, text=True)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_maps_characters_to_logits_at_every_position(spec: str, rows: int) -> None:
    net = network(spec)
    logits = net(tokens(rows))
    assert logits.shape == (rows, T, CHARACTERS)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_no_position_sees_a_later_one(spec: str) -> None:
    net, x = network(spec), tokens()
    before = net(x)
    for t in range(T):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % CHARACTERS
        after = net(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])
    assert not torch.allclose(net(torch.flip(x[:, :2], [1]))[:, 1], before[:, 1])  # and it sees the earlier


@pytest.mark.parametrize("spec", SPECS)
def test_weights_follow_the_seed_and_nothing_else(spec: str) -> None:
    state = torch.get_rng_state()
    first, again, other = network(spec), network(spec), network(spec, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    pairs = zip(first.named_parameters(), other.parameters(), strict=True)
    assert [
        name for (name, a), b in pairs if torch.equal(a, b) and "attended" not in name and "left" not in name
    ] == []


@pytest.mark.parametrize(
    ("spec", "text", "word"),
    [
        ("mlp", True, "are text; it must be one of gru, lstm, rnn, transformer"),
        ("cnn:4", True, "are text"),
        ("gru", False, "are no text; it must be one of mlp, cnn, resmlp"),
        ("transformer:8,2", False, "are no text"),
        ("transformer:8", True, "has 8; it must be the width"),
        ("transformer:6,2", True, "a multiple of 4"),
        ("transformer:8,2/gelu", True, "/tanh or /relu"),
        ("gru:8/tanh", True, "gru has no activation"),
        ("gru:0", True, "widths must be whole numbers"),
    ],
)
def test_refused(spec: str, text: bool, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(spec, (T,) if text else (1, 8, 8), CHARACTERS, 0, text=text)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the Transformer's cuts


def aligned_transformer(level: str, rule: str = "dfa", **options: Any) -> AlignedModule:
    net = network("transformer:8,2").double()
    points = feedback_points(net, level)
    return align(net, rule=rule, points=points, example=tokens(), show=None, rule_options=options or None)


def inputs_of(net: Transformer, x: Tensor) -> dict[str, Tensor]:
    """What every segment reads, written out."""
    reads: dict[str, Tensor] = {}
    h = net.embedding(x) + net.place(torch.arange(T).expand_as(x))
    for i, block in enumerate(net.blocks):
        reads[f"blocks.{i}"] = h
        h = reads[f"attended {i}"] = block.attended(h + block.attention(h))
        reads[f"activation {i}"] = block.activation(block.widen(h))
        h = block.left(h + block.narrow(reads[f"activation {i}"]))
    reads[OUTPUT] = h
    return {name: value.detach() for name, value in reads.items()}


def segments(net: Transformer, x: Tensor, level: str) -> dict[str, Tensor]:
    """Every root from detached inputs, so that nothing can pass from one into another."""
    reads = inputs_of(net, x)
    bottom = net.embedding(x) + net.place(torch.arange(T).expand_as(x))
    roots: dict[str, Tensor] = {OUTPUT: net.read_out(reads[OUTPUT])}
    for i, block in enumerate(net.blocks):
        h = bottom if i == 0 else reads[f"blocks.{i}"]
        attended = block.attended(h + block.attention(h))
        if level == "macro":
            roots[f"blocks.{i}"] = block.left(
                attended + block.narrow(block.activation(block.widen(attended)))
            )
            continue
        roots[f"blocks.{i}.attended"] = attended
        h = reads[f"attended {i}"]
        roots[f"blocks.{i}.activation"] = block.activation(block.widen(h))
        roots[f"blocks.{i}"] = block.left(h + block.narrow(reads[f"activation {i}"]))
    return roots


@pytest.mark.parametrize("level", Transformer.LEVELS)
def test_every_segment_is_taught_by_its_own_projection(level: str) -> None:
    aligned, x = aligned_transformer(level), tokens()
    y = (x + 1) % CHARACTERS
    cross_entropy(aligned(x), y).backward()
    net = aligned.module
    found = {name: p.grad for name, p in net.named_parameters()}
    twin = network("transformer:8,2").double()
    roots = segments(twin, x, level)
    assert [point.name for point in aligned.points] == [name for name in roots if name != OUTPUT]
    error = (torch.softmax(roots[OUTPUT].detach(), -1) - one_hot(y, CHARACTERS)) / (M * T)
    matrix = aligned.backend.matrix().double()
    total = (roots[OUTPUT] * error).sum()
    for point in aligned.points:
        own = matrix[point.start : point.start + point.width] * point.gain / math.sqrt(point.width)
        total = total + (roots[point.name] * (error @ own.T)).sum()
    expected = torch.autograd.grad(total, list(twin.parameters()))
    plain = torch.autograd.grad(cross_entropy(twin(x), y), list(twin.parameters()))
    for (name, grad), wanted in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0.0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    same = [n for (n, g), p in zip(found.items(), plain, strict=True) if torch.allclose(g, p, atol=1e-6)]
    assert same == ["read_out.weight", "read_out.bias"]


@pytest.mark.parametrize("level", Transformer.LEVELS)
def test_a_block_learns_from_its_own_points_alone(level: str) -> None:
    cuts = {
        cut.root: {name.split(".weight")[0].split(".bias")[0] for name in cut.parameters}
        for cut in aligned_transformer(level).cuts
    }
    block = {"attention.into", "attention.out", "attended", "widen", "narrow", "left"}
    assert cuts.pop(OUTPUT) == {"read_out"}
    if level == "macro":
        assert cuts["blocks.0"] == {"embedding", "place", *(f"blocks.0.{part}" for part in block)}
        assert cuts["blocks.1"] == {f"blocks.1.{part}" for part in block}
    else:
        assert cuts["blocks.1.attended"] == {
            f"blocks.1.{p}" for p in ("attention.into", "attention.out", "attended")
        }
        assert cuts["blocks.1.activation"] == {"blocks.1.widen"}
        assert cuts["blocks.1"] == {"blocks.1.narrow", "blocks.1.left"}


def test_a_point_inside_the_skip_is_refused() -> None:
    """What is yet to be added to what was read: the error would pass it by."""
    for name in ("blocks.1.attention", "blocks.1.narrow", "blocks.0.activation"):
        with pytest.raises(UsageError, match="a skip connection goes around a feedback point"):
            align(network("transformer:8,2"), points=[name], example=tokens(), show=None)


def test_a_skip_around_a_point_is_found_where_characters_are_one_hot() -> None:
    """They leave no edge in autograd's graph, and must count as data all the same."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.act, self.out = nn.Linear(CHARACTERS, 4), nn.Tanh(), nn.Linear(4, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.low(one_hot(x, CHARACTERS).float())
            return self.out(h + self.act(h))

    with pytest.raises(UsageError, match="a skip connection goes around a feedback point"):
        align(Skips(), example=tokens(), show=None)


def test_a_choice_of_points_is_for_transformers() -> None:
    with pytest.raises(UsageError, match="points is 'micro'"):
        feedback_points(network("gru"), "micro")
    assert feedback_points(network("gru"), None) is None
    assert feedback_points(network("transformer:8,1"), None) == ["blocks.0"]


# ---- training

WORDS = ["the ", "cat ", "sat ", "on ", "a ", "mat. "]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random words: a character's entropy given those before it is far below its own."""
    drawn = random.Random(0).choices(WORDS, k=2000)
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(drawn))
    return path


def settings(book: Path, **given: Any) -> dict[str, Any]:
    plain = {
        "release": "none",
        "backend": "digital",
        "optimizer": "adam",
        "lr": 0.01,
        "batch_size": 8,
        "epochs": 3,
    }
    return {"dataset": str(book), **plain, **given}


def unigram_entropy(book: Path) -> float:
    counts = Counter(book.read_text())
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


@pytest.mark.parametrize(
    "given",
    [
        {"model": "gru:24", "rule": "bp", "epochs": 2},
        {"model": "gru:24,24", "rule": "recurrent-hybrid", "epochs": 2},
        {"model": "transformer:16,1", "rule": "bp"},
        {"model": "transformer:16,2", "rule": "dfa", "epochs": 6, "lr": 0.02},
        {"model": "transformer:16,2", "rule": "dfa", "points": "micro", "epochs": 6, "lr": 0.02},
    ],
    ids=lambda given: " ".join(map(str, given.values())),
)
def test_training_learns_more_than_how_frequent_characters_are(
    book: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    summary = train(merge({}, settings(book, **given)), tmp_path / "run")
    assert summary["test_loss"] < 0.85 * unigram_entropy(book)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert summary["test_loss"] == rows[-1]["test_loss"] < rows[0]["test_loss"]


def test_the_test_loss_is_the_mean_over_all_positions(book: Path, tmp_path: Path) -> None:
    """An untrained network's, from its own logits; and the accuracy is that of positions."""
    config = merge({}, settings(book, model="gru:4", rule="bp", lr=1e-9, epochs=1, batch_size=100))
    summary = train(config)
    data = load(str(book))
    net = build("gru:4", data.input_shape, data.classes, 0, text=True)
    with torch.no_grad():
        z = net(data.x_test)
    own = -z.log_softmax(2).gather(2, data.y_test.unsqueeze(2)).double().mean()
    assert summary["test_loss"] == pytest.approx(float(own), rel=1e-5)
    assert summary["test_accuracy"] == pytest.approx(float((z.argmax(2) == data.y_test).double().mean()))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"model": "gru:6", "rule": "sparse-recurrent"}, marks=pytest.mark.slow),
        {"model": "rnn:6,6", "rule": "recurrent-hybrid"},
        {"model": "transformer:4,1", "rule": "dfa"},
    ],
    ids=["gru", "rnn hybrid", "transformer"],
)
def test_a_sequence_is_a_record_of_a_private_run(book: Path, given: dict[str, Any]) -> None:
    private = {
        "release": "digital",
        "epsilon": 5.0,
        "batch_size": 40,
        "epochs": 1,
        "optimizer": "sgd",
        "lr": 0.1,
    }
    summary = train(merge({}, settings(book, **given, **private)))
    assert (summary["guarantee"]["kind"], summary["guarantee"]["adjacency"]) == (
        "record-dp",
        "add-or-remove-one",
    )
    assert summary["guarantee"]["epsilon"] <= 5.0
    assert any("different characters were read off" in text for text in summary["guarantee"]["assumptions"])
    assert any("65 characters in a row" in text for text in summary["guarantee"]["assumptions"])


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"release": "label", "epsilon": 3.0}, "release label protects labels"),
        ({"model": "mlp"}, "the records are text"),
        ({"features": "pca:3"}, "is text; drop features"),
        ({"model": "gru:4", "points": "macro"}, "points is 'macro'"),
        ({"points": "micro", "rule": "bp"}, "rule bp cuts nothing"),
        ({"points": "micro", "rule": "gated-dfa"}, "rule gated-dfa cuts where it must"),
        ({"rule": "sparse-recurrent"}, "finds no state"),
        ({"model": "gru:4", "rule": "modular"}, "modular"),
        ({"rule": "recurrent-hybrid"}, "finds no layer of optical_dfa.networks.recurrent"),
        ({"dataset": "digits", "model": "gru:4"}, "the records are no text"),
    ],
)
def test_what_does_not_fit_text_is_one_line(book: Path, given: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(merge({}, settings(book, **{"model": "transformer:4,1", **given})))
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
