"""The projection by random signs and fast transforms: no matrix, and no time that grows as one."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from noise_models.base import NoNoise
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.structured_matrix import StructuredMatrix


@BackendCard(
    summary="random signs and fast Hadamard transforms, of any size, in time n log n: quicker than digital from "
    "512 x 512 entries on",
    part="No optical device took part: the projection is random signs and fast Hadamard transforms, in software.",
    camera=False,
)
class StructuredBackend(ProjectionBackend):
    """Exact `B e` with the B of `StructuredMatrix`: of entries of variance 1 that are not independent."""

    name: ClassVar[str] = "structured"
    distribution: str = "structured"

    def __init__(self, in_features: int, out_features: int, *, seed: int, noise: NoiseGenerator) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, there is none.
        """
        super().__init__(in_features, out_features)
        self.noise = NoNoise()
        self._seed, self._generator = seed, noise
        self._matrix = StructuredMatrix(in_features, out_features, seed)

    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def matrix(self) -> Tensor:
        """B itself.

        Raises:
            UsageError: it has too many entries to be held.
        """
        return self._matrix.values()

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": self.distribution,
            "rounds": self._matrix.rounds,
            "std": self.std,
            "noise": self.noise.describe(),
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (type(self), self.in_features, self.out_features, self._seed, self._generator)


def _restore(
    cls: type[StructuredBackend], n_in: int, n_out: int, seed: int, noise: NoiseGenerator
) -> StructuredBackend:
    return cls(n_in, n_out, seed=seed, noise=noise)
