"""One record never moves the computed sum by more than S, at both ends of the floating-point range (THEORY T3).

Through the production path: layers' contributions, their norms, clip factors and sums, in the release itself. What a
layer saw and what came back to it are put in place of a pass's own, so that any scale of either occurs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.capture.pending import Use
from optical_dfa.capture.records import Capture
from privacy.norms import LEAST_NORM, MOST_NORM, floor, limit, rounded_down, share
from privacy.releases.clipped import ClippedRelease, clip_factors
from privacy.releases.source import Departure, NoiseSource

M = 5
CLASSES = 3
TYPES = [torch.float32, torch.float64]
SCALES = {torch.float32: 38.0, torch.float64: 300.0}  # decimal exponents
SMALLEST = {torch.float32: 1e-45, torch.float64: 5e-324}


class Silence(NoiseSource):
    """No noise, so that the sum shows."""

    name = "digital"

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return ()

    def cost(self, dimension: int) -> Departure:
        return Departure(0.0, 0.0, 0.0)

    def add_noise(self, total: Tensor, std: float) -> None:
        pass


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.over, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.phi = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = self.phi(self.into(x[:, t]) + self.over(h))
        return self.out(h)


class Language(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.phi = nn.Embedding(CLASSES, 4), nn.Tanh()
        self.decode = nn.Linear(4, CLASSES, bias=False)
        if tied:
            self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(self.phi(self.embed(tokens))).mean(1)


class Long(nn.Module):
    """More inputs and outputs than positions: the norm is taken in Gram form."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.phi, self.leave = nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.phi(self.enter(x))).mean(1)


def conv(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, CLASSES))


FLAT, IMAGE = (6,), (4, 4, 4)
MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
        torch.zeros(M, *FLAT),
    ),
    "linear at positions": (Long, torch.zeros(M, 3, 12)),
    "a weight at several times": (Recurrent, torch.zeros(M, 4, 3)),
    "conv2d": (lambda: conv(nn.Conv2d(4, 2, 3), 8), torch.zeros(M, *IMAGE)),
    "conv1d": (lambda: conv(nn.Conv1d(4, 2, 3, padding=1), 10), torch.zeros(M, 4, 5)),
    "groups": (lambda: conv(nn.Conv2d(4, 4, 3, groups=2), 16), torch.zeros(M, *IMAGE)),
    "depthwise conv1d": (lambda: conv(nn.Conv1d(4, 4, 3, groups=4), 12), torch.zeros(M, 4, 5)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, CLASSES)),
        torch.zeros(M, *FLAT),
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        torch.zeros(M, *IMAGE),
    ),
    "embedding": (lambda: Language(tied=False), torch.zeros(M, 4, dtype=torch.int64)),
    "embedding tied to the decoder": (lambda: Language(tied=True), torch.zeros(M, 4, dtype=torch.int64)),
}


@pytest.fixture(autouse=True)
def _no_flushing() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@cache
def captured(case: str, dtype: torch.dtype) -> tuple[Capture, tuple[Use, ...]]:
    """A module's capture, and the uses of one plain pass over M records: what they look like."""
    make, inputs = MODULES[case]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        aligned = align(make().to(dtype), rule="bp", example=inputs, show=None)
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    cross_entropy(aligned(inputs), torch.arange(M) % CLASSES).backward()
    uses = tuple(capture.uses)
    capture.clear()
    return capture, uses


def release_of(capture: Capture, norm: float) -> ClippedRelease:
    coins = NoiseGenerator.seeded(0, "coins")
    return ClippedRelease(capture, Silence(), coins, max_grad_norm=norm, expected_batch_size=1.0)


def summed(
    release: ClippedRelease, uses: Sequence[Use], kept: Sequence[int], *, flush: bool = False
) -> np.ndarray:
    """The release's sum over these records, in grid steps."""
    capture = release.contributions
    assert isinstance(capture, Capture)
    index = torch.tensor(kept, dtype=torch.int64)
    capture.expected_records = lambda: len(kept)
    capture.uses = [Use(use.layer, use.x[index], use.delta[index]) for use in uses]
    torch.set_flush_denormal(flush)
    release.absorb(first=True)
    torch.set_flush_denormal(False)
    return release._sum.total.to(torch.int64).numpy()


def squared(total: np.ndarray) -> int:
    """In Python's own integers."""
    return sum(x * x for x in total.tolist())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", list(MODULES))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_one_record_moves_the_sum_by_the_sensitivity_at_most(
    case: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    """Whether or not subnormals are flushed to zero."""
    capture, plain = captured(case, dtype)
    most = SCALES[dtype]
    target, aligned_with_others = data.draw(st.integers(0, M - 1)), data.draw(st.booleans())
    norm = data.draw(st.floats(-12, 12))
    x = data.draw(st.floats(-most - 7, most + 0.5))
    if data.draw(st.booleans()):  # whose product is near the clip, however far apart the factors are
        delta = min(max(norm + data.draw(st.floats(-2, 20)) - x, -most - 7), most + 0.5)
    else:
        delta = data.draw(st.floats(-most - 7, most + 0.5))
    special = data.draw(st.sampled_from([None, None, 0.0, SMALLEST[dtype], 1e-310, 1e38, math.inf, math.nan]))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def drawn(like: Tensor, own: float) -> Tensor:
        """Any scale a record; the target's own."""
        if not like.is_floating_point():
            return torch.randint(0, CLASSES, like.shape, generator=g)
        scales = torch.empty(M, dtype=torch.float64).uniform_(-most - 7, most + 0.5, generator=g)
        if aligned_with_others:
            scales[:] = own
        scales[target] = own
        values = torch.randn(like.shape, generator=g, dtype=torch.float64)
        values = (values * (10.0**scales).view(-1, *[1] * (like.ndim - 1))).to(dtype)
        if special is not None:
            hit = torch.rand(like.shape[1:], generator=g) < 0.2
            values[target][hit] = special
        return values

    uses = [Use(use.layer, drawn(use.x, x), drawn(use.delta, delta)) for use in plain]
    release = release_of(capture, min(max(10.0**norm, LEAST_NORM), MOST_NORM))
    flush = data.draw(st.booleans())
    for record in range(M):  # whose sums are exact (test_integer_contributions.py)
        assert squared(summed(release, uses, [record], flush=flush)) <= release.steps**2


# ---- the reported instances, and their neighbours


@pytest.mark.parametrize(
    ("size", "weight"), [(2e25, 2.2e-7), (9.4e21, 1.0), (6.6e21, 1.0), (3e19, 6e4), (1e15, 1e14)]
)
def test_a_large_input_under_squared_error_stays_within_the_clip(size: float, weight: float) -> None:
    """Its clip factor, 1/(16 weight size²), is subnormal in float32 and was rounded up: nearly 2 C."""
    net = nn.Linear(4, 1, bias=False)
    nn.init.constant_(net.weight, weight)
    aligned = align(net, rule="bp", loss_reduction="sum", example=torch.zeros(M, 4), show=None)
    capture = aligned.start_capture()
    release = release_of(capture, 1.0)
    x, y = torch.ones(M, 4), torch.zeros(M, 1)
    x[2] = size
    for record in range(M):
        capture.expected_records = lambda: 1
        mse_loss(aligned(x[record : record + 1]), y[record : record + 1], reduction="sum").backward()
        release.absorb(first=True)
        assert squared(release._sum.total.numpy()) <= release.steps**2


@pytest.mark.parametrize(
    ("delta", "x"), [(1e-163, 1e153), (1e153, 1e-163), (3e-164, 5e152), (1e-200, 1e195), (3e-308, 1e300)]
)
@pytest.mark.parametrize("case", ["linear", "linear at positions", "conv2d", "conv1d"])
def test_norms_of_double_precision_do_not_underflow(case: str, delta: float, x: float) -> None:
    """C = 1e-12: one record moved the sum by 799 C, since the square of its signal was 0."""
    capture, plain = captured(case, torch.float64)
    release = release_of(capture, LEAST_NORM)
    uses = [Use(use.layer, torch.full_like(use.x, x), torch.full_like(use.delta, delta)) for use in plain]
    assert squared(summed(release, uses, [0])) <= release.steps**2


@pytest.mark.parametrize("x", [2.57e32, 1.28e32, 8.6e31])
@pytest.mark.parametrize("delta", [4e-8, 1e-10, 1e-15])
def test_a_row_that_underflows_beside_a_large_column_stays_within_the_clip(x: float, delta: float) -> None:
    """The factor is normal, the scaled signal is not (7e-46 rounds to 1.4e-45), and meets a large input."""
    capture, plain = captured("linear", torch.float32)
    release = release_of(capture, LEAST_NORM)
    uses = [
        Use(use.layer, torch.full_like(use.x, x), torch.full_like(use.delta, delta if number == 0 else 0.0))
        for number, use in enumerate(sorted(plain, key=lambda use: use.layer))
    ]
    assert squared(summed(release, uses, [0])) <= release.steps**2


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in MODULES if "embedding" not in case])
def test_a_record_at_the_edge_of_the_range_keeps_its_direction(case: str, dtype: torch.dtype) -> None:
    """Within the range nobody is silenced, and the clipped norm is C."""
    capture, plain = captured(case, dtype)
    g = torch.Generator().manual_seed(3)
    size = 0.1 * limit(dtype, 4096) / 64
    release = release_of(capture, MOST_NORM)
    for scales in ((1.0, size), (size, 1.0)):
        uses = [
            Use(
                use.layer,
                scales[0] * torch.randn(use.x.shape, generator=g, dtype=torch.float64).to(dtype),
                scales[1] * torch.randn(use.delta.shape, generator=g, dtype=torch.float64).to(dtype),
            )
            for use in plain
        ]
        assert 0 < squared(summed(release, uses, [0])) <= release.steps**2


# ---- norms as bounds


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", list(MODULES))
@given(seed=st.integers(0, 2**31), exponents=st.tuples(st.floats(-340, 60), st.floats(-340, 60)))
@settings(max_examples=25, deadline=None)
def test_norms_are_upper_bounds(
    case: str, dtype: torch.dtype, seed: int, exponents: tuple[float, float]
) -> None:
    """Of what the contributions are, in extended precision; positions that nearly cancel included."""
    capture, plain = captured(case, dtype)
    g = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor, exponent: float) -> Tensor:
        if not like.is_floating_point():
            return torch.randint(0, CLASSES, like.shape, generator=g)
        values = torch.randn(like.shape, generator=g, dtype=torch.float64) * 10.0**exponent
        if like.ndim == 3:  # alike up to 1e-6, of either sign
            values = values[:, :1] * (1 + 1e-6 * torch.randn(like.shape, generator=g, dtype=torch.float64))
            values = values * torch.where(torch.arange(like.shape[1]) % 2 == 0, 1.0, -1.0).view(-1, 1)
        return values.to(dtype)

    capture.expected_records = lambda: M
    capture.uses = [
        Use(use.layer, drawn(use.x, exponents[0]), drawn(use.delta, exponents[1])) for use in plain
    ]
    norms = capture.norms().numpy().astype(np.longdouble)
    squares = np.zeros(M, dtype=np.longdouble)
    for part in capture._joined(0).values():
        squares += (part.explicit(0, M).numpy().astype(np.longdouble) ** 2).sum(1)
    capture.clear()
    exact = np.sqrt(squares)
    assert bool((norms[np.isfinite(exact)] >= exact[np.isfinite(exact)]).all())
    assert np.isinf(norms[~np.isfinite(exact)]).all()


@given(st.floats(0.0, 1.0), st.sampled_from(TYPES))
@settings(max_examples=300, deadline=None)
def test_factors_are_never_rounded_up(factor: float, dtype: torch.dtype) -> None:
    found = rounded_down(torch.tensor([factor], dtype=torch.float64), dtype)
    info = torch.finfo(dtype)
    assert found.dtype == dtype
    assert float(found) <= factor
    if factor >= 2 * info.tiny / info.eps:
        assert float(found) >= factor * (1 - info.eps)
    elif factor <= info.tiny / info.eps:
        assert float(found) == 0


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("factor", [9.8e-32, 1.2e-38, 1.17e-38, 1e-40, 1e-45, 1e-60, 5e-324, 0.0])
def test_factors_at_the_end_of_the_normal_range_silence(factor: float, flush: bool) -> None:
    given_factor = torch.tensor([factor], dtype=torch.float64)
    torch.set_flush_denormal(flush)
    found = rounded_down(given_factor, torch.float32)
    torch.set_flush_denormal(False)
    assert float(found) == 0.0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_silence_begins_evenly(dtype: torch.dtype) -> None:
    """What a clipped record contributes is continuous in its size: no rounding decides about much of it."""
    info = torch.finfo(dtype)
    end, most = info.tiny / info.eps, limit(dtype, 100)
    grid = torch.linspace(0.4, 2.4, 4001, dtype=torch.float64)
    factors = end * grid
    kept = rounded_down(factors, dtype).double() / factors  # times |X| f = C
    assert float(kept[0]) == 0
    assert float(kept[-1]) >= 1 - info.eps
    assert float(kept.diff().abs().max()) < 2e-3
    norms = most * grid
    kept = clip_factors(norms / share(norms, most), 1.0) * norms
    assert float(kept[0]) == pytest.approx(1, rel=1e-12)
    assert float(kept[-1]) == 0
    assert float(kept.diff().abs().max()) < 2e-3


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_underflow_takes_is_far_below_the_rounding_of_the_least_clip(dtype: torch.dtype) -> None:
    """limit · sqrt(width) · tiny, twice, is `floor`; a thousand parameters of it are less than one rounding."""
    info = torch.finfo(dtype)
    for width in (1, 1024, 1 << 20, 1 << 40):
        assert 2 * limit(dtype, width) * math.sqrt(width) * info.tiny <= floor(dtype) * (1 + 1e-12)
        assert limit(dtype, width) > 1e6
    assert 32 * floor(dtype) <= LEAST_NORM * info.eps
    norms = torch.tensor([limit(dtype, 1) ** 2], dtype=torch.float64)
    assert float(clip_factors(norms, LEAST_NORM)) > 0
