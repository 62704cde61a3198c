"""T3: device noise, then clip, then isotropic noise is the Poisson-subsampled Gaussian, and what breaks it.

Laws of one coordinate on a grid, exact to the grid's rounding; arithmetic in PyTorch's own bfloat16 and float32.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import log_ndtr, ndtr
from torch import Tensor

from experiments.theory.demonstration import Demonstration
from experiments.theory.gaussians import Array, gaussian_delta, hockey_stick
from privacy.accounting.discretisation import Group
from privacy.accounting.numerical import NumericalComposition
from privacy.notions import Adjacency
from privacy.releases.clipped import clip_factors

INTERVAL = 1 / 64
REACH = 16.0  # the grid is −REACH … REACH, in units of C
EPSILONS = (0.0, 0.25, 1.0, 2.0)
GRID: Array = np.arange(-int(REACH / INTERVAL), int(REACH / INTERVAL) + 1, dtype=np.float64) * INTERVAL


def normal_masses(std: float, mean: float = 0.0) -> Array:
    """A normal law on the grid: cells' masses."""
    edges = np.append(GRID - INTERVAL / 2, GRID[-1] + INTERVAL / 2)
    masses: Array = np.diff(ndtr((edges - mean) / std))
    return masses


def normal_points(std: float) -> Array:
    """A normal density at the grid's points, times the interval: what an exact convolution with masses needs."""
    points: Array = np.exp(-((GRID / std) ** 2) / 2) * INTERVAL / (std * math.sqrt(2 * math.pi))
    return points


def clipped(law: Array) -> Array:
    """The law of clip(X, −1, 1)."""
    inside = np.abs(GRID) < 1 - INTERVAL / 2
    found = np.where(inside, law, 0.0)
    low, high = np.searchsorted(GRID, (-1 - INTERVAL / 2, 1 - INTERVAL / 2))
    found[low] = law[: low + 1].sum()
    found[high] = law[high:].sum()
    return found


def added(*laws: Array) -> Array:
    """The law of a sum, on the same grid."""
    total = laws[0]
    for law in laws[1:]:
        total = np.convolve(total, law)
        middle = len(total) // 2
        total = total[middle - len(GRID) // 2 : middle + len(GRID) // 2 + 1]
    return total


def at(x: float) -> Array:
    """All mass at one point of the grid."""
    law = np.zeros_like(GRID)
    law[round((x + REACH) / INTERVAL)] = 1.0
    return law


def mixed(law: Array, sample_rate: float) -> Array:
    """The law of a record's contribution under Poisson sampling."""
    return sample_rate * law + (1 - sample_rate) * at(0.0)


def noisy_record(mean: float, device: float) -> Array:
    """Device noise of standard deviation `device` on a contribution, THEN the clip to 1."""
    return clipped(normal_masses(device, mean))


def _worlds(law: Array, other: Array, sample_rate: float, sigma: float) -> tuple[Array, Array]:
    rest = added(mixed(noisy_record(-0.4, 0.8), sample_rate), mixed(noisy_record(2.0, 0.3), sample_rate))
    return (
        added(rest, mixed(law, sample_rate), normal_points(sigma)),
        added(rest, mixed(other, sample_rate), normal_points(sigma)),
    )


def excess(sample_rate: float, sigma: float, adjacency: Adjacency) -> float:
    """Largest delta(epsilon) over that of the dominating pair, at EPSILONS, over records and both directions.

    Records are noisy before the clip (two signals, three device noises) or constant at the clip.
    """
    claim = NumericalComposition((Group(sample_rate, sigma, 1),), adjacency)
    records = [noisy_record(mean, device) for mean in (0.6, 3.0) for device in (0.1, 1.0, 5.0)] + [at(1.0)]
    worst = 0.0
    for law in records:
        others = [at(0.0)] if adjacency is Adjacency.ADD_REMOVE else [at(-1.0), at(-0.5), at(0.0), law[::-1]]
        for other in others:
            with_record, without = _worlds(law, other, sample_rate, sigma)
            for p, q in ((with_record, without), (without, with_record)):
                worst = max(worst, *(hockey_stick(p, q, e) / claim.delta(e) for e in EPSILONS))
    return worst


def tightest(sample_rate: float, sigma: float) -> float:
    """delta(1) of the pair at the clip without others, over the claim: the domination is attained."""
    claim = NumericalComposition((Group(sample_rate, sigma, 1),), Adjacency.ADD_REMOVE)
    with_record = added(mixed(at(1.0), sample_rate), normal_points(sigma))
    without = normal_points(sigma)
    return max(
        hockey_stick(with_record, without, 1.0), hockey_stick(without, with_record, 1.0)
    ) / claim.delta(1.0)


def clip_before_the_noise(sigma: float, device: float) -> float:
    """delta(1) where the device's noise comes after the clip: X = clip(x) + g is not bounded."""
    with_record = added(normal_masses(device, 1.0), normal_points(sigma))
    return hockey_stick(with_record, normal_points(sigma), 1.0)


def automatic_gain(others: int) -> float:
    """How far one record moves the clipped sum, in C, where the batch is scaled by its largest norm."""
    norms = np.ones(others)
    with_record = np.append(norms, 2.0)
    moved = (with_record / with_record.max()).sum() - (norms / norms.max()).sum()
    return float(abs(moved))


def replaced(sample_rate: float, sigma: float) -> float:
    """delta(1) of a record replaced by its opposite."""
    p = added(mixed(at(1.0), sample_rate), normal_points(sigma))
    q = added(mixed(at(-1.0), sample_rate), normal_points(sigma))
    return hockey_stick(p, q, 1.0)


def replaced_in_the_plane(
    one: tuple[float, float], other: tuple[float, float], sample_rate: float, sigma: float, epsilon: float
) -> float:
    """delta(epsilon) of a record with contribution `one` replaced by `other`, vectors of the plane, by quadrature."""
    axis = np.linspace(-1 - 7 * sigma, 1 + 7 * sigma, 301)
    cell = (axis[1] - axis[0]) ** 2 / (2 * math.pi * sigma**2)

    def density(x: float, y: float) -> Array:
        return np.outer(*(np.exp(-(((axis - at_) / sigma) ** 2) / 2) for at_ in (x, y)))

    absent = (1 - sample_rate) * density(0.0, 0.0)
    p, q = (cell * (absent + sample_rate * density(*v)) for v in (one, other))
    return hockey_stick(p, q, epsilon)


def shuffled(steps: int, sigma: float, epsilon: float) -> float:
    """Lower bound on delta(epsilon) of an epoch of shuffled fixed-size batches (Chua et al. 2024, arXiv 2403.17673).

    All other records sit at −C, so the batch that lacks one shows: it lies 1 C above the rest without the record, and
    2 C above with it. The event is that some step lies above a threshold.
    """
    threshold = np.linspace(-1.0, 12.0, 4001)
    rest = (steps - 1) * log_ndtr(threshold / sigma)
    p, q = (-np.expm1(log_ndtr((threshold - mean) / sigma) + rest) for mean in (2.0, 1.0))
    return float((p - math.exp(epsilon) * q).max())


def sampled(steps: int, sigma: float, epsilon: float) -> float:
    """delta(epsilon) of as many steps of Poisson sampling at rate 1/steps."""
    return NumericalComposition((Group(1 / steps, sigma, steps),), Adjacency.ADD_REMOVE).delta(epsilon)


def overshoot(dtype: torch.dtype, records: int = 20_000, seed: int = 4) -> float:
    """Largest norm of a clipped record over C, minus 1: norms, factors and products in `dtype`, C = 1."""
    stream = torch.Generator().manual_seed(seed)
    x = (torch.randn(records, 8, generator=stream) * 10).to(dtype)
    norms = x.square().sum(1).sqrt()
    factors = 1.0 / norms.clamp_min(1.0)
    return float((x * factors[:, None]).double().norm(dim=1).max()) - 1


def production_overshoot(records: int = 20_000, seed: int = 4) -> float:
    """As `overshoot`, with the release's own factors from float64 norms, products in float32."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(records, 8, generator=stream) * 10
    factors = clip_factors(x.double().norm(dim=1), 1.0)
    return float((x * factors.float()[:, None]).double().norm(dim=1).max()) - 1


def moved_sum(dtype: torch.dtype, records: int = 256, trials: int = 200, seed: int = 5) -> float:
    """Largest change of a batch sum, in C, by one record of norm at most C = 1; the sum is kept in `dtype`.

    Records are aligned: every one is the same direction. The record comes last.
    """
    stream = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(trials):
        direction = torch.randn(64, generator=stream, dtype=torch.float64)
        record = (direction / direction.norm()).to(dtype)
        record = record * (1.0 / float(record.double().norm().clamp_min(1.0)))
        others = record.expand(records - 1, -1)
        worst = max(worst, float((_sum(torch.cat((others, record[None]))) - _sum(others)).norm()))
    return worst


def cast_before_the_noise(trials: int = 50, seed: int = 6) -> float:
    """Largest change, in C, of an exact sum of norm 255 by a record of norm C = 1, once both are cast to bfloat16."""
    stream = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(trials):
        direction = torch.randn(64, generator=stream, dtype=torch.float64)
        direction /= direction.norm()
        sums = [(records * direction).to(torch.bfloat16).double() for records in (256, 255)]
        worst = max(worst, float((sums[0] - sums[1]).norm()))
    return worst


def _sum(records: Tensor) -> Tensor:
    total = torch.zeros(records.shape[1], dtype=records.dtype)
    for record in records:
        total = total + record
    return total.double()


def demonstrations() -> list[Demonstration]:
    pair, exact = "largest δ(ε) over the dominating pair's", "δ at ε = 1"
    q, sigma = 0.3, 1.0
    sampled_once = NumericalComposition((Group(0.05, 1.0, 1),), Adjacency.ADD_REMOVE).delta(1.0)
    claim = NumericalComposition((Group(q, sigma, 1),), Adjacency.ADD_REMOVE).delta(1.0)
    return [
        Demonstration(
            "device noise inside the clip, add or remove, q = 0.3, σ = 1",
            pair,
            1.0,
            excess(q, sigma, Adjacency.ADD_REMOVE),
        ),
        Demonstration(
            "device noise inside the clip, replace one, q = 0.3, σ = 1",
            pair,
            1.0,
            excess(q, sigma, Adjacency.REPLACE_ONE),
        ),
        Demonstration(
            "a record at the clip, no others",
            "δ(1) over the dominating pair's",
            1.0,
            tightest(q, sigma),
            tolerance=1e-3,
        ),
        Demonstration(
            "clip, then device noise of 1 C",
            exact,
            gaussian_delta(1.0, 1.0),
            clip_before_the_noise(1.0, 1.0),
            "the clip comes after the device's noise",
        ),
        Demonstration(
            "20 records scaled by the largest norm of the batch",
            "change of the sum, in C",
            1.0,
            automatic_gain(20),
            "what is done to a record does not depend on others",
        ),
        Demonstration(
            "replace one, accounted as add or remove",
            exact,
            claim,
            replaced(q, sigma),
            "the pair of the adjacency",
        ),
        Demonstration(
            "coins from a sampler whose seed is known, q = 0.05, σ = 1",
            exact,
            sampled_once,
            gaussian_delta(1.0, 1.0),
            "the sampling coins are secret",
        ),
        Demonstration(
            "an epoch of 100 shuffled batches, σ = 1/2, accounted as Poisson sampling",
            "δ at ε = 4",
            sampled(100, 0.5, 4.0),
            shuffled(100, 0.5, 4.0),
            "Poisson sampling",
        ),
        Demonstration(
            "norms and factors in float32", "overshoot of the clip", 2e-6, overshoot(torch.float32)
        ),
        Demonstration("the release's own factors", "overshoot of the clip", 2e-6, production_overshoot()),
        Demonstration(
            "norms and factors in bfloat16",
            "overshoot of the clip",
            2e-6,
            overshoot(torch.bfloat16),
            "at least float32",
        ),
        Demonstration(
            "sum of 256 aligned records in float32",
            "change of the sum, in C",
            1 + 1e-4,
            moved_sum(torch.float32),
        ),
        Demonstration(
            "sum of 256 aligned records in bfloat16",
            "change of the sum, in C",
            1 + 1e-4,
            moved_sum(torch.bfloat16),
            "at least float32",
        ),
        Demonstration(
            "exact sum cast to bfloat16, then noise",
            "change of the sum, in C",
            1 + 1e-4,
            cast_before_the_noise(),
            "noise is added before any down-cast",
        ),
    ]
