"""The projection as a matrix product: no device, no noise."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from noise_models.base import NoNoise
from noise_models.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.matrix import RandomMatrix


class DigitalBackend(ProjectionBackend):
    """Exact `B e` with a seeded B of unit-variance entries (Nøkland 2016, arXiv:1609.01596)."""

    name: ClassVar[str] = "digital"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        noise: NoiseGenerator,
        distribution: str = "normal",
    ) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, there is none.
            distribution: of B's entries, "normal" or "uniform".

        Raises:
            UsageError: sizes or distribution are not allowed.
        """
        super().__init__(in_features, out_features)
        self.noise = NoNoise()
        self._seed = seed
        self._generator = noise
        self._distribution = distribution
        self._matrix = RandomMatrix(in_features, out_features, seed, distribution)

    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def matrix(self) -> Tensor:
        return self._matrix.values

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": self._distribution,
            "std": self.std,
            "noise": self.noise.describe(),
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (
            type(self), self.in_features, self.out_features, self._seed, self._generator, self._distribution,
        )  # fmt: skip


def _restore(
    cls: type[DigitalBackend], n_in: int, n_out: int, seed: int, noise: NoiseGenerator, distribution: str
) -> DigitalBackend:
    return cls(n_in, n_out, seed=seed, noise=noise, distribution=distribution)
