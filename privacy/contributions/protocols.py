"""What the privacy package knows of a trainer and of a device: these protocols, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from noise_models.base import Frame, NoiseModel
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.integers import Factors


class Contributions(Protocol):
    """The per-record contributions of the batch now handed out.

    Attributes:
        parameters: the released parameters by name, in the order of the flat stack.
        dimension: length of the flat stack of all released parameters.
        expected_records: set by the engine; answers how many records the current batch has, None without one.
        masks: set by the engine; the secret stream of all random masks.
    """

    parameters: dict[str, nn.Parameter]
    dimension: int
    expected_records: Callable[[], int | None]
    masks: NoiseGenerator

    @property
    def stacked(self) -> Sequence[Sequence[int]]:
        """Shape of each parameter's block of the stack."""

    @property
    def projects(self) -> bool:
        """Whether the rule projects the released stack, rather than each record's errors."""

    @property
    def taught(self) -> bool:
        """Whether a backward pass has reached the current batch."""

    def norms(self) -> Tensor:
        """Upper bounds on each record's joint norm over the whole stack, shape (m,), float64."""

    def add_clipped(self, factors: Tensor, out: Tensor) -> None:
        """`out += sum_i factors_i X_i`; a record of factor 0 adds exactly nothing, even if it is not finite."""

    def forget_passes(self) -> None:
        """Drop what backward passes have added since the batch was handed out; forward passes already made still count.

        What `optimizer.zero_grad()` does to gradients. Batches taken in before stay.
        """

    def fix(self) -> None:
        """From now on nobody changes what the private run rests on."""

    def clear(self) -> None:
        """Forget the batch."""

    def unpack(self, released: Tensor) -> Tensor:
        """The parameters' flat gradient from the released stack, shape (dimension,): post-processing."""


Keeps = Callable[[int, int, int], bool]  # products of a sum, and the rows and columns of one


class FactoredContributions(Contributions, Protocol):
    """Contributions that can be had record by record, before any of them was added up."""

    def factors(self, keeps: Keeps) -> Iterator[list[Factors]]:
        """Of the batch's records, run by run: what they contribute to every parameter that the batch reached.

        Once: what was handed out may be let go.

        Args:
            keeps: whether a sum of so many products, of so many rows and columns, is handed out as these products.
        """


class DarkFrames(Protocol):
    """A device that takes frames without data.

    Attributes:
        dark_pixels: pixels of a frame.
        frame_shape: its rows and columns.
        ideal_converter: whether its converter is known to be ideal and uniform, by construction.
    """

    name: ClassVar[str]
    dark_pixels: int
    frame_shape: tuple[int, int]
    ideal_converter: bool
    noise: NoiseModel
    generators: tuple[NoiseGenerator, ...]

    def dark(self, frames: int) -> Tensor:
        """Raw codes of fresh dark frames, shape (frames, dark_pixels)."""

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        """Raw codes of fresh frames of the lamp alone; UsageError where the device cannot take them."""

    def camera_fingerprint(self) -> str:
        """Identity of the camera, by which a calibration is matched with its device."""

    def describe(self) -> dict[str, Any]:
        """Everything that determines the device."""

    def fingerprint(self) -> str:
        """Digest of `describe()`."""


@dataclass(frozen=True)
class PhotonLimits:
    """What a light path for whole numbers does at most, in √photo-electrons; norms in units of κ (THEORY T10).

    Attributes:
        norm: UPPER limit of M, the norm of the map from columns to all amplitudes of the counts.
        row: UPPER limit of what a column of unit norm moves one amplitude by, in units in which the reference alone
            gives it the amplitude |r|.
        reach: UPPER limit of |E| over κ at any pixel, for entries of 1 at most.
        reference: |r|, as nominal.
        least: LOWER limit of |r|, faintest light and least sensitive pixel.
        beta: probability that a limit is wrong (THEORY T8).
    """

    norm: float
    row: float
    reach: float
    reference: float
    least: float
    beta: float = 0.0


class PhotonReadout(Protocol):
    """A light path that shows columns of whole numbers as amplitudes and counts what interferes with a reference.

    Attributes:
        inputs: p, entries of a column.
        rows: entries of an answer.
        most: K; entries are from -K to K.
        mirrors: that a column takes.
        response: R, shape (rows, inputs): an answer is `R a` on average.
        counts: photo-electron counts of a column.
        exposures: of a column.
        count_mass: total variation of one count from Poisson's law, 0 for real light.
    """

    inputs: int
    rows: int
    most: int
    mirrors: int
    response: NDArray[np.float64]
    counts: int
    exposures: int
    count_mass: float

    def limits(self, ratio: float) -> PhotonLimits:
        """Where |E| is at most `ratio` of |r|; of a medium that moves, with an allowance for it."""

    def keeps(self, limits: PhotonLimits, ratio: float) -> bool:
        """Whether light and medium, as they are now, are within these limits."""

    def show(self, columns: NDArray[np.int64], light: float) -> NDArray[np.float64]:
        """Answers, shape (m, rows), to columns of shape (m, inputs), κ = `light`."""

    def describe(self) -> dict[str, Any]:
        """Public constants (JSON types)."""

    def fingerprint(self) -> str:
        """Identity of device and light path, by which a calibration is matched with them, whatever rows are read."""


class PhotonDevice(DarkFrames, Protocol):
    """A device that has such a light path.

    Attributes:
        frame_rate_hz: exposures a second.
        physical: whether its light is real.
    """

    frame_rate_hz: float
    physical: ClassVar[bool]

    def photon_readout(self, rows: int | None = None) -> PhotonReadout:
        """Its light path, of so many entries of an answer; None is all there are.

        Raises:
            UsageError: it has none, or fewer entries.
        """


@runtime_checkable
class PrivateModule(Protocol):
    """A module that can hand its per-record contributions to a release (optical_dfa.feedback.AlignedModule).

    Attributes:
        backend: a DarkFrames device, or None.
        assumptions: what it takes for granted of its device.
    """

    backend: Any

    @property
    def assumptions(self) -> tuple[str, ...]: ...

    def start_capture(self, kind: str = "records", rows: int | None = None) -> Contributions:
        """Record contributions from now on, in the form of that name, instead of forming gradients.

        Args:
            rows: of the blocks that batches go through the module in; None is one block of a row a record.
        """

    def stop_capture(self) -> None:
        """Form gradients as usual again."""

    def describe(self) -> dict[str, Any]:
        """Rule, device and points."""
