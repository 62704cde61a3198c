"""Direct Feedback Alignment (Nøkland 2016): g_l = B_l e, with B_l fixed and random."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.rule import FeedbackRule, Point, Requires


class DirectFeedbackAlignment(FeedbackRule):
    """`dfa`: every hidden layer is taught by a fixed random projection of the output error.

    B_l is layer l's slice of ONE device frame, scaled to entries of standard deviation `scale / sqrt(n_l)`: the
    per-layer normalisation of Launay et al. 2019 without its constant 1/sqrt(c), so that |g_l| ~ scale |e|.
    """

    name = "dfa"
    requires = frozenset({Requires.ROOT_ERROR})
    projects = True

    def __init__(self, scale: float = 1.0) -> None:
        """
        Args:
            scale: standard deviation of B_l's entries times sqrt(n_l).
        Raises:
            UsageError: scale is not positive and finite.
        """
        if not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise UsageError(f"rule option scale={scale!r}: it must be a positive number")
        self.scale = float(scale)

    def entry_scale(self, point: Point, backend: ProjectionBackend) -> float:
        """Factor from the device's answer to the teaching signal at `point`."""
        return self.scale / (backend.std * math.sqrt(point.width))

    def feedback(
        self, error: Tensor, points: Sequence[Point], backend: ProjectionBackend | None
    ) -> list[Tensor | None]:
        assert backend is not None  # align() builds one for every rule that projects
        frame = backend.project(error)
        signals: list[Tensor | None] = []
        for point in points:
            signal = frame[:, point.start : point.start + point.width]
            signals.append(signal.mul_(self.entry_scale(point, backend)))
        return signals
