"""A projection device as a followed rule sees it: row i of the answer belongs to row i of what it was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.capture.rows import Rows

if TYPE_CHECKING:
    from optical_dfa.capture.following import Following


class FollowedDevice:
    """The device itself, but that `project` says where the records are in its answer.

    What a device does inside is not made of torch's operations alone, and on hardware of none: that it answers each
    row from that row alone is its contract (`ProjectionBackend`), which `optical_dfa.testing` checks.
    """

    def __init__(self, device: ProjectionBackend, following: Following, shown: int) -> None:
        """
        Args:
            device: the device itself.
            following: how the rule is followed.
            shown: the first so many rows are shown to it, and zeros stand for its answers to the others.
        """
        self._device, self._following, self._shown = device, following, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def project(self, e: Tensor) -> Tensor:
        """As `ProjectionBackend.project`; a pass that is only noted is answered random numbers, and exposes nothing."""
        following = self._following
        rows: Rows | None = following.rows(e)
        if rows is not None and rows.axis != 0:
            raise following.refusal("shows the device something else than a row a record")
        following.shown(e)
        with following.off():
            if following.program is None:
                numbers = torch.Generator().manual_seed(0)
                answer = torch.randn(len(e), self._device.out_features, generator=numbers).to(e)
            else:
                answer = e.new_zeros(len(e), self._device.out_features)
                if self._shown == len(e):
                    answer = self._device.project(e).to(e)
                elif self._shown:
                    answer[: self._shown] = self._device.project(e[: self._shown]).to(e)
            following.note(answer, rows, own=True)
        return answer
