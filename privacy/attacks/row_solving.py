"""Gradient inversion of a single released step: the input of the one record that the adversary does not know.

With the others' inputs h_j known and fewer records than inputs, the rows of the first layer's update determine their
coefficients in the basis (the others' h_j, the target's part w off their span):

    U_k = sum_j (δ_jk + δ_k c_j) h_j + δ_k w,   h = w + sum_j c_j h_j.

Where the update carries no noise off the span (THEORY T1), w is exact. The c_j follow by least squares over the rows k:
the others' δ_jk are known up to the device's noise, and δ_k up to one scale, which the bias fixes (h ends with 1).
Nothing here knows the target: on a release whose noise fills every direction the same steps give noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.attacks.off_span import span_basis

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Inverted:
    """What one step shows of the target's input.

    Attributes:
        off_span: direction of its part off the others' span, a unit vector of unknown sign, shape (d,).
        record: the whole input, as well as the rows determine it, shape (d,).
        share: how much of what is off the span lies in that one direction, 0 to 1: 1 for a record, and for noise
            about 1 / the smaller of the layer's widths.
    """

    off_span: Array
    record: Array
    share: float


def invert(update: Array, others: Array, deltas: Array) -> Inverted:
    """Reconstruct the target's input.

    Args:
        update: the first layer's summed update with its bias as last column, shape (n, d).
        others: the other records' inputs with a last column of ones, shape (m, d), m < d.
        deltas: what the adversary expects of their δ (without the device's noise), shape (m, n).
    """
    basis = span_basis(others)
    outside = update - (update @ basis.T) @ basis
    left, values, rows = np.linalg.svd(outside, full_matrices=False)
    direction, strength = rows[0], left[:, 0]
    share = float(values[0] ** 2 / max(np.square(values).sum(), np.finfo(float).tiny))
    # Rows of `inside` minus what the others explain: c_j δ_k, plus the device's noise on the others.
    inside = (update @ basis.T) @ basis - deltas.T @ others
    in_span = strength @ inside / values[0] if values[0] > 0 else np.zeros_like(direction)
    # strength = δ / |δ| and values[0] = |δ| |w|: this is (h - w) / |w|, so that adding the unit w gives h / |w|.
    record = direction + in_span
    scale = record[-1]
    return Inverted(direction, record / scale if abs(scale) > 1e-6 else record, share)
