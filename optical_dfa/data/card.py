"""The card of a data set, and the training settings shipped with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noise_models.cards import Card


@dataclass(frozen=True)
class Defaults:
    """Settings used where the user gave none.

    They were chosen on the public benchmark sets themselves, so no guarantee covers that choice
    (docs/threat-model.md); for data of one's own nothing was tuned on it.

    Attributes:
        batch_size: expected records a step; at most the size of the data set is used.
        epochs: expected passes over the data.
        lr: learning rate of SGD.
        momentum: of SGD.
        max_grad_norm: clipping norm C.
        epsilon, delta: privacy budget of the run; delta None: min(1e-5, 1/(10 N)).
    """

    batch_size: int
    epochs: int
    lr: float
    momentum: float = 0.9
    max_grad_norm: float | None = None
    epsilon: float | None = None
    delta: float | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetCard(Card):
    """What is known of a data set, or of a kind of file, before it is loaded.

    Attributes:
        summary: what it is.
        private, plain: the settings shipped for a private run and for one without privacy, fields of `Defaults`.
        text: whether its records are positions of a text.
        by_records: whether a private run's settings follow from the number of records instead (`data.defaults`).
    """

    private: Mapping[str, Any]
    plain: Mapping[str, Any]
    text: bool = False
    by_records: bool = False

    def shipped(self, private: bool) -> Defaults:
        """The settings of a run for which the user gave none."""
        return Defaults(**(self.private if private else self.plain))
