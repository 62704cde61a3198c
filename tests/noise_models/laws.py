"""Exact laws of codes, and the test of draws against one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats


def rounded_normal(mean: float, std: float, top: int) -> npt.NDArray[np.float64]:
    """P(code) for codes 0 … top by scipy's normal distribution, from the nearer tail."""
    edges = (np.arange(top) + 0.5 - mean) / std
    below, above = stats.norm.cdf(edges), stats.norm.sf(edges)
    left = np.diff(np.concatenate(([0.0], below, [1.0])))
    right = -np.diff(np.concatenate(([1.0], above, [0.0])))
    return np.where(np.arange(top + 1) < mean, left, right)


def chi_square(values: Any, law: npt.NDArray[np.float64], least: int = 0) -> float:
    """P-value of the counts of integers least, least + 1, …, whose probabilities are `law`; rare ones pooled.

    Values outside the law's range are counted with the rare ones.
    """
    whole = np.asarray(values).reshape(-1).astype(np.int64) - least
    inside = whole[(whole >= 0) & (whole < len(law))]
    counts = np.bincount(inside, minlength=len(law))
    common = law * len(whole) >= 10
    seen = np.append(counts[common], len(whole) - counts[common].sum())
    expected = np.append(law[common], max(0.0, 1 - law[common].sum())) * len(whole)
    if expected[-1] < 10:  # the pool itself is rare: a gross excess still has to show
        if seen[-1] > 40:
            return 0.0
        seen, expected = seen[:-1], expected[:-1] * seen[:-1].sum() / expected[:-1].sum()
    return float(stats.chisquare(seen, expected).pvalue)
