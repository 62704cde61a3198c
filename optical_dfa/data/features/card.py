"""The card of a kind of features."""

from __future__ import annotations

from dataclasses import dataclass

from noise_models.cards import Card
from noise_models.errors import UsageError

MOST = 65536  # as an argument


@dataclass(frozen=True, kw_only=True)
class FeaturesCard(Card):
    """What is known of features before they are computed.

    Attributes:
        summary: what they are.
        grammar: how they are asked for, in words.
        of_one_record: whether a record's features are a function of that record alone. Others depend on all training
            inputs, and a release that keeps inputs private refuses them.
        needs_argument: whether a whole number must stand after a colon; of others it may.
    """

    grammar: str
    of_one_record: bool
    needs_argument: bool

    def check(self, spec: str, argument: str | None) -> None:
        """Raise UsageError where what stands after the colon is none of theirs."""
        if argument is None:
            fits = not self.needs_argument
        else:
            fits = argument.isascii() and argument.isdigit() and 1 <= int(argument) <= MOST
        if not fits:
            raise UsageError(f"features is {spec!r}; it must be {self.grammar}")
