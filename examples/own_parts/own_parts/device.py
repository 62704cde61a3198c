"""A device: the digital one, seen in a mirror. `optical_dfa.testing` has the tests of a device's contract."""

from __future__ import annotations

from torch import Tensor

from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.digital import DigitalBackend


@BackendCard(
    summary="a matrix product seen in a mirror", part="A mirror took part, in software.", camera=False
)
class MirroredBackend(DigitalBackend):
    """-B e."""

    name = "mirrored"

    def _project(self, e: Tensor) -> Tensor:
        return -super()._project(e)

    def matrix(self) -> Tensor:
        return -super().matrix()
