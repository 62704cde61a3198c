"""The card of a feedback rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from noise_models.cards import Card

T = TypeVar("T")


class Refusal(StrEnum):
    """Why no private release takes a rule, in the words after its name."""

    NO_SUM = (
        "has an update that is not a sum over records, so it cannot be clipped record by record; use another rule, or "
        "release none"
    )
    LEARNS = (
        "learns its feedback from the records, outside the clipped and noised stack; use a rule with fixed feedback, "
        "or release none"
    )
    OWN_PASSES = (
        "does not teach layer by layer from one pass, so its contributions cannot be recorded; use rule dfa, or "
        "release none"
    )


@dataclass(frozen=True, kw_only=True)
class RuleCard(Card):
    """What is known of a rule before it is imported.

    Attributes:
        summary: how a network was trained, in the words after "was trained with".
        projects: whether it sends the error through a projection device, with its options as they are by default.
        projects_unless: option and value with which it does not.
        recurrent: whether it teaches the layers of recurrent networks alone.
        own_law: whether its feedback matrix has a law that no optical device has.
        fixed_matrix: whether a signal is B_l e with B_l fixed, without anything done to e first.
        refused: why no private release takes it; None where they do.
    """

    projects: bool
    projects_unless: tuple[str, str] | None = None
    recurrent: bool = False
    own_law: bool = False
    fixed_matrix: bool = False
    refused: Refusal | None = None

    def projects_with(self, options: Mapping[str, Any]) -> bool:
        """Whether it sends the error through a device, with these options."""
        if self.projects_unless is None:
            return self.projects
        name, value = self.projects_unless
        return options[name] != value if name in options else self.projects

    def __call__(self, thing: T) -> T:
        """Decorate a class of rules, which is refused for the reason that its card says.

        Raises:
            TypeError: it projects, or what it derives from is refused, and its card does not say so.
        """
        projects = hasattr(thing, "feedback")
        if projects != (self.projects or self.projects_unless is not None):
            raise TypeError(f"the card of {thing!r} must say projects={projects}")
        inherited = getattr(thing, "refused", None)
        if inherited is not None and inherited is not self.refused:
            raise TypeError(
                f"the card of {thing!r} must say refused=Refusal.{inherited.name}, as its base does"
            )
        thing.refused = self.refused  # type: ignore[attr-defined]
        return super().__call__(thing)
