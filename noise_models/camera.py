"""What a camera reads: photo-electrons in, codes out, every stage in physical units."""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, pdtrc
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.data_sheet import CAMERAS, DEFAULT_CAMERA, PATTERN_REACH, Camera, named_camera
from noise_models.errors import DeviceError, UsageError, apart
from noise_models.places import on_cpu
from noise_models.randomness.chunks import CHUNK, draw_in_chunks
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from noise_models.randomness.quantised_normal import LEVELS, ShiftedQuantisedNormal
from noise_models.shot import LARGEST_MEAN, draw_poisson

__all__ = ["CAMERAS", "DEFAULT_CAMERA", "Camera", "PhysicalCamera", "named_camera"]

# Dark electrons beyond the count that has this probability are charged to the clipped mass.
_DARK_TAIL: Final = 1e-30


class PhysicalCamera(NoiseModel):
    """One camera: `Camera`'s parameters, and the fixed patterns of the specimen with this serial number.

    A pixel k that receives a mean of N electrons reads (EMVA 1288, with a converter)

        electrons = min(Poisson((1 + PRNU_k) N + dark current) + DSNU_k, full well)
        code = clip(adc(black + gain (electrons + read N(0, 1))), 0, top),

    where `adc` rounds to the nearest code, or finds the interval between the measured thresholds of a
    converter with differential non-linearity. Patterns are public and the same for every frame and setting.

    **Credit.** Dark frames: by construction the read noise is Gaussian, is independent of everything else and
    is added before the converter, so the law of a code is round(N(0, (gain·read)²) + independent): the read
    noise alone is credited, and neither dark current nor rounding nor the pattern (THEORY, Noise credit). Gain drift
    may take it down to 1 − drift_limit of its nominal value, so that much is credited. With dnl_lsb > 0 rounding
    is not uniform and T4's dither does not hold: no credit by construction (a calibration that measures the
    thresholds may give some). Data frames: none (T3 needs none).

    Attributes:
        camera: the parameters.
        serial: seed of PRNU, DSNU and DNL patterns.
        drift_limit: relative gain drift beyond which the camera refuses to work.
    """

    def __init__(self, camera: Camera, serial: int = 0, drift_limit: float = 0.0) -> None:
        """
        Raises:
            UsageError: drift_limit is not in 0 … 0.5.
        """
        if not 0.0 <= drift_limit <= 0.5:
            raise UsageError(f"gain drift limit is {drift_limit}; it must lie between 0 and 0.5")
        self.camera = camera
        self.serial = int(serial)
        self.drift_limit = drift_limit
        self._gain_factor = 1.0

    @property
    def gain_factor(self) -> float:
        """Analog gain over its nominal value: drift, on a public time base."""
        return self._gain_factor

    @gain_factor.setter
    def gain_factor(self, value: float) -> None:
        if not abs(value - 1.0) <= self.drift_limit + 1e-12:
            drift, limit = apart(abs(value - 1.0), self.drift_limit)
            raise DeviceError(
                f"the camera's gain is {drift} off its nominal value, beyond the declared drift of {limit}; "
                "calibrate the camera again"
            )
        self._gain_factor = float(value)

    @cached_property
    def prnu_pattern(self) -> npt.NDArray[np.float32]:
        """1 + PRNU_k, shape (pixels,)."""
        return (1 + self._pattern("prnu", self.camera.prnu)).astype(np.float32)

    @cached_property
    def dsnu_pattern(self) -> npt.NDArray[np.float32]:
        """DSNU_k in electrons, shape (pixels,)."""
        return self._pattern("dsnu", self.camera.dsnu_electrons).astype(np.float32)

    def _pattern(self, name: str, std: float) -> npt.NDArray[np.float64]:
        if std == 0.0:
            return np.zeros(self.camera.pixels)
        normals = np.random.default_rng(derive_seed(self.serial, name)).standard_normal(self.camera.pixels)
        return std * normals.clip(-PATTERN_REACH, PATTERN_REACH)

    @cached_property
    def thresholds_dn(self) -> npt.NDArray[np.float32] | None:
        """Analog level at which code c begins, for c = 1 … top; None for the ideal converter (c − 1/2).

        Code widths are 1 + N(0, dnl²), not negative, scaled so that the ends are where they should be.
        """
        if self.camera.dnl_lsb == 0.0:
            return None
        rng = np.random.default_rng(derive_seed(self.serial, "dnl"))
        top = self.camera.top
        widths = (1 + self.camera.dnl_lsb * rng.standard_normal(top - 1)).clip(0)
        widths *= (top - 1) / widths.sum()
        return (0.5 + np.concatenate(([0.0], np.cumsum(widths)))).astype(np.float32)

    def sample(
        self, signal: Tensor, generator: NoiseGenerator, frame: Frame, seconds: float | None = None
    ) -> Tensor:
        """Codes of frames, or of regions of frames, that receive light.

        All noise here is statistical (`draw_in_chunks`); frames that are to earn credit come from `dark_codes`.

        Args:
            signal: mean photo-electrons of each pixel, any shape whose last dimension is at most `pixels`:
                entry k of a row is pixel k. Negative is dark, infinite saturates, NaN stays NaN.
            generator: keys the noise.
            frame: whose gain, black level and exposure.
            seconds: exposure that dark current is gathered for; None is the setting's.
        Returns:
            codes, black level included, float32 of signal's shape and device.
        Raises:
            UsageError: a row is longer than the camera has pixels.
        """
        width = signal.shape[-1] if signal.ndim else 1
        if width > self.camera.pixels:
            raise UsageError(f"a frame of {width} pixels does not fit on a camera of {self.camera.pixels}")
        source = on_cpu(signal, torch.float32).view(-1).numpy()
        codes = np.empty_like(source)
        dark = self.camera.dark_electrons(frame, seconds)
        if width:
            spans = _spans(source.size, width)
            draw_in_chunks(
                len(spans),
                generator,
                lambda i, child: self._expose(source, codes, spans[i], width, dark, frame, child),
            )
        return torch.from_numpy(codes).view(signal.shape).to(signal.device)

    def _expose(
        self,
        source: npt.NDArray[np.float32],
        codes: npt.NDArray[np.float32],
        span: slice,
        width: int,
        dark: float,
        frame: Frame,
        child: np.random.Generator,
    ) -> None:
        """One chunk: whole rows, or a part of one row. In place in `codes`."""
        light, x = source[span], codes[span]
        first = span.start % width
        shape = (-1, width) if len(x) > width - first else (1, len(x))
        pixels = slice(first, first + shape[1])
        if self.camera.prnu > 0:
            np.multiply(light.reshape(shape), self.prnu_pattern[pixels], out=x.reshape(shape))
            light = x
        if dark > 0:
            light = np.add(light, np.float32(dark), out=x)
        np.clip(light, np.float32(0), np.float32(LARGEST_MEAN), out=x)
        draw_poisson(x, x, child)
        self._read(x, shape, pixels, frame, child)

    def read_out(self, electrons: Tensor, generator: NoiseGenerator, frame: Frame, first: int = 0) -> Tensor:
        """Codes of frames whose photo-electrons, dark ones included, were counted elsewhere.

        Args:
            electrons: counts, shape (frames, n): entry k of a row is pixel `first` + k.
            generator, frame: as in `sample`.
            first: pixel of a row's first entry.
        Returns:
            codes, black level included, float32 of electrons' shape.
        Raises:
            UsageError: a row ends beyond the camera's pixels.
        """
        pixels = slice(first, first + electrons.shape[-1])
        width = electrons.shape[-1]
        if pixels.stop > self.camera.pixels:
            raise UsageError(
                f"a frame of {pixels.stop} pixels does not fit on a camera of {self.camera.pixels}"
            )
        codes = electrons.to(torch.float32, copy=True).contiguous().numpy()
        rows = max(1, CHUNK // max(1, width))

        def read(i: int, child: np.random.Generator) -> None:
            part = codes[i * rows : (i + 1) * rows]
            self._read(part.reshape(-1), part.shape, pixels, frame, child)

        draw_in_chunks(-(-len(codes) // rows), generator, read)
        return torch.from_numpy(codes)

    def _read(
        self,
        x: npt.NDArray[np.float32],
        shape: tuple[int, ...],
        pixels: slice,
        frame: Frame,
        child: np.random.Generator,
    ) -> None:
        """What follows the photo-electrons, in place: x are these pixels of frames, flat, and `shape` theirs."""
        gain = self.camera.gain(frame) * self._gain_factor
        if self.camera.dsnu_electrons > 0:
            rows = x.reshape(shape)
            np.add(rows, self.dsnu_pattern[pixels], out=rows)
        np.minimum(x, np.float32(self.camera.full_well_electrons), out=x)
        if self.camera.read_noise_electrons > 0:
            noise = child.standard_normal(len(x), dtype=np.float32)
            noise *= np.float32(self.camera.read_noise_electrons)
            x += noise
        x *= np.float32(gain)
        x += np.float32(self.camera.black(frame))
        self._convert(x)

    def _convert(self, x: npt.NDArray[np.float32]) -> None:
        """Codes of analog levels in DN, in place."""
        if self.thresholds_dn is None:
            np.rint(x, out=x)
        else:
            known = ~np.isnan(x)
            x[known] = np.searchsorted(self.thresholds_dn, x[known], side="right")
        np.clip(x, np.float32(0), np.float32(self.camera.top), out=x)

    def dark_codes(self, n_frames: int, generator: NoiseGenerator, seconds: float | None = None) -> Tensor:
        """Raw codes of fresh frames taken in the dark at the dark setting; the law of `sample(zeros, DARK)`.

        The credited read noise comes from `generator` itself (cryptographic) and, for an ideal converter,
        through exact code probabilities; the rest of the signal is resolved to 1/16 DN
        (ShiftedQuantisedNormal). In dark frames gain drift is resolved to 0.1 %, so that those are tabulated
        seldom.

        Returns:
            shape (n_frames, pixels), uint8 (int32 above 8 bits).
        Raises:
            UsageError: the camera has no read noise, or a negative number of frames.
        """
        camera = self.camera
        if n_frames < 0:
            raise UsageError(f"number of dark frames is {n_frames}; it must not be negative")
        dtype = torch.uint8 if camera.bits <= 8 else torch.int32
        if camera.dnl_lsb > 0:
            dark = torch.zeros(n_frames, camera.pixels)
            return self.sample(dark, generator, Frame.DARK, seconds).to(dtype)
        factor = min(max(round(self._gain_factor, 3), 1 - self.drift_limit), 1 + self.drift_limit)
        law = _dark_law(camera.dark_black_dn, camera.read_noise_dn(Frame.DARK) * factor, camera.top)
        n = n_frames * camera.pixels
        shift = self._dark_shift(n_frames, camera.dark_electrons(Frame.DARK, seconds), factor, generator)
        codes = law.sample(n, generator, shift)
        return torch.from_numpy(codes if camera.bits <= 8 else codes.astype(np.int32)).view(
            n_frames, camera.pixels
        )

    def _dark_shift(
        self, n_frames: int, dark: float, factor: float, generator: NoiseGenerator
    ) -> npt.NDArray[np.int32] | None:
        """What a dark frame holds besides read noise, in 1/16 DN, flat; None for nothing."""
        unit = self.camera.dark_gain_dn_per_electron * factor * LEVELS
        pattern = np.rint(unit * self.dsnu_pattern).astype(np.int32)
        if dark == 0.0:
            return np.tile(pattern, n_frames) if self.camera.dsnu_electrons > 0 else None
        shift = np.empty((n_frames, self.camera.pixels), dtype=np.int32)

        def draw(i: int, child: np.random.Generator) -> None:
            electrons = self.dsnu_pattern + _thermal_electrons(dark, self.camera.pixels, child)
            np.minimum(electrons, self.camera.full_well_electrons, out=electrons)
            shift[i] = np.rint(unit * electrons)

        draw_in_chunks(n_frames, generator, draw)
        return shift.reshape(-1)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Variance over frames, in DN², of a pixel that receives `signal` electrons (of the mean pixel: no
        pattern), away from the ends: shot noise, dark current, read noise and the 1/12 DN² of rounding."""
        gain = self.camera.gain(frame) * self._gain_factor
        rest = self.camera.dark_electrons(frame) + self.camera.read_noise_electrons**2
        return gain**2 * (signal + rest) + 1 / 12

    def clipped_probability(self) -> float:
        """Upper bound of the probability that a dark pixel lies beyond an end of the converter.

        Exact normal tails at the worst pixel, pattern and gain drift included, plus the tail of dark current.
        """
        camera, gain = self.camera, self.camera.dark_gain_dn_per_electron * (1 + self.drift_limit)
        std = gain * camera.read_noise_electrons
        if std == 0.0:
            return 0.0
        dark = camera.dark_electrons(Frame.DARK)
        electrons = ceil(dark)
        while pdtrc(electrons, dark) > _DARK_TAIL:
            electrons += 1
        pattern = PATTERN_REACH * camera.dsnu_electrons
        below = camera.dark_black_dn + 0.5 - gain * pattern
        above = camera.top + 0.5 - camera.dark_black_dn - gain * (pattern + electrons)
        tail = _DARK_TAIL if dark > 0 else 0.0
        return float(ndtr(-below / std) + ndtr(-above / std)) + tail

    def credit(self, frame: Frame) -> Credit:
        if frame is Frame.DATA:
            return Credit.none(
                "noise inside a record's contribution earns nothing and costs nothing (THEORY T3)", step=1.0
            )
        camera = self.camera
        if camera.read_noise_electrons == 0.0:
            return Credit.none("the camera has no read noise", step=1.0)
        if camera.dnl_lsb > 0:
            return Credit.none(
                f"the converter's code widths differ by {camera.dnl_lsb:g} codes and the dither of THEORY T4 needs an "
                "ideal one; only measured thresholds could earn credit",
                step=1.0,
            )
        pattern = float(self.dsnu_pattern.mean(dtype=np.float64))
        lowest = 1 - self.drift_limit
        law = _dark_law(camera.dark_black_dn, camera.read_noise_dn(Frame.DARK), camera.top)
        return Credit(
            std=camera.read_noise_dn(Frame.DARK) * lowest,
            step=1.0,
            clipped_mass=self.clipped_probability() + law.error,
            beta=0.0,
            level=camera.dark_black_dn
            + camera.dark_gain_dn_per_electron * (camera.dark_electrons(Frame.DARK) + pattern),
            argument="dark frames carry Gaussian read noise of a known standard deviation, besides what is "
            "independent of it and not counted (THEORY, Noise credit)",
            assumptions=(
                "the camera's read noise is Gaussian, independent over pixels and frames, and without memory "
                "of earlier frames (in the simulated device: by construction)",
                "the converter is ideal and uniform and hands out raw codes (in the simulated device: by "
                "construction)",
            ),
        )

    def describe(self) -> dict[str, float | int | str]:
        return {
            "model": "physical-camera",
            **self.camera.describe(),
            "serial": self.serial,
            "drift_limit": self.drift_limit,
        }


def _thermal_electrons(mean: float, pixels: int, child: np.random.Generator) -> npt.NDArray[np.int64]:
    """Poisson counts of one mean: where they are rare, all of a frame's electrons fall on random pixels."""
    if mean > 0.5:
        return child.poisson(mean, pixels)
    return np.bincount(child.integers(0, pixels, child.poisson(mean * pixels)), minlength=pixels)


def _spans(size: int, width: int) -> list[slice]:
    """The chunks of `size` pixels in rows of `width`: whole rows, or parts of one row; public and fixed."""
    if width <= CHUNK:
        step = CHUNK // width * width
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]
    return [
        slice(row + start, row + min(start + CHUNK, width))
        for row in range(0, size, width)
        for start in range(0, width, CHUNK)
    ]


@lru_cache(maxsize=8)
def _dark_law(mean: float, std: float, top: int) -> ShiftedQuantisedNormal:
    """The tables depend on three numbers, and take a while."""
    return ShiftedQuantisedNormal(mean, std, top)
