"""A simulated optical processing unit: binary mirrors, speckle, interference, and a camera in physical units."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.camera import PhysicalCamera
from noise_models.data_sheet import DEFAULT_CAMERA, Camera, named_camera
from noise_models.drift import LinearDrift
from noise_models.errors import UsageError, apart
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.backends.amplitude import QUADRATURES, AmplitudeReadout, field_of
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.card import BackendCard
from optical_dfa.backends.encoding import EncodingOptions
from optical_dfa.backends.faults import Fault
from optical_dfa.backends.interferometry import method_class
from optical_dfa.backends.optics import EFFECTIVE_SATURATION, REFERENCE_SHARE, Optics

FIDELITIES: Final = ("effective", "physics")

# Options that replace a parameter of the camera: what an ideal one has not, and others.
IMPERFECT: Final = ("dark_current_electrons_per_second", "prnu", "dsnu_electrons", "dnl_lsb")
REPLACED: Final = ("frame_rate_hz", "full_well_electrons", "read_noise_electrons", "dark_amplification")


@dataclass(frozen=True, kw_only=True)
class OpticsOptions(EncodingOptions):
    """What may be chosen of the optics and of the camera, whoever drives them.

    Attributes:
        camera: a named parameter set of `noise_models.camera`.
        method: how the field is measured: a name of `interferometry.METHODS`.
        full_scale: |B x| that fills the well; None is 3.909 sqrt(in_features): with all mirrors on 1 pixel in
            15 000 saturates.
        contrast: intensity of an on mirror over an off one; None is perfect mirrors.
        grain: speckle grain in pixels, 1 to 64; None is independent pixels.
        decorrelation_seconds: time in which the speckle field falls to 1/e; None is a stable medium.
        drift_per_hour: relative drift of the camera's gain (`LinearDrift`) in public time; 0 is none.
        serial: which specimen of the camera: its fixed patterns.
        dark_pixels: pixels of the camera's region of interest.
        frame_rate_hz: at which hardware times are projected, of the slower of modulator and camera; None is the
            camera's.
    """

    camera: str = DEFAULT_CAMERA
    method: str = "phase-4"
    full_scale: float | None = None
    contrast: float | None = None
    grain: float | None = None
    decorrelation_seconds: float | None = None
    drift_per_hour: float = 0.0
    serial: int = 0
    dark_pixels: int = 131_072
    frame_rate_hz: float | None = None


@dataclass(frozen=True, kw_only=True)
class SimulatedOpuOptions(OpticsOptions):
    """What may be chosen of a simulated device.

    Attributes:
        fidelity: "effective" or "physics".
        drift_limit: relative drift at which a drifting camera refuses to work; counted off its credit.
        adc_bits, full_well_electrons, read_noise_electrons, dark_current_electrons_per_second, prnu,
        dsnu_electrons, dnl_lsb, dark_amplification: see `Camera`; None is the named camera's.
        dark_black: black level of dark frames in DN; None keeps the named camera's place in the range.
        mirrors: pixels of the modulator, for whole numbers shown as amplitudes (`amplitude`).
        levels: of such a pixel's amplitude above dark; 1 is a mirror, 255 an 8-bit liquid crystal.
        mirror_spread: largest relative departure of a mirror's amplitude, or of the step to a level, from the mean.
        phase_drift: largest angle, in radians, by which the reference's phase is off in such an exposure.
        intensity_noise: largest relative departure of the light of such an exposure from the mean.
        fault: one of `faults.FAULTS`, on purpose; None is a sound device.
        fault_after: camera frames without data before the fault begins.
    """

    fidelity: str = "effective"
    drift_limit: float = 0.05
    adc_bits: int | None = None
    full_well_electrons: float | None = None
    read_noise_electrons: float | None = None
    dark_current_electrons_per_second: float | None = None
    prnu: float | None = None
    dsnu_electrons: float | None = None
    dnl_lsb: float | None = None
    dark_amplification: float | None = None
    dark_black: float | None = None
    mirrors: int = 1_000_000
    levels: int = 1
    mirror_spread: float = 0.0
    phase_drift: float = 0.0
    intensity_noise: float = 0.0
    fault: str | None = None
    fault_after: int = 0


@BackendCard(
    summary="mirrors, speckle, interference and camera, simulated (fidelity=effective or physics)",
    part="The device was SIMULATED: an optical processing unit modelled in software. Its noise is the model's, "
    "drawn by a generator; no physical noise was used and nothing was measured on hardware.",
    camera=True,
)
class SimulatedOpuBackend(ProjectionBackend):
    """`B e` through light: each error becomes binary frames, each frame interferes, each image is read by a camera.

    `fidelity="physics"` simulates every image: field through the transmission matrix, interference, Poisson
    counts, the camera's patterns, converter and ends of range. `"effective"` is its fast model: one matrix
    product and one normal an output, with an ideal camera (no fixed pattern, dark current or converter error).
    Dark frames are the same in both but for those. Exposure is a public constant, never automatic (THEORY T3):
    see `Optics`. All camera parameters are ASSUMED typical values, not those of a product.

    Attributes:
        encoding: how an error becomes binary frames.
        optics: from mirrors to answer.
        fidelity: "effective" or "physics".
    """

    name: ClassVar[str] = "simulated-opu"
    options: ClassVar[type] = SimulatedOpuOptions
    noise: PhysicalCamera

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
            seed: determines B and how it ages.
            noise: what keys shot and read noise, in data and in dark frames.
            options: fields of `SimulatedOpuOptions`.

        Raises:
            UsageError: a value out of its range, named.
        """
        super().__init__(in_features, out_features)
        self._options = chosen = SimulatedOpuOptions(**options)
        fidelity = chosen.fidelity
        if fidelity not in FIDELITIES:
            raise UsageError(f"fidelity is {fidelity!r}; it must be one of: {', '.join(FIDELITIES)}")
        if fidelity == "effective":
            for option in IMPERFECT:
                if value := getattr(chosen, option):
                    raise UsageError(
                        f"{option} is {value}; the effective model has an ideal camera: use fidelity=physics, or 0"
                    )
        parameters = _camera(chosen)
        if fidelity == "effective":
            parameters = parameters.ideal()
        self.fidelity = fidelity
        self.encoding = chosen.build()
        self.optics = Optics(
            in_features,
            out_features,
            seed=seed,
            camera=parameters,
            method=chosen.method,
            full_scale=chosen.full_scale,
            contrast=chosen.contrast,
            grain=chosen.grain,
            decorrelation_seconds=chosen.decorrelation_seconds,
        )
        self._check_fit(parameters)
        self._drift = LinearDrift(chosen.drift_per_hour)
        limit = chosen.drift_limit if chosen.drift_per_hour else 0.0
        self.noise = PhysicalCamera(parameters, chosen.serial, limit)
        # Balanced detection has a second camera, with patterns of its own.
        self._second = PhysicalCamera(parameters, derive_seed(chosen.serial, "second camera"), limit)
        self.dark_pixels = parameters.pixels
        self.frame_shape = (parameters.rows, parameters.columns)
        self.frame_rate_hz = parameters.frame_rate_hz
        self.ideal_converter = parameters.dnl_lsb == 0.0
        nothing = self.encoding.encode(torch.zeros(1, in_features))
        self.frames_per_record = len(nothing.weights) * self.optics.interferometer.frames
        self._fault = (
            None
            if chosen.fault is None
            else Fault(chosen.fault, after=chosen.fault_after, shape=self.frame_shape, top=parameters.top)
        )
        self._seed = seed
        self._generator = noise
        self.generators = (noise,)
        self._readouts: weakref.WeakSet[AmplitudeReadout] = weakref.WeakSet()

    def _check_fit(self, camera: Camera) -> None:
        saturated = self.optics.saturated_fraction()
        if self.fidelity == "effective" and saturated > EFFECTIVE_SATURATION:
            found, most = apart(saturated, EFFECTIVE_SATURATION)
            raise UsageError(
                f"full_scale is {self.optics.full_scale}: {found} of the pixels could saturate, which the effective "
                f"model leaves out (up to {most}): use fidelity=physics, or more"
            )
        if self.fidelity == "physics" and self.optics.camera_pixels > camera.pixels:
            raise UsageError(
                f"{self.out_features} outputs need {self.optics.camera_pixels} camera pixels, and dark_pixels is "
                f"{camera.pixels}; give at least that many"
            )

    def _project(self, e: Tensor) -> Tensor:
        frames = self.encoding.encode(e)
        if self.fidelity == "physics":
            return self.optics.physics(frames, (self.noise, self._second), self._generator)
        return self.optics.effective(frames, self.noise, self._generator)

    def photon_readout(self, rows: int | None = None) -> AmplitudeReadout:
        """As of any device; a column takes one exposure, by `balanced` two.

        Raises:
            UsageError: another method, mirrors that are not dark when off, or more rows than there are.
        """
        self._require_open()
        chosen, most = self._options, self.out_features
        if chosen.method not in QUADRATURES:
            raise UsageError(
                f"method is {chosen.method}: an amplitude is read in exposures that each have the whole column, by a "
                f"reference that nothing of the column is part of; release photon needs --backend-option method="
                f"{' or method='.join(QUADRATURES)}"
            )
        if chosen.contrast is not None:
            raise UsageError(
                f"contrast is {chosen.contrast}: light of mirrors that are off is not bounded in release photon; leave "
                "contrast out"
            )
        if rows is not None and not 1 <= rows <= most:
            raise UsageError(f"{rows} entries of an answer are to be read; this device has {most}")
        if most < self.in_features:
            raise UsageError(
                f"a column of {self.in_features} entries is read back from as many pixels or more, and this device has "
                f"{most}, one for each hidden unit; take wider hidden layers"
            )
        readout = AmplitudeReadout(
            self._field(rows or most),
            method=method_class(chosen.method),
            reference=self.optics.reference,
            cameras=(self.noise, self._second),
            physics=self.fidelity == "physics",
            mirrors=chosen.mirrors,
            levels=chosen.levels,
            mirror_spread=chosen.mirror_spread,
            phase_drift=chosen.phase_drift,
            intensity_noise=chosen.intensity_noise,
            ages=chosen.decorrelation_seconds is not None,
            serial=chosen.serial,
            identity=self.fingerprint(),
            generator=self._generator,
        )
        self._readouts.add(readout)
        return readout

    def _field(self, rows: int) -> npt.NDArray[np.complex128]:
        medium = self.optics.medium
        return field_of(medium.columns, medium.pixels, rows, QUADRATURES[self._options.method])

    def dark(self, frames: int) -> Tensor:
        """Raw codes of fresh dark frames, shape (frames, dark_pixels), uint8 (int32 above 8 bits), in DN.

        Raises:
            UsageError: no read noise, a negative number of frames, or the device was closed.
        """
        return self.expose(frames, light=0.0, seconds=None, setting=Frame.DARK)

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        """Raw codes of fresh frames of uniform reference light, shape (frames, dark_pixels), in DN.

        `light` 1 is what the reference wave alone gives a pixel in a data frame: a quarter of the full well in the
        data setting's own exposure.

        Raises:
            UsageError: an argument out of its range, or the device was closed.
        """
        self._require_open()
        if frames < 0:
            raise UsageError(f"number of dark frames is {frames}; it must not be negative")
        for label, value in (("light", light), ("exposure in seconds", seconds or 0.0)):
            if not (isfinite(value) and value >= 0.0):
                raise UsageError(f"{label} is {value}; it must be finite and not negative")
        if self._fault is not None:
            light = self._fault.light(light, frames)
        codes = self._codes(frames, light, seconds, setting)
        if self._fault is not None:
            codes = self._fault.codes(codes, setting=setting, black=self.noise.camera.black(setting))
        return codes

    def _codes(self, frames: int, light: float, seconds: float | None, setting: Frame) -> Tensor:
        camera = self.noise.camera
        if light == 0.0 and setting is Frame.DARK:
            return self.noise.dark_codes(frames, self._generator, seconds)
        time = camera.exposure(setting) if seconds is None else seconds
        electrons = (
            light * REFERENCE_SHARE**2 * camera.full_well_electrons * time / camera.exposure(Frame.DATA)
        )
        signal = torch.full((frames, camera.pixels), electrons)
        codes = self.noise.sample(signal, self._generator, setting, seconds)
        return codes.to(torch.uint8 if camera.bits <= 8 else torch.int32)

    def advance(self, seconds: float) -> None:
        """Let `seconds` of PUBLIC time pass: the gain drifts, the medium ages.

        Raises:
            UsageError: a negative time, or the device was closed.
            DeviceError: the gain has drifted beyond drift_limit.
        """
        self._require_open()
        self._drift.advance(seconds)
        for camera in (self.noise, self._second):
            camera.gain_factor = self._drift.factor
        self.optics.advance(seconds)
        if self.optics.medium.moved:
            for readout in self._readouts:
                readout.take(self._field(readout.rows))

    def camera(self) -> dict[str, Any]:
        return {**self.noise.describe(), "fidelity": self.fidelity}

    def matrix(self) -> Tensor:
        return self.optics.projection().t().contiguous()

    def describe(self) -> dict[str, Any]:
        # A fault is what happens to a device, not what it is: it does not show here.
        return {
            "backend": self.name,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "seed": self._seed,
            "distribution": "normal",
            "std": self.std,
            "fidelity": self.fidelity,
            "encoding": self.encoding.describe(),
            "optics": self.optics.describe(),
            "grain": self._options.grain,
            "decorrelation_seconds": self._options.decorrelation_seconds,
            "drift": self._drift.describe(),
            "dark_pixels": self.dark_pixels,
            "frames_per_record": self.frames_per_record,
            "frame_rate_hz": self.frame_rate_hz,
            "noise": self.noise.describe(),
        }

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        medium = self.optics.medium
        return _restore, (
            type(self), self.in_features, self.out_features, self._seed, self._generator, asdict(self._options),
            self._drift.seconds, medium.state() if medium.moved else None,
        )  # fmt: skip


def _camera(options: SimulatedOpuOptions) -> Camera:
    """The named camera with single parameters replaced; black levels keep their place in the range."""
    pixels, bits = options.dark_pixels, options.adc_bits
    if pixels < 1:
        raise UsageError(f"dark_pixels is {pixels}; a camera has at least 1 pixel")
    found = named_camera(options.camera)
    rows = next(n for n in range(int(pixels**0.5), 0, -1) if pixels % n == 0)
    if bits is None:
        bits = found.bits
    elif not 2 <= bits <= 16:
        raise UsageError(f"adc_bits is {bits}; it must be 2 to 16")
    scale = 2.0 ** (bits - found.bits)
    replaced = {name: getattr(options, name) for name in (*IMPERFECT, *REPLACED)}
    return replace(
        found,
        bits=bits,
        data_black_dn=found.data_black_dn * scale,
        dark_black_dn=found.dark_black_dn * scale if options.dark_black is None else options.dark_black,
        rows=rows,
        columns=pixels // rows,
        **{name: value for name, value in replaced.items() if value is not None},
    )


def _restore(
    cls: type[SimulatedOpuBackend],
    n_in: int,
    n_out: int,
    seed: int,
    noise: NoiseGenerator,
    options: Any,
    elapsed: float,
    medium: tuple[Tensor, Tensor] | None,
) -> SimulatedOpuBackend:
    device = cls(n_in, n_out, seed=seed, noise=noise, **options)
    if medium is not None:
        device.optics.medium.restore(medium)
    device._drift.advance(elapsed)
    device.advance(0.0)
    return device
