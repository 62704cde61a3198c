"""lightonml's front end as a projection backend: what its simulated devices and the hardware have in common."""

from __future__ import annotations

import importlib.metadata
import threading
from abc import abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import NoiseModel
from noise_models.errors import DeviceError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.encoding import EncodingOptions
from optical_dfa.backends.lightonml_calibration import ProjectorCalibration, calibrate

# Binary frames handed to lightonml at a time, its own batch size.
_CHUNK: Final = 3000


class LightonmlFrontEnd(ProjectionBackend):
    """`B e` by `OPU.linear_transform` of binary frames.

    lightonml copies its input into uint8, so that a -1 becomes 255 without a word: only 0/1 frames are sent,
    positive and negative ones stacked in one call and subtracted here. Its own rescaling is off; the gain is
    measured once at the start by showing known patterns, so that B's entries have variance 1.

    Attributes:
        encoding: how an error becomes binary frames.
        calibration: what the patterns showed. Not part of `describe`: it is measured anew at every start.
    """

    options: ClassVar[type[EncodingOptions]]

    def __init__(
        self, in_features: int, out_features: int, *, seed: int, noise: NoiseGenerator, **options: Any
    ) -> None:
        """
        Args:
            seed: determines B where the device lets it be chosen.
            noise: what keys a simulated device's noise.
            options: fields of the class's `options`.

        Raises:
            UsageError: a value out of its range.
            DeviceError: library, drivers or device are not there, or the device does not answer.
        """
        super().__init__(in_features, out_features)
        self._given = options
        self.encoding = self.options(**options).build()
        self.noise = self._noise_model()
        self._seed = seed
        self._generator = noise
        # linear_transform goes through state shared by the whole device: one call at a time.
        self._lock = threading.Lock()
        self._opu = self._open()
        try:
            self._fit()
            self.calibration = self._calibrate()
        except BaseException:
            self._opu.close()
            raise

    @abstractmethod
    def _open(self) -> Any:
        """The opened lightonml.OPU.

        Raises:
            DeviceError: library or device are not there.
        """

    @abstractmethod
    def _noise_model(self) -> NoiseModel:
        """What is known of the device's noise."""

    def _fit(self) -> None:
        """Once for all: a later fit may change the hardware's matrix."""
        try:
            self._opu.fit1d(n_features=self.in_features)
        except Exception as error:
            line = str(error).partition("\n")[0]
            raise DeviceError(f"backend {self.name} cannot show {self.in_features} inputs: {line}") from error

    @property
    def gain(self) -> float:
        """Readout units for one unit of B."""
        return self.calibration.gain

    def _calibrate(self) -> ProjectorCalibration:
        """
        Raises:
            DeviceError: the device does not answer linearly.
        """
        return calibrate(self._transform, self.in_features, self.name)

    def _transform(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Readout of 0/1 frames, shape (frames, out_features)."""
        return self._call(self._opu.linear_transform, frames)

    def _call(self, method: Any, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """`method`, lightonml's, of 0/1 frames in chunks, shape (frames, out_features)."""
        with self._lock:
            try:
                parts = [
                    np.asarray(method(frames[start : start + _CHUNK]), dtype=np.float32)
                    for start in range(0, len(frames), _CHUNK)
                ]
            except Exception as error:
                line = str(error).partition("\n")[0]
                raise DeviceError(f"backend {self.name} failed while projecting: {line}") from error
        return np.concatenate(parts)

    def _project(self, e: Tensor) -> Tensor:
        out = torch.empty(len(e), self.out_features, dtype=e.dtype, device=e.device)
        if len(e) == 0:
            return out
        frames = self.encoding.encode(e)
        count = len(frames.weights)
        weights = np.asarray(frames.weights, dtype=np.float32)
        rows = max(1, _CHUNK // count)
        for start in range(0, len(e), rows):
            planes = on_cpu(frames.planes[:, start : start + rows], torch.uint8)
            m = planes.shape[1]
            readout = self._transform(planes.reshape(count * m, self.in_features).numpy())
            sums = np.tensordot(weights, readout.reshape(count, m, self.out_features), axes=1)
            out[start : start + m] = torch.from_numpy(sums)
        return out.mul_((frames.scale / self.gain)[:, None])

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "std": self.std,
            "encoding": self.encoding.describe(),
            "noise": self.noise.describe(),
            "lightonml": importlib.metadata.version("lightonml"),
        }

    def close(self) -> None:
        if not self.closed:
            self._opu.close()
        super().close()
