"""The default accountant: privacy-loss distributions of dp_accounting, pessimistic, both directions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution

from privacy.accounting.discretisation import Group, loss_interval
from privacy.accounting.ranges import LEAST_NOISE
from privacy.notions import Adjacency

RELATIONS = {
    Adjacency.ADD_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
    Adjacency.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
}


_MANY_STEPS = 10_000


class _Distribution(Protocol):
    def get_epsilon_for_delta(self, delta: float) -> float: ...


class PldComposition:
    """A composed privacy-loss distribution."""

    def __init__(self, distribution: _Distribution) -> None:
        self._distribution = distribution

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 at `delta`."""
        return max(float(self._distribution.get_epsilon_for_delta(delta)), 0.0)


class _NoGuarantee:
    """Releases that tell nearly all."""

    def get_epsilon_for_delta(self, delta: float) -> float:
        return math.inf


@lru_cache(maxsize=8)
def compose(groups: tuple[Group, ...], adjacency: Adjacency) -> PldComposition:
    """The composition of `groups` (each 0 < q <= 1, sigma > 0, steps > 0) under `adjacency`."""
    groups = tuple(_merged(group) for group in groups)
    if any(group.noise_multiplier < LEAST_NOISE for group in groups):  # steps merged into one
        return PldComposition(_NoGuarantee())
    interval = loss_interval(groups, adjacency)
    parts = []
    for group in groups:
        step = _step(group.sample_rate, group.noise_multiplier, adjacency, interval)
        parts.append((_dense(step) if group.steps > _MANY_STEPS else step).self_compose(group.steps))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return PldComposition(total)


def _dense(step: Any) -> Any:
    """The same distribution, stored as an array: of a sparse one dp_accounting would compute size ** steps first."""
    return privacy_loss_distribution.PrivacyLossDistribution(
        *(getattr(step, name).to_dense_pmf() for name in ("_pmf_remove", "_pmf_add"))
    )


def _merged(group: Group) -> Group:
    """Without sampling, T releases are one with multiplier sigma / sqrt(T), exactly."""
    return group if group.sample_rate < 1 else Group(1.0, group.noise_multiplier / math.sqrt(group.steps), 1)


@lru_cache(maxsize=16)
def _step(sample_rate: float, noise_multiplier: float, adjacency: Adjacency, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=interval,
        neighboring_relation=RELATIONS[adjacency],
    )
