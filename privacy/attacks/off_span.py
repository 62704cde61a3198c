"""The span attack (THEORY T1): what a layer's update holds off the span of the other records' inputs.

Noise that stands inside a record's contribution, `X_i = (B e_i + g_i) ⊙ φ'(a_i) h_i^T`, never leaves the record's own
direction: every row of the update lies in span{h_j : j in the batch, φ'_jk != 0}. Off the span of the others the update
is exactly zero without record i, and almost surely not with it, whatever the noise. Noise on the sum fills every
direction alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError

Array = NDArray[np.float64]

# Singular values below this share of the largest are rounding: what they would add lies below float32's own.
RANK_CUT = 1e-9
# A record this close to the others' span (relative to its norm) is lost in the update's rounding.
LEAST_OFFSET = 1e-3


def span_basis(others: Array) -> Array:
    """An orthonormal basis of the rows' span, shape (rank, d).

    Args:
        others: the other records' inputs, shape (m, d), the 1 that stands for the bias included.
    """
    if len(others) == 0:
        return np.zeros((0, others.shape[1]))
    _, values, rows = np.linalg.svd(np.asarray(others, np.float64), full_matrices=False)
    basis: Array = rows[values > RANK_CUT * values[0]] if values[0] > 0 else rows[:0]
    return basis


def off_span(basis: Array, record: Array) -> Array:
    """The part of `record` off the span, not normalised, shape (d,).

    Args:
        basis: of the others' inputs (`span_basis`).
        record: the target's input, shape (d,).
    Raises:
        UsageError: the record lies in the span, where this attack sees nothing.
    """
    rest = np.asarray(record, np.float64)
    for _ in range(2):  # once leaves the rounding of the record itself in the span
        rest = rest - basis.T @ (basis @ rest)
    if np.linalg.norm(rest) <= LEAST_OFFSET * np.linalg.norm(record):
        raise UsageError(
            f"the record lies in the span of the {len(basis)} others' inputs, where this attack sees nothing; take a "
            "batch narrower than the layer, or another record"
        )
    return np.asarray(rest)


def off_span_share(updates: Array, direction: Array) -> Array:
    """How much of each update lies along a direction off the span: 0 (to rounding) to 1.

    Args:
        updates: one layer's updates with its bias as last column, shape (trials, n, d).
        direction: from `off_span`, shape (d,).
    Returns:
        |U u| / |U|_F with u the direction's unit vector, shape (trials,); 0 for an update that is zero.
    """
    unit = direction / np.linalg.norm(direction)
    part = np.linalg.norm(updates @ unit, axis=-1)
    whole = np.linalg.norm(updates, axis=(-2, -1))
    share: Array = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return share
