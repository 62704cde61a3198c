"""`skellam`: whole numbers plus Skellam noise; what is released never saw a floating-point sum (THEORY T6).

Each record's clipped stack is rounded to a grid by coins and bounded exactly in whole numbers
(`privacy.contributions.integers`); the sum over records is exact; the noise is the difference of two Poisson counts,
drawn exactly (Agarwal, Kairouz, Liu 2021: The Skellam mechanism for differentially private federated learning). The
noised sum lies on the integers whatever the data are, so none of its bits tells more than its value (Mironov 2012: On
significance of the least significant bits for differential privacy). It becomes a floating-point gradient afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import add_drawn
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.integer_sampler import TABLE_MASS, SkellamSampler, table_size
from privacy.contributions.integers import least_bound
from privacy.ledger import ReleaseEvent
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.source import Departure, GeneratedNoise, Parts


class IntegerNoise(GeneratedNoise):
    """Integer noise of variance `std²`."""

    name = "skellam"
    _changing = frozenset({"_sampler"})

    def __init__(self, generator: NoiseGenerator) -> None:
        super().__init__(generator)
        self._sampler: SkellamSampler | None = None

    def cost(self, dimension: int) -> Departure:
        return Departure(log_ratio=0.0, log_inflation=0.0, mass=dimension * TABLE_MASS)

    def prepare(self, std: float) -> None:
        try:
            table_size(_poisson_mean(std))
        except UsageError as error:
            raise UsageError(
                f"noise of {std:g} grid steps: {error} (a larger epsilon, or release option grid_steps)"
            ) from error

    def add_noise(self, total: Tensor, std: float) -> None:
        """`total += Skellam(std² / 2, std² / 2)`.

        Raises:
            UsageError: the noise has too many values for a table.
        """
        mean = _poisson_mean(std)
        if self._sampler is None or self._sampler.mean != mean:
            self._sampler = SkellamSampler(mean)
        sampler = self._sampler
        add_drawn(
            total, lambda block: block.add_(torch.from_numpy(sampler.sample(len(block), self._generator)))
        )


def _poisson_mean(std: float) -> Fraction:
    """Of either count whose difference has this standard deviation, exactly."""
    return Fraction(std) ** 2 / 2


class SkellamRelease(ClippedRelease):
    """The clipped sum with Skellam noise.

    Attributes:
        sensitivity: D, in grid steps: a power of two, and the exact l2 bound of one record's integers.
    """

    mechanism = "skellam"

    @staticmethod
    def least_steps(shapes: Sequence[Sequence[int]]) -> int:
        """A coarser grid, of which the sampler's table has fewer values."""
        return least_bound(shapes, 1 << 13, 1 / 20)

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        """In grid steps, of which the mechanism's epsilon depends."""
        in_units = super().event(sample_rate, noise_multiplier, epoch)
        return replace(in_units, sensitivity=float(self.steps))


@ReleaseCard(
    summary="exact integer noise from a cryptographic generator",
    statement="{drawn}, rounded to whole numbers of a public grid and bounded by {sensitivity} grid units. To the exact"
    " sum, whole-numbered Skellam noise of standard deviation {noise} times {sensitivity} grid units was "
    "added in each of {dimension} coordinates. Only the noised sum reached the weights.",
    mechanism="skellam",
    workers=True,
    options=("grid_steps",),
)
def make(parts: Parts) -> SkellamRelease:
    """This release.

    Raises:
        UsageError: an option `grid_steps` that is no power of two.
    """
    steps = parts.options.get("grid_steps")
    if steps is not None and type(steps) is not int:
        raise UsageError(f"release option grid_steps is {steps!r}; it must be a whole number, a power of two")
    return SkellamRelease.of(parts, IntegerNoise(parts.generator("noise")), grid_steps=steps)
