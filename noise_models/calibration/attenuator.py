"""How much light an attenuator passes at one setting over another, from fields of the same patterns."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

from noise_models.calibration.probed_light import Complex


class Setting(NamedTuple):
    """Of the attenuator; numbers are κ over the setting, over that at the light the columns were measured at.

    Attributes:
        light: κ as it is set.
        least, most: limits.
        charged: upper limit that counts fields of another shape, too.
    """

    light: float
    least: float
    most: float
    charged: float


class SizeRatio(NamedTuple):
    """Of one set of fields over another's.

    Attributes:
        least, most: limits.
        other, other_limit: what is left of the fields in another shape: beyond chance, in parts of the fields
            themselves; and its upper limit, over the reference's.
    """

    least: float
    most: float
    other: float
    other_limit: float


def size_ratio(above: tuple[Complex, float], below: tuple[Complex, float], z: float) -> SizeRatio:
    """How large fields are, pattern by pattern, each with a phase of its own.

    Args:
        above, below: fields and those they are compared with, shape (patterns, rows), and the variance of an entry's
            real and imaginary part.
        z: standard deviations that no error exceeds.
    """
    (fields, variance), (reference, own) = above, below
    sizes = np.square(np.abs(reference)).sum(1, keepdims=True)
    size = float(sizes.sum())
    fits = (fields * reference.conj()).sum(1, keepdims=True) / sizes
    value = float(np.abs(fits).mean())
    variance += value**2 * own
    error = z * sqrt(variance / size)
    left = (float(np.square(np.abs(fields - fits * reference)).sum()) - 2 * variance * fields.size) / size
    chance = z * 2 * variance * sqrt(fields.size) / size
    return SizeRatio(
        value - error, value + error, sqrt(max(0.0, left - chance)) / value, sqrt(max(0.0, left + chance))
    )
