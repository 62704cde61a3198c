"""What a source of the release's noise is, and what it costs beyond an ideal Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from noise_models.calibration.document import Document
from noise_models.errors import UsageError
from noise_models.places import add_drawn
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator
from noise_models.randomness.rounded_gaussian import RoundedGaussianSampler
from privacy.contributions.protocols import Contributions, DarkFrames
from privacy.fixed import Fixed


@dataclass(frozen=True)
class Parts:
    """What an engine offers for making a release.

    Attributes:
        device: the projection device (with or without a camera), None where the training rule uses none.
        generator: a generator of that name, secret or as reproducible as the run, never used before.
        start_capture: begins to record what the batches contribute, in the form that the release works on
            (`AlignedModule.start_capture`).
        max_grad_norm: C, clipping norm of one record's whole stack.
        expected_batch_size: q·N with the public N.
        max_physical_batch_size: records handed out at a time; None is all of a step's.
        steps_an_epoch: logical batches an epoch.
        calibration: of the camera, or of the light path; None where none was given.
        known: digests of dark frames that earlier parts of the run logged; seeing one again is a replay.
        resumed: what the release wrote into the ledger (`Source.describe`) when the run began; None at its
            beginning.
        diagnoses: figures computed from private records are shown; the run then has no guarantee.
        options: the release's own settings.
    """

    device: DarkFrames | None
    generator: Callable[[str], NoiseGenerator]
    start_capture: Callable[[str], Contributions]
    max_grad_norm: float = 1.0
    expected_batch_size: float = 1.0
    max_physical_batch_size: int | None = None
    steps_an_epoch: int = 1
    calibration: Document | None = None
    known: tuple[str, ...] = ()
    resumed: dict[str, Any] | None = None
    diagnoses: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Departure:
    """One step's distance from the ideal Gaussian mechanism (THEORY T4); see `privacy.ledger.ReleaseEvent`."""

    log_ratio: float
    log_inflation: float
    mass: float


class Source(Fixed, ABC):
    """Where a release's noise comes from, dominated by N(0, std² I) up to its stated cost.

    Attributes:
        name: the release's registered name.
        device_share: fraction of the noise variance that the device supplies.
        beta: probability that the device's calibration is wrong (THEORY T8).
        calibration: what it relies on, None where nothing was measured.
        assumptions: what has to hold.
    """

    name: ClassVar[str]
    device_share: float = 0.0
    beta: float = 0.0
    calibration: Document | None = None
    assumptions: tuple[str, ...] = ()

    @property
    @abstractmethod
    def generators(self) -> tuple[NoiseGenerator, ...]:
        """Every generator whose secrecy the guarantee rests on."""

    @abstractmethod
    def cost(self, dimension: int) -> Departure:
        """What `dimension` coordinates of one step cost beyond an ideal Gaussian."""

    def describe(self) -> dict[str, Any]:
        """What is credited to the device (JSON types), for the ledger."""
        return {}

    def start_up(self) -> dict[str, Any]:
        """Test the device before anything is released, at the start of every part of a run.

        Returns:
            what was found, for the ledger; empty without a device.
        Raises:
            DeviceError: it is not as credited, or its calibration is another camera's or has expired.
        """
        return {}

    def vouch(self) -> None:
        """Test the device once more between a step's noise and its release.

        Raises:
            DeviceError: what was drawn may not be released.
        """

    def shown(self) -> tuple[str, ...]:
        """Digests of the device's frames since this was last asked; they are logged before the release.

        A digest of 160 bits tells nothing of a frame that nobody can guess.
        """
        return ()

    def rekeyed(self) -> tuple[NoiseGenerator, ...]:
        """Generators whose key changed since this was last asked; they are registered before the release."""
        return ()


class NoiseSource(Source):
    """Supplies Z, which is added to a sum."""

    def prepare(self, std: float) -> None:
        """Make ready for noise of standard deviation `std`, before anything is released or written.

        Raises:
            UsageError: it cannot be drawn.
        """

    @abstractmethod
    def add_noise(self, total: Tensor, std: float) -> None:
        """`total += Z`, Z whole numbers of standard deviation `std` in every coordinate.

        Args:
            total: whole numbers, shape (dimension,), int32 or int64.
            std: in their units.
        Raises:
            DeviceError: what was drawn may not be released.
        """


def with_camera(device: DarkFrames | None) -> DarkFrames:
    """The device, if it takes dark frames.

    Raises:
        UsageError: no device, or one without dark frames.
    """
    if device is None:
        raise UsageError(
            "the training rule uses no device, so there are no dark frames; use --rule dfa with --backend "
            "simulated-opu, or --release digital"
        )
    if device.dark_pixels < 1:
        raise UsageError(
            f"backend {device.name} has no dark frames; use --backend simulated-opu, or --release digital"
        )
    return device


class WholeNormals:
    """Rounded Gaussian noise of any standard deviation; what the last one needed is kept."""

    def __init__(self) -> None:
        self._sampler: RoundedGaussianSampler | None = None

    def prepare(self, std: float) -> RoundedGaussianSampler:
        """
        Raises:
            UsageError: a standard deviation that the sampler does not reach.
        """
        if self._sampler is None or self._sampler.std != std:
            self._sampler = RoundedGaussianSampler(std)
        return self._sampler

    def add(self, total: Tensor, std: float, generator: NoiseGenerator) -> None:
        """`total += round(N(0, std²))`."""
        sampler = self.prepare(std)
        add_drawn(total, lambda block: sampler.add_(block, generator))


class GeneratedNoise(NoiseSource):
    """Z from a generator keyed by the operating system."""

    assumptions = ("the noise generator (AES-256 in counter mode) cannot be told from random bits",)

    def __init__(self, generator: NoiseGenerator) -> None:
        self._generator = generator

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return (self._generator,)


class SecretNormals(GeneratedNoise):
    """Real normal noise, for releases of floating-point numbers."""

    def cost(self, dimension: int) -> Departure:
        return Departure(log_ratio=0.0, log_inflation=0.0, mass=dimension * NORMAL_TAIL_MASS)

    def add_noise(self, total: Tensor, std: float) -> None:
        """`total += Z`, real numbers both."""
        add_secret_normals(total, std, self._generator)


def add_secret_normals(total: Tensor, std: float, generator: NoiseGenerator) -> None:
    """`total += std·N(0, 1)`."""
    add_drawn(total, lambda block: generator.add_normal_(block, std))
