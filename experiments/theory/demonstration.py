"""One figure that a theorem claims, what was found, and whether the claim held."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Closed forms and numerical integrals agree to this; a claim that is passed by less is kept.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Demonstration:
    """A claim, and what was found with its conditions kept or with one of them dropped.

    Attributes:
        case: what was done, in words.
        figure: what the two numbers are.
        claimed: what the theorem says, or would say if its condition were kept.
        found: what is true; where it was estimated, a confidence limit on the side that favours the claim.
        dropped: the condition that was dropped; "" where all are kept.
        tolerance: relative, for claims of equality; None is the claim that `found` is at most `claimed`.
    """

    case: str
    figure: str
    claimed: float
    found: float
    dropped: str = ""
    tolerance: float | None = None

    @property
    def holds(self) -> bool:
        """Whether what was found is what was claimed."""
        if self.tolerance is not None:
            return math.isclose(self.found, self.claimed, rel_tol=self.tolerance)
        return self.found <= self.claimed * (1 + ROUNDING)

    @property
    def as_it_should_be(self) -> bool:
        """The claim held with its conditions, and broke without one of them."""
        return self.holds == (self.dropped == "")


def table(theorem: str, demonstrations: Iterable[Demonstration]) -> list[str]:
    """Markdown rows `| theorem | case | figure | claimed | found | verdict |`."""
    rows = []
    for d in demonstrations:
        bound = "" if d.tolerance is not None else "≤ "
        verdict = "holds" if d.holds else f"**breaks**: {d.dropped}"
        cells = (theorem, d.case, d.figure, bound + shown(d.claimed), shown(d.found), verdict)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return rows


def shown(value: float) -> str:
    """Three significant digits; ∞ where there is no number."""
    if math.isinf(value):
        return "∞"
    return f"{value:.3g}"
