"""Leverages against numpy's pseudo-inverse, exact fractions and their own sum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noise_models.errors import UsageError
from privacy.releases.leverage import leverages


def by_pinv(inputs: Tensor, gates: Tensor) -> Tensor:
    """The definition, for well-conditioned inputs."""
    h, g = inputs.double().numpy(), gates.double().numpy()
    found = np.empty_like(g)
    for k in range(g.shape[1]):
        rows = g[:, k : k + 1] * h
        found[:, k] = np.einsum("md,de,me->m", rows, np.linalg.pinv(rows.T @ rows), rows)
    return torch.from_numpy(found)


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(8, 60), d=st.integers(1, 6), n=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_equals_the_definition(seed: int, m: int, d: int, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(m, d, generator=draw)
    gates = 0.05 + torch.rand(m, n, generator=draw)
    found = leverages(inputs, gates)
    torch.testing.assert_close(found, by_pinv(inputs, gates), rtol=1e-6, atol=1e-6)
    assert bool((found >= by_pinv(inputs, gates) - 1e-12).all())


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_sums_to_the_rank_and_does_not_depend_on_scales(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    inputs, gates = torch.randn(80, 7, generator=draw), torch.rand(80, 4, generator=draw) + 0.1
    found = leverages(inputs, gates)
    assert found.sum(0).numpy() == pytest.approx(np.full(4, 7.0), rel=1e-6)
    columns, units = 10.0 ** torch.linspace(-6, 6, 7), 10.0 ** torch.linspace(-9, 3, 4)
    torch.testing.assert_close(leverages(inputs * columns, gates * units), found, rtol=1e-4, atol=1e-5)


def test_a_layer_without_gates_has_one_leverage_a_record() -> None:
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = leverages(inputs, torch.ones(50, 3))
    torch.testing.assert_close(found, by_pinv(inputs, torch.ones(50, 3)), rtol=1e-9, atol=1e-9)


def test_a_direction_of_one_record_alone_has_leverage_one() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=draw)
    inputs[:, 2] = 0.0
    inputs[7, 2] = 1e-3  # a border pixel
    found = leverages(inputs, torch.rand(40, 6, generator=draw) + 0.1)
    assert found[7].numpy() == pytest.approx(np.ones(6), abs=1e-6)
    assert bool((found[:7] < 0.9).any())


def test_no_small_direction_is_cut_off() -> None:
    """THEORY T7 (f): a pseudo-inverse's cut-off turned a leverage of 1 into 0.113."""
    draw = np.random.default_rng(0)
    h = draw.standard_normal((64, 8)).astype(np.float32)
    h[:, 7] = h[:, 6]
    h[5, 7] += np.float32(1e-5)  # seen in float32, cut off by pinv's usual 1e-15·condition or looser
    inputs, gates = torch.from_numpy(h), torch.ones(64, 1)
    rows = h.astype(np.float64)
    loose = rows @ np.linalg.pinv(rows.T @ rows, rcond=1e-10) @ rows.T
    assert loose[5, 5] < 0.5  # the trap is there
    assert float(leverages(inputs, gates)[5, 0]) == pytest.approx(1.0, abs=1e-5)


def test_hidden_by_rounding_is_one() -> None:
    """Two columns that differ in the last bit of one entry: the exact leverage is 1, QR cannot tell."""
    h = torch.rand(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    h[:, 1] = h[:, 0]
    h[3, 1] = torch.nextafter(h[3, 1], h[3, 1] + 1)
    assert exact(h)[3] == 1
    assert leverages(h, torch.ones(32, 1)).eq(1).all()


def exact(h: Tensor) -> list[Fraction]:
    """Leverages of a two-column matrix in exact arithmetic."""
    rows = [(Fraction(float(a)), Fraction(float(b))) for a, b in h]
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    determinant = aa * bb - ab * ab
    return [(bb * a * a - 2 * ab * a * b + aa * b * b) / determinant for a, b in rows]


@given(seed=st.integers(0, 2**32 - 1), small=st.integers(-12, 0))
@settings(max_examples=40, deadline=None)
def test_never_below_exact_arithmetic(seed: int, small: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(12, 2, generator=draw, dtype=torch.float64)
    h[:, 1] = h[:, 0] + 10.0**small * h[:, 1]
    gates = torch.rand(12, 1, generator=draw, dtype=torch.float64)
    # the weighted rows must be exact too: powers of two
    gates = 2.0 ** torch.floor(8 * (gates - 0.5))
    found = leverages(h, gates)[:, 0]
    for bound, true in zip(found.tolist(), exact(gates * h), strict=True):
        assert Fraction(bound) >= true * (1 - Fraction(1, 10**12))


def test_records_behind_closed_gates_have_none_and_few_open_ones_have_one() -> None:
    inputs = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    gates = torch.zeros(30, 2)
    gates[:4, 0] = 1.0  # fewer than the inputs' rank
    gates[:20, 1] = 1.0
    found = leverages(inputs, gates)
    assert found[:4, 0].eq(1).all()
    assert found[4:, 0].eq(0).all()
    torch.testing.assert_close(
        found[:20, 1], by_pinv(inputs[:20], gates[:20, 1:])[:, 0], rtol=1e-6, atol=1e-6
    )
    assert found[20:, 1].eq(0).all()


@pytest.mark.parametrize(("m", "d"), [(3, 5), (5, 5), (0, 4), (4, 0)])
def test_a_batch_narrower_than_the_layer_has_leverage_one(m: int, d: int) -> None:
    assert leverages(torch.randn(m, d), torch.rand(m, 2) + 0.5).eq(1).all()


def test_sizes_beyond_reason_are_refused() -> None:
    with pytest.raises(UsageError, match="operations"):
        leverages(torch.randn(600, 200), torch.rand(600, 1).expand(600, 40000))
