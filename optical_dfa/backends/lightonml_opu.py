"""LightOn's own library in the loop: its simulated device, our optics behind it, or an OPU at its drivers' end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import Frame, NoiseModel, NoNoise, UncalibratedNoise
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.encoding import EncodingOptions
from optical_dfa.backends.lightonml_calibration import CameraLevels, ProjectorCalibration, camera_levels
from optical_dfa.backends.lightonml_front_end import LightonmlFrontEnd
from optical_dfa.backends.lightonml_library import import_lightonml, physics_device
from optical_dfa.backends.simulated_opu import OpticsOptions, SimulatedOpuBackend

DEVICES: Final = ("noiseless", "physics")


@dataclass(frozen=True, kw_only=True)
class LightonmlSimulatedOptions(OpticsOptions):
    """What may be chosen of lightonml without hardware; optics and camera are the physics-level device's.

    Attributes:
        device: "noiseless" or "physics".
    """

    device: str = "noiseless"


@dataclass(frozen=True, kw_only=True)
class LightonmlOptions(EncodingOptions):
    """What may be chosen of an OPU.

    Attributes:
        config_file: lightonml's device configuration, a path or an http address; empty is the host's own.
    """

    config_file: str = ""


@BackendCard(
    summary="lightonml's front end over its noiseless device, or over ours (device=physics)",
    part="The device was SIMULATED by the lightonml library's own software model; nothing was measured on "
    "hardware.",
    camera="device=physics",
    needs=(
        (
            ("lightonml", "numexpr", "attr", "requests", "packaging"),
            "pip install 'optical-dfa[lighton]'; pip install --no-deps lightonml==1.4.3",
        ),
    ),
)
class LightonmlSimulatedBackend(LightonmlFrontEnd):
    """lightonml without hardware, seeded: its own noiseless device, or our physics-level one behind its front end.

    `device="noiseless"` is lightonml's `SimulatedOpuDevice`: a dense complex Gaussian matrix, no noise, no camera.
    `device="physics"` puts `simulated-opu` at fidelity "physics" in its place; it has that one's camera.
    """

    name: ClassVar[str] = "lightonml-simulated"
    options = LightonmlSimulatedOptions

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        noise: NoiseGenerator,
        **options: Any,
    ) -> None:
        """
        Args:
            seed: determines B.
            noise: what keys the physics-level device's noise; the noiseless one has none.
            options: fields of `LightonmlSimulatedOptions`.

        Raises:
            UsageError: a value out of its range, or one that the noiseless device has no use for.
            DeviceError: lightonml is not installed.
        """
        chosen = LightonmlSimulatedOptions(**options)
        if chosen.device not in DEVICES:
            raise UsageError(f"device is {chosen.device!r}; it must be one of: {', '.join(DEVICES)}")
        optics = {name: value for name, value in options.items() if name in OpticsOptions.__annotations__}
        if chosen.device == "noiseless" and optics:
            raise UsageError(
                f"option {next(iter(optics))} is of a camera, and lightonml's noiseless device has none; "
                "give device=physics too"
            )
        self.device = chosen.device
        self._simulation = (
            SimulatedOpuBackend(
                in_features, out_features, seed=seed, noise=noise, fidelity="physics", **optics
            )
            if chosen.device == "physics"
            else None
        )
        super().__init__(in_features, out_features, seed=seed, noise=noise, **options)
        if self._simulation is not None:
            exposures = self._simulation.optics.interferometer.frames
            nothing = self.encoding.encode(torch.zeros(1, in_features))
            self.dark_pixels = self._simulation.dark_pixels
            self.frame_shape = self._simulation.frame_shape
            self.frame_rate_hz = self._simulation.frame_rate_hz
            self.ideal_converter = self._simulation.ideal_converter
            self.frames_per_record = len(nothing.weights) * exposures
            self.generators = self._simulation.generators

    def _open(self) -> Any:
        opu_class, device_class = import_lightonml()
        if self._simulation is None:
            device = device_class()
            # numpy's RandomState takes 32 bits. `simulated=True` would always use seed 0.
            seed = derive_seed(self._seed, "lightonml-matrix") % 2**32
            device.build_random_matrix(self.in_features, self.out_features, seed=seed)
        else:
            device = physics_device(self._simulation)
        return opu_class(
            n_components=self.out_features,
            opu_device=device,
            max_n_features=self.in_features,
            rescale="none",
            disable_pbar=True,
        )

    def _noise_model(self) -> NoiseModel:
        return NoNoise() if self._simulation is None else self._simulation.noise

    def dark(self, frames: int) -> Tensor:
        return super().dark(frames) if self._simulation is None else self._simulation.dark(frames)

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        if self._simulation is None:
            return super().expose(frames, light=light, seconds=seconds, setting=setting)
        return self._simulation.expose(frames, light=light, seconds=seconds, setting=setting)

    def camera(self) -> dict[str, Any]:
        return {} if self._simulation is None else self._simulation.camera()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if self._simulation is not None:
            self._simulation.advance(seconds)

    def matrix(self) -> Tensor:
        if self._simulation is not None:
            return self._simulation.matrix().div_(self.gain)
        real = self._opu.device.random_matrix.real
        return torch.from_numpy(np.ascontiguousarray(real.T, dtype=np.float32)).div_(self.gain)

    def describe(self) -> dict[str, Any]:
        own = {**super().describe(), "seed": self._seed, "distribution": "normal", "device": self.device}
        return own if self._simulation is None else {**self._simulation.describe(), **own}

    def close(self) -> None:
        super().close()
        if self._simulation is not None:
            self._simulation.close()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore_simulated, (
            self.in_features, self.out_features, self._seed, self._generator, self._given, self._simulation,
            self.calibration,
        )  # fmt: skip


def _restore_simulated(
    n_in: int,
    n_out: int,
    seed: int,
    noise: NoiseGenerator,
    options: dict[str, Any],
    simulation: SimulatedOpuBackend | None,
    calibration: ProjectorCalibration,
) -> LightonmlSimulatedBackend:
    """The device as it was: nothing is drawn from `noise`, and the gain is the one once measured."""
    device = LightonmlSimulatedBackend(
        n_in, n_out, seed=seed, noise=NoiseGenerator.secure("unused"), **options
    )
    device._generator = noise
    device.calibration = calibration
    if simulation is not None:
        device._simulation = simulation
        device.generators = simulation.generators
        device.noise = simulation.noise
        device._opu.device.attach(simulation)
    return device


@BackendCard(
    summary="a LightOn OPU through lightonml and its drivers",
    part="The device was, as its driver reports, a LightOn optical processing unit (through lightonml); the "
    "program cannot tell a device from a driver that imitates one.",
    camera=True,
    needs=(
        (
            ("lightonml", "numexpr", "attr", "requests", "packaging"),
            "pip install 'optical-dfa[lighton]'; pip install --no-deps lightonml==1.4.3",
        ),
        (("lightonopu",), "the drivers of a LightOn OPU, which come with the device"),
    ),
)
class LightonmlBackend(LightonmlFrontEnd):
    """A LightOn OPU through lightonml and its drivers. B is what the medium happens to be.

    Attributes:
        levels: of its camera at the start: dark level, signal, saturation.
    """

    name: ClassVar[str] = "lightonml"
    options = LightonmlOptions
    levels: CameraLevels | None = None
    physical: ClassVar[bool] = True

    def _open(self) -> Any:
        opu_class, _ = import_lightonml()
        try:
            return opu_class(
                n_components=self.out_features,
                config_file=_location(LightonmlOptions(**self._given).config_file),
                rescale="none",
                disable_pbar=True,
            )
        except Exception as error:
            line = str(error).partition("\n")[0]
            raise DeviceError(
                f"no LightOn OPU can be opened ({line}); connect one and install its drivers, "
                "or use --backend simulated-opu"
            ) from error

    def _calibrate(self) -> ProjectorCalibration:
        """
        Raises:
            DeviceError: too little light, or too much; or answers that are not linear.
        """
        self.levels = camera_levels(self._image, self.in_features, self.name)
        return super()._calibrate()

    def _image(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raw 8-bit camera codes of 0/1 frames."""
        return self._call(self._opu.transform, frames)

    def _noise_model(self) -> NoiseModel:
        return UncalibratedNoise()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "device": str(self._opu.version(devices=True))}

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        raise UsageError("a physical OPU cannot be pickled; create backend lightonml where it is used")


def _location(config_file: str) -> str:
    """As lightonml understands it: paths from the root only."""
    if not config_file or config_file.startswith("http"):
        return config_file
    return str(Path(config_file).absolute())
