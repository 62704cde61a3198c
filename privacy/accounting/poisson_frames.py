"""Shot noise as a mechanism: frames of photo-electron counts, Poisson-sampled, by Rényi divergences (THEORY T6).

For planning: no release of this project relies on shot noise. A step releases one frame, or several as one vector of
pixels; one record changes the EXPECTED counts by at most l2 over all pixels and by at most `largest` in one, and no
pixel's expected count is below a least rate in either world. With q = 1 a step costs `poisson.renyi_bound`, which
speaks of either direction; sampling: `privacy.accounting.amplification`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from noise_models.errors import UsageError
from privacy.accounting.amplification import subsampled_either_way
from privacy.accounting.poisson import renyi_bound
from privacy.accounting.skellam import convert_to_epsilon
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

Array = NDArray[np.float64]

ORDERS = (*range(2, 65), *(round(2 ** (part / 32)) for part in range(193, 353)))


@dataclass(frozen=True)
class FrameEvent(ReleaseEvent):
    """A step's frame. `sensitivity` is l2 in photo-electrons, `noise_multiplier` sqrt(least rate) / l2.

    Attributes:
        largest: of a single pixel's change of expected count, photo-electrons; where infinite the l2 one bounds it.
    """

    largest: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.largest > 0:
            raise UsageError(f"largest = {self.largest!r}: give a change > 0, in photo-electrons")


def multiplier_of(least_rate: float, l2: float) -> float:
    """The noise multiplier that stands for a least rate: the least noise of a pixel over the l2 sensitivity."""
    return math.sqrt(least_rate) / l2


def least_rate_of(noise_multiplier: float, l2: float) -> float:
    """The least rate that a noise multiplier stands for, in photo-electrons."""
    return (noise_multiplier * l2) ** 2


def epsilon(
    tally: Mapping[ReleaseEvent, int], delta: float, adjacency: Adjacency, accountant: str = "poisson-rdp"
) -> float:
    """Epsilon of Poisson-sampled frames, composed; 0 without any, inf without light.

    Args:
        tally: releases of the mechanism "poisson"; one that is no `FrameEvent` may change in a single pixel.
        delta: 0 < delta < 1.
        adjacency: add-or-remove-one; nothing else is covered.
        accountant: "poisson-rdp".

    Raises:
        UsageError: another adjacency or accountant.
    """
    if Adjacency(adjacency) is not Adjacency.ADD_REMOVE or accountant != "poisson-rdp":
        raise UsageError(
            f"mechanism 'poisson' is accounted under add-or-remove-one by poisson-rdp, not under "
            f"{Adjacency(adjacency).value!r} by {accountant!r}"
        )
    steps: Counter[tuple[float, float, float, float]] = Counter()
    for release, count in tally.items():
        if count > 0 and release.sensitivity > 0:
            largest = min(getattr(release, "largest", math.inf), release.sensitivity)
            rate = least_rate_of(release.noise_multiplier, release.sensitivity)
            steps[release.sample_rate, rate, release.sensitivity, largest] += count
    if not steps:
        return 0.0
    if any(rate == 0 for _, rate, _, _ in steps):
        return math.inf
    total = np.zeros(len(ORDERS))
    for row, count in sorted(steps.items()):
        total += count * _sampled(*row)
    return max(convert_to_epsilon(np.asarray(ORDERS, dtype=np.float64), total, delta), 0.0)


@lru_cache(maxsize=256)
def _sampled(sample_rate: float, least_rate: float, l2: float, largest: float) -> Array:
    """The worse of both directions at `ORDERS`."""
    plain = np.asarray([renyi_bound(least_rate, l2, largest, float(order)) for order in ORDERS])
    return subsampled_either_way(ORDERS, sample_rate, plain)
