"""A camera in ten lines of numpy, with every parameter known: an implementation other than noise_models.camera."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise_models.base import Frame


@dataclass
class NumpyCamera:
    """code = clip(convert(black + gain (Poisson(...) + pattern + read noise + `extra`)), 0, top).

    `extra(shape, rng)` is further noise in DN; `convert` is the converter; `bend(electrons)` a response.
    """

    gain: float = 0.8
    read: float = 5.0
    current: float = 10.0
    prnu: float = 0.01
    dsnu: float = 2.0
    black: float = 64.0
    bits: int = 8
    amplification: float = 32.0
    data_black: float = 8.0
    exposure: float = 1e-4
    lamp: float = 2500.0
    shape: tuple[int, int] = (64, 64)
    seed: int = 0
    extra: Callable[[tuple[int, ...], np.random.Generator], Any] | None = None
    convert: Callable[[np.ndarray], np.ndarray] = np.rint
    bend: Callable[[np.ndarray], np.ndarray] = lambda electrons: electrons
    declares_exposure: bool = True
    ideal_converter: bool = False
    taken: int = 0
    serial: int = field(init=False, default=7)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, self.serial])
        pixels = self.shape[0] * self.shape[1]
        self.response = 1 + self.prnu * rng.standard_normal(pixels).clip(-4, 4)
        self.pattern = self.dsnu * rng.standard_normal(pixels).clip(-4, 4)
        self.rng = rng

    @property
    def name(self) -> str:
        return "numpy"

    @property
    def dark_pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def frame_shape(self) -> tuple[int, int]:
        return self.shape

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    def camera(self) -> dict[str, Any]:
        return {"dark_exposure_seconds": self.exposure} if self.declares_exposure else {}

    def camera_fingerprint(self) -> str:
        return hashlib.sha256(f"{self.gain} {self.read} {self.seed}".encode()).hexdigest()[:16]

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        dark = setting is Frame.DARK
        gain = self.gain if dark else self.gain / self.amplification
        black = self.black if dark else self.data_black
        time = self.exposure if seconds is None else seconds
        shape = (frames, self.dark_pixels)
        mean = np.broadcast_to(self.bend(self.response * light * self.lamp) + self.current * time, shape)
        electrons = self.rng.poisson(np.minimum(mean, 1e9)) + self.pattern
        electrons = electrons + self.read * self.rng.standard_normal(shape)
        analog = black + gain * electrons
        if self.extra is not None and dark:
            analog = analog + self.extra(shape, self.rng)
        self.taken += frames
        return torch.from_numpy(np.clip(self.convert(analog), 0, self.top).astype(np.int32))

    def truth(self) -> dict[str, float]:
        """True value of every calibrated parameter."""
        data_gain = self.gain / self.amplification
        pattern = float(self.pattern.mean())
        nominal = self.lamp * float(self.response.mean()) + self.current * self.exposure
        return {
            "gain_dn_per_electron": self.gain,
            "read_noise_electrons": self.read,
            "read_noise_dn": self.gain * self.read,
            "dark_current_electrons_per_second": self.current,
            "dsnu_electrons": float(self.pattern.std()),
            "dark_level_dn": self.black + self.gain * (self.current * self.exposure + pattern),
            "dark_drift_dn": 0.0,
            "data_saturation_dn": float(self.top),
            "data_gain_dn_per_electron": data_gain,
            "data_black_dn": self.data_black + data_gain * (self.current * self.exposure + pattern),
            "data_full_well_electrons": (self.top - self.data_black) / data_gain
            - self.current * self.exposure
            - pattern,
            "data_nonlinearity": 0.0,
            "prnu": float(self.response.std() / self.response.mean()),
            "data_light_level_dn": self.data_black + data_gain * (nominal + pattern),
            "dark_amplification": self.amplification,
            "nonlinearity": 0.0,
            "dnl_codes": 0.0,
        }


def random_camera(seed: int) -> NumpyCamera:
    """A camera of random parameters, within what a calibration accepts."""
    rng = np.random.default_rng(seed)
    read, bits = float(np.exp(rng.uniform(np.log(1.5), np.log(25)))), int(rng.choice([8, 10, 12]))
    sigma = float(rng.uniform(2.0, 5.0))
    gain, amplification = sigma / read, float(rng.uniform(8, 40))
    dsnu = float(rng.uniform(0, 0.5)) * read
    data_black = float(rng.uniform(2, 20))
    full_well = (2**bits - 1 - data_black) * amplification / gain
    return NumpyCamera(
        gain=gain,
        read=read,
        current=float(np.exp(rng.uniform(np.log(0.1), np.log(300)))),
        prnu=float(rng.uniform(0, 0.02)),
        dsnu=dsnu,
        black=10.5 * sigma + 4 * gain * dsnu + float(rng.uniform(0, 20)),
        bits=bits,
        amplification=amplification,
        data_black=data_black,
        lamp=0.25 * full_well,
        seed=seed,
    )
