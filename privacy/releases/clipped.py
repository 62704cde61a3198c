"""The clipped Gaussian release (THEORY T3): clip each record's whole stack, add up, add isotropic noise.

`X_i` is any random function of record i and the public state, device noise included; it is clipped AFTER that
noise, so the noise inside it earns nothing and costs nothing. The guarantee comes from Z alone.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from noise_models.errors import UsageError
from privacy.contributions.protocols import Contributions
from privacy.ledger import ReleaseEvent
from privacy.norms import refuse_norm
from privacy.releases.source import NoiseSource, Parts
from privacy.releases.step import StepRelease
from privacy.sampling import SIZE_SLACK

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


class ClippedRelease(StepRelease):
    """`(sum_i clip(X_i, C) + Z) / expected batch size`, Z ~ N(0, (noise_multiplier · sensitivity)² I).

    Attributes:
        sensitivity: how far one record moves the computed sum: C, plus the rounding of the sum with and without it.
        dimension: released coordinates.
    """

    mechanism = "gaussian"
    _changing = StepRelease._changing | {"_sum", "_records"}

    def __init__(
        self,
        contributions: Contributions,
        source: NoiseSource,
        *,
        max_grad_norm: float,
        expected_batch_size: float,
        max_physical_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            contributions: the trainer's per-record contributions.
            source: where Z comes from.
            max_grad_norm: C, from LEAST_NORM to MOST_NORM.
            expected_batch_size: q·N with the public N; the realised size is never used.
            max_physical_batch_size: records absorbed at a time; None is all of a step's.
        Raises:
            UsageError: a value out of range.
        """
        refuse_norm(max_grad_norm)
        self.contributions = contributions
        self.source = source
        self.max_grad_norm = max_grad_norm
        self.expected_batch_size = expected_batch_size
        self.dimension = contributions.dimension
        self._cap = record_cap(expected_batch_size)
        batches = math.ceil(self._cap / (max_physical_batch_size or self._cap))
        rounding = contributions.rounding(self._cap, batches) * self._cap
        self.sensitivity = max_grad_norm * (1 + 2 * rounding)
        first = next(iter(contributions.parameters.values()))
        self._sum = torch.zeros(self.dimension, dtype=first.dtype, device=first.device)
        self._records = 0
        self._in_parts = max_physical_batch_size is not None

    @classmethod
    def of(cls, parts: Parts, source: NoiseSource, capture: str = "records") -> Self:
        """The release of what an engine offers, with this noise.

        Args:
            parts: the engine's.
            source: where Z comes from.
            capture: form of the contributions.
        """
        return cls(
            parts.start_capture(capture),
            source,
            max_grad_norm=parts.max_grad_norm,
            expected_batch_size=parts.expected_batch_size,
            max_physical_batch_size=parts.max_physical_batch_size,
        )

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        ideal = super().event(sample_rate, noise_multiplier, epoch)
        return replace(ideal, mass=ideal.mass + CAP_MASS)

    def _absorb(self, *, first: bool) -> None:
        refuse_imprecise_products(self._sum.device)
        if first:
            if self._in_parts:  # whoever kept the last release must not see this step's sum grow in its place
                self._sum = torch.zeros_like(self._sum)
            else:
                self._sum.zero_()
            self._records = 0
        norms = self.contributions.norms()
        self._records += len(norms)
        refuse_excess(self._records, self._cap, self.expected_batch_size)
        self.contributions.add_clipped(clip_factors(norms, self.max_grad_norm), self._sum)

    def _add_noise(self, noise_multiplier: float) -> None:
        self.source.add_noise(self._sum, noise_multiplier * self.sensitivity)

    def _released(self) -> Tensor:
        return self.contributions.unpack(self._sum.div_(self.expected_batch_size))

    def _forget(self) -> None:
        self._sum.zero_()


def refuse_imprecise_products(device: torch.device | str = "cpu") -> None:
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
    exactly = torch.full(
        (64, 64), 1 + 2.0**-20, device=device
    )  # a bit that neither bfloat16, TF32 nor half has
    with torch.autocast(exactly.device.type, enabled=False):
        if not torch.equal(torch.mm(exactly, torch.eye(64, device=device)), exactly):
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
