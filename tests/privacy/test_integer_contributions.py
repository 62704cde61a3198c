"""Contributions as integers: never above the bound, unbiased, and added up exactly (THEORY T6)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions import integers
from privacy.contributions.integers import (
    LEAST_BOUND,
    Factors,
    Whole,
    WholeSum,
    _sizes,
    least_bound,
)
from privacy.contributions.positions import bounds_of_sums, norms_of_sums
from privacy.contributions.products import multiplies_int8
from privacy.contributions.rounding import _bounds, _Lane
from privacy.workers import Workers

DIMENSION = 94


@pytest.fixture(params=["int8", "float32"], autouse=True)
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a unit for products of int8."""
    if request.param == "float32":
        monkeypatch.setattr(integers, "multiplies_int8", lambda *_: False)
    elif not multiplies_int8(torch.device("cpu"), 8, 8):
        pytest.skip("this processor has no exact products of int8")
    return str(request.param)


def coins(seed: int = 0) -> NoiseGenerator:
    return NoiseGenerator.seeded(seed, "coins")


def stack(records: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Factors]:
    """A layer with its bias, 7 -> 5; one with its own, 5 -> 3; an embedding of 4 tokens; 6 -> 4, three times."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return scale * torch.randn(records, *shape, generator=g, dtype=dtype)

    tokens = torch.randint(0, 4, (records, 2), generator=g)
    entries = drawn(2, 3)
    entries[tokens[:, 0] == tokens[:, 1], 1] = 0.0  # a token stands once
    return [
        Factors(0, drawn(5), drawn(7), bias=35),
        Factors(40, drawn(3), drawn(5)),
        Factors(55, drawn(3)),
        Factors(58, entries.flatten(1), tokens=tokens, entries=4),
        Factors.summed(70, drawn(3, 4), drawn(3, 6)),
    ]


def added_up(
    given: list[Factors], *, grid: float, bound: int, seed: int = 0, dimension: int = DIMENSION
) -> tuple[WholeSum, list[Whole]]:
    total = WholeSum(dimension, "cpu", grid=grid, bound=bound, coins=coins(seed))
    return total, total.whole(given)


def written_out(found: list[Whole], dimension: int = DIMENSION) -> Tensor:
    """What each record contributes to every coordinate, shape (m, dimension), int64, without any sum of records."""
    out = torch.zeros(len(found[0].rows), dimension, dtype=torch.int64)
    for part in found:
        stated, rows = part.stated, part.rows.to(torch.int64)
        if len(rows) < len(out):
            continue
        here = slice(stated.offset, stated.offset + stated.numel)
        if stated.tokens is not None:
            width = rows.shape[1] // stated.tokens.shape[1]
            table = out[:, here].view(len(out), stated.entries, width)
            for i, tokens in enumerate(stated.tokens.tolist()):
                for place, token in enumerate(tokens):
                    table[i, token] += rows[i].view(-1, width)[place]
        elif part.cols is None:
            out[:, here] += rows
        elif rows.ndim == 3:
            out[:, here] += (rows.unsqueeze(3) * part.cols.to(torch.int64).unsqueeze(2)).sum(1).flatten(1)
        else:
            products = rows.unsqueeze(2) * part.cols.to(torch.int64).unsqueeze(1)
            if stated.bias is not None:
                out[:, stated.bias : stated.bias + rows.shape[1]] += products[:, :, -1]
                products = products[:, :, :-1]
            out[:, here] += products.flatten(1)
    return out


def whole(
    given: list[Factors], *, grid: float, bound: int, seed: int = 0, dimension: int = DIMENSION
) -> Tensor:
    """As `written_out`, of records whose entries fit int8 and of those whose do not."""
    _, found = added_up(given, grid=grid, bound=bound, seed=seed, dimension=dimension)
    out = written_out(found[: len(given)], dimension)
    for start in range(len(given), len(found), len(given)):  # further ones stand for fewer records
        wide = found[start : start + len(given)]
        chosen = wide[0].stated.rows
        places = [int(torch.nonzero((given[0].rows == row).flatten(1).all(1))[0]) for row in chosen]
        out[places] += written_out(wide, dimension)
    return out


# ---- the bound


@given(
    st.integers(0, 2**31),
    st.floats(-12, 12),
    st.sampled_from([2, 16, 256, 4096, 1 << 20]),
    st.floats(-6, 6),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_no_record_is_above_the_bound_whatever_it_holds(
    seed: int, magnitude: float, bound: int, grid: float, dtype: torch.dtype
) -> None:
    """In Python's own integers, for any scale of the contributions and of the grid."""
    found = whole(stack(6, seed, 10.0**magnitude, dtype), grid=10.0**grid, bound=bound, seed=seed)
    for record in found.tolist():
        assert sum(x * x for x in record) <= bound**2


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_record_is_above_the_bound_at_the_ends_of_the_range(data: st.DataObject) -> None:
    """Rows and columns of any scale, apart by hundreds of decades; subnormals flushed or not."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    most = {torch.float32: 38, torch.float64: 300}[dtype]
    given = stack(4, data.draw(st.integers(0, 2**31)), 1.0, torch.float64)
    scaled = []
    for part in given:
        rows, cols = (10.0 ** data.draw(st.floats(-most - 7, most)) for _ in range(2))
        scaled.append(
            replace(
                part,
                rows=(part.rows * rows).to(dtype),
                cols=None if part.cols is None else (part.cols * cols).to(dtype),
            )
        )
    bound = data.draw(st.sampled_from([256, 1 << 13, 1 << 20]))
    norm = 10.0 ** data.draw(st.floats(-12, 12))
    torch.set_flush_denormal(data.draw(st.booleans()))
    try:
        total, found = added_up(scaled, grid=bound / norm, bound=bound)
        records = written_out(found[: len(scaled)])
        assert len(found) == len(scaled) or bound == 1 << 20  # on a coarse grid every entry fits
        for record in records.tolist():
            assert sum(x * x for x in record) <= bound**2
        total = WholeSum(DIMENSION, "cpu", grid=bound / norm, bound=bound, coins=coins())
        total.add(scaled)
    finally:
        torch.set_flush_denormal(False)
    assert int(total.total.to(torch.int64).square().sum()) <= (4 * bound) ** 2


@pytest.mark.parametrize("sizes", [(1e-163, 1e153), (1e153, 1e-163), (1e-200, 1e199), (1e-30, 1e300)])
def test_factors_far_apart_are_bounded_or_silent_in_double_precision(sizes: tuple[float, float]) -> None:
    """Their squares leave the range although the product does not."""
    rows, cols = (torch.full((1, 4), size, dtype=torch.float64) for size in sizes)
    _, found = added_up([Factors(0, rows, cols)], grid=256 / 1e-12, bound=256, dimension=16)
    assert int(written_out(found, 16).square().sum()) <= 256**2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, 1e-42])
@pytest.mark.parametrize("where", ["rows", "cols"])
def test_records_out_of_range_are_silent_or_bounded_and_touch_no_other(value: float, where: str) -> None:
    given = stack(4, 1)
    getattr(given[0], where)[2, 1] = value
    found = whole(given, grid=256.0, bound=256)
    others = whole(stack(4, 1), grid=256.0, bound=256)
    kept = [0, 1, 3]
    assert torch.equal(found[kept], others[kept])
    assert int(found[2].square().sum()) <= 256**2
    if not math.isfinite(value):
        assert not found[2].any()


def test_factors_whose_product_is_nothing_add_nothing() -> None:
    rows, cols = torch.full((1, 4), 1e30), torch.zeros(1, 3)
    total = WholeSum(12, "cpu", grid=1e8, bound=256, coins=coins())
    total.add([Factors(0, rows, cols)])
    assert not total.total.any()


@pytest.mark.parametrize("zero", ["rows", "cols"])
def test_a_factor_of_zero_silences_one_parameter_only(zero: str) -> None:
    given = stack(4, 1)
    getattr(given[0], zero)[2] = 0.0
    found = whole(given, grid=4096.0, bound=8192)[2]
    assert not found[:35].any()
    assert found[40:55].any()
    assert bool(found[35:40].any()) == (zero == "cols")  # the bias shares delta


# ---- what they stand for


def test_rounding_keeps_the_mean() -> None:
    """20 000 roundings of one record inside the clip: every coordinate's mean is within 5.5 standard errors (2e-6)."""
    times, grid, bound = 20_000, 32.0, 128
    one = stack(1, 3, 0.2)
    many = [part.part(torch.zeros(times, dtype=torch.int64)) for part in one]
    found = written_out(added_up(many, grid=grid, bound=bound, seed=5)[1]).double()
    exact = torch.zeros(DIMENSION, dtype=torch.float64)
    for part in one:
        rows = part.rows[0].double()
        if part.tokens is not None:
            for row, token in zip(rows.view(-1, 3), part.tokens[0].tolist(), strict=True):
                exact[part.offset + 3 * token : part.offset + 3 * token + 3] += row
        elif part.cols is None:
            exact[part.offset : part.offset + part.numel] = rows
        elif part.norms is not None:
            exact[part.offset : part.offset + part.numel] = (rows.T @ part.cols[0].double()).flatten()
        else:
            exact[part.offset : part.offset + part.numel] = torch.outer(rows, part.cols[0].double()).flatten()
        if part.bias is not None:
            exact[part.bias : part.bias + len(rows)] = rows
    assert float(exact.norm()) * grid < 0.5 * bound  # nobody is clipped
    error = found.mean(0) - grid * exact
    assert bool((error.abs() <= 5.5 * found.std(0) / math.sqrt(times) + 1e-9).all())


@pytest.mark.parametrize(("bound", "alike"), [(1 << 14, True), (1 << 10, False)])
def test_few_numbers_share_a_coin_and_keep_their_means(bound: int, alike: bool) -> None:
    """The same 1 000 numbers, 4 000 times: means within 6 standard errors (2e-6). Records differ, and
    equal numbers of one go the same way where the 16 steps that this may add are little beside the bound."""
    times = 4000
    row = torch.linspace(-1.2, 1.2, 500).repeat_interleave(2) / bound
    _, (found,) = added_up(
        [Factors(0, row.expand(times, 1000))], grid=float(bound), bound=bound, dimension=1000
    )
    whole = found.rows.double()
    assert float((whole - row * bound).abs().max()) < 1 + 1e-3
    error = whole.mean(0) - row * bound
    assert bool((error.abs() <= 6 * whole.std(0) / math.sqrt(times) + 1e-4).all())
    assert bool((whole[:, ::2] == whole[:, 1::2]).all()) == alike


def test_a_record_at_the_clip_keeps_its_direction_and_nearly_its_norm() -> None:
    """784 -> 512 at the default grid: what is lost to rounding and its room is a few per cent."""
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randn(64, 512, generator=g), torch.randn(64, 784, generator=g).clamp_min(0.0)
    bound = least_bound([(512, 784)])
    assert bound & (bound - 1) == 0
    _, (found,) = added_up([Factors(0, rows, cols)], grid=float(bound), bound=bound, dimension=512 * 784)
    norms = found.rows.double().norm(dim=1) * found.cols.double().norm(dim=1) / bound  # type: ignore[union-attr]
    assert 0.94 < float(norms.min()) <= float(norms.max()) <= 1.0
    assert found.cols is not None
    along = (rows * found.rows).sum(1) * (cols * found.cols).sum(1)
    along = along / (rows.norm(dim=1) * cols.norm(dim=1)) / bound
    assert float(along.min()) > 0.9


@pytest.mark.parametrize(("least", "share"), [(LEAST_BOUND, 1 / 80), (1 << 13, 1 / 20)])
def test_the_least_bound_keeps_the_growth_by_rounding_small(least: int, share: float) -> None:
    """|r|²|c|² grows to (|r|² + n/6)(|c|² + d/6); at the bound, with factors balanced."""
    for shape in [(512, 784), (10, 512), (4096, 4096), (64, 3, 3, 3), (10**9,)]:
        n, d = shape if len(shape) == 2 else (math.prod(shape), 1)
        bound = least_bound([shape], least, share)
        growths = []
        for b in (bound, bound // 2):
            r, c = (b * math.sqrt(n / d), b * math.sqrt(d / n)) if d > 1 else (b**2, 1.0)
            grown = (r + n / 6) * (c + d / 6) if d > 1 else r + n / 6
            growths.append(grown / b**2 - 1)
        assert growths[0] <= share * (1 + 1e-9)
        assert growths[1] > share or bound == least


# ---- sums over positions


def test_a_record_is_measured_alike_beside_others_and_alone_however_it_lies_in_memory() -> None:
    """Positions last in memory, as a convolution leaves them; 50 pairs."""
    for seed in range(50):
        g = torch.Generator().manual_seed(seed)
        both = Factors.summed(0, *(torch.randn(2, 256, 5, generator=g).transpose(1, 2) for _ in range(2)))
        beside, alone = _sizes(both), _sizes(both.part(slice(0, 1)))
        assert all(torch.equal(x[:1], y) for x, y in zip(beside, alone, strict=True))


def test_positions_that_cancel_keep_most_of_a_record(unit: str) -> None:
    """Columns' common mean is 30 times their spread, rows sum to nearly nothing: entries leave int8."""
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randn(8, 31, 128, generator=g), torch.randn(8, 31, 128, generator=g)
    rows -= rows.mean(1, keepdim=True)
    cols += 30 * torch.randn(8, 1, 128, generator=g)
    stated = Factors.summed(0, rows, cols)
    assert stated.norms is not None
    exact = (rows.mT @ cols).double()
    grid = float((1 << 15) / stated.norms.max())
    kept = whole([stated], grid=grid, bound=1 << 15, dimension=128 * 128).double()
    share = (kept * exact.flatten(1)).sum(1) / (exact.square().sum((1, 2)) * grid)
    assert float(share.min()) > 0.75


@pytest.mark.parametrize(
    ("positions", "n", "d", "keeps"), [(16, 768, 768, True), (16, 64, 64, False), (32, 256, 256, False)]
)
def test_sums_of_few_wide_products_are_rounded_product_by_product(
    positions: int, n: int, d: int, keeps: bool, unit: str
) -> None:
    total = WholeSum(1, "cpu", grid=1.0, bound=1 << 15, coins=coins())
    assert total.keeps_factors(positions, n, d) is (keeps and unit == "int8")
    coarse = WholeSum(1, "cpu", grid=1.0, bound=1 << 12, coins=coins())
    assert not coarse.keeps_factors(positions, n, d)  # rounding would leave little


@pytest.mark.parametrize("positions", [1, 2, 33])
def test_norms_of_sums_over_positions_are_those_of_the_sums(positions: int) -> None:
    """From scalar products: the estimate, and the bound of whole numbers, also where most of it cancels."""
    g = torch.Generator().manual_seed(positions)
    rows, cols = (torch.randint(-127, 128, (5, positions, k), generator=g) for k in (1100, 7))
    if positions > 1:
        rows[0, 1:], cols[0, 1:] = rows[0, :1], 0
        rows[1], rows[1, 1] = 0, rows[1, 0]
        cols[1, 1] = -cols[1, 0]
    exact = torch.einsum("mtn,mtd->mnd", rows.double(), cols.double()).square().sum((1, 2))
    found = bounds_of_sums(rows.to(torch.int8), cols.to(torch.int8))
    assert bool((found >= exact).all())
    assert torch.allclose(found, exact, rtol=1e-12, atol=1e-3)
    estimate = norms_of_sums(rows.float(), cols.float())
    assert torch.allclose(estimate, exact.sqrt(), rtol=1e-5, atol=1.0)


@pytest.mark.parametrize("size", [2.0**11, 2.0**13, 2.0**27])
def test_positions_too_large_for_float32_are_bounded_and_added_up_exactly(size: float) -> None:
    """Two positions that cancel but for a unit: their squares leave float32 from 2^12, and float64 from 2^25."""
    rows = torch.tensor([[[size], [size]]])
    cols = torch.tensor([[[1.0, 0.0], [-1.0, 1.0 / size]]])
    square = bounds_of_sums(rows, cols * size)
    assert float(square) >= size**2
    assert (float(square) < math.inf) == (size < 2.0**25)
    total = WholeSum(2, "cpu", grid=1.0, bound=1 << 20, coins=coins())
    total.add([Factors(0, rows, cols, norms=torch.ones(1, dtype=torch.float64))])
    assert int(total.total.square().sum()) <= 2**40


def test_a_long_sum_of_positions_that_cancel_is_exact() -> None:
    """1201 products of 14 400 before 1200 of -14 400: the partial sums leave 2^24, the record is within 2^20."""
    rows, cols = torch.full((2, 2401, 1), 120.0), torch.full((2, 2401, 1), 120.0)
    cols[:, 1201:] *= -1
    total = WholeSum(1, "cpu", grid=1.0, bound=1 << 20, coins=coins())
    total.add([Factors.summed(0, rows, cols)])
    assert total.total.tolist() == [2 * 14_400]


# ---- the sum


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([256, 1 << 13, 1 << 20]))
@settings(max_examples=50, deadline=None)
def test_sums_are_exact_in_any_order(seed: int, records: int, bound: int) -> None:
    """The same coins for every record, so that it is rounded alike wherever it stands: then only sums differ."""
    given = stack(records, seed, 0.1)
    one = WholeSum(DIMENSION, "cpu", grid=float(bound), bound=bound, coins=coins(seed))
    found = one.whole(given)
    expected = torch.zeros(DIMENSION, dtype=torch.int64)
    for start in range(0, len(found), len(given)):
        expected += written_out(found[start : start + len(given)]).sum(0)
    for part in found:
        one._add(part)
    assert torch.equal(one.total.to(torch.int64), expected)
    other = WholeSum(DIMENSION, "cpu", grid=float(bound), bound=bound, coins=coins(seed))
    for part in found:
        shuffled = torch.randperm(len(part.rows), generator=torch.Generator().manual_seed(seed))
        cols = None if part.cols is None else part.cols[shuffled]
        other._add(Whole(part.stated.part(shuffled), part.rows[shuffled], cols))
    assert torch.equal(other.total, one.total)


def test_a_long_sum_of_records_at_the_bound_is_exact_and_does_not_overflow() -> None:
    """5,000 records of 2^20 in one coordinate pass 2^24 and 2^31."""
    bound, records = 1 << 20, 5000
    total = WholeSum(1, "cpu", grid=1.0, bound=bound, coins=coins())
    total.add([Factors(0, torch.full((records, 1), 0.9 * bound))])
    assert total.total.dtype is torch.int64
    per_record = float(total.total) / records
    assert per_record == pytest.approx(0.9 * bound, rel=0.01)
    assert int(total.total) > 2**31


def test_a_product_of_more_records_than_int32_holds_is_exact() -> None:
    """300,000 aligned records of 4 x 4 entries pass 2^31 in every coordinate, in one run."""
    bound, records = 1 << 15, 300_000
    total = WholeSum(16, "cpu", grid=float(bound), bound=bound, coins=coins())
    total.add([Factors(0, torch.ones(records, 4), torch.ones(records, 4))])
    assert total.total.dtype is torch.int64
    for coordinate in total.total.tolist():
        assert 2**31 < coordinate <= records * bound / 4
        assert coordinate == pytest.approx(records * bound / 4, rel=0.03)


def test_numbers_that_do_not_fit_int8_are_added_up_as_well() -> None:
    """A sparse input on a fine grid: one entry holds the whole norm."""
    rows, cols = torch.zeros(6, 9), torch.zeros(6, 50)
    rows[:, 2] = 1.0
    cols[:, 7] = torch.tensor([1.0, 0.001, 1.0, 0.5, 1.0, 0.02])
    total = WholeSum(459, "cpu", grid=8192.0, bound=8192, coins=coins())
    total.add([Factors(0, rows, cols, bias=450)])
    assert int(total.total[2 * 50 + 7]) == pytest.approx(8192 * 3.521 * 0.7, rel=0.3)
    assert int(total.total.abs().sum()) > 8192


def test_products_of_int8_that_saturate_are_refused(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """As of processors that add pairs in 16 bits: 127 · 127 + 127 · 127 is 32258, and four of them do not fit."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(
        torch, "_int_mm", lambda a, b: (a.float() @ b.float()).clamp(-(2**15), 2**15 - 1).to(torch.int32)
    )
    assert not multiplies_int8.__wrapped__(torch.device("cpu"), 8, 8)


def worked_on(total: WholeSum) -> list[bool]:
    lanes = total._round._lanes
    buffers = [memory for part in (total._round, *lanes) for memory in part._memory.values()]
    return [bool(memory.any()) for memory in buffers] + [bool(lane._words.any()) for lane in lanes]


def test_what_was_worked_on_is_overwritten() -> None:
    total = WholeSum(DIMENSION, "cpu", grid=256.0, bound=256, coins=coins())
    total.add(stack(5, 3))
    before = total.total.clone()
    assert any(worked_on(total))
    total.wipe()
    assert not any(worked_on(total))
    copied = copy.deepcopy(total)
    assert not copied.total.any()
    assert torch.equal(total.total, before)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 30), (2, 1), (30, 1), (3, 2), (16, 17)])
@pytest.mark.parametrize("records", [1, 2, 3, 67])
def test_factors_of_any_width_are_added_up(n: int, d: int, records: int) -> None:
    """A product of one column, whose transpose looks contiguous, came back unwritten."""
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randn(records, n, generator=g), torch.randn(records, d, generator=g)
    total = WholeSum(n * d + n, "cpu", grid=float(1 << 13), bound=1 << 13, coins=coins())
    (found,) = total.whole([Factors(0, rows, cols, bias=n * d)])
    assert found.cols is not None
    product = found.rows.long().T @ found.cols.long()
    junk = torch.full((n * d + n,), 123456789, dtype=torch.int32)
    del junk
    total._add(found)
    assert torch.equal(total.total.long(), torch.cat([product[:, :d].flatten(), product[:, d]]))


def test_a_product_that_comes_back_unwritten_is_refused(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.empty(a.shape[0], b.shape[1], dtype=torch.int32))
    assert not multiplies_int8.__wrapped__(torch.device("cpu"), 8, 8)


EXTREMES = [0.0, 1e-45, -1e-44, 1e-39, 1e-30, 1e-20, 1.0, 1e20, -1e30, 1e38, math.inf, math.nan]


@pytest.mark.parametrize("bias", [None, 120])
@pytest.mark.parametrize("bound", [256, 1 << 13, 1 << 17])
def test_no_record_is_above_the_bound_or_moves_another_whatever_it_holds(
    bound: int, bias: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair of extremes in otherwise empty factors, beside records that do not fit int8.

    A scale that was infinite in float32 made a record NaN, or hid from all others that they did not fit.
    """
    monkeypatch.setattr(_Lane, "_drawn", lambda self, count: torch.full((count, 1), 4660.0))
    pairs = list(product(EXTREMES, EXTREMES))
    rows, cols = torch.zeros(2 * len(pairs), 3), torch.zeros(2 * len(pairs), 40)
    for record, (row, col) in enumerate(pairs):
        rows[2 * record, 1], cols[2 * record, 5] = row, col
        rows[2 * record + 1], cols[2 * record + 1, record % 40] = 1.0, 1.0
    given = Factors(0, rows, cols, bias=bias)

    def summed(part: Factors) -> Tensor:
        total = WholeSum(123, "cpu", grid=2.0 * bound, bound=bound, coins=coins())
        total.add([part])
        return total.total.long()

    alone = [summed(given.part(slice(i, i + 1))) for i in range(len(rows))]
    for own in alone:
        assert int(own.square().sum()) <= bound**2
    assert all(bool(own.any()) for own in alone[1::2])
    assert torch.equal(torch.stack(alone).sum(0), summed(given))


def test_a_layer_or_a_text_without_entries_adds_nothing() -> None:
    total = WholeSum(20, "cpu", grid=256.0, bound=256, coins=coins())
    nothing = torch.zeros(4, 0)
    tokens = torch.zeros(4, 0, dtype=torch.int64)
    total.add([
        Factors(0, nothing, torch.ones(4, 3)),
        Factors(0, torch.ones(4, 5), nothing, bias=0),
        Factors(5, nothing, tokens=tokens, entries=3),
    ])  # fmt: skip
    assert total.total[:5].all()
    assert not total.total[5:].any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_sum_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    given, sums = stack(1000, 5), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            total = WholeSum(DIMENSION, "cpu", grid=float(1 << 13), bound=1 << 13, coins=coins())
            total.add([*given])  # which is emptied
            assert torch.get_num_threads() == count
            sums.append(total.total)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*sums)


@pytest.mark.parametrize("width", [1, 7, 8192, 8193, 12288, 16384, 30_000, 65_537])
@pytest.mark.parametrize("largest", [1, 127, 1 << 20])
def test_bounds_of_norms_are_above_them_and_tight(width: int, largest: int) -> None:
    g = torch.Generator().manual_seed(width)
    whole = torch.randint(-largest, largest + 1, (5, width), generator=g).float()
    whole[0] = largest
    exact = [math.sqrt(sum(int(x) ** 2 for x in row.tolist())) for row in whole]
    for bound, norm in zip(_bounds(whole).tolist(), exact, strict=True):
        assert norm <= bound <= 1.001 * norm


# ---- the sum of several workers


@dataclass(frozen=True)
class Beside(Workers):
    """This worker's sum with those of others, which are given."""

    others: tuple[Tensor, ...] = ()

    def add_up(self, part: Tensor) -> Tensor:
        assert all(other.dtype is part.dtype for other in self.others)
        return part + sum(self.others)


def shared(records: int, shares: list[range], bound: int, joint: int) -> tuple[Tensor, list[WholeSum]]:
    """One worker's sum of all records, and the sums of workers that have shares of them; each draws the same coins."""
    given = stack(records, 3)
    sums = [
        WholeSum(DIMENSION, "cpu", grid=bound / 4, bound=bound, coins=coins()) for _ in range(1 + len(shares))
    ]
    for total, share in zip(sums, [range(records), *shares], strict=True):
        total.add([part.part(torch.tensor(share)) for part in given] if len(share) else [])
    for total in sums:
        total._hold(joint)
    return sums[0].total, sums[1:]


@pytest.mark.parametrize("joint", [9, 1 << 40], ids=["int32", "int64"])
@pytest.mark.parametrize(
    "shares", [[range(9), range(0)], [range(4), range(4, 9)], [range(2), range(2, 3), range(3, 9)]]
)
def test_the_sum_of_several_workers_is_that_of_one(
    shares: list[range], joint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the type that holds all records' sum, of which a worker may have none."""
    monkeypatch.setattr(_Lane, "_drawn", lambda self, count: torch.full((count, 1), 4660.0))
    expected, (first, *others) = shared(9, shares, LEAST_BOUND, joint)
    first.add_up(Beside(0, len(shares), others=tuple(other.total for other in others)), joint)
    assert first.total.dtype is (torch.int32 if joint == 9 else torch.int64)
    assert torch.equal(first.total, expected)


def test_the_gradient_lies_in_the_memory_of_the_sum() -> None:
    total = WholeSum(DIMENSION, "cpu", grid=1.0, bound=1 << 15, coins=coins(0))
    total.total += torch.arange(DIMENSION, dtype=torch.int32)
    place = total.total.data_ptr()
    found = total.in_units(0.25, torch.float32)
    assert found.data_ptr() == place
    assert not len(total.total)
    assert torch.equal(found, torch.arange(DIMENSION) / 4)
    total.clear()
    assert torch.equal(total.total, torch.zeros(DIMENSION, dtype=torch.int32))
    assert torch.equal(found, torch.arange(DIMENSION) / 4)  # the next sum has memory of its own
