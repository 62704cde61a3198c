"""lightonml as it can be had: imported under current packaging, and its simulated device with our optics behind it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.errors import DeviceError, UsageError
from optical_dfa.backends.encoding import Encoding, ModulatorFrames
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend

_INSTALL: Final = (
    "install it with: pip install 'optical-dfa[lighton]'; pip install --no-deps lightonml==1.4.3; "
    "or use --backend simulated-opu"
)


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


@dataclass(frozen=True)
class BinaryFrames(Encoding):
    """Vectors that are 0/1 frames already: one frame each, shown as it is."""

    name: ClassVar[str] = "binary"

    def encode(self, e: Tensor) -> ModulatorFrames:
        return ModulatorFrames(e[None], (1.0,), torch.ones_like(e[:, 0]))


class _PhysicsDevice:
    """What lightonml asks of its simulated device, answered by a physics-level simulated OPU."""

    simulation: SimulatedOpuBackend
    _linear: bool

    def attach(self, simulation: SimulatedOpuBackend) -> None:
        """Answer by `simulation` from now on."""
        simulation.encoding = BinaryFrames()
        self.simulation = simulation

    @property
    def random_matrix(self) -> npt.NDArray[np.float32]:
        """Bᵀ, shape (in_features, out_features): lightonml looks at its shape alone."""
        values: npt.NDArray[np.float32] = self.simulation.optics.projection().numpy()
        return values

    def transform1(self, X: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """`B x` of 0/1 frames, shape (frames, out_features), by interference: noise, converter and all."""
        if not self._linear:
            raise UsageError(
                "the physics-level device measures B x by interference; call linear_transform, not transform"
            )
        frames = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
        answer: npt.NDArray[np.float32] = self.simulation.project(frames).numpy()
        return answer


def physics_device(simulation: SimulatedOpuBackend) -> Any:
    """A device for `lightonml.OPU(opu_device=…)` that lets `simulation` do the optics.

    lightonml tells its devices apart by the class's name and by `isinstance`, so this one is a subclass of
    lightonml's SimulatedOpuDevice and has its name.
    """
    _, base = import_lightonml()
    device = type("SimulatedOpuDevice", (_PhysicsDevice, base), {})()
    device.attach(simulation)
    return device
