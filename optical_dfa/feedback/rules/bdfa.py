"""Binary direct feedback alignment: g_l = s sign(B_l) e.

[R] A reconstruction of the binary DFA of Han and Yoo 2019 (arXiv 1901.01986) from its abstract: the feedback matrix is
a random one's signs, times one public constant a layer, so that teaching takes additions only.
"""

from __future__ import annotations

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(
    summary="Direct Feedback Alignment with binary feedback weights (a reconstruction)",
    projects=True,
    own_law=True,
    fixed_matrix=True,
)
class BinaryFeedbackAlignment(DirectFeedbackAlignment):
    """`bdfa`: feedback weights ±s, s = scale/sqrt(n_l) as for `dfa`. The signs are those that `dfa` has of this seed.

    Needs a device whose matrix can be binary: backend `digital`. Light's is normal.
    """

    name = "bdfa"
    laws = ("binary",)

    def __init__(
        self,
        scale: float | None = None,
        slices: str = "separate",
        normalisation: str = "layer",
        conv: str = "dense",
        kernel: int = 3,
    ) -> None:
        """
        Args:
            scale, slices, normalisation, conv, kernel: as for `dfa`.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale, "binary", slices, normalisation, conv, kernel)
