"""Cross-check: Opacus' privacy random variables (Gopi et al. 2021, arXiv 2106.02848). Imports torch."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from opacus.accountants import PRVAccountant

from noise_models.errors import UsageError
from privacy.accounting import rdp
from privacy.accounting.discretisation import Group
from privacy.notions import Adjacency

_ERROR = 0.01  # of epsilon
_LARGEST_ERROR = 0.5
_MOST_POINTS = 2**21  # of the mesh: some seconds, and 100 MB


class PrvComposition:
    """Composed privacy random variables."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._groups = groups
        self._accountant = PRVAccountant()
        self._accountant.history = [
            (group.noise_multiplier, group.sample_rate, group.steps) for group in groups
        ]

    def epsilon(self, delta: float) -> float:
        """The upper end of Opacus' bracket: error 0.01 in epsilon, delta / 1000 in delta.

        Where that mesh would take minutes the error is wider, up to 0.5; the upper end stays a bound.

        Raises:
            UsageError: only a mesh that is too large shows these releases' epsilon.
        """
        error = self._error(delta)
        with np.errstate(divide="ignore", over="ignore"):  # a sample rate of 1 is the limit of its formula
            return max(float(self._accountant.get_epsilon(delta, eps_error=error)), 0.0)

    def _error(self, delta: float) -> float:
        """The least error that `_MOST_POINTS` points reach (Gopi et al., theorem 5.5: they grow as 1 / error)."""
        steps = sum(group.steps for group in self._groups)
        reach = rdp.compose(self._groups, Adjacency.ADD_REMOVE).epsilon(delta / 4000) + 3
        points = 2 * reach * math.sqrt(steps * math.log(12000 / delta) / 2) / _ERROR
        if points > _MOST_POINTS * _LARGEST_ERROR / _ERROR:
            raise UsageError(
                f"accountant 'prv' would need a mesh of {points:.2g} points here: use 'pld' or 'numerical'"
            )
        return _ERROR * max(1.0, points / _MOST_POINTS)


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
