"""The projection by a matrix of any size: drawn again, tile by tile, each time it is used."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.computed import ComputedBackend
from optical_dfa.backends.streamed_matrix import StreamedMatrix


@BackendCard(
    summary="digital's product by a normal matrix that is drawn tile by tile and never stored: slower, and of any size",
    part="No optical device took part: the projection is a matrix product in software, its matrix drawn as it is used.",
    camera=False,
)
class StreamedBackend(ComputedBackend):
    """Exact `B e` with the B of `StreamedMatrix`, whose seed alone is kept."""

    name: ClassVar[str] = "streamed"

    _matrix: StreamedMatrix

    def keep(self, components: range) -> range:
        return self._matrix.keep(components)

    def _made(self, seed: int) -> StreamedMatrix:
        return StreamedMatrix(self.in_features, self.out_features, seed)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph cannot draw
    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def matrix(self) -> Tensor:
        """B itself.

        Raises:
            UsageError: it has too many entries to be held.
        """
        return self._matrix.block(self._matrix.rows, range(self.in_features))
