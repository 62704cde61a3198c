"""What releases cost together: equal steps grouped, and delta spent on the non-ideal (THEORY T4)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from noise_models.errors import UsageError
from privacy.accounting.discretisation import Group
from privacy.ledger import ReleaseEvent


class Composition(Protocol):
    """A composed mechanism: what an accountant's `compose(groups, adjacency)` returns."""

    def epsilon(self, delta: float) -> float:
        """Smallest epsilon >= 0 the accountant can show at `delta`; inf where there is none."""


@dataclass(frozen=True)
class Spent:
    """Releases summed up: equal steps grouped, extra losses added over all steps.

    Attributes:
        groups: the ideal subsampled Gaussian steps, in a canonical order (so that results can be cached).
        log_ratio: total multiplicative loss.
        log_inflation: logarithm of the factor on delta.
        mass: total total-variation mass.
    """

    groups: tuple[Group, ...]
    log_ratio: float
    log_inflation: float
    mass: float


def cost(releases: Iterable[ReleaseEvent] | Mapping[ReleaseEvent, int]) -> Spent:
    """Sums up releases, given one by one or as a tally `{release: how often}`."""
    tally = releases if isinstance(releases, Mapping) else Counter(releases)
    steps: Counter[tuple[float, float]] = Counter()
    for release, count in tally.items():
        steps[release.sample_rate, release.noise_multiplier] += count
    return Spent(
        groups=tuple(Group(q, sigma, count) for (q, sigma), count in sorted(steps.items()) if count > 0),
        log_ratio=math.fsum(release.log_ratio * count for release, count in tally.items()),
        log_inflation=math.fsum(release.log_inflation * count for release, count in tally.items()),
        mass=math.fsum(release.mass * count for release, count in tally.items()),
    )


def total_epsilon(composition: Composition, spent: Spent, delta: float) -> float:
    """Epsilon of the real releases at `delta`, from that of the ideal ones.

    THEORY T4: eps = eps_ideal(delta') + R with delta = e^I delta' + (1 + e^eps) M, where R, I and M are the
    summed `log_ratio`, `log_inflation` and `mass`. Solved for the largest delta' from above, where the
    right-hand side still exceeds delta; inf where no delta' > 0 is left.
    """
    inner = delta * math.exp(-spent.log_inflation)
    if spent.mass == 0:
        return composition.epsilon(inner) + spent.log_ratio if inner > 0 else math.inf
    for _ in range(200):
        epsilon = composition.epsilon(inner) + spent.log_ratio
        if epsilon > 700:
            return math.inf
        left = (delta - (1 + math.exp(epsilon)) * spent.mass) * math.exp(-spent.log_inflation)
        if left <= 0:
            return math.inf
        if inner <= left:  # delta' = inner leaves enough of delta for the mass
            return epsilon
        inner = left * (1 - 1e-9)  # strictly inside, so that the iteration ends
    return math.inf


def check_budget(delta: float, beta: float, target_epsilon: float | None = None) -> None:
    """Refuses what is not a privacy budget. Raises UsageError with one line."""
    if not 0 < delta < 1:
        raise UsageError(f"delta = {delta!r}: give a probability with 0 < delta < 1, such as 1e-5")
    if not 0 <= beta < delta:
        raise UsageError(
            f"calibration failure probability beta = {beta!r} must be >= 0 and below delta = {delta!r}: "
            "calibrate with a smaller beta or ask for a larger delta"
        )
    if target_epsilon is not None and not 0 < target_epsilon < math.inf:
        raise UsageError(f"epsilon = {target_epsilon!r}: give a finite value > 0, such as 3")


def check_steps(steps: int) -> None:
    """Refuses a step count that is none. Raises UsageError with one line."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise UsageError(f"steps = {steps!r}: give a whole number >= 0")
