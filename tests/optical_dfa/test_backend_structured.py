"""Signs and fast transforms: against the product of dense matrices, and the law of what comes out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.stats import norm
from torch.utils.flop_counter import FlopCounterMode

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.backends.structured import StructuredBackend
from optical_dfa.backends.structured_matrix import ROUNDS, StructuredMatrix

SEED = 11


def dense(in_features: int, out_features: int, rounds: int) -> np.ndarray:
    """√n H D_r ⋯ H D_1 as a product of dense matrices."""
    n = 2 ** math.ceil(math.log2(max(in_features, out_features, 256)))
    stream = torch.Generator().manual_seed(derive_seed(SEED, "projection-matrix"))
    coins = torch.randint(0, 2, (rounds, n), generator=stream, dtype=torch.int8).numpy()
    found = math.sqrt(n) * np.eye(n)
    for row in coins:
        found = hadamard(n) / math.sqrt(n) @ np.diag(2.0 * row - 1) @ found
    return found[:out_features, :in_features]


@pytest.mark.parametrize("rounds", [1, 2, ROUNDS])
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(1, 1), (1, 2), (3, 5), (10, 200), (33, 32), (500, 70), (257, 512)]
)
def test_it_is_the_product_of_dense_matrices(in_features: int, out_features: int, rounds: int) -> None:
    matrix = StructuredMatrix(in_features, out_features, SEED, rounds=rounds)
    expected = torch.from_numpy(dense(in_features, out_features, rounds))
    torch.testing.assert_close(matrix.values().double(), expected, rtol=0.0, atol=1e-5)
    x = torch.randn(3, in_features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(matrix.times(x), x @ expected.T, rtol=0.0, atol=1e-9 * math.sqrt(in_features))


@pytest.mark.parametrize(("errors", "units"), [(3, 16), (10, 8), (10, 64)])
def test_every_unit_is_taught_and_small_matrices_have_full_rank(errors: int, units: int) -> None:
    """In a square of 16 one row in ten would be zeros."""
    for seed in range(200):
        values = StructuredMatrix(errors, units, seed).values()
        assert (values.abs().amax(dim=1) > 0).all()
        assert int(torch.linalg.matrix_rank(values)) == min(errors, units)


def test_lengths_are_kept_where_nothing_is_cut_off() -> None:
    e = torch.randn(4, 3000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    answer = StructuredMatrix(3000, 4096, SEED).times(e)
    torch.testing.assert_close(answer.norm(dim=1), math.sqrt(4096) * e.norm(dim=1), rtol=1e-12, atol=0.0)


def test_records_are_transformed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = StructuredMatrix(40, 60, SEED)
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = matrix.times(x)
    monkeypatch.setattr("optical_dfa.backends.structured_matrix._PIECE", 2 * matrix.size)
    torch.testing.assert_close(matrix.times(x), whole, rtol=1e-14, atol=1e-14)


def test_time_grows_as_n_log_n() -> None:
    """Multiply-adds of a record: 3 rounds, each through matrices of 32 by 32 along ⌈log₂ n / 5⌉ axes."""
    for exponent in (10, 13, 16):
        n = 1 << exponent
        matrix = StructuredMatrix(n, n, SEED)
        with FlopCounterMode(display=False) as counted:
            matrix.times(torch.ones(1, n))
        assert counted.get_total_flops() <= 2 * ROUNDS * n * 32 * math.ceil(exponent / 5)


def test_entries_have_mean_0_and_variance_1() -> None:
    """Over 4,000 seeds, at places all over the matrix; a sound one fails with probability below 1e-6."""
    e = torch.eye(24)[[0, 5, 23]]
    found = torch.stack([StructuredMatrix(24, 32, seed).times(e) for seed in range(4000)]).double()
    places = found[:, :, [0, 7, 31]].flatten(1)
    limit = norm.isf(1e-6 / (4 * places.shape[1]))
    assert float(places.mean(0).abs().max()) < limit / math.sqrt(len(places))
    spread = places.square().std(0) / math.sqrt(len(places))
    assert bool(((places.square().mean(0) - 1).abs() < limit * spread).all())


def test_three_rounds_have_the_kurtosis_of_normal_entries_and_one_has_not() -> None:
    """Sums of n entries of one round are signs; of three, as nearly normal as n is large."""

    def kurtosis(rounds: int) -> float:
        return float(StructuredMatrix(2048, 2048, SEED, rounds=rounds).values().double().pow(4).mean())

    assert kurtosis(1) == pytest.approx(1.0, abs=1e-4)
    assert kurtosis(3) == pytest.approx(3.0, abs=0.01)


def test_a_matrix_that_cannot_be_held_is_refused() -> None:
    n = 1 << 17
    device = StructuredBackend(n, n, seed=SEED, noise=NoiseGenerator.seeded(SEED, "noise"))
    assert device.project(torch.ones(1, n)).shape == (1, n)
    with pytest.raises(
        UsageError, match=r"^131072 x 131072 entries of a feedback matrix .* take a part of it$"
    ):
        device.matrix()
