"""The clipped sum of private capture against every record's own autograd, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from small_networks import seeded
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optical_dfa import AlignedModule, align
from optical_dfa.capture.records import Capture
from optical_dfa.networks.building import build
from privacy.releases.clipped import clip_factors

M = 6
CLASSES = 4


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def whole(*shape: int, high: int = CLASSES, seed: int = 9) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = (
            nn.Linear(5, 6),
            nn.Linear(6, 6, bias=False),
            nn.Linear(6, CLASSES),
        )
        self.norm, self.first, self.second = nn.LayerNorm(6), nn.Tanh(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.enter(x))
        return self.leave(self.second(h + self.norm(self.inner(h))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.over, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.phi(self.into(x[:, t]) + self.over(h))
        return self.out(h)


class Language(nn.Module):
    """Repeated and padded tokens; the decoder may be tied to the table."""

    def __init__(self, tied: bool, padding: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 5, padding_idx=padding)
        self.mix, self.norm, self.phi = nn.Linear(5, 5), nn.LayerNorm(5), nn.Tanh()
        self.decode = nn.Linear(5, CLASSES, bias=False)
        if tied:
            self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.phi(self.norm(self.mix(self.embed(tokens))))).mean(1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.join = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(12, CLASSES)
        self.phi, self.psi = nn.Tanh(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.join(torch.cat([self.phi(self.left(x)), self.psi(self.right(u))], 1))


def tied_linear() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    net[2].weight = net[0].weight
    return net


def conv(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(features, CLASSES))


def partly_frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    net[2].weight.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    return net


Case = tuple[Callable[[], nn.Module], Sequence[Tensor]]
IMAGES = normal(M, 4, 7, 6, seed=1)
FLAT = normal(M, 5, seed=1)
CASES: dict[str, Case] = {
    "mlp": (lambda: build("mlp:6,7", (5,), CLASSES, 0), [FLAT]),
    "mlp without bias": (
        lambda: nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, CLASSES, bias=False)), [FLAT],
    ),
    "partly frozen": (partly_frozen, [FLAT]),
    "cnn": (lambda: build("cnn:4,3", (4, 8, 8), CLASSES, 0), [normal(M, 4, 8, 8)]),
    "stride and padding": (lambda: conv(nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0)), 60), [IMAGES]),
    "dilation": (lambda: conv(nn.Conv2d(4, 3, 2, dilation=2, bias=False), 60), [IMAGES]),
    "groups": (lambda: conv(nn.Conv2d(4, 6, 3, groups=2, stride=2), 36), [IMAGES]),
    "depthwise": (lambda: conv(nn.Conv2d(4, 8, 3, groups=4), 160), [IMAGES]),
    "same padding": (lambda: conv(nn.Conv2d(4, 2, (2, 3), padding="same"), 84), [IMAGES]),
    "reflect": (lambda: conv(nn.Conv2d(4, 2, 3, padding=(1, 2), padding_mode="reflect"), 112), [IMAGES]),
    "circular": (lambda: conv(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), 84), [IMAGES]),
    "conv1d": (
        lambda: conv(nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), 20), [normal(M, 3, 9)],
    ),
    "conv1d replicate": (lambda: conv(nn.Conv1d(3, 4, 3, padding=1, padding_mode="replicate"), 36), [normal(M, 3, 9)]),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(80, CLASSES)
        ),
        [IMAGES],
    ),
    "layer norm": (
        lambda: nn.Sequential(
            nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6, bias=False), nn.Tanh(),
            nn.Linear(6, CLASSES),
        ),
        [FLAT],
    ),
    "residual": (Residual, [FLAT]),
    "two inputs": (TwoInputs, [FLAT, normal(M, 3)]),
    "tied linear layers": (tied_linear, [FLAT]),
    "a weight at several times": (Recurrent, [normal(M, 4, 3)]),
    "embedding": (lambda: Language(tied=False), [whole(M, 5)]),
    "embedding with padding": (lambda: Language(tied=False, padding=1), [whole(M, 5)]),
    "embedding tied to the decoder": (lambda: Language(tied=True), [whole(M, 5)]),
    "frozen embedding tied nowhere": (lambda: frozen_embedding(), [whole(M, 5)]),
}  # fmt: skip


def frozen_embedding() -> nn.Module:
    net = Language(tied=False)
    net.embed.weight.requires_grad_(False)
    return net


def captured(aligned: AlignedModule, records: int = M) -> Capture:
    capture = aligned.start_capture()
    capture.expected_records = lambda: records
    return capture


def clipped_sum(capture: Capture, norm: float) -> tuple[Tensor, Tensor]:
    """(norms, sum of clipped contributions), as privacy.releases.clipped forms them."""
    norms = capture.norms()
    out = torch.zeros(capture.dimension, dtype=next(iter(capture.parameters.values())).dtype)
    capture.add_clipped(clip_factors(norms, norm), out)
    capture.clear()
    return norms, out


def alone(aligned: AlignedModule, inputs: Sequence[Tensor], y: Tensor, names: Sequence[str]) -> Tensor:
    """Each record's whole stack, from a batch of its own under plain autograd, shape (m, dimension)."""
    stacks = []
    parameters = dict(aligned.module.named_parameters())
    for i in range(len(y)):
        aligned.zero_grad()
        cross_entropy(aligned(*[x[i : i + 1] for x in inputs]), y[i : i + 1]).backward()
        stacks.append(
            torch.cat(
                [
                    (p.grad if p.grad is not None else torch.zeros_like(p)).flatten()
                    for p in map(parameters.get, names)
                ]
            )
        )
    aligned.zero_grad()
    return torch.stack(stacks)


def clip(stacks: Tensor, norm: float) -> Tensor:
    return stacks * (norm / stacks.norm(dim=1, keepdim=True)).clamp_max(1.0)


@pytest.mark.parametrize("rule", ["dfa", "bp", "shallow", "fa", "usf"])
@pytest.mark.parametrize("case", list(CASES))
def test_sum_of_each_record_alone(case: str, rule: str) -> None:
    """And nothing of no record."""
    make, inputs = CASES[case]
    aligned = align(seeded(make), rule=rule, example=inputs, show=None)
    names = list(aligned.trained_parameters())
    y = whole(M)
    stacks = alone(aligned, inputs, y, names)
    norm = float(stacks.norm(dim=1).median())  # so that some are clipped and some are not
    capture = captured(aligned)
    assert list(capture.parameters) == names
    cross_entropy(aligned(*inputs), y).backward()
    norms, total = clipped_sum(capture, norm)
    torch.testing.assert_close(norms, stacks.norm(dim=1), rtol=1e-9, atol=0.0)
    assert (norms >= stacks.norm(dim=1) * (1 - 1e-14)).all()
    torch.testing.assert_close(total, clip(stacks, norm).sum(0), rtol=0.0, atol=1e-9 * norm)
    capture.expected_records = lambda: 0
    cross_entropy(aligned(*[x[:0] for x in inputs]), whole(0)).backward()
    norms, total = clipped_sum(capture, 1.0)
    assert norms.shape == (0,)
    assert not total.any()


@pytest.mark.parametrize(
    "case", ["mlp", "cnn", "residual", "a weight at several times", "embedding", "groups"]
)
def test_float32_agrees(case: str) -> None:
    make, inputs = CASES[case]
    y = whole(M)
    sums = []
    for dtype in (torch.float64, torch.float32):
        given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        aligned = align(seeded(make, dtype), example=given, show=None)
        capture = captured(aligned)
        cross_entropy(aligned(*given), y).backward()
        sums.append(clipped_sum(capture, 0.5)[1].double())
    torch.testing.assert_close(sums[1], sums[0], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("case", ["mlp", "cnn", "a weight at several times", "embedding tied to the decoder"])
def test_no_sum_moves_by_more_than_the_clip_when_a_record_joins(case: str) -> None:
    make, inputs = CASES[case]
    y = whole(M)
    aligned = align(seeded(make), example=inputs, show=None)
    sums = []
    for records in (M - 1, M):
        capture = captured(aligned, records)
        cross_entropy(aligned(*[x[:records] for x in inputs]), y[:records]).backward()
        norms, total = clipped_sum(capture, 1e-3)
        assert (norms > 1e-3).all()
        sums.append(total)
        aligned.stop_capture()
    torch.testing.assert_close((sums[1] - sums[0]).norm(), torch.tensor(1e-3, dtype=torch.float64))


def test_device_noise_is_inside_the_clip() -> None:
    """The same noise for both ways: a device whose answer to a row is a fixed function of that row."""
    aligned = align(
        seeded(lambda: build("mlp:6,7", (5,), CLASSES, 0)), backend="simulated-opu", show=None,
        example=FLAT, backend_options={"dark_pixels": 1 << 10},
    )  # fmt: skip
    assert aligned.backend is not None
    project, answers = aligned.backend.project, {}

    def replay(e: Tensor) -> Tensor:
        rows = [tuple(torch.round(row, decimals=9).tolist()) for row in e]
        fresh = project(e)
        return torch.stack(
            [answers.setdefault(key, row) for key, row in zip(rows, fresh, strict=True)]
        ).clone()

    aligned.backend.project = replay  # type: ignore[method-assign]
    y = whole(M)
    stacks = alone(aligned, [FLAT], y, list(aligned.trained_parameters()))
    capture = captured(aligned)
    cross_entropy(aligned(FLAT), y).backward()
    norms, total = clipped_sum(capture, 0.5)
    assert len(answers) == M
    assert (norms > 0.5).any()
    torch.testing.assert_close(total, clip(stacks, 0.5).sum(0), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_contributions_do_not_know_the_batch_size(reduction: str) -> None:
    net = seeded(CASES["mlp"][0])
    aligned = align(net, loss_reduction=reduction, show=None)
    capture = captured(aligned, 2 * M)
    y = whole(M)
    cross_entropy(aligned(FLAT.repeat(2, 1)), y.repeat(2), reduction=reduction).backward()
    twice = clipped_sum(capture, 1e9)[1]
    capture.expected_records = lambda: M
    cross_entropy(aligned(FLAT), y, reduction=reduction).backward()
    torch.testing.assert_close(twice, 2 * clipped_sum(capture, 1e9)[1])


@pytest.mark.parametrize("case", ["mlp", "cnn", "a weight at several times", "layer norm", "groups"])
@pytest.mark.parametrize("rule", ["dfa", "bp", "fa"])
def test_a_record_that_is_not_finite_adds_exactly_nothing(case: str, rule: str) -> None:
    make, inputs = CASES[case]
    aligned = align(seeded(make), rule=rule, example=inputs, show=None)
    y = whole(M)
    rest = torch.arange(M) != 2
    capture = captured(aligned, M - 1)
    cross_entropy(aligned(*[x[rest] for x in inputs]), y[rest]).backward()
    without = clipped_sum(capture, 0.5)[1]
    capture.expected_records = lambda: M
    for value in (math.nan, math.inf, -math.inf):
        broken = [x.clone() for x in inputs]
        broken[0][2].fill_(value)
        cross_entropy(aligned(*broken), y).backward()
        norms, total = clipped_sum(capture, 0.5)
        assert norms.isfinite().tolist() == [i != 2 for i in range(M)]
        torch.testing.assert_close(total, without, rtol=0.0, atol=1e-12)


def test_an_error_that_is_not_finite_adds_exactly_nothing() -> None:
    aligned = align(seeded(CASES["mlp"][0]), show=None)
    capture = captured(aligned)
    error = normal(M, CLASSES)
    aligned(FLAT).backward(torch.where(torch.arange(M).unsqueeze(1) == 3, math.inf, error))
    norms, total = clipped_sum(capture, 0.5)
    assert not norms[3].isfinite()
    aligned(FLAT).backward(torch.where(torch.arange(M).unsqueeze(1) == 3, 0.0, error))
    torch.testing.assert_close(total, clipped_sum(capture, 0.5)[1], rtol=0.0, atol=1e-12)


def test_two_passes_over_a_batch_are_clipped_jointly() -> None:
    aligned = align(seeded(CASES["mlp"][0]), show=None)
    y, other = whole(M), normal(M, 5, seed=5)
    names = list(aligned.trained_parameters())
    stacks = alone(aligned, [FLAT], y, names) + alone(aligned, [other], y, names)
    capture = captured(aligned)
    first, second = aligned(FLAT), aligned(other)  # both forward passes before either backward
    cross_entropy(first, y).backward()
    cross_entropy(second, y).backward()
    norms, total = clipped_sum(capture, 1.0)
    torch.testing.assert_close(norms, stacks.norm(dim=1), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(total, clip(stacks, 1.0).sum(0), rtol=0.0, atol=1e-9)


def test_passes_that_cancel_do_not_slip_through() -> None:
    """Joint norm zero: nothing is added, and the norm does not come out below zero."""
    aligned = align(seeded(CASES["mlp"][0]), loss_reduction="sum", show=None)
    capture = captured(aligned)
    aligned(FLAT).backward(normal(M, CLASSES))
    aligned(FLAT).backward(-normal(M, CLASSES))
    norms, total = clipped_sum(capture, 1.0)
    assert (norms >= 0).all()
    assert norms.max() < 1e-4
    assert total.norm() < 1e-12


def test_autocast_contributions_are_summed_in_float32() -> None:
    net = seeded(lambda: build("cnn:4,3", (4, 8, 8), CLASSES, 0), torch.float32)
    x, y = normal(M, 4, 8, 8, dtype=torch.float32), whole(M)
    aligned = align(net, example=x, show=None)
    capture = captured(aligned)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = aligned(x)
        assert output.dtype == torch.float32  # so that a mean loss tells nothing of the number of records
        cross_entropy(output, y).backward()
        uses = list(capture.uses)
        norms = capture.norms()
        out = torch.zeros(capture.dimension)
        capture.add_clipped(clip_factors(norms, 0.5), out)  # even a release inside autocast is exact
    assert norms.dtype == torch.float64
    assert {use.delta.dtype for use in uses} >= {torch.bfloat16}
    capture.clear()
    capture.uses = uses
    again, exact = clipped_sum(capture, 0.5)
    assert torch.equal(again, norms)
    assert torch.equal(exact, out)
    assert out.norm() <= M * 0.5


@pytest.mark.parametrize("physical", [1, 2, 4, 6])
def test_parts_of_a_batch_give_the_same_sum(physical: int) -> None:
    make, inputs = CASES["cnn"]
    aligned = align(seeded(make), example=inputs, show=None)
    y = whole(M)
    capture = captured(aligned)
    cross_entropy(aligned(*inputs), y).backward()
    expected = clipped_sum(capture, 0.3)[1]
    total = torch.zeros_like(expected)
    for start in range(0, M, physical):
        part = slice(start, start + physical)
        capture.expected_records = lambda p=part: len(y[p])
        cross_entropy(aligned(*[x[part] for x in inputs]), y[part]).backward()
        capture.add_clipped(clip_factors(capture.norms(), 0.3), total)
        capture.clear()
    torch.testing.assert_close(total, expected, rtol=0.0, atol=1e-12)
