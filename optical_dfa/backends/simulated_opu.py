"""A simulated optical processing unit: binary frames in, 8-bit camera frames with read noise out."""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator
from noise_models.readout import CameraReadout
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.encoding import Frames, make_encoding
from optical_dfa.backends.matrix import RandomMatrix

# Camera pixels simulated at a time: the working set stays in cache.
_CHUNK: Final = 1 << 16


class SimulatedOpuBackend(ProjectionBackend):
    """`B e` through light: each error becomes binary frames, each frame is read by a noisy camera.

    B is the real effective matrix left after interferometric reconstruction of a scattering medium's
    transmission matrix: i.i.d. N(0, 1), seeded. A binary frame x gives the analog signal B x around mid-
    scale (balanced detection); `full_scale` of it reaches saturation. Frames are read by `CameraReadout`
    at its data gain and differences are taken in the computer, so the black level cancels. Dark frames
    are taken at the high dark gain. The exposure is a public constant, never automatic (THEORY T3).

    Attributes:
        encoding: how an error becomes binary frames.
        full_scale: |B x| at which a data frame saturates, in units of B.
    """

    name: ClassVar[str] = "simulated-opu"

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
        full_scale: float | None = None,
        dark_pixels: int = 131_072,
        adc_bits: int = 8,
        full_well_electrons: float = 10_000.0,
        read_noise_electrons: float = 5.0,
        dark_amplification: float = 32.0,
        dark_black: float | None = None,
    ) -> None:
        """
        Args:
            seed: determines B.
            noise: where read noise comes from, in data and in dark frames.
            encoding: "ternary", "ternary-absolute" or "bit-planes".
            threshold, amplitude, bits: the encoding's constants; None is its default.
            full_scale: exposure; None is 4 sqrt(in_features), at most 1 pixel in 15 000 saturates.
            dark_pixels: pixels of the camera's region of interest.
            adc_bits: resolution of the converter.
            full_well_electrons: electrons at the converter's largest code in data frames.
            read_noise_electrons: standard deviation of the read noise.
            dark_amplification: analog gain of dark frames over that of data frames.
            dark_black: black level of dark frames in DN; None is a quarter of the range.

        Raises:
            UsageError: a value out of its range, named.
        """
        super().__init__(in_features, out_features)
        for label, value in (("full_well_electrons", full_well_electrons), ("full_scale", full_scale)):
            if value is not None and not 0.0 < value < float("inf"):
                raise UsageError(f"{label} is {value}; it must be positive and finite")
        if dark_pixels < 1:
            raise UsageError(f"dark_pixels is {dark_pixels}; a camera has at least 1 pixel")
        self._arguments = {
            "encoding": encoding, "threshold": threshold, "amplitude": amplitude, "bits": bits,
            "full_scale": full_scale, "dark_pixels": dark_pixels, "adc_bits": adc_bits,
            "full_well_electrons": full_well_electrons, "read_noise_electrons": read_noise_electrons,
            "dark_amplification": dark_amplification, "dark_black": dark_black,
        }  # fmt: skip
        data_gain = (2**adc_bits - 1) / full_well_electrons
        self._camera = CameraReadout(
            read_noise_electrons=read_noise_electrons,
            data_gain=data_gain,
            dark_gain=dark_amplification * data_gain,
            data_black=2.0 ** (adc_bits - 1),
            dark_black=2.0 ** (adc_bits - 2) if dark_black is None else dark_black,
            bits=adc_bits,
        )
        self.noise = self._camera
        self.encoding = make_encoding(encoding, threshold=threshold, amplitude=amplitude, bits=bits)
        self.full_scale = 4 * sqrt(in_features) if full_scale is None else full_scale
        self.dark_pixels = dark_pixels
        self._seed = seed
        self._generator = noise
        self.generators = (noise,)
        self._matrix = RandomMatrix(in_features, out_features, seed, "normal")

    @property
    def dn_per_unit(self) -> float:
        """Exposure: DN of signal for one unit of B x."""
        return (self._camera.top - self._camera.data_black) / self.full_scale

    def _project(self, e: Tensor) -> Tensor:
        frames = self.encoding.encode(e)
        out = torch.empty(len(e), self.out_features, dtype=e.dtype, device=e.device)
        rows = max(1, _CHUNK // self.out_features)
        for start in range(0, len(e), rows):
            out[start : start + rows] = self._read(frames, slice(start, start + rows))
        return out

    def _read(self, frames: Frames, rows: slice) -> Tensor:
        """Expose and read the frames of some records; shape (rows, out_features), in units of B e."""
        scale = frames.scale[rows] / self.dn_per_unit
        total = torch.zeros(len(scale), self.out_features, device=scale.device)
        for plane, weight in zip(frames.planes, frames.weights, strict=True):
            signal = self._matrix.times(plane[rows].float()).mul_(self.dn_per_unit)
            total.add_(self._camera.sample(signal, self._generator, Frame.DATA), alpha=weight)
        return total.to(scale.dtype).mul_(scale[:, None])

    def dark(self, frames: int) -> Tensor:
        """Raw codes of fresh dark frames, shape (frames, dark_pixels), uint8 (int32 above 8 bits), in DN.

        Raises:
            UsageError: no read noise, a negative number of frames, or the device was closed.
        """
        self._require_open()
        if frames < 0:
            raise UsageError(f"number of dark frames is {frames}; it must not be negative")
        codes = self._camera.dark_codes(frames * self.dark_pixels, self._generator)
        return codes.view(frames, self.dark_pixels)

    def matrix(self) -> Tensor:
        return self._matrix.values

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": "normal",
            "std": self.std,
            "encoding": self.encoding.describe(),
            "full_scale": self.full_scale,
            "dark_pixels": self.dark_pixels,
            "noise": self.noise.describe(),
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (
            type(self), self.in_features, self.out_features, self._seed, self._generator, self._arguments,
        )  # fmt: skip


def _restore(
    cls: type[SimulatedOpuBackend], n_in: int, n_out: int, seed: int, noise: NoiseGenerator, options: Any
) -> SimulatedOpuBackend:
    return cls(n_in, n_out, seed=seed, noise=noise, **options)
