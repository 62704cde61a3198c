"""`skellam`: whole numbers plus Skellam noise; what is released never saw a floating-point sum (THEORY T6).

Each record's clipped stack is rounded to a grid by coins and bounded exactly in whole numbers
(`privacy.contributions.integers`); the sum over records is exact; the noise is the difference of two Poisson counts,
drawn exactly (Agarwal, Kairouz, Liu 2021: The Skellam mechanism for differentially private federated learning). The
noised sum lies on the integers whatever the data are, so none of its bits tells more than its value (Mironov 2012: On
significance of the least significant bits for differential privacy). It becomes a floating-point gradient afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.integer_sampler import TABLE_MASS, SkellamSampler, table_size
from privacy.contributions.integers import EXACT_FLOAT32, Factors, add_exactly, integers, least_bound
from privacy.contributions.protocols import Contributions
from privacy.norms import refuse_norm
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import refuse_imprecise_products
from privacy.releases.source import Departure, NoiseSource, Parts
from privacy.releases.step import FLOATING_POINT, RECORD_ASSUMPTIONS, StepRelease


class FactoredContributions(Contributions, Protocol):
    """Contributions that can be had in factored form, before any of them was added up."""

    def factors(self) -> Iterator[list[Factors]]:
        """Of the batch's records, run by run: what they contribute to every parameter that the batch reached."""


class IntegerNoise(NoiseSource):
    """Integer noise of variance `std²` from a generator keyed by the operating system."""

    name = "skellam"
    _changing = frozenset({"_sampler"})
    assumptions = ("the noise generator (AES-256 in counter mode) cannot be told from random bits",)

    def __init__(self, noise: NoiseGenerator, coins: NoiseGenerator, grid_steps: int) -> None:
        """
        Args:
            noise: of the Skellam noise.
            coins: of the rounding.
            grid_steps: D, the clipping norm in grid steps.
        """
        self.coins = coins
        self._noise = noise
        self._grid_steps = grid_steps
        self._sampler: SkellamSampler | None = None

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._noise, self.coins)

    def cost(self, dimension: int) -> Departure:
        return Departure(log_ratio=0.0, log_inflation=0.0, mass=dimension * TABLE_MASS)

    def describe(self) -> dict[str, Any]:
        return {"clipping norm in grid steps": self._grid_steps}

    def add_noise(self, total: Tensor, std: float) -> None:
        """`total += Skellam(std² / 2, std² / 2)`; `total` holds whole numbers below 2^52 in float64.

        Raises:
            UsageError: the noise has too many values for a table.
        """
        mean = _poisson_mean(std)
        if self._sampler is None or self._sampler.mean != mean:
            self._sampler = SkellamSampler(mean)
        drawn = torch.from_numpy(self._sampler.sample(total.numel(), self._noise))
        total += drawn.to(total.device)


def _poisson_mean(std: float) -> Fraction:
    """Of either count whose difference has this standard deviation, exactly."""
    return Fraction(std) ** 2 / 2


class SkellamRelease(StepRelease):
    """`(sum_i integers(clip(X_i, C)) + Skellam) · C / (D · expected batch size)`.

    Attributes:
        sensitivity: D, in grid steps: a power of two, and the exact l2 bound of one record's integers.
    """

    mechanism = "skellam"
    source: IntegerNoise
    assumptions = (
        *(text for text in RECORD_ASSUMPTIONS if text != FLOATING_POINT),
        "a record's own contribution does not depend on its place in the batch or on the batch's size: beyond that, no "
        "arithmetic is taken for exact: sums and noise are whole numbers",
    )

    def __init__(
        self,
        contributions: FactoredContributions,
        noise: NoiseGenerator,
        coins: NoiseGenerator,
        *,
        max_grad_norm: float,
        expected_batch_size: float,
        grid_steps: int | None = None,
    ) -> None:
        """
        Args:
            contributions: the trainer's per-record contributions.
            noise, coins: of the noise, and of the rounding.
            max_grad_norm: C, from LEAST_NORM to MOST_NORM.
            expected_batch_size: q·N with the public N.
            grid_steps: D, the clipping norm in steps of the public grid; by default as many as keep the growth of a
                norm by rounding below a twentieth of its square.
        Raises:
            UsageError: a value out of range.
        """
        refuse_norm(max_grad_norm)
        steps = (
            least_bound([p.shape for p in contributions.parameters.values()])
            if grid_steps is None
            else grid_steps
        )
        if not 2 <= steps <= EXACT_FLOAT32 // 16 or steps & (steps - 1):
            raise UsageError(
                f"the clipping norm is {steps} grid steps; it must be a power of two from 2 to {EXACT_FLOAT32 // 16}"
            )
        self.contributions = contributions
        self.source = IntegerNoise(noise, coins, steps)
        self.dimension = contributions.dimension
        self.sensitivity = float(steps)
        self._factored = contributions
        self._steps = steps
        self._grid = steps / max_grad_norm
        self._expected = expected_batch_size
        first = next(iter(contributions.parameters.values()))
        self._dtype = first.dtype
        self._sum = torch.zeros(self.dimension, dtype=torch.float64, device=first.device)

    def check_noise(self, noise_multiplier: float) -> None:
        try:
            table_size(_poisson_mean(noise_multiplier * self.sensitivity))
        except UsageError as error:
            raise UsageError(
                f"noise multiplier {noise_multiplier} on a grid of {self._steps} steps a clipping norm: {error} "
                "(a larger epsilon, or release option grid_steps)"
            ) from error

    def _absorb(self, *, first: bool) -> None:
        refuse_imprecise_products(self._sum.device)
        if first:
            self._sum.zero_()
        with torch.autocast(self._sum.device.type, enabled=False):
            for stack in self._factored.factors():
                for part in integers(stack, grid=self._grid, bound=self._steps, coins=self.source.coins):
                    add_exactly(part, self._steps, self._sum)

    def _add_noise(self, noise_multiplier: float) -> None:
        # The product is exact: a power of two.
        self.source.add_noise(self._sum, noise_multiplier * self.sensitivity)

    def _released(self) -> Tensor:
        return self.contributions.unpack((self._sum / (self._grid * self._expected)).to(self._dtype))

    def _forget(self) -> None:
        self._sum.zero_()


@ReleaseCard(
    summary="exact integer noise from a cryptographic generator",
    statement="{drawn}, rounded to whole numbers of a public grid and bounded by {sensitivity} grid units. To the exact"
    " sum, whole-numbered Skellam noise of standard deviation {noise} times {sensitivity} grid units was "
    "added in each of {dimension} coordinates. Only the noised sum reached the weights.",
    mechanism="skellam",
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
    return SkellamRelease(
        cast(FactoredContributions, parts.start_capture("records")),
        parts.generator("noise"),
        parts.generator("rounding"),
        max_grad_norm=parts.max_grad_norm,
        expected_batch_size=parts.expected_batch_size,
        grid_steps=steps,
    )
