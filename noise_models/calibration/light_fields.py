"""The response matrix of a light path for whole numbers, from public patterns, with a bound of its error (THEORY T10).

Fields are measured relative to the reference's, by the difference of both cameras over the mean of all pixels, so that
neither gain nor what is common to a frame is in them: with C/S a code over that of the reference alone,
`z = (C₊/S₊ - C₋/S₋) / (4 mean C/S)` is Re(E/r) / (1 + mean |E/r|²), and with the reference turned by π/2 the same of
Im(E/r), the reference's power at that phase measured by itself. The mean of both cameras is 1 + |E/r|², which says
whether these are two quadratures of one field. Macro-pixels are shown in the patterns of a Hadamard matrix and their
complements. The bounds are proved in docs/theory.md (T10, calibration).
"""

from __future__ import annotations

from math import ceil, log, pi, sin, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import linalg, special, stats

from noise_models.calibration.attenuator import Setting, size_ratio
from noise_models.calibration.electrons import ALARM, INTENSITY_REACH, Electrons
from noise_models.calibration.field_bounds import Fields, average_of_single, complex_norm_of_noise
from noise_models.calibration.mirrors import Departures
from noise_models.calibration.probed_light import Complex, PatternFrames, ProbedLight, Reals, Runs
from noise_models.calibration.quadratures import Quadratures
from noise_models.errors import DeviceError

QUARTER: Final = pi / 2
BRIGHT: Final = 0.25  # of the largest field to the reference, in patterns
MOST_DRIFT: Final = 0.1  # of phase, in radians, and of brightness, over the measurement
MOST_JITTER: Final = 0.2  # radians, from frame to frame
_DIMMEST, _BRIGHTEST = 1e-12, 1e6
_SEEN: Final = 0.03  # a field relative to the reference that is no noise
_LEAST_PARTS: Final = 16  # of the measurement, between which the same pattern is shown again
_CERTAIN, _FINE = 0.5, 0.0125  # relative errors of an attenuator's level: the largest of use, and enough
MOST_OTHER: Final = 0.1  # of a field, of another shape at another setting of the attenuator
_CHAINED: Final = 0.0025  # of a level against the next one
_DIM_LEVELS: Final = 16
_CHECKS: Final = 32  # columns that are shown in two parts, at every size
_SIZES: Final = 4  # between two sizes of such parts
PATTERNS: Final = 8  # public ones, that are shown again and again
MOST_TURNED: Final = 0.1  # by which the reference's power may depend on its phase
MOST_LEAK: Final = 0.02  # of a field to the reference, with all mirrors off
MOST_UNLINEAR: Final = 0.02  # of a field, besides what chance does
_BETA_PARTS: Final = 40


def patterns(path: ProbedLight) -> npt.NDArray[np.int64]:
    """Public columns of -1 and 1, shape (PATTERNS, p); the first is shown again and again."""
    return np.random.default_rng(0).choice([-1, 1], (PATTERNS, path.inputs))


def opened(columns: npt.NDArray[np.int64]) -> Reals:
    """How much of its macro-pixels each column of -1, 0 and 1 opens, shape (m, 2 p)."""
    return np.concatenate([np.maximum(columns, 0), np.maximum(-columns, 0)], axis=-1).astype(np.float64)


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
        self._signs = patterns(path)
        self._anchor = self._signs[0]
        self._quadratures = Quadratures()
        self._other = 0.0  # largest part of a field, of another shape at another setting of the attenuator
        self._seen: list[tuple[Reals, Reals]] = []
        self._z = float(-special.ndtri(self._beta / 2))
        # Of a frame: of z at a pixel, and of what z is divided by.
        variance = (1 + MOST_TURNED) * electrons.noise_upper.sum(0) / 16
        self._frame_variance = variance / (1 - INTENSITY_REACH * electrons.common) ** 2
        # A tenth more for the error of 1 + mean |E/r|².
        self._common_variance = 1.1 * float(electrons.noise_upper.mean(1).sum()) / (4 * path.rows)

    def measure(self) -> Fields:
        """
        Raises:
            DeviceError: patterns change nothing, fields are not affine, the medium or the phase moves too much.
        """
        path = self._path
        self._turned = self._turn()
        self._light = light = self._bright(self._full(self._signs), _DIMMEST)
        columns, together, rate = self._hadamard(light)
        noise = np.sqrt(2 * self._frame_variance * rate / (self._size * self._repeats))
        prediction = columns @ opened(self._anchor)
        attenuator = self._attenuator(light, columns, rate)
        leak = self._leak(attenuator[-1].light)
        mirrors = (
            [self._mirrors(columns, noise, sign, attenuator) for sign in (0, 1)] if path.most > 1 else []
        )
        unlinear = self._unlinear()
        self._look()
        offset = self._z * float(noise.max()) * sqrt(path.inputs) / float(np.linalg.norm(prediction))
        drift, jitter, moved = self._steadiness(prediction, rate, offset)
        for one in mirrors:
            one.refuse_modes()
        slow = 2 * sin(drift / 2) + moved + jitter**2 / 2
        fast = sqrt(jitter**2 + self._common_variance)
        if self._other > MOST_OTHER:
            raise DeviceError(
                f"fields have another shape where the attenuator is set otherwise (by {self._other:.2g} of themselves, "
                f"allowed is {MOST_OTHER:g}): let it change the light's power alone"
            )
        affine = self._refuse_unlinear(unlinear, fast)
        oblique = self._quadratures.limit(self._z)
        whole = float(np.linalg.norm(columns, 2))
        averaged = average_of_single(fast, path.rows, 2 * path.inputs, self._repeats, self._beta)
        departures, shares = (
            zip(*(one.limits(slow, fast, averaged, moved, whole) for one in mirrors), strict=True)
            if mirrors
            else ((0.0,), (1.0,))
        )
        return Fields(
            light, columns, noise, together, slow, fast, self._size, self._repeats,
            tuple((one.light, one.charged * (1 + 2 * slow)) for one in attenuator),
            max(departures), max(1.0, *shares), oblique, drift, jitter, leak, affine, self._beta,
        )  # fmt: skip

    # ---- patterns

    def _full(self, columns: npt.NDArray[np.int64], mirrors: int | None = None) -> Runs:
        """Runs that show columns of -1, 0 and 1 times so many mirrors, or all."""
        return shown(self._path, columns * (self._path.most if mirrors is None else mirrors))

    def _fields(
        self, runs: Runs, what: str, light: float, phase: float, repeats: int = 1
    ) -> tuple[Reals, Reals]:
        """z of every frame, shape (m, rows), and the codes of both cameras over the reference's, shape (m, 2, rows)."""
        codes = self._frames.exposed(
            np.repeat(runs, repeats, axis=0) if repeats > 1 else runs, what, light=light, phase=phase
        )
        turned = self._turned if phase else np.ones_like(self._turned)
        rates = (codes - self._electrons.black) / (self._electrons.signal * turned)
        z = (rates[:, 0] - rates[:, 1]) / 4 / (rates.mean((1, 2)))[:, None]
        return z * np.sqrt(turned.mean(0)), rates

    def _complex(self, runs: Runs, what: str, light: float, repeats: int) -> tuple[Complex, Reals]:
        """E/r of patterns, from so many frames of each phase, shape (m, rows), and their rates, shape (m, 2, rows)."""
        step = self._frames.chunk(repeats)
        found = np.empty((len(runs), self._path.rows), np.complex128)
        rate = np.empty((len(runs), 2, self._path.rows))
        for start in range(0, len(runs), step):
            part = slice(start, start + step)
            both = []
            for phase in (0.0, QUARTER):
                z, rates = self._fields(runs[part], what, light, phase, repeats)
                both.append([one.reshape(-1, repeats, *one.shape[1:]).mean(1) for one in (z, rates)])
            (real, first), (imaginary, second) = both
            found[part], rate[part] = real + 1j * imaginary, (first + second) / 2
        # z is E/r over 1 + mean |E/r|², the same factor at all pixels.
        power = (np.square(np.abs(found)) - 2 * self._frame_variance / repeats).mean(1)
        return found * (1 + unsquared(power))[:, None], rate

    def _turn(self) -> Reals:
        """The turned reference's power over its power at phase 0, shape (2, rows).

        Raises:
            DeviceError: they are far from each other.
        """
        total = np.zeros((2, self._path.rows))
        for codes in self._frames.steady(self._count, "the turned reference", reference=1.0, phase=QUARTER):
            total += codes.sum(0)
        found = (total / self._count - self._electrons.black) / self._electrons.signal
        off = found.flat[np.argmax(np.abs(found - 1))]
        if not abs(off - 1) <= MOST_TURNED:
            raise DeviceError(
                f"the reference has {off:.3g} of its power once it is turned by π/2; allowed is {1 - MOST_TURNED:g} to "
                f"{1 + MOST_TURNED:g}: turn its phase alone"
            )
        return np.asarray(found)

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
            self._quadratures.take(fields, rates.mean(1))
            rate += rates.sum(0) / (2 * size)
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

    def _brightness(self, light: float, mirrors: int, precision: float) -> tuple[Complex, float]:
        """Fields of the public patterns, shape (PATTERNS, rows), and the variance of an entry's Re and Im, from as many
        frames as bring their size to this relative precision."""
        expected = light * mirrors * self._size_of_one
        repeats = ceil(self._variance_of_one / (expected * precision) ** 2 / PATTERNS)
        repeats = int(np.clip(repeats, 16, max(16, self._count // PATTERNS)))
        total, done = np.zeros((PATTERNS, self._path.rows), np.complex128), 0
        step = min(repeats, self._frames.chunk(PATTERNS))
        while done < repeats:
            take = min(step, repeats - done)
            fields, _ = self._complex(self._full(self._signs, mirrors), "the attenuator", light, take)
            total += take * fields
            done += take
        return total / done, self._variance_of_one / repeats

    def _attenuator(self, light: float, columns: Complex, rate: float) -> list[Setting]:
        """Settings whose κ is known, rising."""
        most = self._path.most
        levels = most.bit_length() - 1
        z = sqrt(2 * log(4 * (_DIM_LEVELS + 2 * levels + 1) / self._beta))  # of a complex number's modulus
        known = opened(self._signs) @ columns.T
        self._variance_of_one = float(self._frame_variance.max()) * rate
        self._size_of_one = float(np.linalg.norm(known)) / sqrt(PATTERNS) / (light * most)
        spread = float(np.linalg.norm(columns) / np.linalg.norm(columns, 2))

        def compared(above: tuple[Complex, float], below: tuple[Complex, float], expected: float) -> Setting:
            found = size_ratio(above, below, z)
            self._other = max(self._other, found.other)
            wide = found.most + spread * found.other_limit
            return Setting(0.0, found.least / expected, found.most / expected, wide / expected)

        base = (known, 0.0)
        found = [Setting(light, 1.0, 1.0, 1.0)]
        for step in range(1, _DIM_LEVELS + 1):
            level = light / 2**step
            one = compared(self._brightness(level, most, _FINE / z), base, level / light)
            if one.least < (1 - _CERTAIN) * one.most:
                break
            found.append(one._replace(light=level))
        low = high = charged = 1.0
        for step in range(1, levels + 1):
            level, mirrors = light * 2**step, most >> step
            above, below = (self._brightness(light, mirrors, _CHAINED / z) for light in (level, level / 2))
            one = compared(above, below, 2.0)
            low, high, charged = low * one.least, high * one.most, charged * one.charged
            found.append(Setting(level, low, high, charged))
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

    def _mirrors(self, columns: Complex, noise: Reals, sign: int, attenuator: list[Setting]) -> Departures:
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
        brightest = self._bright(runs[: min(4, path.most)], self._light)
        # A setting that is known, so that fields can be compared with those of all mirrors.
        light, low, high, _ = max(one for one in attenuator if one.light <= max(brightest, self._light))
        fields = np.empty((path.most, path.rows), np.complex128)
        rate = 1.0
        step = ceil(path.most / _LEAST_PARTS)
        for start in range(0, path.most, step):
            self._look()
            fields[start : start + step], rates = self._complex(
                runs[start : start + step], "single mirrors", light, repeats
            )
            rate = max(rate, float(rates.mean(0).max()))
        solved = fields @ inverse.T
        mean = solved.mean(0)
        variance = self._frame_variance * rate / repeats
        # A complex number's modulus: twice a quadrature's variance.
        errors = np.sqrt(2 * (np.square(np.abs(inverse)) @ variance)) / np.abs(mean)
        left = fields - fields.mean(0) - (solved - mean) @ part.T
        scatter = variance + MOST_JITTER**2 / 4 / repeats * np.square(np.abs(fields)).mean(0)
        departures = np.abs(solved / mean - 1)
        part_of_all = np.abs(mean) * path.most * self._light / light
        return Departures(
            shares=(float((part_of_all / high).min()), float((part_of_all / low).max())),
            mirrors=path.most,
            largest=departures.max(0),
            length=float(np.linalg.norm(departures, axis=1).max()),
            errors=errors,
            repeats=repeats,
            reach=sqrt(log(4 * path.inputs * path.most / self._beta)),
            inverse=float(np.linalg.norm(inverse, 2)),
            noise=complex_norm_of_noise(float(noise.max()), path.rows, path.inputs, self._beta),
            left=float((np.square(np.abs(left)) / scatter).sum()),
            free=2 * (path.most - 1) * (path.rows - path.inputs),
        )

    # ---- is it so

    def _unlinear(self) -> list[tuple[int, float, float]]:
        """Of some sizes of parts, from a macro-pixel to two mirrors: the size; how far fields of two halves, each shown
        by itself, are off the field of both when they are added, squared, over the field's square; what noise makes
        of that."""
        path, rng, found = self._path, np.random.default_rng(1), []
        size = path.most
        while size >= 2:
            open_ = rng.integers(0, 2, (_CHECKS, 1, path.inputs))
            open_ = np.concatenate([open_, 1 - open_], axis=1)
            length = rng.integers(ceil(size / 2), size + 1, open_.shape) * open_
            start = rng.integers(0, path.most - length + 1)
            cut, end = start + rng.integers(0, length + 1), start + length
            runs = np.stack(
                [np.stack(ends, axis=-1) for ends in ((start, cut), (cut, end), (start, end))], axis=1
            )
            runs = runs.reshape(-1, 2, path.inputs, 2)
            light = self._bright(runs[2::3], self._light)
            fields, rates = self._complex(runs, "affine fields", light, self._repeats)
            first, second, whole = (fields[part::3] for part in range(3))
            lit = float(np.square(np.abs(whole)).sum())
            noise = (
                3 * 2 * _CHECKS * float((self._frame_variance * max(1.0, float(rates.mean(0).max()))).sum())
            )
            off = float(np.square(np.abs(first + second - whole)).sum())
            found.append((size, off / lit, noise / self._repeats / lit))
            size = -(-size // _SIZES) if size > _SIZES else size // 2
        return found

    def _refuse_unlinear(self, found: list[tuple[int, float, float]], fast: float) -> float:
        """How far fields may be off being affine without showing.

        Raises:
            DeviceError: they are off.
        """
        scatter = float(-special.ndtri(ALARM)) * sqrt(2 / (2 * _CHECKS * self._path.rows))
        shaken = 3 * fast**2 / self._repeats
        # What all pixels share scatters by the number of fields that were shown.
        common = float(-special.ndtri(ALARM)) * sqrt(2 / _CHECKS) * shaken
        limits = [MOST_UNLINEAR + sqrt(scatter * noise + common) for _, _, noise in found]
        for (size, off, noise), limit in zip(found, limits, strict=True):
            departure = sqrt(max(0.0, off - noise - shaken))
            if departure > limit:
                raise DeviceError(
                    f"fields of two parts of up to {size} mirrors add up to {departure:.3g} off the field of both "
                    f"(allowed is {limit:.3g}): it is not affine in the numbers shown; let no light return to the "
                    "mirrors, keep them from moving one another, and show each number as an amplitude"
                )
        return max(limits, default=0.0)
