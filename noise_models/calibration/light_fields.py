"""The response matrix of a light path for whole numbers, from public patterns, with a bound of its error (THEORY T10).

Fields are measured relative to the reference's, by the difference of both cameras over the mean of all pixels, so that
neither gain nor what is common to a frame is in them: with C/S a code over that of the reference alone,
`z = (C₊/S₊ - C₋/S₋) / (4 mean C/S)` is Re(E/r) / (1 + mean |E/r|²), and with the reference turned by π/2 the same of
Im(E/r). Macro-pixels are shown in the patterns of a Hadamard matrix and their complements. The bounds are proved in
docs/theory.md (T10, calibration).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log, pi, sin, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import linalg, special, stats

from noise_models.calibration.electrons import ALARM, INTENSITY_REACH, Electrons
from noise_models.calibration.probed_light import PatternFrames, ProbedLight, Reals, Runs
from noise_models.errors import DeviceError

Complex = npt.NDArray[np.complex128]

QUARTER: Final = pi / 2
BRIGHT: Final = 0.25  # of the largest field to the reference, in patterns
MOST_DRIFT: Final = 0.1  # of phase, in radians, and of brightness, over the measurement
MOST_JITTER: Final = 0.2  # radians, from frame to frame
_DIMMEST, _BRIGHTEST = 1e-12, 1e6
_SEEN: Final = 0.03  # a field relative to the reference that is no noise
_LEAST_PARTS: Final = 16  # of the measurement, between which the same pattern is shown again
_CERTAIN, _FINE = 0.5, 0.0125  # relative errors of an attenuator's level: the largest of use, and enough
_CHAINED: Final = 0.0025  # of a level against the next one
_DIM_LEVELS, _BRIGHT_LEVELS = 16, 10
_CHECKS: Final = 32  # columns that are shown in two parts
MOST_LEAK: Final = 0.02  # of a field to the reference, with all mirrors off
MOST_UNLINEAR: Final = 0.02  # of a field, besides what chance does
_BETA_PARTS: Final = 40


@dataclass(frozen=True)
class Fields:
    """Numbers are relative to the reference at a pixel, for all mirrors of a macro-pixel at light `light`.

    Attributes:
        light: κ as it was set.
        columns: estimates of the fields of every macro-pixel, the positive ones first, shape (rows, 2 p).
        noise: standard deviation of Re and Im of one of them, limit, shape (rows,).
        together: field of all macro-pixels at once, by itself, shape (rows,).
        slow: largest relative error that is common to a part of the measurement: phase, brightness.
        fast: standard deviation of that of single frames.
        size, repeats: patterns, and frames of each.
        attenuator: settings of κ, rising, and how much κ may be over the setting, times that at `light`; limits.
        mirrors: largest departure of a mirror from the mean of its macro-pixel, complex, relative.
        power: mean |E/r|² of `pattern` at `light`.
        drift: largest angle of the reference over the measurement, in radians.
        jitter: standard deviation of the angle from frame to frame.
        leak: largest field that passes mirrors which are off, at the brightest light, limit.
        affine: how far fields of parts may be off that of the whole, relative, without showing.
        beta: of each of the bounds that are made of these.
    """

    light: float
    columns: Complex
    noise: Reals
    together: Complex
    slow: float
    fast: float
    size: int
    repeats: int
    attenuator: tuple[tuple[float, float], ...]
    mirrors: float
    power: float
    drift: float
    jitter: float
    leak: float
    affine: float
    beta: float


@dataclass(frozen=True)
class Bounds:
    """Of a matrix of fields, rows weighted: what is measured, and the most it may be off.

    Attributes:
        norm, norm_error: of [Re; Im] of the mean of both signs, and of half their difference, added.
        full, full_error: the same as a map of complex columns.
        row: largest norm of a row of either sign, limit.
        reach: largest sum of moduli along a row, limit.
    """

    norm: float
    norm_error: float
    full: float
    full_error: float
    row: float
    reach: float


def pattern(path: ProbedLight) -> npt.NDArray[np.int64]:
    """The one column of -1 and 1 that is shown again and again, shape (p,)."""
    return np.random.default_rng(0).choice([-1, 1], path.inputs)


def shown(path: ProbedLight, columns: npt.NDArray[np.int64]) -> Runs:
    """Runs of mirrors that show columns of whole numbers."""
    runs = np.zeros((len(columns), 2, path.inputs, 2), np.int64)
    runs[:, 0, :, 1], runs[:, 1, :, 1] = np.maximum(columns, 0), np.maximum(-columns, 0)
    return runs


def unsquared(power: Reals) -> Reals:
    """m = mean |E/r|², of mean |z|² = m / (1 + m)²."""
    power = np.clip(power, 1e-12, 0.24)
    return np.asarray((1 - 2 * power - np.sqrt(1 - 4 * power)) / (2 * power))


class FieldProbe:
    """Measures the fields of one light path."""

    def __init__(self, frames: PatternFrames, electrons: Electrons, count: int, beta: float) -> None:
        """
        Args:
            frames: takes them.
            electrons: what the cameras' codes are worth.
            count: frames of each part, about.
            beta: probability that a limit is wrong.
        """
        self._frames, self._path, self._electrons = frames, frames.path, electrons
        self._count, self._beta = count, beta / _BETA_PARTS
        path = frames.path
        self._size = 1 << (2 * path.inputs).bit_length()  # > 2 p: the constant pattern is none of theirs
        self._repeats = max(4, ceil(count / (2 * self._size)))
        self._signs = np.random.default_rng(0).choice([-1, 1], (8, path.inputs))
        self._anchor = pattern(path)
        self._seen: list[tuple[Reals, Reals]] = []
        self._z = float(-special.ndtri(self._beta / 2))
        # Of a frame: of z at a pixel, and of what z is divided by.
        variance = electrons.noise_upper.sum(0) / 16
        self._frame_variance = variance / (1 - INTENSITY_REACH * electrons.common) ** 2
        # A tenth more for the error of 1 + mean |E/r|².
        self._common_variance = 1.1 * float(electrons.noise_upper.mean(1).sum()) / (4 * path.rows)

    def measure(self) -> Fields:
        """
        Raises:
            DeviceError: patterns change nothing, fields are not affine, the medium or the phase moves too much.
        """
        path = self._path
        self._light = light = self._bright(self._full(self._signs), _DIMMEST)
        columns, together, rate = self._hadamard(light)
        noise = np.sqrt(2 * self._frame_variance * rate / (self._size * self._repeats))
        prediction = columns @ self._indicator(self._anchor)
        attenuator = self._attenuator(light, prediction, rate)
        leak = self._leak(attenuator[-1][0])
        mirrors = [self._mirrors(columns, noise, sign) for sign in (0, 1)] if path.most > 1 else []
        unlinear = self._unlinear(columns, noise, rate)
        self._look()
        offset = self._z * float(noise.max()) * sqrt(path.inputs) / float(np.linalg.norm(prediction))
        drift, jitter, moved = self._steadiness(prediction, rate, offset)
        for one in mirrors:
            one.refuse_modes()
        if unlinear[0] > unlinear[1]:
            raise DeviceError(
                f"fields of two parts of the mirrors add up to {unlinear[0]:.3g} off the field of all (allowed is "
                f"{unlinear[1]:.3g}): it is not affine in the numbers shown; let no light return to the mirrors, and "
                "show each number as an amplitude"
            )
        slow = 2 * sin(drift / 2) + moved + jitter**2 / 2
        fast = sqrt(jitter**2 + self._common_variance)
        whole = float(np.linalg.norm(columns, 2))
        return Fields(
            light, columns, noise, together, slow, fast, self._size, self._repeats,
            tuple((setting, factor * (1 + 2 * slow)) for setting, factor in attenuator),
            max((one.departure(slow, fast, whole) for one in mirrors), default=0.0),
            float(np.square(np.abs(prediction)).mean()), drift, jitter, leak, unlinear[1], self._beta,
        )  # fmt: skip

    # ---- patterns

    def _full(self, columns: npt.NDArray[np.int64], mirrors: int | None = None) -> Runs:
        """Runs that show columns of -1, 0 and 1 times so many mirrors, or all."""
        return shown(self._path, columns * (self._path.most if mirrors is None else mirrors))

    def _indicator(self, column: npt.NDArray[np.int64]) -> Reals:
        """Which macro-pixels a column opens, and how much of them, of 2 p."""
        return np.concatenate([np.maximum(column, 0), np.maximum(-column, 0)], axis=-1).astype(np.float64)

    def _fields(
        self, runs: Runs, what: str, light: float, phase: float, repeats: int = 1
    ) -> tuple[Reals, Reals]:
        """z of every frame, shape (m, rows), and the codes of both cameras over the reference's, shape (m, 2, rows)."""
        codes = self._frames.exposed(
            np.repeat(runs, repeats, axis=0) if repeats > 1 else runs, what, light=light, phase=phase
        )
        rates = (codes - self._electrons.black) / self._electrons.signal
        return (rates[:, 0] - rates[:, 1]) / 4 / (rates.mean((1, 2)))[:, None], rates

    def _complex(self, runs: Runs, what: str, light: float, repeats: int) -> tuple[Complex, Reals]:
        """E/r of patterns, from so many frames of each phase, shape (m, rows), and the mean rate of pixels."""
        step = self._frames.chunk(repeats)
        found = np.empty((len(runs), self._path.rows), np.complex128)
        rate = np.zeros((2, self._path.rows))
        for start in range(0, len(runs), step):
            part = runs[start : start + step]
            parts = []
            for phase in (0.0, QUARTER):
                z, rates = self._fields(part, what, light, phase, repeats)
                parts.append(z.reshape(len(part), repeats, -1).mean(1))
                rate += rates.sum(0)
            found[start : start + step] = parts[0] + 1j * parts[1]
        # z is E/r over 1 + mean |E/r|², the same factor at all pixels.
        power = (np.square(np.abs(found)) - 2 * self._frame_variance / repeats).mean(1)
        mean = unsquared(power)
        return found * (1 + mean)[:, None], rate / (2 * repeats * len(runs))

    def _bright(self, runs: Runs, light: float) -> float:
        """The light at which such patterns' largest field is `BRIGHT` of the reference.

        Raises:
            DeviceError: there is none.
        """
        noise = sqrt(float(self._frame_variance.max()))
        for _ in range(200):
            largest = max(
                float(np.abs(self._fields(runs, "the light", light, phase)[0]).max())
                for phase in (0.0, QUARTER)
            )
            if largest > BRIGHT * 0.6:
                return light * min(1.0, BRIGHT / largest)
            light *= 4.0 if largest < _SEEN + 8 * noise else BRIGHT * 0.9 / largest
            if light > _BRIGHTEST:
                break
        raise DeviceError(
            f"patterns of {self._path.name} change nothing up to light {light:.3g}: open the signal arm, or align it"
        )

    # ---- columns

    def _hadamard(self, light: float) -> tuple[Complex, Complex, float]:
        """Fields of all macro-pixels, one by one and together, and the largest mean rate of a pixel over that of the
        reference alone."""
        path, size = self._path, self._size
        table = linalg.hadamard(size)[:, 1 : 2 * path.inputs + 1].astype(np.int8)
        columns = np.zeros((path.rows, 2 * path.inputs), np.complex128)
        rate, together = np.zeros((2, path.rows)), np.zeros(path.rows, np.complex128)
        step = max(1, min(self._frames.chunk(2 * self._repeats), ceil(size / _LEAST_PARTS)))
        for start in range(0, size, step):
            self._look()
            signs = table[start : start + step]
            runs = np.zeros((2, len(signs), 2, path.inputs, 2), np.int64)
            for side, open_ in enumerate((signs > 0, signs < 0)):
                runs[side, ..., 1] = (open_ * path.most).reshape(-1, 2, path.inputs)
            fields, rates = self._complex(
                runs.reshape(-1, 2, path.inputs, 2), "the response", light, self._repeats
            )
            on, off = fields[: len(signs)], fields[len(signs) :]
            if start == 0:
                together = on[0]
            columns += (on - off).T @ signs
            rate += rates * len(signs) / size
        return columns / size, together, max(1.0, float(rate.max()))

    def _look(self) -> None:
        """PatternFrames of the one pattern that is shown again and again, in phase and turned."""
        repeats = max(64, self._count // 8)
        runs = self._full(self._anchor[None])
        first, second = (
            self._fields(runs, "drift", self._light, phase, repeats)[0] for phase in (0.0, QUARTER)
        )
        self._seen.append((first, second))

    def _steadiness(self, prediction: Complex, rate: float, offset: float) -> tuple[float, float, float]:
        """The largest angle of the reference over the parts, its scatter from frame to frame, and the largest relative
        change of brightness; upper limits.

        Args:
            offset: largest error of the prediction's own angle.
        Raises:
            DeviceError: one is too large, or the pattern's field has another shape than at first.
        """
        size = float(np.square(np.abs(prediction)).sum())
        basis = np.stack([prediction.real, prediction.imag])
        turned = np.stack([prediction.imag, -prediction.real])
        inverses = [np.linalg.inv(part @ part.T) @ part for part in (basis, turned)]
        each = sqrt(float(self._frame_variance.max()) * rate)
        error = each * max(float(np.linalg.norm(part, axis=1).max()) for part in inverses)
        angles, sizes, within, shapes = [], [], [], []
        for frames in self._seen:
            for z, inverse in zip(frames, inverses, strict=True):
                found = z @ inverse.T
                angle = np.arctan2(found[:, 1], found[:, 0])
                angles.append(float(angle.mean()))
                sizes.append(float(np.hypot(found[:, 0].mean(), found[:, 1].mean())))
                within.append(np.square(angle - angle.mean()).sum())
            shapes.append(frames[0].mean(0) + 1j * frames[1].mean(0))
        repeats = len(self._seen[0][0])
        free = len(within) * (repeats - 1)
        scatter = float(np.sum(within)) / stats.chi2.ppf(self._beta, free)
        own = 0.95 * self._electrons.noise.sum(0) / 16  # of the light, at least
        least = float(np.mean([np.square(part[1]) @ own for part in inverses]))
        jitter = sqrt(max(0.0, scatter - least))
        quantile = float(-special.ndtri(self._beta / (2 * len(angles))))
        margin = quantile * sqrt(scatter / repeats)
        drift = max(abs(angle) for angle in angles) + margin + offset
        middle = float(np.mean(sizes))
        moved = max(abs(one / middle - 1) for one in sizes) + quantile * error / sqrt(repeats)
        variance: Reals = self._frame_variance * rate / repeats
        for shape in shapes[1:]:
            first = shapes[0]
            fit = np.vdot(first, shape) / np.vdot(first, first)
            off = float((np.square(np.abs(shape - fit * first)) / (2 * variance)).sum())
            allowed = float(stats.chi2.isf(ALARM / len(shapes), 2 * self._path.rows))
            blurred = size / self._path.rows * (jitter**2 / repeats)  # what jitter adds to either
            if off > allowed * (1 + blurred / float(variance.min())):
                raise DeviceError(
                    "one pattern's field has another shape later in the measurement than at its beginning: the medium "
                    "moves, or the phase does within a look; keep them still"
                )
        for label, value, most in (
            ("the reference's phase scatters by up to {:.3g} rad from frame to frame", jitter, MOST_JITTER),
            ("the reference's phase moves by up to {:.3g} rad over the measurement", drift, MOST_DRIFT),
            ("fields change by up to {:.3g} of themselves over the measurement", moved, MOST_DRIFT),
        ):
            if value > most:
                raise DeviceError(
                    f"{label.format(value)}; allowed is {most:g}: steady the interferometer, or take more frames"
                )
        return drift, jitter, moved

    # ---- attenuator

    def _brightness(
        self,
        light: float,
        mirrors: int,
        prediction: Complex,
        rate: float,
        precision: float,
    ) -> tuple[float, float]:
        """|E| of the anchor over its prediction and the error of that, from as many frames as the precision takes."""
        expected = light * mirrors
        single = sqrt(float(self._frame_variance.max()) * rate / float(np.square(np.abs(prediction)).sum()))
        repeats = int(np.clip(ceil((single / (expected * precision)) ** 2), 16, self._count))
        total, done = 0j, 0
        step = min(repeats, self._frames.chunk())
        while done < repeats:
            take = min(step, repeats - done)
            field, _ = self._complex(self._full(self._anchor[None], mirrors), "the attenuator", light, take)
            total += take * complex(np.vdot(prediction, field[0]) / np.vdot(prediction, prediction))
            done += take
        return abs(total / done), single / sqrt(repeats)

    def _attenuator(self, light: float, prediction: Complex, rate: float) -> list[tuple[float, float]]:
        """Settings and the most that κ over its setting is there, over what it is at `light`."""
        most = self._path.most
        z = sqrt(2 * log(4 * (_DIM_LEVELS + _BRIGHT_LEVELS) / self._beta))  # of a complex number's modulus
        scaled = prediction / (light * most)

        def seen(level: float, mirrors: int, precision: float) -> tuple[float, float]:
            value, error = self._brightness(level, mirrors, scaled, rate, precision / z)
            return value / (level * mirrors), z * error / (level * mirrors)

        base, error = seen(light, most, _CHAINED)
        found = [(light, 1.0)]
        for step in range(1, _DIM_LEVELS + 1):
            level = light / 2**step
            value, wide = seen(level, most, _FINE)
            if wide > _CERTAIN * base:
                break
            found.append((level, (value + wide) / (base - error)))
        chained = 1.0
        for step in range(1, _BRIGHT_LEVELS + 1):
            level, mirrors = light * 2**step, most >> step
            if mirrors < 1:
                break
            (above, wide), (below, narrow) = (seen(one, mirrors, _CHAINED) for one in (level, level / 2))
            chained *= (above + wide) / (below - narrow)
            found.append((level, chained))
        return sorted(found)

    def _leak(self, light: float) -> float:
        """The largest field of no open mirror at all, at this light, upper limit.

        Raises:
            DeviceError: it is too large to leave the reference's amplitude as it is.
        """
        nothing = np.zeros((1, 2, self._path.inputs, 2), np.int64)
        repeats, total, done = max(16, self._count // 2), np.zeros(self._path.rows, np.complex128), 0
        while done < repeats:
            take = min(repeats - done, self._frames.chunk())
            total += take * self._complex(nothing, "light of mirrors that are off", light, take)[0][0]
            done += take
        error = np.sqrt(self._frame_variance / repeats) + self._electrons.signal_error / 2
        limit = float((np.abs(total / done) + sqrt(2 * log(self._path.rows / self._beta)) * error).max())
        if limit > MOST_LEAK:
            raise DeviceError(
                f"mirrors that are off pass a field of up to {limit:.3g} of the reference; allowed is {MOST_LEAK:g}: "
                "stop their light, or take more frames"
            )
        return limit

    # ---- mirrors

    def _mirrors(self, columns: Complex, noise: Reals, sign: int) -> _Departures:
        """Of the macro-pixels of a sign: all open one mirror at a time; what each of them shows is solved for.

        Raises:
            DeviceError: the answers are not those of one mode a macro-pixel.
        """
        path = self._path
        repeats = max(16, self._count // path.most)
        part = columns[:, sign * path.inputs : (sign + 1) * path.inputs]
        inverse = np.linalg.pinv(part)
        runs = np.zeros((path.most, 2, path.inputs, 2), np.int64)
        runs[:, sign, :, 0] = np.arange(path.most)[:, None]
        runs[:, sign, :, 1] = np.arange(path.most)[:, None] + 1
        light = self._bright(runs[: min(4, path.most)], self._light)
        fields = np.empty((path.most, path.rows), np.complex128)
        rate = 1.0
        step = ceil(path.most / _LEAST_PARTS)
        for start in range(0, path.most, step):
            self._look()
            fields[start : start + step], rates = self._complex(
                runs[start : start + step], "single mirrors", light, repeats
            )
            rate = max(rate, float(rates.max()))
        solved = fields @ inverse.T
        mean = solved.mean(0)
        variance = self._frame_variance * rate / repeats
        # A complex number's modulus: twice a quadrature's variance.
        errors = np.sqrt(2 * (np.square(np.abs(inverse)) @ variance)) / np.abs(mean)
        left = fields - fields.mean(0) - (solved - mean) @ part.T
        scatter = variance + MOST_JITTER**2 / 4 / repeats * np.square(np.abs(fields)).mean(0)
        departures = np.abs(solved / mean - 1)
        return _Departures(
            largest=departures.max(0),
            length=float(np.linalg.norm(departures, axis=1).max()),
            errors=errors,
            repeats=repeats,
            reach=sqrt(log(4 * path.inputs * path.most / self._beta)),
            inverse=float(np.linalg.norm(inverse, 2)),
            noise=_complex_norm_of_noise(float(noise.max()), path.rows, path.inputs, self._beta),
            left=float((np.square(np.abs(left)) / scatter).sum()),
            free=2 * (path.most - 1) * (path.rows - path.inputs),
        )

    # ---- is it so

    def _unlinear(self, columns: Complex, noise: Reals, rate: float) -> tuple[float, float]:
        """How far fields of two parts of the mirrors, each shown by itself, are off that of all when they are added,
        over the largest field; and how far they may be."""
        path = self._path
        rng = np.random.default_rng(1)
        signs = rng.choice([-1, 1], (_CHECKS, path.inputs))
        whole = self._full(signs)
        cut = np.minimum(rng.integers(0, path.most + 1, whole.shape[:-1]), whole[..., 1])
        first, second = whole.copy(), whole.copy()
        first[..., 1], second[..., 0] = cut, cut
        fields, _ = self._complex(
            np.concatenate([first, second]), "affine fields", self._light, self._repeats
        )
        expected = self._indicator(signs) @ columns.T
        off = np.linalg.norm(fields[:_CHECKS] + fields[_CHECKS:] - expected, axis=1)
        variance = float((2 * self._frame_variance * rate / self._repeats + path.inputs * noise**2).max())
        chance = sqrt(float(stats.chi2.isf(ALARM / _CHECKS, 2 * path.rows)) * variance)
        length = float(np.linalg.norm(expected, axis=1).max())
        return float(off.max()) / length, chance / length + MOST_UNLINEAR


@dataclass(frozen=True)
class _Departures:
    """What the mirrors of one sign showed.

    Attributes:
        largest: |s| of each macro-pixel's mirrors, shape (p,).
        length: largest norm of a mirror's s over macro-pixels.
        errors: standard deviation of a complex s, of the light's noise, shape (p,).
        repeats: frames of a mirror.
        reach: standard deviations that no error exceeds.
        inverse: norm of the columns' pseudo-inverse.
        noise: norm of the columns' noise, limit.
        left, free: squares of what no factor of a macro-pixel's field explains, over their variance, and their number.
    """

    largest: Reals
    length: float
    errors: Reals
    repeats: int
    reach: float
    inverse: float
    noise: float
    left: float
    free: int

    def refuse_modes(self) -> None:
        """Each mirror's field must be its macro-pixel's times a number: what is left is noise.

        Raises:
            DeviceError: it is not.
        """
        if self.free > 0 and self.left > 1.05 * float(stats.chi2.isf(ALARM, self.free)):
            raise DeviceError(
                "the mirrors of a macro-pixel do not excite one and the same mode (what is left of their fields is "
                f"{self.left / self.free:.3g} of the noise): close the aperture that makes one amplitude of each"
            )

    def departure(self, slow: float, fast: float, whole: float) -> float:
        """The largest |s| of a mirror's amplitude 1 + s over the mean of its macro-pixel, upper limit.

        Args:
            slow, fast: of `Fields`.
            whole: norm of all columns.
        Raises:
            DeviceError: macro-pixels cannot be told apart.
        """
        blur = self.inverse * (self.noise + 2 * (slow + fast) * whole)
        if blur > 0.5:
            raise DeviceError(
                f"macro-pixels cannot be told apart by the pixels (what is solved for is off by {blur:.2g} of itself): "
                "read more pixels, or take more frames"
            )
        errors = np.sqrt(self.errors**2 + 2 * fast**2 / self.repeats)
        return float((self.largest + self.reach * errors).max() + blur / (1 - blur) * self.length + 2 * slow)


def bounds(found: Fields, weights: Reals) -> Bounds:
    """Of the fields with their rows weighted, all mirrors open, at the light they were measured at.

    Args:
        found: fields.
        weights: upper limits, shape (rows,).
    """
    inputs = found.columns.shape[1] // 2
    rows = len(weights)
    measured = found.columns * weights[:, None]
    first, second = measured[:, :inputs], -measured[:, inputs:]
    mean, half = (first + second) / 2, (first - second) / 2
    spread = float((found.noise * weights).max())
    whole = float(np.linalg.norm(measured, 2)) + _complex_norm_of_noise(spread, rows, 2 * inputs, found.beta)
    t = sqrt(2 * log(1 / found.beta))
    random = found.fast * sqrt(log(2 * (rows + 2 * inputs) / found.beta) / found.repeats)
    constant = found.fast * (sqrt(2 * inputs / found.size) + t / sqrt(found.size)) / sqrt(2 * found.repeats)
    # ‖P‖ <= 2 (slow + random) (whole + ‖P‖) + 2 (slow + constant) lit
    share, rest = 2 * (found.slow + random), 2 * (found.slow + constant)
    if share > 0.25:
        raise DeviceError(
            f"phase and brightness leave an error of {share:.3g} of the fields; take more frames, or steady the light"
        )
    # All macro-pixels together are half of each pattern; shown by themselves, with √(N/2) the noise of a column.
    lit = float(np.linalg.norm(found.together * weights)) + sqrt(found.size / 2) * spread * (
        sqrt(2 * rows) + t
    )
    off = (share * whole + rest * lit / (1 - 2 * share)) / (1 - share)
    part = _complex_norm_of_noise(spread / sqrt(2), rows, inputs, found.beta)
    stacked = [np.concatenate([one.real, one.imag]) for one in (mean, half)]
    # Halves of sum and difference: a factor 1/√2 of the matrix of both signs.
    single = _norm_of_noise(spread / sqrt(2), 2 * rows, inputs, found.beta) + off / sqrt(2)
    widest = np.abs(measured) ** 2
    both = np.maximum(widest[:, :inputs], widest[:, inputs:])
    largest = np.sqrt(both)
    t_rows = sqrt(2 * log(rows / found.beta))
    row = np.sqrt(both.sum(1)) + found.noise * weights * (sqrt(4 * inputs) + t_rows)
    reach = largest.sum(1) + found.noise * weights * (sqrt(pi / 2) * 2 * inputs + sqrt(2 * inputs) * t_rows)
    return Bounds(
        norm=sum(float(np.linalg.norm(one, 2)) for one in stacked),
        norm_error=2 * single,
        full=sum(float(np.linalg.norm(one, 2)) for one in (mean, half)),
        full_error=2 * (part + off / sqrt(2)),
        row=float(row.max()) + off,
        reach=float(reach.max()) + off * sqrt(2 * inputs),
    )


def _norm_of_noise(std: float, rows: int, columns: int, beta: float) -> float:
    """Of independent normal numbers of this deviation or less, except with probability β (Davidson, Szarek 2001)."""
    return std * (sqrt(rows) + sqrt(columns) + sqrt(2 * log(1 / beta)))


def _complex_norm_of_noise(std: float, rows: int, columns: int, beta: float) -> float:
    """The same of complex numbers, Re and Im of this deviation each."""
    return 2 * _norm_of_noise(std, rows, columns, beta / 2)
