"""Cross-check: Rényi accounting of dp_accounting (Mironov et al. 2019, arXiv 1908.10530)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

from noise_models.errors import UsageError
from privacy.accounting.discretisation import Group
from privacy.notions import Adjacency


class RdpComposition:
    """Composed Rényi divergences."""

    def __init__(self, accountant: RdpAccountant) -> None:
        self._accountant = accountant

    def epsilon(self, delta: float) -> float:
        """Epsilon >= 0 at `delta`: an upper bound, looser than a privacy-loss distribution's."""
        with _odd_orders_unsaid():
            return max(float(self._accountant.get_epsilon(delta)), 0.0)


@lru_cache(maxsize=64)
def compose(groups: tuple[Group, ...], adjacency: Adjacency) -> RdpComposition:
    """The composition of `groups` (each 0 < q <= 1, sigma > 0, steps > 0).

    Raises:
        UsageError: an adjacency other than add-or-remove (dp_accounting's replace-one ignores the doubled
            sensitivity).
    """
    if adjacency is not Adjacency.ADD_REMOVE:
        raise UsageError(
            f"accountant 'rdp' covers add-or-remove-one, not {adjacency.value}: use 'pld' or 'numerical'"
        )
    return RdpComposition(_composed(groups, None))


def divergences(groups: tuple[Group, ...], orders: Sequence[int]) -> list[float]:
    """Composed Rényi divergences of `groups` at these whole orders, as the library computes them.

    Args:
        groups: as in `compose`, of add-or-remove-one.
        orders: >= 2.
    """
    return [float(value) for value in _composed(groups, orders).rdp]


def _composed(groups: tuple[Group, ...], orders: Sequence[int] | None) -> RdpAccountant:
    accountant = RdpAccountant(orders)
    with _odd_orders_unsaid():
        for group in groups:
            accountant.compose(
                PoissonSampledDpEvent(group.sample_rate, GaussianDpEvent(group.noise_multiplier)), group.steps
            )
    return accountant


@contextmanager
def _odd_orders_unsaid() -> Iterator[None]:
    """The library warns of every fractional order whose series it gave up on, and leaves the order out.

    The bound is a minimum over orders: any subset of them gives a valid one, so there is nothing to say. A divergence
    that rounds below 0 it warns of too, and takes for 0.
    """
    logger = logging.getLogger("absl")

    def said(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "failed to converge" not in text and "Negative Renyi divergence" not in text

    logger.addFilter(said)
    try:
        yield
    finally:
        logger.removeFilter(said)
