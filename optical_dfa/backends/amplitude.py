"""Light whose AMPLITUDE carries whole numbers: columns in single exposures, beside a reference (THEORY T10).

A column a of p whole numbers, each from -K to K, is shown by 2p macro-pixels of K mirrors: of the macro-pixel of entry
and sign the first |a_j| mirrors are open, in a fixed order, low-passed into one amplitude (superpixels: Goorden,
Bertolotti, Mosk 2014, Opt. Express 22:17999). The field at camera pixel k is `E_k = κ (T a)_k` in √photo-electrons, and
two cameras behind a half mirror count

    N±_k ~ Poisson(f±_k ω |r_k ± E_k|² / 2 + dark),

r the reference, f a pixel's own response, ω what is common to all of an exposure. One camera with a reference at an
angle does without the half mirror: fringes put ±r and ±ir on the four pixels of a speckle grain, and each counts
Poisson(f ω |r_k + E|² + dark). What the cameras do with their photo-electrons afterwards is theirs.

Mirrors are not alike: mirror m of a macro-pixel counts 1 + s_m, |s_m| <= `mirror_spread`, a public fixed pattern. Two
columns then differ in the field by κ T D (a - a') with D diagonal, of entries within 1 ± `mirror_spread`, so that every
limit below grows by that much (condition c of T10). A pixel of a grey-level modulator is `levels` mirrors, its steps
from one level to the next: pixels are filled one after the other, and no more is asked of a step than of a mirror.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, inf, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.camera import PhysicalCamera
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from noise_models.randomness.poisson_counts import COUNT_MASS, MOST_MEAN, exact_poisson
from optical_dfa.backends.base import digest
from optical_dfa.backends.interferometry import Interferometry
from privacy.contributions.protocols import PhotonLimits

Reals = npt.NDArray[np.float64]

# Float64 arithmetic of fields and rates against the reals, relative; every limit is this much larger than computed.
ROUNDING: Final = 1e-6
# Phases of the reference that a column meets, by interferometry method: rows of T are stacked (T10).
QUADRATURES: Final[dict[str, tuple[complex, ...]]] = {
    "homodyne": (1.0,), "balanced": (1.0, 1j), "off-axis": (1.0, 1j),
}  # fmt: skip
# A medium that ages has other norms tomorrow: this much more is allowed for, and looked at before every step. The norm
# of a random matrix varies by a few in √rows + √inputs, those of single rows by more, and these cost little.
_NORM_AGES: Final = 4.0
_ROW_AGES: Final = 1.6
MOST_MIRRORS: Final = 10**8
MOST_LEVELS: Final = 1 << 12
MOST_RATIO: Final = 0.5  # of a field to its reference for which there is room above
_PIXELS: Final = 1 << 18  # simulated at a time


class AmplitudeReadout:
    """One device's light path for whole numbers.

    Attributes:
        inputs: p, entries of a column.
        rows: entries of an answer; each is the difference of two counts, where the reference is opposite.
        most: K, the largest whole number of a macro-pixel, its pixels times their levels.
        mirrors: pixels of the modulator that are used, 2 p K over `levels`.
        response: R, shape (rows, inputs), float64: an answer is `R a` on average.
        count_mass: total variation of one simulated count.
        counts: photo-electron counts of one column.
        exposures: of one column.
        step, top: of the cameras' codes, in DN: their distance and the largest; 0 and inf without a camera.
    """

    name = "simulated-opu"
    count_mass = COUNT_MASS

    def __init__(
        self,
        field: npt.NDArray[np.complex128],
        *,
        method: type[Interferometry],
        reference: float,
        cameras: Sequence[PhysicalCamera],
        physics: bool,
        mirrors: int,
        levels: int,
        mirror_spread: float,
        phase_drift: float,
        intensity_noise: float,
        ages: bool,
        serial: int,
        identity: str,
        generator: NoiseGenerator,
    ) -> None:
        """
        Args:
            field: T beside each phase of the reference, shape (rows, p).
            method: how it is detected, one of `QUADRATURES`.
            reference: |r|, in √photo-electrons, the same at every pixel.
            cameras: one behind each port of the half mirror; without one, the first.
            physics: whether patterns, dark current and converter are simulated; else photo-electrons and read noise.
            mirrors: pixels of the modulator.
            levels: of a pixel's amplitude above dark; 1 is a mirror.
            mirror_spread: largest relative departure of a mirror, or of the step to a level, from the mean.
            phase_drift: largest angle, in radians, by which the reference's phase may be off in an exposure.
            intensity_noise: largest relative departure of an exposure's light from the mean.
            ages: whether the medium moves.
            serial: which modulator: the pattern of its mirrors.
            identity: of the device.
            generator: of every draw.
        Raises:
            UsageError: fewer mirrors than macro-pixels, or a number out of its range.
        """
        for label, value, top in (
            ("mirror_spread", mirror_spread, 0.5), ("intensity_noise", intensity_noise, 0.5),
            ("phase_drift", phase_drift, 3.2),
        ):  # fmt: skip
            if not 0.0 <= value <= top:
                raise UsageError(f"{label} is {value}; it must be from 0 to {top}")
        self.rows, self.inputs = field.shape
        if not 1 <= levels <= MOST_LEVELS:
            raise UsageError(
                f"levels is {levels}; a pixel of a modulator may have 1 (a mirror) to {MOST_LEVELS:,}"
            )
        each = mirrors // (2 * self.inputs)
        self.most, self.mirrors = each * levels, 2 * self.inputs * each
        if each < 1:
            raise UsageError(
                f"mirrors is {mirrors}; {self.inputs} entries of a column need {2 * self.inputs} macro-pixels of a "
                "mirror or more"
            )
        if mirrors > MOST_MIRRORS * (1 if mirror_spread else 1000):
            raise UsageError(
                f"mirrors is {mirrors}; a modulator may have {MOST_MIRRORS * 1000:,}, or {MOST_MIRRORS:,} "
                "that are unequal"
            )
        self.counts, self.exposures = 2 * self.rows, method.frames
        self._method, self._share = method, method.light
        self._reference, self._physics = reference, physics
        self._identity = identity
        self.step, self.top = (1.0, float(cameras[0].camera.top)) if physics else (0.0, inf)
        self._spread, self._phase, self._intensity = mirror_spread, phase_drift, intensity_noise
        self._ages, self._generator, self._levels = ages, generator, levels
        self._pixels = ceil(self.rows / self.exposures)  # of an arm
        # Of both arms: camera, and its pixels; one camera has them side by side.
        self._arms = (cameras[0], cameras[0 if method.side_by_side else 1])
        self._firsts = (0, self._pixels if method.side_by_side else 0)
        self._response = np.ones((2, self.rows))
        self._dark = 0.0
        if physics:
            self._response = np.stack([self._of_arm(arm, "prnu_pattern") for arm in (0, 1)])
            self._dark = cameras[0].camera.dark_electrons(Frame.DATA)
        brightest = (
            (reference * (1 + MOST_RATIO)) ** 2
            * self._share
            * float(self._response.max())
            * (1 + intensity_noise)
        )
        if not brightest + self._dark < MOST_MEAN:
            raise UsageError(
                f"a pixel may receive {brightest:.3g} photo-electrons and their counts are simulated up to "
                f"{MOST_MEAN:,.0f}; take a camera with a smaller full well (full_well_electrons)"
            )
        self._pattern = self._modulator(serial) if mirror_spread > 0 else None
        self.take(field)

    def _modulator(self, serial: int) -> tuple[Reals, Reals]:
        """A modulator whose every step is within its spread.

        Returns:
            the first m pixels of every macro-pixel together, shape (2, p, pixels + 1), and a pixel at its levels from
            dark on, shape (levels + 1,): the drivers' curve, the same for all. In mean pixels, and mean steps.
        """
        rng = np.random.default_rng(derive_seed(serial, "mirrors"))
        own = self._spread if self._levels == 1 else self._spread / 3  # (1 + s/3)² <= 1 + s
        pixels = rng.uniform(-own, own, (2, self.inputs, self.most // self._levels))
        steps = rng.uniform(-own, own, self._levels) if self._levels > 1 else np.zeros(1)
        first = np.zeros((2, self.inputs, 1))
        return np.concatenate([first, np.cumsum(1 + pixels, axis=2)], axis=2), np.append(
            0, np.cumsum(1 + steps)
        )

    def take(self, field: npt.NDArray[np.complex128]) -> None:
        """T is this from now on."""
        self._known: dict[tuple[float, float, int], PhotonLimits] = {}
        self._field = field
        self.response = np.ascontiguousarray(field.real)

    def limits(self, ratio: float) -> PhotonLimits:
        """Of the field for whole numbers, where |E| is at most `ratio` of |r| at every pixel.

        The sup over what light and device may do (mirrors, intensity, phase, pixels' responses), in units of κ; with an
        allowance for a medium that ages.
        """
        found = self._as_it_is(ratio)
        if not self._ages:
            return found
        wider = 1 + _NORM_AGES / (sqrt(self.rows) + sqrt(self.inputs))
        return replace(
            found, norm=found.norm * wider, row=found.row * _ROW_AGES, reach=found.reach * _ROW_AGES
        )

    def keeps(self, limits: PhotonLimits, ratio: float) -> bool:
        """Whether light and medium, as they are, are within these limits."""
        now = self._as_it_is(ratio)
        return (
            now.norm <= limits.norm
            and now.row <= limits.row
            and now.reach <= limits.reach
            and now.least >= limits.least
        )

    def _as_it_is(self, ratio: float) -> PhotonLimits:
        """Of the field as the medium is now; kept as long as nothing moves."""
        key = (ratio, self._reference, id(self._field))
        if key not in self._known:
            self._known = {**(self._known if len(self._known) < 64 else {}), key: self._computed(ratio)}
        return self._known[key]

    def _computed(self, ratio: float) -> PhotonLimits:
        # What a field in phase with the reference counts, and one in quadrature: both arms of one field, or each count
        # by itself. The latter asks nothing of how alike the field is at the pixels of a fringe.
        phase, quadrature = (
            (sqrt(1 + ratio), sqrt(ratio)) if self._method.side_by_side else (1.0, ratio / sqrt(1 + ratio**2))
        )
        re, im = self._field.real, self._field.imag
        free = _norm(np.concatenate([re, im]))
        aligned = _norm(np.concatenate([phase * re, quadrature * im]))
        if self._phase > 0:
            # Turning by φ: cos φ [c Re; d Im] + sin φ [c Im; -d Re].
            turned = _norm(np.concatenate([phase * im, quadrature * re]))
            aligned += np.sin(min(self._phase, np.pi / 2)) * turned
        scale = (1 + self._spread) * (1 + ROUNDING)
        bright = sqrt((1 + self._intensity) * float(self._response.max()))
        faint = sqrt((1 - self._intensity) * float(self._response.min()))
        return PhotonLimits(
            norm=min(free, aligned) * sqrt(2 * self._share) * scale * bright,
            row=float(np.linalg.norm(self._field, axis=1).max()) * scale * bright,
            reach=float(np.abs(self._field).sum(axis=1).max()) * scale,
            reference=self._reference,
            least=self._reference * faint / (1 + ROUNDING),
        )

    def show(self, columns: npt.NDArray[np.int64], light: float) -> Reals:
        """Answers to whole columns, one exposure each.

        Args:
            columns: shape (m, p), entries from -K to K.
            light: κ, √photo-electrons a mirror.
        Returns:
            shape (m, rows): `R a` and the noise of the light and the cameras.
        """
        answers = np.empty((len(columns), self.rows))
        step = max(1, _PIXELS // self.counts)
        for start in range(0, len(columns), step):
            part = columns[start : start + step]
            answers[start : start + step] = self._exposed(part, light)
        return answers

    def _exposed(self, columns: npt.NDArray[np.int64], light: float) -> Reals:
        total = np.zeros((len(columns), self.rows))
        counted = self._counted(self._amplitudes(columns) * light, 1.0, 0.0)
        for arm, (sign, electrons) in enumerate(zip((1, -1), counted, strict=True)):
            total += sign * (self._read(electrons, arm) - self._dark) / self._response[arm]
        return total / (4 * self._share * self._reference * light)

    def _counted(self, amplitudes: Reals, reference: float, phase: float) -> Iterator[npt.NDArray[np.int64]]:
        """Photo-electrons beside the reference and then beside its opposite, shape (m, rows) each.

        Args:
            amplitudes: of every entry's macro-pixels, in √photo-electrons, shape (m, p).
            reference: amplitude of the reference over its own.
            phase: of the reference, in radians.
        """
        re, im = (amplitudes @ part.T for part in (self._field.real, self._field.imag))
        angle = np.full((len(amplitudes), 1), phase)
        common = np.ones((len(amplitudes), 1))
        if self._phase > 0 or self._intensity > 0:
            # States of the light: public or not, no record moves them.
            coins = np.random.default_rng(self._generator.uint64(2))
            angle += coins.uniform(-self._phase, self._phase, (len(amplitudes), 1))
            common += coins.uniform(-self._intensity, self._intensity, (len(amplitudes), 1))
        if angle.any():
            re, im = np.cos(angle) * re + np.sin(angle) * im, np.cos(angle) * im - np.sin(angle) * re
        for sign, response in zip((1, -1), self._response, strict=True):
            rates = (
                ((self._reference * reference + sign * re) ** 2 + im**2) * self._share * (response * common)
            )
            yield exact_poisson(rates + self._dark, self._generator)

    def probe(
        self, runs: npt.NDArray[np.int64], *, light: float, phase: float = 0.0, reference: float = 1.0
    ) -> Reals:
        """Raw codes of both cameras while public patterns are shown; photo-electrons and read noise where no camera is
        simulated.

        Args:
            runs: first mirror that is open and the one after the last, of every macro-pixel: shape (m, 2, p, 2), the
                positive macro-pixels first.
            light: κ, √photo-electrons a mirror.
            phase: by which the reference is turned, in radians.
            reference: its power, over that of a run; 0 is a closed shutter.

        Returns:
            shape (m, 2, rows), in DN.
        Raises:
            UsageError: light is not detected by homodyne, or the medium ages.
        """
        if self._method.name != "homodyne":
            raise UsageError(
                f"method is {self._method.name}; a light path is calibrated behind a half mirror, in one exposure a "
                "column: use method=homodyne"
            )
        if self._levels > 1:
            raise UsageError(
                f"levels is {self._levels}; a calibration looks at mirrors one by one, and finds nothing of the steps "
                "between levels: use levels=1"
            )
        if self._ages:
            raise UsageError(
                "decorrelation_seconds is set: a calibration does not last while the medium ages; leave it out"
            )
        codes = np.empty((len(runs), 2, self.rows))
        step = max(1, _PIXELS // self.counts)
        for start in range(0, len(runs), step):
            part = slice(start, start + step)
            counted = self._counted(self._opened_runs(runs[part]) * light, sqrt(reference), phase)
            for arm, electrons in enumerate(counted):
                codes[part, arm] = self._codes(electrons, arm)
        return codes

    def _opened_runs(self, runs: npt.NDArray[np.int64]) -> Reals:
        """Amplitude of every entry's two macro-pixels, in mirrors, shape (m, p)."""
        first, last = runs[..., 0], runs[..., 1]
        each = [self._filled(sign, last[:, sign]) - self._filled(sign, first[:, sign]) for sign in (0, 1)]
        return each[0] - each[1]

    def _amplitudes(self, columns: npt.NDArray[np.int64]) -> Reals:
        return self._filled(0, np.maximum(columns, 0)) - self._filled(1, np.maximum(-columns, 0))

    def _filled(self, sign: int, numbers: npt.NDArray[np.int64]) -> Reals:
        """Amplitude of macro-pixels that show whole numbers, in mean steps; shape (m, p)."""
        if self._pattern is None:
            return numbers.astype(np.float64)
        pixels, curve = self._pattern
        full, level = np.divmod(numbers, self._levels)
        entries = np.arange(self.inputs)
        below = pixels[sign, entries, full]
        above = pixels[sign, entries, np.minimum(full + 1, pixels.shape[2] - 1)]
        return np.asarray(below * curve[-1] + (above - below) * curve[level])

    def _of_arm(self, arm: int, pattern: str) -> Reals:
        """A public pattern of an arm's camera, at the pixels of its counts, shape (rows,)."""
        first = self._firsts[arm]
        found: Reals = getattr(self._arms[arm], pattern)[first : first + self._pixels].astype(np.float64)
        return np.tile(found, self.exposures)[: self.rows]

    def _read(self, electrons: npt.NDArray[np.int64], arm: int) -> Reals:
        """What an arm's camera answers to photo-electrons, in photo-electrons."""
        codes, camera = self._codes(electrons, arm), self._arms[arm].camera
        if not self._physics:
            return codes
        dark = self._of_arm(arm, "dsnu_pattern")
        return (codes - camera.data_black_dn) / camera.data_gain_dn_per_electron - dark

    def _codes(self, electrons: npt.NDArray[np.int64], arm: int) -> Reals:
        """What an arm's camera hands out; without one, photo-electrons with its read noise."""
        camera, first = self._arms[arm], self._firsts[arm]
        if self._physics:
            parts = torch.split(torch.from_numpy(electrons), self._pixels, dim=1)  # an exposure each
            codes = [camera.read_out(part, self._generator, Frame.DATA, first).numpy() for part in parts]
            return np.concatenate(codes, axis=1).astype(np.float64)
        noise = torch.empty(electrons.size, dtype=torch.float32)
        self._generator.normal_(noise)
        read = noise.numpy().reshape(electrons.shape) * camera.camera.read_noise_electrons
        return np.asarray(electrons + read)

    def fingerprint(self) -> str:
        """Identity of device and light path, whatever rows are read."""
        return digest({"device": self._identity, **self.describe(), "answers": None})

    def describe(self) -> dict[str, Any]:
        """Public constants (JSON types)."""
        return {
            "method": self._method.name,
            "macro_pixels": 2 * self.inputs,
            "mirrors_each": self.most // self._levels,
            "levels": self._levels,
            "mirror_spread": self._spread,
            "answers": self.rows,
            "exposures_a_column": self.exposures,
            "reference_photo_electrons": self._reference**2,
            "phase_drift_radians": self._phase,
            "intensity_noise": self._intensity,
        }


def field_of(
    columns: Tensor, pixels: int, rows: int, quadratures: Sequence[complex]
) -> npt.NDArray[np.complex128]:
    """T of a medium, its pixels once for each phase of the reference: by r, and by i r.

    Args:
        columns: √2 [Re T; Im T]ᵀ, shape (p, 2 pixels).
        pixels: of the medium.
        rows: of the answer.
        quadratures: phases of the reference that a column meets.
    """
    both = columns.numpy().astype(np.float64) / sqrt(2)
    field = (both[:, :pixels] + 1j * both[:, pixels:]).T[: ceil(rows / len(quadratures))]
    return np.ascontiguousarray(np.concatenate([field * np.conj(phase) for phase in quadratures])[:rows])


def _norm(matrix: Reals) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0
