"""Sparse direct feedback alignment: k non-zeros a hidden unit (SSDFA; Crafton et al. 2019, arXiv 1903.02083).

    g_l = (M_l ∘ B_l) e,    M_l with exactly k ones a row,    B_l ~ U[-r, r],    r = 1/sqrt(n_l / sqrt(c k))

With k = 1 each hidden unit is taught by one component of the error: three numbers' product updates a weight. The law
is the authors' code's, low-rank option included (there B_l is rescaled to standard deviation r, zeros counted).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.digital import SPARSE
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(
    summary="Direct Feedback Alignment with sparse feedback weights",
    projects=True,
    own_law=True,
    fixed_matrix=True,
)
class SparseFeedbackAlignment(DirectFeedbackAlignment):
    """`ssdfa`: the projection gathers k components of the error a unit, k multiplications instead of c.

    Needs a device whose matrix can be sparse: backend `digital`. Light's is dense.
    """

    name = "ssdfa"
    laws = (SPARSE,)

    def __init__(
        self,
        nonzeros: int = 1,
        rank: int | None = None,
        scale: float | None = None,
        slices: str = "separate",
        normalisation: str = "layer",
        conv: str = "dense",
        kernel: int = 3,
    ) -> None:
        """
        Args:
            nonzeros: k, 1 to c.
            rank: of each layer's matrix, nonzeros times rank at least c; None is unrestricted.
            scale: factor on r; None derives one for each point, as for `dfa`.
            slices, normalisation, conv, kernel: as for `dfa`.
        Raises:
            UsageError: an option out of its range; `nonzeros` and `rank` are checked when the device is built.
        """
        super().__init__(scale, SPARSE, slices, normalisation, conv, kernel)
        self.nonzeros = nonzeros
        self.rank = rank

    def device_options(
        self, backend: str, given: Mapping[str, Any], outputs: Sequence[int]
    ) -> dict[str, Any]:
        return {
            **super().device_options(backend, given, outputs),
            "nonzeros": self.nonzeros,
            "rank": self.rank,
        }

    def work(self, points: Sequence[Point], components: int) -> tuple[int, int]:
        """k a component of the frame; with a rank, k a set of places, and one a component."""
        operations, words = super().work(points, 1)  # one a component, and what a shared kernel adds
        frame = max((point.start + point.outputs for point in points), default=0)
        heard = sum(point.outputs for point in points)
        if self.rank is None:
            more = (self.nonzeros - 1) * frame, (self.nonzeros - 1) * heard
        else:
            sets = self.rank * self.nonzeros * len({point.start for point in points})
            more = sets, sets
        return operations + more[0], words + more[1]

    def entry_scale(self, addends: int, backend: ProjectionBackend) -> float:
        reach = math.sqrt(math.sqrt(backend.in_features * self.nonzeros) / addends)  # r
        spread = (
            backend.std if self.rank is not None else math.sqrt(3)
        )  # of what r is the size of, on the device
        return self.scale * reach / spread
