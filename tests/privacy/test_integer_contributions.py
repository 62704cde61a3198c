"""Contributions as integers: never above the bound, unbiased, and added up exactly (THEORY T6)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.integers import (
    EXACT_FLOAT32,
    LEAST_BOUND,
    Factors,
    add_exactly,
    integers,
    least_bound,
)


def coins(seed: int = 0) -> NoiseGenerator:
    return NoiseGenerator.seeded(seed, "coins")


def stack(records: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Factors]:
    """Two layers with biases: 7 -> 5 -> 3."""
    g = torch.Generator().manual_seed(seed)

    def drawn(width: int) -> Tensor:
        return scale * torch.randn(records, width, generator=g, dtype=dtype)

    first, second = drawn(5), drawn(3)
    return [
        Factors(0, first, drawn(7)),
        Factors(35, first),
        Factors(40, second, drawn(5)),
        Factors(55, second),
    ]


def written_out(part: Factors) -> Tensor:
    """Shape (m, numel), int64."""
    rows = part.rows.to(torch.int64)
    if part.cols is None:
        return rows
    return (rows.unsqueeze(2) * part.cols.to(torch.int64).unsqueeze(1)).flatten(1)


def whole(found: list[Factors]) -> Tensor:
    return torch.cat([written_out(part) for part in found], dim=1)


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
    given = stack(6, seed, 10.0**magnitude, dtype)
    found = integers(given, grid=10.0**grid, bound=bound, coins=coins(seed))
    for part in found:
        for x in (part.rows, part.cols):
            assert x is None or torch.equal(x, x.round())
    for record in whole(found).tolist():
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
            Factors(
                part.offset,
                (part.rows * rows).to(dtype),
                None if part.cols is None else (part.cols * cols).to(dtype),
            )
        )
    bound = data.draw(st.sampled_from([256, 1 << 13, 1 << 20]))
    norm = 10.0 ** data.draw(st.floats(-12, 12))
    torch.set_flush_denormal(data.draw(st.booleans()))
    try:
        found = integers(scaled, grid=bound / norm, bound=bound, coins=coins())
    finally:
        torch.set_flush_denormal(False)
    for record in whole(found).tolist():
        assert sum(x * x for x in record) <= bound**2
    out = torch.zeros(58, dtype=torch.float64)
    for part in found:
        add_exactly(part, bound, out)
    assert torch.equal(out, whole(found).sum(0).double())


@pytest.mark.parametrize("sizes", [(1e-163, 1e153), (1e153, 1e-163), (1e-200, 1e199), (1e-30, 1e300)])
def test_factors_far_apart_are_bounded_or_silent_in_double_precision(sizes: tuple[float, float]) -> None:
    """Their squares leave the range although the product does not."""
    rows, cols = (torch.full((1, 4), size, dtype=torch.float64) for size in sizes)
    (found,) = integers([Factors(0, rows, cols)], grid=256 / 1e-12, bound=256, coins=coins())
    assert not written_out(found).any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, 1e-42])
@pytest.mark.parametrize("where", ["rows", "cols"])
def test_records_out_of_range_are_silent_or_bounded_and_touch_no_other(value: float, where: str) -> None:
    given = stack(4, 1)
    getattr(given[0], where)[2, 1] = value
    found = whole(integers(given, grid=256.0, bound=256, coins=coins()))
    others = whole(integers(stack(4, 1), grid=256.0, bound=256, coins=coins()))
    kept = [0, 1, 3]
    assert torch.equal(found[kept], others[kept])
    assert int(found[2].square().sum()) <= 256**2
    if not math.isfinite(value):
        assert not found[2].any()


def test_factors_whose_product_is_nothing_add_nothing() -> None:
    rows, cols = torch.full((1, 4), 1e30), torch.zeros(1, 3)
    (found,) = integers([Factors(0, rows, cols)], grid=1e8, bound=256, coins=coins())
    out = torch.zeros(12, dtype=torch.float64)
    add_exactly(found, 256, out)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("zero", ["rows", "cols"])
def test_a_factor_of_zero_silences_one_parameter_only(zero: str) -> None:
    given = stack(4, 1)
    getattr(given[0], zero)[2] = 0.0
    found = integers(given, grid=4096.0, bound=8192, coins=coins())
    assert not written_out(found[0])[2].any()
    assert found[2].rows[2].any()
    assert found[1].rows[2].any() == (zero == "cols")  # the bias shares delta


# ---- what they stand for


def test_rounding_keeps_the_mean() -> None:
    """20 000 roundings of one record inside the clip: every coordinate's mean is within 5.5 standard errors (2e-6)."""
    times, grid, bound = 20_000, 64.0, 256
    one = stack(1, 3, 0.2)
    many = [
        Factors(p.offset, p.rows.repeat(times, 1), None if p.cols is None else p.cols.repeat(times, 1))
        for p in one
    ]
    found = whole(integers(many, grid=grid, bound=bound, coins=coins(5))).double()
    exact = torch.cat(
        [p.rows if p.cols is None else (p.rows.unsqueeze(2) * p.cols.unsqueeze(1)).flatten(1) for p in one], 1
    )
    assert float(exact.norm()) * grid < 0.5 * bound  # nobody is clipped
    error = found.mean(0) - grid * exact[0].double()
    assert bool((error.abs() <= 5.5 * found.std(0) / math.sqrt(times) + 1e-9).all())


def test_a_record_at_the_clip_keeps_its_direction_and_nearly_its_norm() -> None:
    """784 -> 512 at the default grid: what is lost to rounding and its room is a few per cent."""
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randn(64, 512, generator=g), torch.randn(64, 784, generator=g).clamp_min(0.0)
    bound = least_bound([(512, 784)])
    assert bound & (bound - 1) == 0
    (found,) = integers([Factors(0, rows, cols)], grid=float(bound), bound=bound, coins=coins())
    norms = found.squared_norms().sqrt() / bound
    assert 0.94 < float(norms.min()) <= float(norms.max()) <= 1.0
    assert found.cols is not None
    along = (rows * found.rows).sum(1) * (cols * found.cols).sum(1)
    along = along / (rows.norm(dim=1) * cols.norm(dim=1)) / bound
    assert float(along.min()) > 0.9


def test_the_least_bound_keeps_the_growth_by_rounding_below_a_twentieth() -> None:
    """|r|²|c|² grows to (|r|² + n/6)(|c|² + d/6); at the bound, with factors balanced."""
    for shape in [(512, 784), (10, 512), (4096, 4096), (64, 3, 3, 3), (10**9,)]:
        n, d = shape if len(shape) == 2 else (math.prod(shape), 1)
        bound = least_bound([shape])
        growths = []
        for b in (bound, bound // 2):
            r, c = (b * math.sqrt(n / d), b * math.sqrt(d / n)) if d > 1 else (b**2, 1.0)
            grown = (r + n / 6) * (c + d / 6) if d > 1 else r + n / 6
            growths.append(grown / b**2 - 1)
        assert growths[0] <= 0.05 + 1e-12
        assert growths[1] > 0.05 or bound == LEAST_BOUND


# ---- the sum


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([256, 1 << 20]))
@settings(max_examples=50, deadline=None)
def test_sums_are_exact_in_any_order(seed: int, records: int, bound: int) -> None:
    found = integers(stack(records, seed), grid=float(bound), bound=bound, coins=coins(seed))
    out = torch.zeros(58, dtype=torch.float64)
    for part in found:
        add_exactly(part, bound, out)
    assert torch.equal(out.to(torch.int64), whole(found).sum(0))
    shuffled = torch.randperm(records, generator=torch.Generator().manual_seed(seed))
    again = torch.zeros_like(out)
    for part in found:
        add_exactly(part.part(shuffled), bound, again)
    assert torch.equal(again, out)


def test_a_long_sum_of_aligned_records_at_the_bound_is_exact() -> None:
    """More records than one product may add up: 40 of norm 2^20 in one coordinate pass 2^24."""
    bound = 1 << 20
    rows = torch.full((40, 1), float(bound))
    cols = torch.ones(40, 1)
    cols[7] = -1.0
    rows[8] = bound - 1
    out = torch.zeros(1, dtype=torch.float64)
    add_exactly(Factors(0, rows, cols), bound, out)
    assert int(out) == 38 * bound - 1 > EXACT_FLOAT32
