"""The grid of a discretised privacy-loss distribution: it decides speed and tightness, never soundness."""

from __future__ import annotations

import math
from typing import NamedTuple

from privacy.notions import Adjacency


class Group(NamedTuple):
    """`steps` equal releases of the Poisson-subsampled Gaussian mechanism: what every accountant composes."""

    sample_rate: float
    noise_multiplier: float
    steps: int


# One step's interval over the standard deviation of its loss. Connect-the-dots adds at most h²/4 to a step's
# variance, so the composed standard deviation, hence epsilon, grows by a few parts in 1e5. Few steps afford
# a finer grid; beyond 1e5 steps it grows coarser, so that ten million steps (epsilon larger by 1 % at most) do not take
# minutes.
_RESOLUTION = 0.02
_RESOLUTION_COMPOSED = 0.002
_MANY_STEPS = 1e5
_MAX_POINTS = 1e5  # points of one step's distribution


def loss_interval(groups: tuple[Group, ...], adjacency: Adjacency) -> float:
    """Discretisation interval for the privacy loss of `groups` (each 0 < q <= 1, sigma > 0), a power of two.

    A power of two, so that runs that differ little share cached distributions.
    """
    factor = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
    steps = sum(group.steps for group in groups)
    variance = sum(group.steps * (factor * _loss_std(group)) ** 2 for group in groups) / steps
    resolution = min(_RESOLUTION, _RESOLUTION_COMPOSED * math.sqrt(steps))
    resolution *= math.sqrt(max(1.0, steps / _MANY_STEPS))
    widest = max(factor * _loss_range(group) for group in groups)
    return 2.0 ** math.floor(math.log2(max(resolution * math.sqrt(variance), widest / _MAX_POINTS)))


def _loss_std(group: Group) -> float:
    """About the standard deviation of one step's loss: the least of three regimes' estimates."""
    q, sigma = group.sample_rate, group.noise_multiplier
    small_rate = q * math.sqrt(math.expm1(sigma**-2)) if sigma > 0.05 else math.inf
    rare_and_large = math.sqrt(q) * (0.5 / sigma**2 + 1 / sigma)
    return min(small_rate, rare_and_large, 1 / sigma)


def _loss_range(group: Group) -> float:
    """About the largest loss of one step that is not put into delta: at ten standard deviations."""
    exponent = math.log(group.sample_rate) + 0.5 / group.noise_multiplier**2 + 10 / group.noise_multiplier
    return max(exponent, 0.0) + math.log1p(math.exp(-abs(exponent)))
