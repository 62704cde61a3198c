"""Direct feedback alignment of the ternarised error: g_l = B_l T(e), T in {-1, 0, 1}, as light takes it.

    T(e)_i = sign(e_i) 1[|e_i| > t]

[R] after Launay et al. 2020 (arXiv 2012.06373, 2006.01475), where an optical processing unit projects it; the authors'
threshold is not confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa import options as options_of
from optical_dfa.backends import BACKENDS, NO_OPTIONS
from optical_dfa.backends.encoding import Encoding, Ternary, TernaryAbsolute
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment


@RuleCard(summary="Direct Feedback Alignment of the error made ternary", projects=True)
class TernaryFeedbackAlignment(DirectFeedbackAlignment):
    """`ternary`: the error is made ternary before it is projected.

    The same function as the devices' own ternary encodings (`optical_dfa.backends.encoding`). A device that has an
    encoding is built with that one, 2 frames a record: it shows T(e) as it is, since T(T(e)) = T(e). An encoding that
    the user names for the device stays.
    """

    name = "ternary"

    def __init__(
        self,
        threshold: float = 0.3,
        relative: bool = False,
        scale: float | None = None,
        law: str | None = None,
        slices: str = "separate",
        normalisation: str = "layer",
        conv: str = "dense",
        kernel: int = 3,
    ) -> None:
        """
        Args:
            threshold: t: in units of the error, not negative, and well above 1/c, where the errors of a network that
                knows nothing lie (see `sign-dfa` for why); with `relative`, a fraction of the record's largest
                |e_i|, below 1.
            relative: the record sets the threshold, and its T(e) is scaled by <e,T>/<T,T> (least squares).
            scale, law, slices, normalisation, conv, kernel: as for `dfa`.
        Raises:
            UsageError: an option out of its range.
        """
        super().__init__(scale, law, slices, normalisation, conv, kernel)
        self.threshold = float(threshold)
        self.relative = relative
        self._encoding()

    def _encoding(self) -> Encoding:
        return Ternary(self.threshold) if self.relative else TernaryAbsolute(self.threshold, amplitude=1.0)

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        encoding = self._encoding()
        return encoding.decode(encoding.encode(error))

    def device_options(
        self, backend: str, given: Mapping[str, Any], outputs: Sequence[int]
    ) -> dict[str, Any]:
        chosen = super().device_options(backend, given, outputs)
        if "encoding" in chosen or "encoding" not in options_of.names(BACKENDS.load(backend), NO_OPTIONS):
            return chosen
        for option in ("threshold", "amplitude", "bits"):
            if option in chosen:
                raise UsageError(
                    f"backend option {option} is {chosen[option]!r} without an encoding, which rule {self.name} would "
                    "set; give the threshold as the rule's option, or name the encoding too"
                )
        constants = self._encoding().describe()
        return {**chosen, "encoding": constants.pop("name"), **constants}
