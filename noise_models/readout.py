"""A camera: Gaussian read noise, analog gain, black level, and an ideal uniform converter with saturation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

import torch
from scipy.special import ndtr
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.gaussian import add_noise
from noise_models.generator import NoiseGenerator
from noise_models.quantised_normal import QuantisedNormal

# THEORY T4: the dark level keeps this many standard deviations from both ends of the range.
CLEARANCE: Final = 10.0


@dataclass(frozen=True)
class CameraReadout(NoiseModel):
    """code = clip(round(black level + signal + gain · read noise), 0, 2^bits − 1).

    Two analog gains, each with its own black level: data frames use the whole range, dark frames a high fixed
    gain, so that the read noise spans several codes and can be credited (THEORY T4). The defaults are an
    ASSUMPTION, a typical 8-bit machine-vision camera (full well 10 000 e⁻, read noise 5 e⁻): 0.13 DN of noise
    in data frames, 4.1 DN at 32 times that gain in dark frames. Data frames are balanced: mid-scale is zero
    signal. Photon shot noise, dark current and converter non-linearity are not part of this model.

    Attributes:
        read_noise_electrons: standard deviation of the Gaussian read noise, in electrons.
        data_gain, dark_gain: analog gains, in DN per electron.
        data_black, dark_black: black levels, in DN.
        bits: resolution of the converter, 2 to 16.

    Raises:
        UsageError: a value out of its range, or a dark level within 10 sigma of an end.
    """

    read_noise_electrons: float = 5.0
    data_gain: float = 255 / 10_000
    dark_gain: float = 32 * 255 / 10_000
    data_black: float = 128.0
    dark_black: float = 64.0
    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or self.bits != int(self.bits):
            raise UsageError(f"the converter has {self.bits} bits; it must have 2 to 16")
        for label, value in (
            ("read noise (e-)", self.read_noise_electrons),
            ("data gain (DN/e-)", self.data_gain),
            ("dark gain (DN/e-)", self.dark_gain),
        ):
            if not 0.0 <= value < float("inf"):
                raise UsageError(f"the camera's {label} is {value}; it must be finite and not negative")
        if not 0.0 <= self.data_black <= self.top:
            raise UsageError(
                f"black level of data frames is {self.data_black} DN; allowed is 0 to {self.top}"
            )
        reach = CLEARANCE * self.std(Frame.DARK)
        if not reach <= self.dark_black <= self.top - reach:
            raise UsageError(
                f"black level of dark frames is {self.dark_black} DN, noise {self.std(Frame.DARK):.4g} DN; "
                f"it must keep {CLEARANCE:g} sigma from 0 and {self.top}: move it, or lower the dark gain"
            )

    @property
    def top(self) -> int:
        """Largest code of the converter."""
        return int(2**self.bits - 1)

    def std(self, frame: Frame) -> float:
        """Standard deviation of the Gaussian read noise before the converter, in DN."""
        return self.read_noise_electrons * (self.dark_gain if frame is Frame.DARK else self.data_gain)

    def black(self, frame: Frame) -> float:
        """Black level, in DN."""
        return self.dark_black if frame is Frame.DARK else self.data_black

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Codes as floating-point numbers, black level included; NaN stays NaN."""
        analog = add_noise(signal, self.std(frame), generator)
        return analog.add_(self.black(frame)).round_().clamp_(0, self.top)

    def dark_codes(self, n: int, generator: NoiseGenerator) -> Tensor:
        """Raw codes of `n` dark pixels, shape (n,), uint8 (int32 above 8 bits).

        The law of `sample(zeros, generator, DARK)`, several times faster (QuantisedNormal).

        Raises:
            UsageError: the camera has no read noise.
        """
        codes = self._dark_law.sample(n, generator)
        return torch.from_numpy(codes if self.bits <= 8 else codes.astype("int32"))

    @cached_property
    def _dark_law(self) -> QuantisedNormal:
        return QuantisedNormal(self.dark_black, self.std(Frame.DARK), self.top)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Read noise plus the 1/12 DN² of rounding."""
        return torch.full_like(signal, self.std(frame) ** 2 + 1 / 12)

    def clipped_probability(self) -> float:
        """Probability that a dark pixel lies beyond either end of the converter (exact normal tails)."""
        std = self.std(Frame.DARK)
        if std == 0.0:
            return 0.0
        below, above = self.dark_black + 0.5, self.top + 0.5 - self.dark_black
        return float(ndtr(-below / std) + ndtr(-above / std))

    def credit(self, frame: Frame) -> Credit:
        if frame is Frame.DATA:
            return Credit(
                std=0.0,
                step=1.0,
                clipped_mass=0.0,
                beta=0.0,
                argument="noise inside a record's contribution earns nothing and costs nothing (THEORY T3)",
            )
        std = self.std(Frame.DARK)
        if std == 0.0:
            return Credit(
                std=0.0, step=1.0, clipped_mass=0.0, beta=0.0, argument="the camera has no read noise"
            )
        return Credit(
            std=std,
            step=1.0,
            clipped_mass=self.clipped_probability() + self._dark_law.error,
            beta=0.0,
            level=self.dark_black,
            argument="dark frames carry read noise alone, of a known standard deviation (THEORY §1)",
            assumptions=(
                "the camera's read noise is Gaussian, independent over pixels and frames, and without memory "
                "of earlier frames (in the simulated device: by construction)",
                "the converter is ideal and uniform and hands out raw codes (in the simulated device: by "
                "construction)",
            ),
        )

    def describe(self) -> dict[str, float | int | str]:
        values = asdict(self)
        units = {
            "data_gain": "data_gain_dn_per_electron",
            "dark_gain": "dark_gain_dn_per_electron",
            "data_black": "data_black_dn",
            "dark_black": "dark_black_dn",
        }
        return {"model": "camera-readout", **{units.get(key, key): value for key, value in values.items()}}
