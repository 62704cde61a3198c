"""What an attack is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from noise_models.errors import UsageError
from optical_dfa.progress import Progress, SilentProgress
from privacy.releases import terms


@dataclass(frozen=True)
class Setting:
    """One attack on one release.

    Attributes:
        release: a name of `privacy.releases.RELEASES`.
        backend: a registered device; None is one that the release can work with.
        rule: a registered feedback rule; None is the one that the release works with.
        dataset: a data set; None is the attack's own choice.
        data_dir: folder with its files.
        epsilon, delta: the claim attacked; None is the attack's default epsilon.
        confidence: of the lower bound.
        trials: in each world; None is the attack's default.
        seed: of weights, records and, so that the attack can be repeated, of all noise. What is attacked is the
            claim that secret noise would have.
        out: folder for pictures; None draws none.
        progress: is told of every trial.
    Raises:
        UsageError: a value out of range.
    """

    release: str = "digital"
    backend: str | None = None
    rule: str | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    confidence: float = 0.999
    trials: int | None = None
    seed: int = 0
    out: Path | None = None
    progress: Progress = field(default_factory=SilentProgress)

    def __post_init__(self) -> None:
        terms(self.release)
        if self.epsilon is not None and not 0 < self.epsilon <= 64:
            raise UsageError(f"epsilon is {self.epsilon}; an attacked claim has one above 0 and at most 64")
        if not 0 < self.delta < 1:
            raise UsageError(f"delta is {self.delta}; it must be strictly between 0 and 1")
        if not 0.9 <= self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; give at least 0.9 and below 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; give a whole number from 0 to 2^63 - 1")
        if self.trials is not None and not 4 <= self.trials <= 10**7:
            raise UsageError(f"trials is {self.trials}; give a number from 4 to 10,000,000")
