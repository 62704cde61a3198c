"""The interface of every projection device, digital, simulated or real."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from noise_models.base import Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.protocols import PhotonReadout


def digest(description: dict[str, Any]) -> str:
    """Short digest of a description of JSON types."""
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class ProjectionBackend(ABC):
    """A fixed random projection `e -> B e`, with the device's noise.

    B has shape (out_features, in_features) and i.i.d. zero-mean entries of standard deviation `std`. One
    device serves a whole run: its outputs are sliced over the layers by the caller. The readout of one record
    is a random function of that record alone (THEORY T3): scales, thresholds and exposure are public
    constants or functions of the record itself, never of the batch.

    Concrete classes are built as `cls(in_features, out_features, *, seed, noise, **options)`; the keywords
    besides `seed` and `noise` are the device's options. A deepcopy is the device itself: copies of a network
    share one machine.

    Attributes:
        name: the registered name.
        in_features, out_features: sizes of the projection.
        std: standard deviation of B's entries, in the units `project` answers in.
        distribution: law of B's entries; that of light is normal.
        noise: the readout's noise model.
        dark_pixels: pixels in one dark frame; 0 for a device without a camera.
        frame_shape: rows and columns of such a frame; their product is dark_pixels.
        frames_per_record: camera frames that one record's projection takes; 0 without a camera.
        frame_rate_hz: frames a second that hardware times are projected at; 0 without a camera.
        ideal_converter: whether the camera's converter is ideal and uniform by construction; of hardware nobody
            knows (THEORY T4).
        generators: what a simulated device draws its noise from; () on hardware.
        physical: whether its noise comes from outside this process, as hardware's does.
        closed: True once the device was handed back.
    """

    name: ClassVar[str]
    std: float = 1.0
    distribution: str = "normal"
    dark_pixels: int = 0
    frame_shape: tuple[int, int] = (0, 0)
    frames_per_record: int = 0
    frame_rate_hz: float = 0.0
    ideal_converter: bool = False
    physical: ClassVar[bool] = False
    noise: NoiseModel
    generators: tuple[NoiseGenerator, ...] = ()

    def __init__(self, in_features: int, out_features: int) -> None:
        for label, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise UsageError(f"{label} is {value}; it must be a positive number of components")
        self.in_features = in_features
        self.out_features = out_features
        self.closed = False

    def project(self, e: Tensor) -> Tensor:
        """`B e` for each row of `e`.

        Args:
            e: shape (m, in_features), float32 or float64, any m including 0; row i is record i's error.
                A row with a NaN or an infinity answers non-finite numbers and touches no other row.
        Returns:
            shape (m, out_features), of e's dtype and device. No gradient flows through it.
        Raises:
            UsageError: wrong shape or dtype, or the device was closed.
            DeviceError: the device failed.
        """
        self._require_open()
        if e.ndim != 2 or e.shape[1] != self.in_features or e.dtype not in (torch.float32, torch.float64):
            # Never the number of rows: it is the realised batch size.
            given = f"rows of {e.shape[1]}" if e.ndim == 2 else f"{e.ndim} axes"
            raise UsageError(
                f"{self.name} projects float32 or float64 rows of {self.in_features} components, not {e.dtype} {given}"
            )
        return self._project(e.detach())

    @abstractmethod
    def _project(self, e: Tensor) -> Tensor:
        """`project` after its argument was checked."""

    def dark(self, frames: int) -> Tensor:
        """Raw readout codes of `frames` fresh frames taken with no data, shape (frames, dark_pixels), in DN.

        Raises:
            UsageError: the device has no camera, or no noise that could be counted on.
        """
        raise UsageError(
            f"backend {self.name} has no dark frames; use --backend simulated-opu, or --release digital"
        )

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        """Raw codes of fresh frames of a public, data-free scene, shape (frames, dark_pixels), in DN.

        The scene is the reference light alone (no error is shown), so the frames may be tested, logged and
        drawn. `dark(n)` is `expose(n, light=0, seconds=None, setting=Frame.DARK)`.

        Args:
            frames: how many, not negative.
            light: lamp power relative to its nominal value; 0 is a closed shutter.
            seconds: exposure time; None is the setting's own.
            setting: whose analog gain and black level the camera uses.

        Raises:
            UsageError: the device has no camera that could be exposed so, or an argument out of its range.
        """
        raise UsageError(f"backend {self.name} has no camera to calibrate; use --backend simulated-opu")

    def photon_readout(self, rows: int | None = None) -> PhotonReadout:
        """The light path whose shot noise may protect whole numbers shown as amplitudes (THEORY T10).

        Args:
            rows: entries of an answer; None is all there are.

        Raises:
            UsageError: the device has none, or fewer rows.
        """
        raise UsageError(
            f"backend {self.name} shows no amplitudes; release photon needs --backend simulated-opu with "
            "--backend-option method=homodyne"
        )

    def camera(self) -> dict[str, Any]:
        """What identifies the camera alone (JSON types): a calibration is of a camera, not of a network."""
        return {}

    def camera_fingerprint(self) -> str:
        """Digest of `camera()`, by which a calibration is matched with its device."""
        return digest(self.camera())

    def advance(self, seconds: float) -> None:
        """Let `seconds` of PUBLIC time pass (a fixed schedule, never the realised one): what drifts, drifts.

        Between two calls the device does not change, so no record's law depends on how many others there are.

        Raises:
            UsageError: the device was closed.
        """
        self._require_open()

    def hardware_seconds(self, records: int) -> float:
        """Time in which a device of this frame rate would project so many records; 0 without a camera."""
        return records * self.frames_per_record / self.frame_rate_hz if self.frame_rate_hz else 0.0

    def keep(self, components: range) -> range:
        """Answer with these components of the frame alone from now on, to the same bits, where that spares anything.

        The device stays the one that it was built as: description, fingerprint and law are the whole frame's.

        Returns:
            the components that `project` answers with now, more than were asked for where that takes the same bits;
            all of them of a device that cannot leave any out.
        """
        return range(self.out_features)

    def matrix(self) -> Tensor | None:
        """B itself where it is known, shape (out_features, in_features); None on hardware.

        For diagnostics and tests: no training result may use B except through `project`.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that determines the device (JSON types), for the ledger and the checkpoint."""

    def fingerprint(self) -> str:
        """Digest of `describe()`: equal for devices that answer alike, in law."""
        return digest(self.describe())

    def close(self) -> None:
        """Hand the device back. Using it afterwards is an error. Closing twice is not."""
        self.closed = True

    def _require_open(self) -> None:
        if self.closed:
            raise UsageError(f"backend {self.name} was closed; create a new one")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
