"""The projection by a matrix of any size: drawn again, tile by tile, each time it is used."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from noise_models.base import NoNoise
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.streamed_matrix import StreamedMatrix


@BackendCard(
    summary="digital's product by a normal matrix that is drawn tile by tile and never stored: slower, and of any size",
    part="No optical device took part: the projection is a matrix product in software, its matrix drawn as it is used.",
    camera=False,
)
class StreamedBackend(ProjectionBackend):
    """Exact `B e` with the B of `StreamedMatrix`, whose seed alone is kept."""

    name: ClassVar[str] = "streamed"

    def __init__(self, in_features: int, out_features: int, *, seed: int, noise: NoiseGenerator) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, there is none.
        """
        super().__init__(in_features, out_features)
        self.noise = NoNoise()
        self._seed, self._generator = seed, noise
        self._matrix = StreamedMatrix(in_features, out_features, seed)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph cannot draw
    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def matrix(self) -> Tensor:
        """B itself.

        Raises:
            UsageError: it has too many entries to be held.
        """
        return self._matrix.block(range(self.out_features), range(self.in_features))

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
    cls: type[StreamedBackend], n_in: int, n_out: int, seed: int, noise: NoiseGenerator
) -> StreamedBackend:
    return cls(n_in, n_out, seed=seed, noise=noise)
