"""LightOn's own library in the loop: its simulated device, or an OPU at the end of its drivers."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import NoiseModel, NoNoise, UncalibratedNoise
from noise_models.errors import DeviceError, UsageError
from noise_models.generator import NoiseGenerator, derive_seed
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.encoding import make_encoding

_INSTALL: Final = (
    "install it with: pip install 'optical-dfa[lighton]'; pip install --no-deps lightonml==1.4.3; "
    "or use --backend simulated-opu"
)
# Binary frames handed to lightonml at a time, its own batch size.
_CHUNK: Final = 3000
# Basis vectors shown to find the gain.
_PROBES: Final = 1024


class _PackageResources(ModuleType):
    """The three names lightonml 1.4.3 takes from pkg_resources, which setuptools 82 no longer ships."""

    ResolutionError = importlib.metadata.PackageNotFoundError

    @staticmethod
    def get_distribution(name: str) -> importlib.metadata.Distribution:
        return importlib.metadata.distribution(name)

    @staticmethod
    def require(requirement: str) -> None:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        version = importlib.metadata.version(wanted.name)
        if version not in wanted.specifier:
            raise DeviceError(f"{wanted.name} is version {version}; {requirement} is needed")


@contextmanager
def _package_resources() -> Iterator[None]:
    """pkg_resources is importable inside: the real one where it exists."""
    try:
        import pkg_resources  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        sys.modules["pkg_resources"] = _PackageResources("pkg_resources")
        try:
            yield
        finally:
            del sys.modules["pkg_resources"]
    else:
        yield


def import_lightonml() -> tuple[Any, Any]:
    """lightonml's (OPU, SimulatedOpuDevice) classes.

    Raises:
        DeviceError: lightonml is not installed, or cannot be imported.
    """
    try:
        with _package_resources():
            from lightonml.internal.simulated_device import SimulatedOpuDevice
            from lightonml.opu import OPU
    except (ImportError, AttributeError) as error:
        raise DeviceError(f"lightonml cannot be imported ({error}); {_INSTALL}") from error
    return OPU, SimulatedOpuDevice


class _LightonmlBase(ProjectionBackend):
    """`B e` by `OPU.linear_transform` of binary frames.

    lightonml copies its input into uint8, so that a -1 becomes 255 without a word: only 0/1 frames are sent,
    positive and negative ones stacked in one call and subtracted here. Its own rescaling is off; the gain is
    measured once at the start by showing basis vectors, so that B's entries have variance 1.

    Attributes:
        encoding: how an error becomes binary frames.
        gain: readout units for one unit of B.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        seed: int,
        noise: NoiseGenerator,
        constants: dict[str, Any],
    ) -> None:
        super().__init__(in_features, out_features)
        self.encoding = make_encoding(**constants)
        self.noise = self._noise_model()
        self._constants = constants
        self._seed = seed
        self._generator = noise
        # linear_transform goes through state shared by the whole device: one call at a time.
        self._lock = threading.Lock()
        self._opu = self._open()
        try:
            self._opu.fit1d(n_features=in_features)
            self.gain = self._measure_gain()
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

    def _measure_gain(self) -> float:
        """Root mean square of the responses to basis vectors."""
        probes = np.eye(min(_PROBES, self.in_features), self.in_features, dtype=np.uint8)
        gain = float(np.sqrt(np.mean(np.square(self._transform(probes), dtype=np.float64))))
        if not 0.0 < gain < float("inf"):
            raise DeviceError(f"backend {self.name} answers {gain} to every probe; check light and shutter")
        return gain

    def _transform(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raw readout of 0/1 frames, shape (frames, out_features)."""
        with self._lock:
            try:
                parts = [
                    np.asarray(self._opu.linear_transform(frames[start : start + _CHUNK]), dtype=np.float32)
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
            planes = frames.planes[:, start : start + rows].to("cpu", torch.uint8)
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


class LightonmlSimulatedBackend(_LightonmlBase):
    """lightonml's `SimulatedOpuDevice`, seeded: a dense complex Gaussian matrix, no noise, no camera."""

    name: ClassVar[str] = "lightonml-simulated"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        noise: NoiseGenerator,
        encoding: str = "bit-planes",
        threshold: float | None = None,
        amplitude: float | None = None,
        bits: int | None = None,
    ) -> None:
        """
        Args:
            seed: determines B.
            noise: unused, the device has none.
            encoding: "ternary", "ternary-absolute" or "bit-planes".
            threshold, amplitude, bits: the encoding's constants; None is its default.

        Raises:
            UsageError: a value out of its range.
            DeviceError: lightonml is not installed.
        """
        constants = {"name": encoding, "threshold": threshold, "amplitude": amplitude, "bits": bits}
        super().__init__(in_features, out_features, seed, noise, constants)

    def _open(self) -> Any:
        opu_class, device_class = import_lightonml()
        device = device_class()
        # numpy's RandomState takes 32 bits. `simulated=True` would always use seed 0.
        device.build_random_matrix(
            self.in_features, self.out_features, seed=derive_seed(self._seed, "lightonml-matrix") % 2**32
        )
        return opu_class(
            n_components=self.out_features,
            opu_device=device,
            max_n_features=self.in_features,
            rescale="none",
            disable_pbar=True,
        )

    def _noise_model(self) -> NoiseModel:
        return NoNoise()

    def matrix(self) -> Tensor:
        real = self._opu.device.random_matrix.real
        return torch.from_numpy(np.ascontiguousarray(real.T, dtype=np.float32)).div_(self.gain)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "seed": self._seed, "distribution": "normal"}

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore_simulated, (
            self.in_features, self.out_features, self._seed, self._generator, self._constants,
        )  # fmt: skip


def _restore_simulated(
    n_in: int, n_out: int, seed: int, noise: NoiseGenerator, constants: dict[str, Any]
) -> LightonmlSimulatedBackend:
    options = {**constants, "encoding": constants["name"]}
    del options["name"]
    return LightonmlSimulatedBackend(n_in, n_out, seed=seed, noise=noise, **options)


class LightonmlBackend(_LightonmlBase):
    """A LightOn OPU through lightonml and its drivers. B is what the medium happens to be."""

    name: ClassVar[str] = "lightonml"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        noise: NoiseGenerator,
        encoding: str = "bit-planes",
        threshold: float | None = None,
        amplitude: float | None = None,
        bits: int | None = None,
        config_file: str = "",
    ) -> None:
        """
        Args:
            seed, noise: unused, the device has its own matrix and noise.
            encoding: "ternary", "ternary-absolute" or "bit-planes".
            threshold, amplitude, bits: the encoding's constants; None is its default.
            config_file: lightonml's device configuration; empty is the host's own.

        Raises:
            UsageError: a value out of its range.
            DeviceError: library, drivers or device are not there, or the device does not answer.
        """
        self._config_file = config_file
        constants = {"name": encoding, "threshold": threshold, "amplitude": amplitude, "bits": bits}
        super().__init__(in_features, out_features, seed, noise, constants)

    def _open(self) -> Any:
        opu_class, _ = import_lightonml()
        try:
            return opu_class(
                n_components=self.out_features,
                config_file=self._config_file,
                rescale="none",
                disable_pbar=True,
            )
        except Exception as error:
            line = str(error).partition("\n")[0]
            raise DeviceError(
                f"no LightOn OPU can be opened ({line}); connect one and install its drivers, "
                "or use --backend simulated-opu"
            ) from error

    def _noise_model(self) -> NoiseModel:
        return UncalibratedNoise()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "device": str(self._opu.version(devices=True))}

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        raise UsageError("a physical OPU cannot be pickled; create backend lightonml where it is used")
