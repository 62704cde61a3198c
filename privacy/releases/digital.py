"""`digital`: the noise is drawn by a cryptographic generator (THEORY T11)."""

from __future__ import annotations

from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.source import Departure, GeneratedNoise, Parts, WholeNormals


class DigitalNoise(GeneratedNoise):
    """Rounded Gaussian noise."""

    name = "digital"

    def __init__(self, generator: NoiseGenerator) -> None:
        super().__init__(generator)
        self._normals = WholeNormals()

    def cost(self, dimension: int) -> Departure:
        return Departure(log_ratio=0.0, log_inflation=0.0, mass=dimension * TAIL_MASS)

    def prepare(self, std: float) -> None:
        self._normals.prepare(std)

    def add_noise(self, total: Tensor, std: float) -> None:
        self._normals.add(total, std, self._generator)


@ReleaseCard(
    summary="noise from a cryptographic generator",
    statement="{drawn}. To the sum, normal noise {size} from a cryptographic generator{each}{only}",
    isotropic=True,
    workers=True,
)
def make(parts: Parts) -> ClippedRelease:
    """This release."""
    return ClippedRelease.of(parts, DigitalNoise(parts.generator("noise")))
