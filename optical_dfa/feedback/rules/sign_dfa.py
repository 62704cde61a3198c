"""Direct feedback alignment of the error's signs: g_l = B_l sign(e) (sDFA of Frenkel et al. 2021, arXiv 1909.01311)."""

from __future__ import annotations

from torch import Tensor

from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(summary="Direct Feedback Alignment of the error's signs", projects=True)
class SignFeedbackAlignment(DirectFeedbackAlignment):
    """`sign-dfa`: each component of the error teaches by its sign alone, -1, 0 or 1.

    Under softmax cross-entropy sign(e) is 1 - 2 onehot(t) as long as no probability is rounded to 0 or 1: most of
    every record's signal is the same, which moves all records' hidden states together. Learning is slower and less
    accurate than with `dfa`, above all in few steps; a smaller learning rate helps.

    The signs are those of single records, so a mean over the batch scales output and hidden gradients alike; a loss
    that also averages over a record's positions scales the output's only. On any device: signs are what mirrors show.
    """

    name = "sign-dfa"

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        return error.sign().where(error.isfinite(), error)  # what is not finite stays so
