"""`per-record`: the published mechanism, whose only noise stands inside each record's projection (THEORY T1).

A RECONSTRUCTION of Ohana et al., "Photonic Differential Privacy with Direct Feedback Alignment" (NeurIPS 2021), so that
it can be reproduced and attacked. Record i contributes to hidden layer l

    X_i = ((c_i B_l e_i + g_i) ⊙ φ'(a_i)) (h_i, 1)^T,    g_i ~ N(0, sigma² I) fresh,

and to the output layer `c_i e_i (h_i, 1)^T` without noise. c_i clips the record's error so that its noiseless stack has
norm at most C. g is drawn by the secret generator on every backend; what a device adds to its projections is neither
used nor counted. The ledger's noise multiplier z is that of the isotropic reading (`privacy.accounting.published`),

    sigma = z C / (sqrt(m) φ'_min h_min),    m the expected batch size.

Its epsilon is NOT a bound: the kind is always `conditional`; `certificates` names the assumptions that fail.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from noise_models.errors import UsageError
from privacy.contributions.separated import SeparatedContributions, SeparatedLayer, joined
from privacy.ledger import ReleaseEvent
from privacy.norms import joint_norms, limit, refuse_norm, rounded_down, vector_norms, within
from privacy.notions import Kind
from privacy.releases.card import ReleaseCard
from privacy.releases.certificates import AssumptionCheck, Certificate, public_findings, realised_findings
from privacy.releases.clipped import (
    CAP_MASS,
    clip_factors,
    record_cap,
    refuse_excess,
    refuse_imprecise_products,
)
from privacy.releases.source import Parts, SecretNormals
from privacy.releases.step import RECORD_ASSUMPTIONS, StepRelease

# What the isotropic reading takes for the least |h| and |φ'| (of tanh: |a| <= 0.88), unless the options
# `activation_floor` and `derivative_floor` say otherwise. Nothing enforces them. Their product squared, 1/16, is below
# the mean of φ'² h² over records at a typical coordinate, so (1) of the accounting holds there; it fails at others,
# which the certificate counts.
FLOOR = 0.5


class ProjectionNoise(SecretNormals):
    """The normals g of every record's projection."""

    name = "per-record"


class PerRecordRelease(StepRelease):
    """The sum of the records' noised contributions over the expected batch size.

    Attributes:
        sensitivity: C.
        dimension: released coordinates.
        diagnoses: whether the first step's records are looked at for the certificate, which then is PRIVATE.
    """

    mechanism = "published"
    _changing = StepRelease._changing | {"_sum", "_records", "_looked", "_certificate"}

    def __init__(
        self,
        contributions: SeparatedContributions,
        source: ProjectionNoise,
        *,
        max_grad_norm: float,
        expected_batch_size: float,
        activation_floor: float = FLOOR,
        derivative_floor: float = FLOOR,
        diagnoses: bool = False,
    ) -> None:
        """
        Args:
            contributions: the trainer's, with gates.
            source: where g comes from.
            max_grad_norm: C, from LEAST_NORM to MOST_NORM.
            expected_batch_size: q·N with the public N; the realised size is never used.
            activation_floor: h_min > 0, public.
            derivative_floor: φ'_min > 0, public.
            diagnoses: whether the first step's records are looked at for the certificate, which then is PRIVATE.
        Raises:
            UsageError: a value out of range.
        """
        refuse_norm(max_grad_norm)
        for option, value in (("activation_floor", activation_floor), ("derivative_floor", derivative_floor)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UsageError(f"release option {option}={value!r}: it must be a positive number")
        self.activation_floor, self.derivative_floor = float(activation_floor), float(derivative_floor)
        self.contributions: SeparatedContributions = contributions
        self.source: ProjectionNoise = source
        self.sensitivity = max_grad_norm
        self.expected_batch_size = expected_batch_size
        self.dimension = contributions.dimension
        self.diagnoses = diagnoses
        self._cap = record_cap(expected_batch_size)
        first = next(iter(contributions.parameters.values()))
        self._sum = torch.zeros(self.dimension, dtype=first.dtype, device=first.device)
        self._noise = torch.zeros_like(self._sum)  # of unit g: the multiplier is known at the end of the step
        self._places: dict[str, slice] = {}
        start = 0
        for name, p in contributions.parameters.items():
            self._places[name] = slice(start, start + p.numel())
            start += p.numel()
        self._records = 0
        self._looked: list[list[SeparatedLayer]] | None = []
        self._certificate = Certificate(self._public())
        self.assumptions = (
            *(str(finding) for finding in self.certificate.failing()),
            "the noise of every update is taken for an isotropic Gaussian, which it is not: its covariance has at most "
            "the rank of the batch (a reconstruction of the published form, THEORY T1)",
            f"every activation is at least {activation_floor:g} and every derivative at least {derivative_floor:g} "
            "in absolute value; nothing enforces it",
            *RECORD_ASSUMPTIONS,
        )

    @property
    def certificate(self) -> Certificate:
        """Which assumptions fail; of public numbers alone, unless `diagnoses`."""
        return self._certificate

    def _public(self) -> tuple[AssumptionCheck, ...]:
        """What the sizes decide; the last layer of the chain is the output."""
        sizes: dict[str, tuple[int, int]] = {}  # layer -> (inputs, coordinates), the bias counted in
        for name, p in self.contributions.parameters.items():
            layer, _, _ = name.rpartition(".")
            inputs, coordinates = sizes.get(layer, (0, 0))
            sizes[layer] = (inputs + (p.shape[1] if p.ndim == 2 else 1), coordinates + p.numel())
        *hidden, last = sizes
        widths = [(layer, sizes[layer][0]) for layer in hidden]
        return public_findings(widths, (last, sizes[last][1]), self._cap)

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        ideal = super().event(sample_rate, noise_multiplier, epoch)
        return replace(ideal, mass=ideal.mass + CAP_MASS)

    def _absorb(self, *, first: bool) -> None:
        """Draw each record's noise, clip its error, and add its contribution to the step's sum."""
        refuse_imprecise_products(self._sum.device)
        if first:  # whoever kept the last release must not see this step's sum grow in its place
            self._sum, self._records = torch.zeros_like(self._sum), 0
            self._noise.zero_()
        if self.contributions.taught:
            self._take(self.contributions.separated())

    def _take(self, layers: list[SeparatedLayer]) -> None:
        self._records += len(layers[0].inputs)
        refuse_excess(self._records, self._cap, self.expected_batch_size)
        norms = joint_norms([_norms(layer) for layer in layers], self._sum.dtype)
        factors = rounded_down(clip_factors(norms, self.sensitivity), self._sum.dtype)
        layers = [_silenced(layer, factors != 0) for layer in layers]  # 0·inf is not 0
        layers = [
            replace(layer, signal=factors.to(layer.signal.dtype).unsqueeze(1) * layer.signal)
            for layer in layers
        ]
        for layer in layers:
            self._add(self._sum, layer, layer.signal)
            if layer.point is not None:
                unit = torch.zeros_like(layer.gate, memory_format=torch.contiguous_format)
                self.source.add_noise(unit.view(-1), 1.0)
                self._add(self._noise, layer, layer.gate * unit)
        if self._looked is not None and self.diagnoses:
            self._looked.append(layers)

    def _add(self, total: Tensor, layer: SeparatedLayer, rows: Tensor) -> None:
        """`total += ` the layer's update `rows^T inputs`, at its parameters' places."""
        for name, update in layer.parameters(rows.T @ layer.inputs).items():
            total[self._places[name]] += update

    def noise_std(self, noise_multiplier: float) -> float:
        """sigma, the standard deviation of g."""
        floors = self.activation_floor * self.derivative_floor
        return noise_multiplier * self.sensitivity / (math.sqrt(self.expected_batch_size) * floors)

    def _add_noise(self, noise_multiplier: float) -> None:
        """Scale the noise that stands inside the contributions to this multiplier, and join it to them."""
        self._sum.add_(self._noise, alpha=self.noise_std(noise_multiplier))
        if self._looked:
            found = realised_findings(
                joined(self._looked),
                self.activation_floor,
                self.derivative_floor,
                noise_std=self.noise_std(noise_multiplier),
                noise_multiplier=noise_multiplier,
            )
            self._certificate = Certificate((*self._certificate.findings, *found))
            self._looked = None

    def _released(self) -> Tensor:
        return self._sum.div_(self.expected_batch_size)

    def _forget(self) -> None:
        self._sum.zero_()
        self._noise.zero_()


def _norms(layer: SeparatedLayer) -> Tensor:
    """Upper bounds on the norms of the records' noiseless contributions to the layer, shape (m,), float64."""
    dtype, n, d = layer.signal.dtype, layer.signal.shape[1], layer.inputs.shape[1]
    signals = within(vector_norms(layer.signal), limit(dtype, d))
    return signals * within(vector_norms(layer.inputs), limit(dtype, n))


def _silenced(layer: SeparatedLayer, kept: Tensor) -> SeparatedLayer:
    if bool(kept.all()):
        return layer
    zero = torch.zeros((), dtype=layer.signal.dtype, device=layer.signal.device)
    return layer.mapped(lambda factor: torch.where(kept.unsqueeze(1), factor, zero))


@ReleaseCard(
    summary="noise inside each record's projection, as published: conditional, NOT a worst-case guarantee",
    statement="{coins}Normal noise was added inside each record's projection, as in the published photonic mechanism. "
    "The accounting is a RECONSTRUCTION that takes the noise of the sum for isotropic (noise multiplier "
    "{noise}); it is not, and the output layer carries none.",
    kind=Kind.CONDITIONAL,
    mechanism="published",
    options=("activation_floor", "derivative_floor"),
)
def make(parts: Parts) -> PerRecordRelease:
    """This release.

    Raises:
        UsageError: the training rule projects nothing, so there is nowhere for its noise.
    """
    if parts.device is None:
        raise UsageError(
            "release per-record puts its noise inside the projection of each record's error, and the training rule "
            "projects nothing; use rule dfa and a network with a hidden layer"
        )
    return PerRecordRelease(
        cast("SeparatedContributions", parts.start_capture("separated")),
        ProjectionNoise(parts.generator("noise")),
        max_grad_norm=parts.max_grad_norm,
        expected_batch_size=parts.expected_batch_size,
        diagnoses=parts.diagnoses,
        **parts.options,
    )
