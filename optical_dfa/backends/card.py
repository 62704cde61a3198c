"""The card of a projection device."""

from __future__ import annotations

from dataclasses import dataclass

from noise_models.cards import Card


@dataclass(frozen=True, kw_only=True)
class BackendCard(Card):
    """What is known of a device before it is imported.

    Attributes:
        summary: what it is, for a list of devices.
        part: what took part in a run, in a sentence.
        camera: whether it has dark frames that a release can use; a text names the option, "name=value", with which.
        needs: (importable modules that it needs besides this package, how to get them).
    """

    part: str
    camera: bool | str
    needs: tuple[tuple[tuple[str, ...], str], ...] = ()
