"""A matrix that is never stored: known answers of its generator, its law, and the same bits however it is cut up."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from torch.profiler import ProfilerActivity, profile

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.backends import streamed_matrix
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.backends.streamed import StreamedBackend
from optical_dfa.backends.streamed_matrix import PANEL, StreamedMatrix, quantiles

WORD = (1 << 64) - 1
SEED = 7


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x64-10 in whole numbers, as figures 2 and 3 of the paper have it."""
    a, b, c, d = counter
    left, right = key
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (high >> 64) ^ b ^ left, high & WORD, (low >> 64) ^ d ^ right, low & WORD
        left, right = (left + 0x9E3779B97F4A7C15) & WORD, (right + 0xBB67AE8584CAA73B) & WORD
    return [a, b, c, d]


def entry(i: int, j: int, part: int = 0) -> float:
    """B_ij as `StreamedMatrix` says it is."""
    block, number = divmod(i % PANEL, 16)
    words = philox((16 * j + block, i // PANEL, part, 0), (derive_seed(SEED, "projection-matrix"), 0))
    u = words[number // 4] >> 16 * (number % 4) & 0xFFFF
    return float(quantiles()[u])


# Of Random123's kat_vectors: counter, key, answer.
KNOWN = (
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (WORD, WORD, WORD, WORD),
        (WORD, WORD),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_generator_gives_the_known_answers(
    counter: Sequence[int], key: Sequence[int], answer: Sequence[int]
) -> None:
    assert philox(counter, key) == list(answer)
    start = sum(word << 64 * place for place, word in enumerate(counter)) - 1
    drawn = np.random.Generator(
        np.random.Philox(key=np.array(key, dtype=np.uint64), counter=start % (1 << 256))
    )
    assert drawn.integers(0, 1 << 64, size=4, dtype=np.uint64).tolist() == list(answer)


@pytest.mark.parametrize("complex_entries", [False, True])
def test_entries_are_the_function_of_seed_and_position(complex_entries: bool) -> None:
    big = StreamedMatrix(10**6, 10**6, SEED, complex_entries=complex_entries)
    places = [(0, 0), (255, 511), (256, 512), (257, 4095), (999_999, 999_999), (123_456, 654_321)]
    for i, j in places:
        found = complex(big.block(range(i, i + 1), range(j, j + 1)).item())
        expected = complex(entry(i, j))
        if complex_entries:
            expected = math.sqrt(0.5) * complex(entry(i, j), entry(i, j, part=1))
        assert found == pytest.approx(expected, rel=2e-7 if complex_entries else 0.0, abs=0.0)


def test_the_bits_are_those_of_every_machine() -> None:
    """Of the table, and of a stretch of the matrix that crosses a panel: equal seeds are equal devices anywhere."""
    bits = StreamedMatrix(600, 600, SEED).block(range(250, 262), range(505, 517)).numpy()
    assert sha256(quantiles().astype("<f4").tobytes()).hexdigest()[:16] == "8babbcaf96568f10"
    assert sha256(bits.astype("<f4").tobytes()).hexdigest()[:16] == "4f5188239a28123f"


_ROWS, _COLUMNS = 600, 1100
_WHOLE = {
    kind: StreamedMatrix(_COLUMNS, _ROWS, SEED, complex_entries=kind).block(range(_ROWS), range(_COLUMNS))
    for kind in (False, True)
}


def stretches(limit: int) -> st.SearchStrategy[range]:
    ends = st.lists(st.integers(0, limit), min_size=2, max_size=2, unique=True)
    return ends.map(lambda pair: range(min(pair), max(pair)))


@settings(max_examples=25, deadline=None)
@given(rows=stretches(_ROWS), columns=stretches(_COLUMNS), kind=st.booleans(), threads=st.integers(1, 4))
def test_any_part_on_any_number_of_threads_is_that_part_of_the_whole(
    rows: range, columns: range, kind: bool, threads: int
) -> None:
    # Whatever the matrix is a part of: entries do not depend on its size.
    larger = StreamedMatrix(_COLUMNS + 900, _ROWS + 700, SEED, complex_entries=kind)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streamed_matrix, "_SHARED", 0)
            patch.setattr(streamed_matrix, "_COLUMNS", 100 * threads)
            patch.setattr(streamed_matrix, "_PIECE", 7 * threads)
            found = larger.block(rows, columns)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, _WHOLE[kind][rows.start : rows.stop, columns.start : columns.stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("kind", [False, True], ids=["real", "complex"])
def test_products_are_those_with_the_whole(
    kind: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = StreamedMatrix(_COLUMNS, _ROWS, SEED, complex_entries=kind)
    result = dtype.to_complex() if kind else dtype
    whole = _WHOLE[kind].to(result)
    stream = torch.Generator().manual_seed(1)
    x, y = (torch.randn(5, n, generator=stream, dtype=dtype) for n in (_COLUMNS, _ROWS))
    expected = (x.to(result) @ whole.T, y.to(result) @ whole)
    assert _WHOLE[kind].dtype == (torch.complex64 if kind else torch.float32)
    monkeypatch.setattr(streamed_matrix, "_SHARED", 0)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for found, right in zip((matrix.times(x), matrix.transposed_times(y)), expected, strict=True):
            assert found.dtype == result
            assert float((found - right).abs().max()) < 2e-6 * float(right.abs().max())


def test_the_law_is_as_near_to_the_normal_one_as_is_said() -> None:
    values = quantiles().astype(np.float64)
    k = np.arange(1 << 16)
    assert values == pytest.approx(1.0000101 * norm.ppf((k + 0.5) / (1 << 16)), rel=2e-7)
    assert abs(np.mean(values**2) - 1) < 1e-8
    assert np.array_equal(values, -values[::-1])
    assert np.all(np.diff(values) > 0)
    assert values[-1] < 4.325
    assert np.mean(values**4) == pytest.approx(2.99925, abs=5e-6)
    below = norm.cdf(values)
    distance = max(np.max(below - k / (1 << 16)), np.max((k + 1) / (1 << 16) - below))
    assert distance == pytest.approx(1.01e-5, abs=1e-7)


def test_entries_are_independent_normal_numbers() -> None:
    """A sound generator fails each with probability below 1e-6; the seed is fixed."""
    found = StreamedMatrix(1024, 1024, SEED, complex_entries=True).block(range(1024), range(1024))
    re, im = found.real.double().mul(math.sqrt(2)), found.imag.double().mul(math.sqrt(2))
    for part in (re, im):
        assert kstest(part.flatten().numpy(), norm.cdf).pvalue > 1e-6
    neighbours = {
        "parts": (re, im),
        "rows": (re[1:], re[:-1]),
        "columns": (re[:, 1:], re[:, :-1]),
        "counters": (re[16:], re[:-16]),
        "panels": (re[PANEL:], re[:-PANEL]),
        "transpose": (re.triu(1), re.T.triu(1)),
        "squares": (re[1:].square() - 1, re[:-1].square() - 1),
        "seeds": (re, StreamedMatrix(1024, 1024, SEED + 1).block(range(1024), range(1024)).double()),
    }
    for name, (x, y) in neighbours.items():
        correlation = float((x * y).sum() / (x.norm() * y.norm()))
        assert abs(correlation) < 5 / math.sqrt(int((x != 0).sum())), name
    # Marchenko-Pastur: the singular values of a square matrix end at 2 sqrt(n), up to n^(-2/3).
    assert float(torch.linalg.matrix_norm(re, 2)) == pytest.approx(2 * math.sqrt(1024), rel=0.03)


def test_nothing_of_its_size_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the profiler sees this thread alone
    n = 4096
    device = StreamedBackend(n, n, seed=SEED, noise=NoiseGenerator.seeded(SEED, "noise"))

    def largest(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
                call()
            # numpy's peak, and the largest that torch took at once.
            return tracemalloc.get_traced_memory()[1] + max(e.cpu_memory_usage for e in seen.events())
        finally:
            tracemalloc.stop()

    assert largest(device.matrix) >= 4 * n * n  # it would show
    assert largest(lambda: device.project(torch.ones(1, n))) < 4 * n * PANEL + 4e6


def test_a_matrix_that_cannot_be_held_is_refused() -> None:
    device = StreamedBackend(10**6, 10**6, seed=SEED, noise=NoiseGenerator.seeded(SEED, "noise"))
    with pytest.raises(
        UsageError, match=r"^1000000 x 1000000 entries of a feedback matrix .* take a part of it$"
    ):
        device.matrix()


def test_a_stored_matrix_that_does_not_fit_names_this_backend() -> None:
    with pytest.raises(
        UsageError, match=r"^a feedback matrix of 10000000 x 10000000 .* use backend streamed"
    ):
        DigitalBackend(10**7, 10**7, seed=SEED, noise=NoiseGenerator.seeded(SEED, "noise"))
