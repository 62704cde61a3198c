"""The dead-pixel attack (THEORY T1): the final model alone tells whether the one record with that pixel took part.

A pixel that is zero on all other records multiplies every contribution to its column of the first layer's weights by
zero. Without the target the column keeps its initial value, bit for bit, however long the training and however large
the noise inside contributions; with it, the column moves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError

Array = NDArray[np.float64]


def dead_pixels(others: Array, target: Array) -> NDArray[np.int64]:
    """Pixels that are exactly zero on all others and lit on the target, the brightest first.

    Args:
        others: shape (m, d).
        target: shape (d,).
    Raises:
        UsageError: there is none.
    """
    dead = np.flatnonzero((others == 0).all(0) & (target != 0))
    if len(dead) == 0:
        raise UsageError(
            "no pixel of the target is zero on all the others; take another target, or fewer others"
        )
    return np.asarray(dead[np.argsort(-np.abs(target[dead]), kind="stable")], dtype=np.int64)


def displacement(initial: Array, final: Array, pixel: int) -> float:
    """The largest change of any weight in the pixel's column; exactly 0 where none moved.

    Args:
        initial, final: the first layer's weights, shape (n, d).
    """
    return float(np.abs(final[:, pixel] - initial[:, pixel]).max())
