"""Rounded normals drawn directly: their law by two ways, plain and shifted."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from laws import chi_square, rounded_normal

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.quantised_normal import LEVELS, QuantisedNormal, ShiftedQuantisedNormal


@pytest.mark.parametrize(
    ("mean", "std", "top"),
    [
        (64.0, 4.08, 255),
        (64.3, 4.08, 255),
        (8.0, 0.13, 255),
        (2000.25, 65.0, 4095),
        (3.0, 2.5, 7),
        (0.2, 1.0, 1),
    ],
)
def test_law(mean: float, std: float, top: int) -> None:
    law = QuantisedNormal(mean, std, top)
    exact = rounded_normal(mean, std, top)
    np.testing.assert_allclose(law.probabilities(), exact, rtol=1e-9, atol=2.0**-52)
    # Chi-square on 10^6 draws: false alarm 1e-6.
    codes = law.sample(1_000_000, NoiseGenerator.seeded(1, "law"))
    assert codes.max() <= top
    assert chi_square(codes, exact) > 1e-6


def test_thresholds_are_correct_to_the_last_bit() -> None:
    law = QuantisedNormal(64.0, 4.08, 255)
    with mpmath.workdps(60):
        for code in range(1, 256):
            exact = mpmath.nint(2**64 * mpmath.ncdf((code - mpmath.mpf("0.5") - 64) / mpmath.mpf(4.08)))
            drawn = int(law._below[code - 1]) if code <= len(law._below) else 2**64
            assert drawn == int(exact), code
    assert 0 < law.error < 1e-17


def test_bits_that_the_table_leaves_undecided_are_used() -> None:
    # The reference searches the whole 64-bit word of every pixel, assembled from the same stream.
    law = QuantisedNormal(64.0, 4.08, 255)
    n = 20_001
    codes = law.sample(n, NoiseGenerator.seeded(2, "law"))
    stream = NoiseGenerator.seeded(2, "law")
    upper = stream.uint64((n + 3) // 4).view(np.uint16)[:n].astype(np.uint64) << np.uint64(48)
    undecided = np.searchsorted(law._below, upper, "right") != np.searchsorted(
        law._below, upper | np.uint64(2**48 - 1), "right"
    )
    assert 0 < undecided.sum() < n / 100
    upper[undecided] |= stream.uint64(int(undecided.sum())) >> np.uint64(16)
    assert (codes == np.searchsorted(law._below, upper, "right")).all()


@pytest.mark.parametrize("shift", [-LEVELS * 3 - 5, -1, 0, 7, LEVELS - 1, 40 * LEVELS + 3])
def test_shifted_law(shift: int) -> None:
    # Chi-square on 2·10^5 draws of a shift that is alone in its block, or beside others: false alarm 2e-6 each.
    law = ShiftedQuantisedNormal(64.0, 4.08, 255)
    exact = rounded_normal(64.0 + shift / LEVELS, 4.08, 255)
    n = 200_000
    alone = law.sample(n, NoiseGenerator.seeded(3, "law"), np.full(n, shift, np.int32))
    assert chi_square(alone, exact) > 1e-6
    mixed = np.full(2 * n, -200, np.int32)
    mixed[::2] = shift
    codes = law.sample(2 * n, NoiseGenerator.seeded(4, "law"), mixed)
    assert chi_square(codes[::2], exact) > 1e-6
    assert chi_square(codes[1::2], rounded_normal(64.0 - 200 / LEVELS, 4.08, 255)) > 1e-6


def test_shifts_saturate() -> None:
    law = ShiftedQuantisedNormal(64.0, 4.08, 255)
    shift = np.array([-1000, 1000], np.int32) * LEVELS
    assert law.sample(2, NoiseGenerator.seeded(1, "law"), shift).tolist() == [0, 255]


def test_error_bound_covers_every_level() -> None:
    for std, top in ((4.08, 255), (0.13, 255), (5.6, 4095)):
        law = ShiftedQuantisedNormal(64.0, std, top)
        assert all(law._law(level).error <= law.error for level in range(LEVELS))


@pytest.mark.parametrize(
    ("std", "top"), [(0.0, 255), (-1.0, 255), (float("nan"), 255), (1.0, 0), (1.0, 65536)]
)
@pytest.mark.parametrize("law", [QuantisedNormal, ShiftedQuantisedNormal])
def test_refused_laws(law: type, std: float, top: int) -> None:
    with pytest.raises(UsageError):
        law(64.0, std, top)
