"""The card of a feedback rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noise_models.cards import Card


@dataclass(frozen=True, kw_only=True)
class RuleCard(Card):
    """What is known of a rule before it is imported.

    Attributes:
        summary: how a network was trained, in the words after "was trained with".
        projects: whether it sends the error through a projection device, with its options as they are by default.
        projects_unless: option and value with which it does not.
        recurrent: whether it teaches the layers of recurrent networks alone.
        own_law: whether its feedback matrix has a law that no optical device has.
    """

    projects: bool
    projects_unless: tuple[str, str] | None = None
    recurrent: bool = False
    own_law: bool = False

    def projects_with(self, options: Mapping[str, Any]) -> bool:
        """Whether it sends the error through a device, with these options."""
        if self.projects_unless is None:
            return self.projects
        name, value = self.projects_unless
        return options[name] != value if name in options else self.projects
