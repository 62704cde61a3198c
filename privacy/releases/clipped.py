"""The clipped Gaussian release (THEORY T3, T11): bound each record's whole stack, add up, add noise, in whole numbers.

`X_i` is any random function of record i and the public state, device noise included; it is clipped AFTER that
noise, so the noise inside it earns nothing and costs nothing. The guarantee comes from Z alone. What is clipped is
rounded to a public grid and bounded exactly there (`privacy.contributions.integers`); the sum is exact in any order and
the noise is whole numbers too, so none of the bits of what is released tells more than its value (Mironov 2012: On
significance of the least significant bits for differential privacy).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar, cast

import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import CPU, exactly
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import MOST_STD
from privacy.contributions.integers import WholeSum, least_bound, leaves_half
from privacy.contributions.products import EXACT_FLOAT32
from privacy.contributions.protocols import FactoredContributions
from privacy.ledger import ReleaseEvent
from privacy.norms import refuse_norm
from privacy.releases.source import NoiseSource, Parts, Source
from privacy.releases.step import FLOATING_POINT, RECORD_ASSUMPTIONS, StepRelease
from privacy.sampling import SIZE_SLACK
from privacy.workers import Workers

# Settings that let a library take float32 products in a lower precision.
_PRECISIONS = (
    "fp32_precision",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
    "cudnn.fp32_precision",
    "cuda.matmul.fp32_precision",
    "cuda.matmul.allow_tf32",
)
# Variables of the libraries, with the value that changes nothing.
_ENVIRONMENT = {
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
    "MKL_BLAS_COMPUTE_MODE": "STANDARD",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "NVIDIA_TF32_OVERRIDE": "0",
    "CUBLAS_EMULATE_SINGLE_PRECISION": "0",
    "HIPBLASLT_ALLOW_TF32": "0",
    "PYTORCH_MPS_FAST_MATH": "0",
}

# A step has more than `record_cap` records with at most this probability; it enters delta.
CAP_MASS = 2.0**-60

S = TypeVar("S", bound=Source)


class ClippedSum(StepRelease, Generic[S]):
    """`sum_i whole(clip(X_i, C))`, exact; how its noise reaches it is the release's.

    Attributes:
        source: where the noise comes from.
        steps: D, the clipping norm in steps of the grid: the exact l2 bound of one record's whole numbers.
        sensitivity: how far one record moves the sum, C.
        dimension: released coordinates.
    """

    source: S
    assumptions = (
        *(text for text in RECORD_ASSUMPTIONS if text != FLOATING_POINT),
        "a record's numbers are the same to the bit in every place of the blocks, of a public number of rows, in which "
        "batches go through the module (tried on random records when a run begins); beyond that, no arithmetic is "
        "taken for exact: sums and noise are whole numbers",
        "the loss gives a record's error the same bits whatever the number of records: the sum of cross entropies "
        "does; a mean, which is undone, and losses that work element by element may change the last ones",
    )
    _changing = StepRelease._changing | {"_records"}

    def __init__(
        self,
        contributions: FactoredContributions,
        source: S,
        coins: NoiseGenerator,
        *,
        max_grad_norm: float,
        expected_batch_size: float,
        grid_steps: int | None = None,
    ) -> None:
        """
        Args:
            contributions: the trainer's per-record contributions.
            source: where the noise comes from.
            coins: of the rounding.
            max_grad_norm: C, from LEAST_NORM to MOST_NORM.
            expected_batch_size: q·N with the public N; the realised size is never used.
            grid_steps: D; by default as many as keep the growth of a norm by rounding small.
        Raises:
            UsageError: a value out of range.
        """
        refuse_norm(max_grad_norm)
        shapes = [p.shape for p in contributions.parameters.values()]
        steps = self.least_steps(shapes) if grid_steps is None else grid_steps
        if not 2 <= steps <= EXACT_FLOAT32 // 16 or steps & (steps - 1):
            raise UsageError(
                f"the clipping norm is {steps} grid steps; it must be a power of two from 2 to {EXACT_FLOAT32 // 16}"
            )
        if not leaves_half(steps, shapes):
            enough = next(2**k for k in range(1, 64) if leaves_half(2**k, shapes))
            raise UsageError(
                f"the clipping norm is {steps} grid steps, so few that rounding leaves little of a record; take "
                f"{enough} or more"
            )
        self._shapes = shapes
        self.contributions = contributions
        self.source = source
        self.max_grad_norm = self.sensitivity = max_grad_norm
        self.expected_batch_size = expected_batch_size
        self.dimension = contributions.dimension
        self._given = grid_steps is not None
        self._factored = contributions
        self._coins = coins
        self._take_grid(steps)
        self._cap = record_cap(expected_batch_size)
        self._records = 0

    @staticmethod
    def least_steps(shapes: Sequence[Sequence[int]]) -> int:
        """D, unless the user gives it."""
        return least_bound(shapes)

    def _take_grid(self, steps: int) -> None:
        """D from now on."""
        first = next(iter(self.contributions.parameters.values()))
        self.steps, self._grid, self._dtype = steps, steps / self.max_grad_norm, first.dtype
        self._sum = WholeSum(self.dimension, first.device, grid=self._grid, bound=steps, coins=self._coins)

    @classmethod
    def of(cls, parts: Parts, source: S, capture: str = "records", grid_steps: int | None = None) -> Self:
        """The release of what an engine offers, with this noise.

        Args:
            parts: the engine's.
            source: where the noise comes from.
            capture: form of the contributions.
            grid_steps: D.
        """
        return cls(
            cast(FactoredContributions, parts.start_capture(capture)),
            source,
            parts.generator("rounding"),
            max_grad_norm=parts.max_grad_norm,
            expected_batch_size=parts.expected_batch_size,
            grid_steps=grid_steps,
        )

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (*super().generators, self._coins)

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        ideal = super().event(sample_rate, noise_multiplier, epoch)
        return replace(ideal, mass=ideal.mass + CAP_MASS)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "clipping norm in grid steps": self.steps}

    def _absorb(self, *, first: bool) -> None:
        device = self._sum.total.device
        refuse_imprecise_products(device)
        if first:
            self._sum.clear()
            self._records = 0
        self._records += self.contributions.expected_records() or 0
        refuse_excess(self._records, self._cap, self.expected_batch_size)
        try:
            with exactly(device):
                for stack in self._factored.factors(self._sum.keeps_factors):
                    self._sum.add(stack)
        finally:
            self._sum.wipe()

    def add_up(self, workers: Workers) -> None:
        self._records = workers.total(self._records)
        refuse_excess(self._records, self._cap, self.expected_batch_size)
        self._sum.add_up(workers, self._records)

    def _forget(self) -> None:
        self._sum.clear()


class ClippedRelease(ClippedSum[NoiseSource]):
    """`(sum_i whole(clip(X_i, C)) + Z) · C / (D · expected batch)`, Z of standard deviation noise_multiplier · D."""

    mechanism = "gaussian"

    def prepare(self, noise_multiplier: float) -> None:
        """Beside noise that no sampler reaches on this grid a coarser one does, where none was asked for."""
        while not self._given and noise_multiplier * self.steps > MOST_STD:
            if not leaves_half(self.steps // 2, self._shapes):
                break  # the source refuses what it cannot draw
            self._take_grid(self.steps // 2)
        self.source.prepare(noise_multiplier * self.steps)

    def _add_noise(self, noise_multiplier: float) -> None:
        # The product is exact: a power of two.
        self.source.add_noise(self._sum.total, noise_multiplier * self.steps)

    def _released(self) -> Tensor:
        unit = 1 / (self._grid * self.expected_batch_size)
        return self.contributions.unpack(self._sum.in_units(unit, self._dtype))


def refuse_imprecise_products(device: torch.device = CPU) -> None:
    """Refuse settings under which float32 matrix products are not float32 (THEORY T3), and products that are not.

    Convolutions and recurrent layers are a record's own arithmetic, which is clipped after it; cuDNN takes them in
    TF32 by default. On the CPU their settings go through the same library as matrix products, and are refused alike.
    Flags for reduced-precision REDUCTIONS are of half-precision products, which a release has none of.

    Args:
        device: where the products are taken.
    Raises:
        UsageError: naming the setting.
    """
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # a backend's own setting contradicts the global one
        precision = "mixed"
    if precision in ("high", "medium"):
        raise _imprecise(
            f"float32 matrix products have precision {precision!r}",
            "call torch.set_float32_matmul_precision('highest')",
        )
    for name in _PRECISIONS:
        owner: object = torch.backends
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner not in (None, "none", "ieee", False):
            raise _imprecise(f"torch.backends.{name} is {owner!r}", "leave it alone, or set it to 'ieee'")
    if precision != "highest":
        raise _imprecise(
            f"float32 matrix products have precision {precision!r}", "undo the settings of torch.backends"
        )
    for name, exact in _ENVIRONMENT.items():
        value = os.environ.get(name, "").strip()
        if value.upper() not in ("", exact):
            raise _imprecise(
                f"the environment variable {name} is {value!r}", f"start without it, or with {exact}"
            )
    fine = torch.full((64, 64), 1 + 2.0**-20, device=device)  # a bit that neither bfloat16, TF32 nor half has
    with exactly(device):
        if not torch.equal(torch.mm(fine, torch.eye(64, device=device)), fine):
            raise _imprecise(
                f"a float32 matrix product on {device} came out rounded",
                "find the setting that makes the library take it in another type",
            )


def _imprecise(what: str, remedy: str) -> UsageError:
    return UsageError(f"{what}, and a product of lower precision overshoots the clip; {remedy}")


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """`min(1, C / norm)`; 0 for a record whose norm is not finite, so that it contributes nothing."""
    factors = max_grad_norm / norms.clamp_min(max_grad_norm)
    return torch.where(norms.isfinite(), factors, torch.zeros_like(factors))


def refuse_excess(records: int, cap: int, expected: float) -> None:
    """
    Raises:
        UsageError: a step has more records than the declared size of the data set explains.
    """
    if records > cap:
        raise UsageError(
            f"the data set is larger than its public size explains (steps of {expected:g} records are expected); "
            "declare a public size that is not below the number of records"
        )


def record_cap(expected: float) -> int:
    """A number of records that a Poisson batch exceeds with probability below CAP_MASS (Bernstein's inequality).

    Args:
        expected: q·N with the declared N; the data set may be larger by SIZE_SLACK, or by one record.
    """
    log = -math.log(CAP_MASS)
    mean = max(SIZE_SLACK * expected, expected + 1)
    return math.ceil(mean + log / 3 + math.sqrt(log**2 / 9 + 2 * log * mean)) + 1
