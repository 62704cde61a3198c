"""What an attack found, and whether the claim it attacked survives: the one answer all attacks give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One attack on one release.

    Attributes:
        attack, release, backend: their registered names.
        epsilon_lower: lower bound on epsilon at `delta` and `confidence`, of what `epsilon_claimed` speaks of; None
            where the attack gives no number.
        confidence: of that bound.
        epsilon_claimed: what the release's accountant says; inf where it promises nothing.
        delta: of both.
        kind: kind of the claim, a value of `privacy.notions.Kind`.
        trials: trials that were run.
        claim: what the claim covers, in words.
        details: whatever else was measured (JSON types).
        notes: what the reader has to know, one sentence each.
    """

    attack: str
    release: str
    backend: str
    epsilon_lower: float | None
    confidence: float
    epsilon_claimed: float
    delta: float
    kind: str
    trials: int
    claim: str
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def consistent(self) -> bool | None:
        """False where the lower bound passes the claim; None where there is no bound."""
        return None if self.epsilon_lower is None else self.epsilon_lower <= self.epsilon_claimed

    def to_dict(self) -> dict[str, Any]:
        """JSON types, but for an infinite epsilon."""
        return {
            "attack": self.attack,
            "release": self.release,
            "backend": self.backend,
            "epsilon_lower": self.epsilon_lower,
            "confidence": self.confidence,
            "epsilon_claimed": self.epsilon_claimed,
            "delta": self.delta,
            "consistent": self.consistent,
            "kind": self.kind,
            "trials": self.trials,
            "claim": self.claim,
            **self.details,
            "notes": list(self.notes),
        }
