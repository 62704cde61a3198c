"""Projections by a matrix that a seed determines and nobody stores."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor

from noise_models.base import NoNoise
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend


class ComputedMatrix(Protocol):
    """B, made as it is used."""

    def times(self, x: Tensor) -> Tensor:
        """`x Bᵀ`."""


class ComputedBackend(ProjectionBackend):
    """Exact `B e` with a B whose seed alone is kept."""

    _matrix: ComputedMatrix

    def __init__(self, in_features: int, out_features: int, *, seed: int, noise: NoiseGenerator) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, there is none.
        """
        super().__init__(in_features, out_features)
        self.noise = NoNoise()
        self._seed, self._generator = seed, noise
        self._matrix = self._made(seed)

    @abstractmethod
    def _made(self, seed: int) -> ComputedMatrix:
        """B of this seed, shape (out_features, in_features)."""

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": self.distribution,
            "std": self.std,
            "noise": self.noise.describe(),
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (type(self), self.in_features, self.out_features, self._seed, self._generator)


def _restore(
    cls: type[ComputedBackend], n_in: int, n_out: int, seed: int, noise: NoiseGenerator
) -> ComputedBackend:
    return cls(n_in, n_out, seed=seed, noise=noise)
