"""How one step's contributions become what is released: the interface of every release."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.protocols import Contributions
from privacy.fixed import Fixed
from privacy.ledger import ReleaseEvent
from privacy.releases.source import Source
from privacy.workers import Workers

_PUBLIC = "the size N of the data set, the sample rate and the number of steps are public"
_ROWS = (
    "row i of every input, in every pass over a batch, is computed from record i of that batch alone: no batch "
    "statistics, no mixing of records, no padding to the longest; random augmentation is drawn record by record from "
    "secret randomness",
    "the loss adds up the records' own losses, or averages them where loss_reduction says so: none of them depends on "
    "other records or on their number (a mean with class weights or ignore_index does: take reduction='sum')",
    "every batch is trained on alike: nothing in the loop depends on the loss, the outputs or the size of a batch",
)
FLOATING_POINT = (
    "arithmetic is exact beyond rounding: floating-point noise is taken for Gaussian noise, and a record's own "
    "contribution does not depend on its place in the batch or on the batch's size"
)
_SIDE = "timing, memory and power are side channels outside the guarantee"

# What every statement about records rests on, besides its noise.
RECORD_ASSUMPTIONS = (
    _PUBLIC,
    "the sampling coins and the noise are secret (several workers of a run hold the same records in the same order, "
    "and nobody else hears what they tell each other)",
    *_ROWS,
    "one record is one person's whole contribution (duplicates need a group notion)",
    FLOATING_POINT,
    _SIDE,
)


def refusal_of_workers(release: str, count: int) -> str:
    """Why a release is not made by several workers."""
    return (
        f"release {release} on {count} workers is not served: what a worker takes in is no sum of whole numbers, which "
        "alone comes out the same however it is shared; train in one process, or use release digital"
    )


class StepRelease(Fixed, ABC):
    """One way of releasing a step. The engine calls absorb (once a physical batch), add_up (of several workers),
    add_noise, release.

    Attributes:
        mechanism: of its rows in the ledger, a name of `privacy.mechanisms.MECHANISMS`.
        contributions: what the batches contribute.
        source: where the noise comes from.
        dimension: released coordinates.
        sensitivity: how far one record moves what is noised, in its units.
        assumptions: what the statement rests on besides `source.assumptions`.
        exposures: of the device in which a step shows it data, besides the rule's own.
    """

    mechanism: ClassVar[str]
    contributions: Contributions
    source: Source
    dimension: int
    sensitivity: float
    assumptions: tuple[str, ...] = RECORD_ASSUMPTIONS
    exposures: int = 0
    _noised = False
    _changing = frozenset({"_noised"})

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        """The ledger's row of one step at this sample rate and noise multiplier."""
        cost = self.source.cost(self.dimension)
        return ReleaseEvent(
            mechanism=self.mechanism,
            source=self.source.name,
            sample_rate=sample_rate,
            noise_multiplier=noise_multiplier,
            sensitivity=self.sensitivity,
            dimension=self.dimension,
            log_ratio=cost.log_ratio,
            log_inflation=cost.log_inflation,
            mass=cost.mass,
            device_share=self.source.device_share,
            epoch=epoch,
        )

    def planned(
        self, sample_rate: float, noise_multiplier: float, steps: int, *, epoch: int = 0
    ) -> dict[ReleaseEvent, int]:
        """The rows of the next `steps` steps, and how often each occurs.

        Args:
            epoch: number of the one that they begin.
        """
        return {self.event(sample_rate, noise_multiplier): steps} if steps else {}

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        """Every generator whose secrecy the guarantee rests on."""
        return self.source.generators

    def describe(self) -> dict[str, Any]:
        """What the noise is made of, for the ledger (JSON types)."""
        return self.source.describe()

    def prepare(self, noise_multiplier: float) -> None:
        """Before anything is released or written: make ready for noise of this size.

        Raises:
            UsageError: it cannot be drawn.
        """

    def absorb(self, *, first: bool) -> None:
        """Take in the contributions of the batch now handed out.

        Args:
            first: this batch begins a step.
        Raises:
            UsageError: the batch is none that the release covers.
        """
        self._noised = False
        self._absorb(first=first)
        self.contributions.clear()

    def add_up(self, workers: Workers) -> None:
        """Let the first worker hold what all of them took in, before it adds the noise.

        Raises:
            UsageError: what is taken in is no sum of whole numbers, or too many records.
        """
        raise UsageError(refusal_of_workers(self.source.name, workers.count))

    def add_noise(self, noise_multiplier: float) -> None:
        """Noise the step.

        Raises:
            DeviceError: the noise may not be released, and so neither may the step.
        """
        self._add_noise(noise_multiplier)
        self._noised = True

    def release(self) -> Tensor:
        """The step's gradient in the order of `contributions.parameters`, flat, divided by the EXPECTED batch size.

        It may lie in a buffer that the next step reuses.

        Raises:
            UsageError: no noise was added since the last release.
        """
        if not self._noised:
            raise UsageError("a step without noise is not released; call add_noise first")
        self._noised = False
        return self._released()

    def discard(self) -> None:
        """Forget a step that failed; whoever kept an earlier release may hold its buffer."""
        self._noised = False
        self.contributions.clear()
        self._forget()

    @abstractmethod
    def _absorb(self, *, first: bool) -> None: ...

    @abstractmethod
    def _add_noise(self, noise_multiplier: float) -> None: ...

    @abstractmethod
    def _released(self) -> Tensor: ...

    @abstractmethod
    def _forget(self) -> None: ...
