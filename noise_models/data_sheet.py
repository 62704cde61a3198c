"""Cameras by their data sheet, in physical units: the named ones are ASSUMED typical values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Final, Self

from noise_models.base import Frame
from noise_models.errors import UsageError

# THEORY T4: the dark level keeps this many standard deviations of read noise from both ends of the range.
CLEARANCE: Final = 10.0

# A sensor's fixed patterns end at this many standard deviations: pixels beyond are mapped out as defective.
PATTERN_REACH: Final = 4.0


@dataclass(frozen=True)
class Camera:
    """Parameters of a camera (EMVA 1288's quantities) and of its two settings.

    Data frames use the whole range; dark frames a high fixed analog gain, so that the read noise spans several
    codes and can be credited (THEORY T4). Each setting has its own black level and exposure.

    Attributes:
        name: what it is called in the ledger.
        full_well_electrons: electrons at which a pixel, and a data frame's converter, saturates.
        read_noise_electrons: standard deviation of the Gaussian read noise.
        dark_current_electrons_per_second: mean rate of thermal electrons (Poisson).
        prnu: photo-response non-uniformity, relative standard deviation over pixels.
        dsnu_electrons: dark-signal non-uniformity, standard deviation of the fixed dark pattern.
        bits: resolution of the converter, 2 to 16.
        dark_amplification: analog gain of dark frames over that of data frames.
        data_black_dn, dark_black_dn: black levels.
        data_exposure_seconds, dark_exposure_seconds: exposure times.
        dnl_lsb: standard deviation of the converter's code widths, in codes; 0 is an ideal converter.
        rows, columns: the region of interest that is read out.
        frame_rate_hz: frames a second.

    Raises:
        UsageError: a value out of its range, or a dark level within 10 sigma of an end.
    """

    name: str
    full_well_electrons: float
    read_noise_electrons: float
    dark_current_electrons_per_second: float
    prnu: float
    dsnu_electrons: float
    bits: int
    dark_amplification: float
    data_black_dn: float
    dark_black_dn: float
    data_exposure_seconds: float
    dark_exposure_seconds: float
    dnl_lsb: float = 0.0
    rows: int = 256
    columns: int = 512
    frame_rate_hz: float = 1000.0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16 or self.bits != int(self.bits):
            raise UsageError(f"the converter has {self.bits} bits; it must have 2 to 16")
        for label in ("full_well_electrons", "dark_amplification", "frame_rate_hz"):
            self._require(label, getattr(self, label) > 0.0, "positive and finite")
        for label in (
            "read_noise_electrons", "dark_current_electrons_per_second", "dsnu_electrons",
            "data_exposure_seconds", "dark_exposure_seconds",
        ):  # fmt: skip
            self._require(label, getattr(self, label) >= 0.0, "finite and not negative")
        self._require("prnu", 0.0 <= self.prnu < 1 / PATTERN_REACH, f"from 0 to below {1 / PATTERN_REACH:g}")
        self._require("dnl_lsb", 0.0 <= self.dnl_lsb <= 1.0, "from 0 to 1 code")
        self._require("data_black_dn", 0.0 <= self.data_black_dn < self.top, f"from 0 to below {self.top}")
        for label in ("rows", "columns"):
            if getattr(self, label) < 1 or getattr(self, label) != int(getattr(self, label)):
                raise UsageError(
                    f"the camera's {label} is {getattr(self, label)}; it must be 1 or more, whole"
                )
        read, pattern = CLEARANCE * self.read_noise_dn(Frame.DARK), self.dark_gain_dn_per_electron
        below = read + pattern * PATTERN_REACH * self.dsnu_electrons
        above = below + pattern * self.dark_electrons(Frame.DARK)
        if not below <= self.dark_black_dn <= self.top - above:
            raise UsageError(
                f"black level of dark frames is {self.dark_black_dn} DN, noise {read / CLEARANCE:.4g} DN; with the "
                f"fixed pattern it must lie in {below} … {self.top - above} DN ({CLEARANCE:g} sigma from "
                "the ends): move it, or lower dark_amplification"
            )

    def _require(self, label: str, holds: bool, allowed: str) -> None:
        value = getattr(self, label)
        if not (holds and isfinite(value)):
            raise UsageError(f"the camera's {label} is {value}; it must be {allowed}")

    @property
    def top(self) -> int:
        """Largest code of the converter."""
        return int(2**self.bits - 1)

    @property
    def pixels(self) -> int:
        """Pixels in one frame."""
        return self.rows * self.columns

    @property
    def data_gain_dn_per_electron(self) -> float:
        """The full well reaches the largest code."""
        return (self.top - self.data_black_dn) / self.full_well_electrons

    @property
    def dark_gain_dn_per_electron(self) -> float:
        return self.dark_amplification * self.data_gain_dn_per_electron

    def gain(self, frame: Frame) -> float:
        """Analog gain of a setting, in DN per electron."""
        return self.dark_gain_dn_per_electron if frame is Frame.DARK else self.data_gain_dn_per_electron

    def black(self, frame: Frame) -> float:
        """Black level of a setting, in DN."""
        return self.dark_black_dn if frame is Frame.DARK else self.data_black_dn

    def exposure(self, frame: Frame) -> float:
        """Exposure time of a setting, in seconds."""
        return self.dark_exposure_seconds if frame is Frame.DARK else self.data_exposure_seconds

    def dark_electrons(self, frame: Frame, seconds: float | None = None) -> float:
        """Mean number of thermal electrons a pixel gathers in `seconds` (None: the setting's exposure)."""
        return self.dark_current_electrons_per_second * (self.exposure(frame) if seconds is None else seconds)

    def read_noise_dn(self, frame: Frame) -> float:
        """Standard deviation of the read noise before the converter, in DN."""
        return self.read_noise_electrons * self.gain(frame)

    def ideal(self) -> Self:
        """The same camera without fixed patterns, dark current and converter errors."""
        return replace(self, prnu=0.0, dsnu_electrons=0.0, dark_current_electrons_per_second=0.0, dnl_lsb=0.0)

    def describe(self) -> dict[str, float | int | str]:
        """Every parameter, by name."""
        return asdict(self)


# Assumed, not measured: typical figures of the class of camera that the name says, none of one product.
_ASSUMED = (
    Camera(
        name="machine-vision", full_well_electrons=10_000.0, read_noise_electrons=5.0,
        dark_current_electrons_per_second=10.0, prnu=0.01, dsnu_electrons=2.0, bits=8,
        dark_amplification=32.0, data_black_dn=8.0, dark_black_dn=64.0,
        data_exposure_seconds=5e-4, dark_exposure_seconds=1e-4,
    ),
    Camera(
        name="industrial", full_well_electrons=20_000.0, read_noise_electrons=6.0,
        dark_current_electrons_per_second=20.0, prnu=0.007, dsnu_electrons=2.0, bits=10,
        dark_amplification=16.0, data_black_dn=32.0, dark_black_dn=128.0,
        data_exposure_seconds=5e-4, dark_exposure_seconds=1e-4,
    ),
    Camera(
        name="scientific-cmos", full_well_electrons=30_000.0, read_noise_electrons=1.4,
        dark_current_electrons_per_second=0.5, prnu=0.003, dsnu_electrons=0.5, bits=12,
        dark_amplification=30.0, data_black_dn=100.0, dark_black_dn=256.0,
        data_exposure_seconds=5e-3, dark_exposure_seconds=1e-3, frame_rate_hz=100.0,
    ),
    Camera(
        name="high-speed", full_well_electrons=40_000.0, read_noise_electrons=25.0,
        dark_current_electrons_per_second=200.0, prnu=0.01, dsnu_electrons=8.0, bits=8,
        dark_amplification=32.0, data_black_dn=8.0, dark_black_dn=96.0,
        data_exposure_seconds=5e-5, dark_exposure_seconds=2e-5, frame_rate_hz=10_000.0,
    ),
)  # fmt: skip

CAMERAS: Final[dict[str, Camera]] = {camera.name: camera for camera in _ASSUMED}
DEFAULT_CAMERA: Final = "machine-vision"


def named_camera(name: str) -> Camera:
    """The camera called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in CAMERAS:
        raise UsageError(f"camera {name!r} is not known; choose one of {', '.join(CAMERAS)}")
    return CAMERAS[name]
