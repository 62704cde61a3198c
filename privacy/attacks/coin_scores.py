"""White-box scores of canaries in one training run: was its coin heads, step by step.

At step t the auditor knows what canary i would contribute, v_i (clipped), and sees the released sum U. Were all else
known, the most powerful score would be that of the subsampled mixture,

    sum_t log(1 - q + q exp((<U, v_i> - |v_i|²/2) / s²)),

with s the noise's standard deviation along v_i. The other records' share of <U, v_i> is not known: what canaries of one
label have in common is taken off, and s is what remains, both over all canaries, and so without their coins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MOST = 50.0  # a log-ratio of one step; more would only be overflow


def step_scores(
    products: Array, norms: Array, groups: NDArray[np.int64], *, sample_rate: float, noise: float
) -> Array:
    """One step's log-likelihood ratios, shape (m,).

    Args:
        products: <U, v_i>, shape (m,).
        norms: |v_i|, shape (m,); a canary of norm 0 scores 0.
        groups: which canaries have the same unknown share of U (their labels), shape (m,).
        sample_rate: q of a canary that takes part.
        noise: least standard deviation of the released noise in any direction, >= 0; the spread found is larger by
            what other records add.
    """
    seen = norms > 0
    along = np.divide(products, norms, out=np.zeros_like(products), where=seen)
    totals = np.bincount(groups, weights=along * seen)
    counts = np.maximum(np.bincount(groups, weights=seen.astype(np.float64)), 1)
    along = np.where(seen, along - (totals / counts)[groups], 0.0)
    spread = max(noise, float(np.sqrt(np.square(along[seen]).mean())) if seen.any() else 0.0)
    if spread == 0:
        return np.zeros_like(products)
    ratio = np.clip((along * norms - norms**2 / 2) / spread**2, None, _MOST)
    return np.asarray(np.where(seen, np.log1p(sample_rate * np.expm1(ratio)), 0.0))
