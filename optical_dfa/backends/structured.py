"""The projection by random signs and fast transforms: no matrix, and no time that grows as one."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.computed import ComputedBackend
from optical_dfa.backends.structured_matrix import StructuredMatrix


@BackendCard(
    summary="random signs and fast Hadamard transforms, of any size, in time n log n: quicker than digital from "
    "512 x 512 entries on",
    part="No optical device took part: the projection is random signs and fast Hadamard transforms, in software.",
    camera=False,
)
class StructuredBackend(ComputedBackend):
    """Exact `B e` with the B of `StructuredMatrix`: of entries of variance 1 that are not independent."""

    name: ClassVar[str] = "structured"
    distribution: str = "structured"

    _matrix: StructuredMatrix

    def _made(self, seed: int) -> StructuredMatrix:
        return StructuredMatrix(self.in_features, self.out_features, seed)

    def _project(self, e: Tensor) -> Tensor:
        return self._matrix.times(e)

    def matrix(self) -> Tensor:
        """B itself.

        Raises:
            UsageError: it has too many entries to be held.
        """
        return self._matrix.values()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "rounds": self._matrix.rounds}
