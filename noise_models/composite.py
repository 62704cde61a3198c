"""Several independent noises that add, and a converter after them."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.correlated import CorrelatedNoise
from noise_models.errors import UsageError
from noise_models.gaussian import REAL_READOUT, GaussianNoise
from noise_models.randomness.generator import NoiseGenerator
from noise_models.readout import IdealConverter

# The noises that are Gaussian throughout, so that a converter's clipped mass is known.
_GAUSSIAN = (GaussianNoise, CorrelatedNoise)


class CompositeNoise(NoiseModel):
    """Readout = converter(signal + Σ parts' noises), each part independent of the others given the signal.

    All parts work in one unit, the signal's (with a converter: DN).

    **Credit.** A sum of independent N(0, ν_i² I) is N(0, Σν_i² I): variances add. Each part's claim may fail
    on its own, so betas and clipped masses add (union bound). An uncredited part is independent of the
    Gaussian ones; in frames without data its law is fixed, so it is the "something independent" of THEORY, Noise credit
    and costs nothing. In data frames its law may follow the signal (shot noise does), and then nothing may be
    credited: neighbouring inputs would differ by more than a shift. A converter after the sum rounds (step 1)
    and adds the mass that it clips, which is stated only if all that reaches it in the dark is Gaussian; else
    there is no credit. In data frames rounding and clipping are post-processing of a single frame (THEORY T5).

    Attributes:
        parts: the noises, at least one.
        converter: the last stage, or None for a readout of real numbers.
    """

    def __init__(self, parts: tuple[NoiseModel, ...], converter: IdealConverter | None = None) -> None:
        """
        Raises:
            UsageError: no parts, or a converter among them.
        """
        if not parts:
            raise UsageError("a composite noise of no parts was asked for; give at least one")
        if any(isinstance(part, IdealConverter) for part in parts):
            raise UsageError("a converter is not added to the signal; give it as converter=")
        self.parts = parts
        self.converter = converter

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        total = signal
        for part in self.parts:
            total = total + (part.sample(signal, generator, frame) - signal)
        return total if self.converter is None else self.converter.sample(total, generator, frame)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Sum of the parts' variances, and the converter's."""
        stages = self.parts if self.converter is None else (*self.parts, self.converter)
        return torch.stack([stage.variance(signal, frame) for stage in stages]).sum(0)

    def credit(self, frame: Frame) -> Credit:
        credits_ = [part.credit(frame) for part in self.parts]
        step = 0.0 if self.converter is None else 1.0
        refusal = self._refusal(credits_, frame)
        if refusal is not None:
            return Credit.none(refusal, step=step)
        mass = sum(credit.clipped_mass for credit in credits_)
        level = sum(credit.level for credit in credits_)
        assumptions = dict.fromkeys(text for credit in credits_ for text in credit.assumptions)
        if self.converter is not None:
            level += self.converter.black
            mass += self.converter.clipped_probability(sqrt(self._dark_variance()))
            assumptions.pop(REAL_READOUT, None)
            assumptions["the converter is ideal and uniform and hands out raw codes"] = None
        return Credit(
            std=sqrt(sum(credit.std**2 for credit in credits_)),
            step=step,
            clipped_mass=mass,
            beta=sum(credit.beta for credit in credits_),
            level=level,
            argument="independent Gaussian parts add: " + "; ".join(credit.argument for credit in credits_),
            assumptions=(*assumptions, "the parts of the noise are independent of each other"),
        )

    def _refusal(self, credits_: list[Credit], frame: Frame) -> str | None:
        """Why nothing is credited; None if something is."""
        if all(credit.std == 0.0 for credit in credits_):
            return "no part of the noise earns credit: " + "; ".join(credit.argument for credit in credits_)
        for credit in credits_:
            if frame is Frame.DATA and credit.std == 0.0:
                return f"a part of the noise may follow the signal ({credit.argument})"
            if credit.step > 0.0:
                return "a part of the noise is rounded already, so the sum is not rounded Gaussian noise"
        if self.converter is None:
            return None
        for part in self.parts:
            if not isinstance(part, _GAUSSIAN) and float(part.variance(torch.zeros(1), Frame.DARK)) > 0.0:
                name = part.describe()["model"]
                return f"noise {name!r} reaches the converter in the dark and its tails are not bounded"
        return None

    def _dark_variance(self) -> float:
        zero = torch.zeros(1, dtype=torch.float64)
        return float(sum(part.variance(zero, Frame.DARK) for part in self.parts))

    def describe(self) -> dict[str, float | int | str]:
        stages = self.parts if self.converter is None else (*self.parts, self.converter)
        described: dict[str, float | int | str] = {"model": "composite"}
        for number, stage in enumerate(stages):
            described.update({f"{number}.{key}": value for key, value in stage.describe().items()})
        return described
