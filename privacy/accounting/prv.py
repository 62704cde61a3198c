"""Cross-check: Opacus' privacy random variables (Gopi et al. 2021, arXiv 2106.02848). Imports torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant

from noise_models.errors import UsageError
from privacy.accounting.discretisation import Group
from privacy.adjacency import Adjacency


class PrvComposition:
    """Composed privacy random variables."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._accountant = PRVAccountant()
        self._accountant.history = [
            (group.noise_multiplier, group.sample_rate, group.steps) for group in groups
        ]

    def epsilon(self, delta: float) -> float:
        """The upper end of Opacus' bracket (error 0.01 in epsilon, delta / 1000 in delta)."""
        with np.errstate(divide="ignore", over="ignore"):  # a sample rate of 1 is the limit of its formula
            return max(0.0, float(self._accountant.get_epsilon(delta, eps_error=0.01)))


@lru_cache(maxsize=64)
def compose(groups: tuple[Group, ...], adjacency: Adjacency) -> PrvComposition:
    """The composition of `groups` (each 0 < q <= 1, sigma > 0, steps > 0).

    Raises:
        UsageError: an adjacency other than add-or-remove.
    """
    if adjacency is not Adjacency.ADD_REMOVE:
        raise UsageError(
            f"accountant 'prv' covers add-or-remove-one, not {adjacency.value}: use 'pld' or 'numerical'"
        )
    return PrvComposition(groups)
