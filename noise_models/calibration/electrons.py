"""Photo-electrons of a code, pixel by pixel, with what is common to a frame removed (THEORY T10, its trap).

The variance of a pixel's code rises by the gain, DN an electron, times the mean. Light whose intensity varies from
frame to frame adds to that variance and makes electrons look fewer: at 20,000 of them 1 % of it triples the gain that
the photon-transfer line shows. Here codes are divided by their means and the frame's mean over pixels is taken off,
which removes it exactly. What is not common to a frame shows in the correlation of pixels (refused), in how the
variance depends on the light (a parabola through three levels: its constant and its square are charged, and refused
from `MOST_EXCESS` on), or, if it is linear in the light, in the third moment (refused where it shows, and charged as
far as it may not).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

import numpy as np
from scipy import special, stats

from noise_models.calibration.probed_light import PatternFrames, Reals
from noise_models.errors import DeviceError, UsageError

LEAST_FRAMES: Final = 256
LEAST_ROWS: Final = 8
LEAST_ELECTRONS: Final = 100.0
MOST_EXCESS: Final = 0.05
INTENSITY_REACH: Final = 8.0  # standard deviations of the common intensity that are allowed for
ALARM: Final = 1e-7  # of each test of a healthy device
HALF: Final = 0.5  # of the reference's power, the second level
BRIGHTEST_DIM: Final = 0.4  # the third is dimmer: there what is multiplied is plain
LEAST_DIM: Final = (
    0.5  # of its codes' variance in steps²: to 2e-4 of it, and of the third moment a few percent a pixel
)
MOST_ECHO: Final = 0.05  # correlation of a pixel's noise with that of the next frame
MOST_MULTIPLIED: Final = 1.4  # of the third moment's ratio that may be
LEAST_STEPS: Final = sqrt(1.1 * LEAST_DIM / BRIGHTEST_DIM)  # of lit codes' deviation
_SKEW_ERROR: Final = 0.15  # of that ratio, which frames of the third level are taken for
_MOST_SAMPLES: Final = 1 << 25
# Of the degrees of freedom of a sample variance: counts of `LEAST_ELECTRONS` and more have an excess kurtosis of 1 %.
_KURTOSIS: Final = 1.01
_COMPARED: Final = 256  # pixels whose correlations are looked at
_EDGE: Final = 8.0  # of the Tracy–Widom law of order 1: beyond with less than `ALARM`
_PARTS: Final = 12  # of beta


@dataclass(frozen=True)
class Electrons:
    """Arrays have the shape (2, rows): both cameras.

    Attributes:
        black: mean code without light, in DN.
        signal: mean code of the reference alone above black, in DN.
        signal_error: largest relative error of `signal`, limit.
        noise, noise_upper: variance of a frame's relative signal, the common part removed; estimate and limit.
        gain, gain_lower, gain_upper: DN a photo-electron.
        common: standard deviation of the intensity that is common to a frame, relative, upper limit.
        excess: share of the gain that is charged for what goes as the square of the light, of either sign, limit.
        multiplied: factor by which multiplied or thermal light may raise the variance, upper limit; it is charged.
    """

    black: Reals
    signal: Reals
    signal_error: float
    noise: Reals
    noise_upper: Reals
    gain: Reals
    gain_lower: Reals
    gain_upper: Reals
    common: float
    excess: float
    multiplied: float


def measure_electrons(frames: PatternFrames, count: int, beta: float) -> Electrons:
    """From frames with a closed shutter, of the reference, of half its power and of little of it, `count` of each, and
    as many more of the last as the third moment asks for.

    Limits hold together except with probability `beta`: chi-square ones of sample variances, exact for Gaussian noise
    and widened for the kurtosis of counts; of dark codes, which may be a few, one for any law of their range.

    Raises:
        UsageError: too few frames or pixels.
        DeviceError: too little light, codes too coarse, noise that is not shot noise.
    """
    path = frames.path
    if not LEAST_FRAMES <= count <= 10**7:
        raise UsageError(
            f"frames of the reference are {count}; their number must be from {LEAST_FRAMES} to 10000000"
        )
    if path.rows < LEAST_ROWS:
        raise UsageError(
            f"{path.rows} pixels of a camera are read; what is common to them is known from {LEAST_ROWS} or more"
        )
    count -= count % 2
    share = beta / _PARTS
    each = share / (2 * path.rows)
    black, still = _closed(frames, count, each)
    full = _Lit(frames, count, 1.0, black)
    narrow = sqrt(float(full.variance.min()) * (1 + 4 * sqrt(2 / (count / 2))))  # of chance
    if narrow < LEAST_STEPS * path.step:
        raise DeviceError(
            f"lit codes vary by {narrow / path.step:.3g} steps; it must be {LEAST_STEPS:.3g}: raise the cameras' gain, "
            "or the reference's power"
        )
    dim = _dim(frames, count, black, still, full)
    half = _Lit(frames, count, max(HALF, sqrt(dim.power)), black)
    free = count / 2 / _KURTOSIS
    z = float(-special.ndtri(each / 2))
    pooled = z * sqrt(2 / (free * path.rows))
    noise_lower, noise_upper = (
        full.own(full.raw * free / stats.chi2.ppf(level, free), sign * pooled)
        for level, sign in ((1 - each / 2, 1), (each / 2, -1))
    )
    _refuse_shared(full)
    echo = full.echo(float(-special.ndtri(share)))
    if echo > MOST_ECHO:
        raise DeviceError(
            f"a pixel's noise in a frame and in the next are correlated by up to {echo:.2g}; allowed is {MOST_ECHO:g}: "
            "leave time between frames, switch the cameras' filters off, or take more frames"
        )
    parabola = _Parabola(dim, half, full, float(-special.ndtri(share / 4)))
    parabola.refuse()
    # Dark frames may hide noise that lit ones have: a converter's, or firmware's that cleans what is dark.
    rest = np.maximum(still, parabola.constant[1][:, None])
    error = float((z * np.sqrt(noise_upper / count) + z * np.sqrt(rest / count) / full.signal).max())
    scale, mean = full.unit**2, full.signal.mean(1)
    rises, falls = (np.maximum(0.0, one) / mean for one in (parabola.square[1], -parabola.square[0]))
    # Variances are those of differences of successive frames.
    upper = noise_upper * (1 + echo) * scale / (full.signal * (1 - error)) + falls[:, None]
    electrons = full.signal / upper
    if float(electrons.min()) < LEAST_ELECTRONS:
        raise DeviceError(
            f"a pixel receives {float(electrons.min()):.3g} photo-electrons of the reference; it must be "
            f"{LEAST_ELECTRONS:g} or more: raise the reference's power"
        )
    multiplied = _multiplied(dim, parabola, share)
    lower = (noise_lower * scale - rest) / (full.signal * (1 + error)) - rises[:, None]
    lower *= (1 - echo) / multiplied
    if float(lower.min()) <= 0:
        raise DeviceError(
            "at a pixel nothing of the codes' variance is certain to be shot noise: take more frames, or raise the "
            "reference's power or the cameras' gain"
        )
    middle = parabola.constant.mean(0)[:, None]
    shown = (full.noise * scale - middle) / full.signal
    common = full.spread(share)
    if INTENSITY_REACH * common > 0.5:
        raise DeviceError(
            f"the light varies by {common:.2g} of itself from frame to frame; it must be below "
            f"{0.5 / INTENSITY_REACH:.2g}: steady the laser"
        )
    return Electrons(
        black=black,
        signal=full.signal,
        signal_error=error,
        noise=full.noise,
        noise_upper=noise_upper * (1 + echo),
        gain=shown,
        gain_lower=lower,
        gain_upper=upper,
        common=common,
        excess=float((np.maximum(rises, falls) / shown.mean(axis=1)).max()),
        multiplied=multiplied,
    )


def _closed(frames: PatternFrames, count: int, beta: float) -> tuple[Reals, Reals]:
    """Mean code without light, and the most that read noise and rounding add to the variance of lit codes."""
    total, squares = np.zeros((2, frames.path.rows)), np.zeros((2, frames.path.rows))
    low, high = total + np.inf, total - np.inf
    for codes in frames.steady(count, "read noise", reference=0.0):
        total += codes.sum(0)
        squares += (np.square(codes[1::2] - codes[::2]) / 2).sum(0)
        low, high = np.minimum(low, codes.min(0)), np.maximum(high, codes.max(0))
    pairs = count // 2
    reach = high - low + frames.path.step
    # Half squares Y of differences lie in [0, r²/2], so E Y² <= r² E Y / 2, and by Bernstein's inequality for numbers
    # that are not negative (Maurer 2003) their mean is below E Y - r √(E Y ln(1/β) / pairs) with probability β at most.
    limit = np.square(np.sqrt(squares / pairs) + reach * sqrt(-np.log(beta) / pairs))
    return total / count, _before_rounding(limit, frames.path.step)


def _before_rounding(variance: Reals, step: float) -> Reals:
    """Largest variance of Gaussian read noise, with the 1/12 that rounding adds to wide codes, whose codes vary by no
    more than `variance`: rounding hides most of it where the mean lies in the middle of a code."""
    if step == 0:
        return variance
    std = np.geomspace(0.1, 3.0, 2000)
    code = np.arange(1, 40)[:, None]
    hidden = ((2 * code - 1) * 2 * special.ndtr(-(code - 0.5) / std)).sum(0)
    own = np.where(
        variance / step**2 < hidden[-1],
        np.square(np.interp(variance / step**2, hidden, std, left=std[0])),
        variance / step**2,
    )
    return np.asarray((own + 1 / 12) * step**2)


class _Lit:
    """Frames of the reference alone.

    Attributes:
        power: of the reference, over that of a run.
        count: of frames.
        signal: mean above black, shape (2, rows).
        unit: what codes were divided by.
        raw: variance of a relative signal once the mean over pixels is taken off, from differences of successive
            frames.
        noise: variance of a pixel's own.
        variance: the same in DN².
        third: third central moment of a pixel's own signal, in DN³, shape (2, rows).
    """

    def __init__(self, frames: PatternFrames, count: int, power: float, black: Reals) -> None:
        unit, pairs, total = (np.zeros((2, frames.path.rows)) for _ in range(3))
        cubes, products = np.zeros((2, frames.path.rows)), 0.0
        mates = np.unique(np.linspace(0, frames.path.rows - 1, _COMPARED).astype(np.int64))
        self._shared = np.zeros((2, len(mates), len(mates)))
        spectrum = np.zeros((2, frames.path.rows // 2 + 1))
        means: list[Reals] = []
        for codes in frames.steady(count, "photo-electrons of a code", reference=power):
            above = codes - black
            total += above.sum(0)
            if not means:
                unit = above.mean(0)
                if not float(np.min(unit)) > 0:
                    raise DeviceError(
                        f"a pixel receives nothing of the reference at {power:g} of its power: align it, or read a "
                        "region without that pixel"
                    )
                weights = unit / unit.sum(1, keepdims=True)  # by photo-electrons: dim pixels are noisy
                width = (above / unit).std(0)
            relative = above / unit - 1
            mean = (relative * weights).sum(2)
            means.append(mean)
            relative -= mean[:, :, None]
            change = (relative[1::2] - relative[::2]) / sqrt(2)
            pairs += np.square(change).sum(0)
            some = change[:, :, mates]
            self._shared += np.einsum("fak,fal->akl", some, some)
            spectrum += np.square(np.abs(np.fft.rfft(change / width))).sum(0)
            relative -= relative.mean(0)
            cubes += (relative**3).sum(0)
            products += float((relative[::2] * relative[1::2] / np.square(relative).mean(0)).sum())
        self.signal, self.unit, self.raw, self._weights = total / count, unit, pairs / (count // 2), weights
        self.noise = self.own(self.raw)
        self.variance = self.noise * self.unit**2
        pixels = frames.path.rows
        self.third = cubes / count / ((1 - weights) ** 3) * unit**3  # of numbers less their weighted mean
        lags = np.fft.irfft(spectrum, pixels)
        self._lags = lags[:, 1:] / lags[:, :1] + 1 / (pixels - 1)
        self._echo = products / (count // 2 * 2 * pixels)
        self._means, self.power, self.count, self._rows = np.concatenate(means), power, count, pixels

    def own(self, raw: Reals, error: float = 0.0) -> Reals:
        """A pixel's own variance v, from that with the weighted mean taken off, `v (1 - 2 w) + Σ w² v`; `error` is that
        of the sum, relative."""
        rest = 1 - 2 * self._weights
        squares = np.square(self._weights) / rest
        both = (squares * self.raw).sum(1, keepdims=True) / (1 + squares.sum(1, keepdims=True))
        return np.asarray((raw - both * (1 + error)) / rest)

    def spread(self, beta: float) -> float:
        """Standard deviation of what is common, both cameras' mean, upper limit."""
        both = self._means.mean(1)
        free = self.count - 1
        seen = float(both.var(ddof=1)) * free / stats.chi2.ppf(beta, free)
        own = float((np.square(self._weights) * self.noise).sum()) / 4
        return sqrt(max(0.0, seen - 0.95 * own))

    def echo(self, z: float) -> float:
        """Correlation of a pixel's noise with that of the next frame, of either sign, mean over pixels, limit."""
        return abs(self._echo) + z / sqrt(self.count // 2 * 2 * self._rows)

    def correlation(self) -> tuple[float, float]:
        """Largest eigenvalue of the correlation of pixels, and what chance makes of it, the worse camera's."""
        pairs = self.count // 2
        found = 0.0
        for shared in self._shared:
            scale = 1 / np.sqrt(np.diag(shared))
            found = max(found, float(np.linalg.eigvalsh(shared * np.outer(scale, scale))[-1]))
        pixels = self._shared.shape[1]
        rise = (sqrt(pairs) + sqrt(pixels)) * (1 / sqrt(pairs) + 1 / sqrt(pixels)) ** (1 / 3)
        limit = ((sqrt(pairs) + sqrt(pixels)) ** 2 + _EDGE * rise) / pairs
        return found, limit / (1 - float(self._weights.max()))  # numbers less their mean are anticorrelated

    def lag(self) -> tuple[float, float]:
        """Largest correlation of pixels at a distance, in the order they are read, and what chance makes of it."""
        chance = float(-special.ndtri(ALARM / self._lags.size)) / sqrt(self.count // 2 * self._rows)
        # Pixels that are unlike share the mean unlike: a part of 1/rows.
        return float(np.abs(self._lags).max()), 2 * chance + 4 / self._rows**2 + float(self._weights.var())


class _Parabola:
    """Variance of codes against light, `a + b l + c l²`, l the power over that of a run, mean over pixels.

    Attributes:
        constant: limits of a, in DN², shape (2, cameras): lower, upper.
        whole: the variance at full power, shape (cameras,).
        square: limits of c, likewise.
    """

    def __init__(self, dim: _Lit, half: _Lit, full: _Lit, z: float) -> None:
        levels = (dim, half, full)
        light = np.stack([lit.signal.mean(1) / full.signal.mean(1) for lit in levels], axis=1)
        if not (light[:, 1] < 0.9).all() or not (light[:, 0] < 0.7 * light[:, 1]).all():
            raise DeviceError(
                f"the reference at {dim.power:.2g} and {half.power:.2g} of its power gives "
                f"{float(light[:, 0].max()):.3g} and {float(light[:, 1].max()):.3g} of the signal; attenuate it"
            )
        inverse = np.linalg.inv(np.stack([np.ones_like(light), light, light**2], axis=2))
        seen = np.stack([lit.variance.mean(1) for lit in levels], axis=1)
        error = np.stack(
            [
                np.sqrt(
                    2 * _KURTOSIS / (lit.count / 2) * np.square(lit.variance).mean(1) / lit.variance.shape[1]
                )
                for lit in levels
            ],
            axis=1,
        )
        found = np.einsum("aij,aj->ia", inverse, seen)
        wide = z * np.sqrt(np.einsum("aij,aj->ia", inverse**2, error**2))
        self.constant = np.stack([found[0] - wide[0], found[0] + wide[0]])
        self.whole = seen[:, 2]
        self.square = np.stack([found[2] - wide[2], found[2] + wide[2]])

    def refuse(self) -> None:
        """
        Raises:
            DeviceError: what goes as the square of the light is too much to be alike in all pixels.
        """
        rises = float((self.square[0] / self.whole).max())
        falls = float((-self.square[1] / self.whole).max())
        if rises > MOST_EXCESS:
            raise DeviceError(
                f"at least {100 * rises:.2g} % of the codes' variance rises as the square of the light and is not "
                f"common to a frame; allowed is {100 * MOST_EXCESS:g} %: steady the light"
            )
        if falls > MOST_EXCESS:
            raise DeviceError(
                f"the codes' variance stays at least {100 * falls:.2g} % below the light; allowed is "
                f"{100 * MOST_EXCESS:g} %: dim the reference, or make the codes linear in the light"
            )


def _refuse_shared(lit: _Lit) -> None:
    found, limit = lit.correlation()
    if found > limit:
        raise DeviceError(
            f"pixels vary together beyond what is common to a whole frame (eigenvalue {found:.3g} of their "
            f"correlation, of chance at most {limit:.3g}): steady the light's pointing, switch the cameras' filters off"
        )
    found, limit = lit.lag()
    if found > limit:
        raise DeviceError(
            f"neighbouring pixels' noise is correlated by {found:.2g} (of chance at most {limit:.2g}): switch the "
            "cameras' filters off"
        )


def _dim(frames: PatternFrames, count: int, black: Reals, still: Reals, full: _Lit) -> _Lit:
    """The third level: little light, above read noise and rounding, and frames enough for the third moment.

    Of N photo-electrons and read noise of variance s the ratio κ₁κ₃/κ₂² has the error √(6/frames) (N + s)^1.5 / N,
    which is least at N = 2 s.
    """
    # Upper limits of both are near enough.
    electrons = full.signal**2 / np.maximum(full.variance - still, 1e-3 * full.variance)
    read = float((still / full.variance).max() * electrons.max())
    coarse = BRIGHTEST_DIM * (LEAST_STEPS * frames.path.step) ** 2 / float(full.variance.min())
    power = min(BRIGHTEST_DIM, max(max(2 * read, LEAST_ELECTRONS) / float(electrons.min()), coarse))
    shot = power * float(electrons.mean())
    error = float(-special.ndtri(ALARM)) * (shot + read) ** 1.5 / shot
    needed = min(6 * (error / _SKEW_ERROR) ** 2, _MOST_SAMPLES) / (2 * frames.path.rows)
    return _Lit(frames, max(count, 2 * ceil(needed / 2)), power, black)


def _multiplied(dim: _Lit, parabola: _Parabola, beta: float) -> float:
    """The largest factor on the variance that the third moment leaves open.

    κ₁ κ₃ / κ₂² is 1 for Poisson counts and more for any that are multiplied by chance, by Cauchy and Schwarz, or whose
    rate varies: (1 + 2 x) / (1 + x) for gains that scatter as a Gamma number and for thermal light, where the
    variance is 1 + x times Poisson's. Noise without skew that grows with the light makes it 1 / (1 + x)².

    Raises:
        DeviceError: one of them shows, or too much of it may not show.
    """

    def ratio(constant: Reals) -> tuple[float, float]:
        shot = dim.variance - constant[:, None]
        if float(shot.mean()) < 0.05 * float(dim.variance.mean()):
            raise DeviceError(
                f"at {dim.power:.2g} of the reference's power codes show read noise alone: raise the power, or take "
                "cameras with less of it"
            )
        poisson = float((np.square(shot) / dim.signal).sum())
        return float(dim.third.sum()) / poisson, sqrt(
            6 * float((dim.variance**3).sum()) / dim.count
        ) / poisson

    lower, upper = parabola.constant
    z, certain = float(-special.ndtri(ALARM)), float(-special.ndtri(beta))
    found, error = ratio(np.maximum(0.0, lower))
    least = min(1.0, found - certain * error)
    if found - 1 > z * error:
        raise DeviceError(
            f"the third moment of the codes is {found:.3g} of what Poisson counts of their variance have (of chance at "
            f"most {1 + z * error:.3g}): light that is multiplied or thermal, whose photo-electrons cannot be counted "
            "by their noise; take the light of one laser, and cameras without multiplication"
        )
    found, error = ratio(upper)
    most = max(1.0, found + certain * error)
    if 1 - found > z * error:
        raise DeviceError(
            f"the third moment of the codes is {found:.3g} of what Poisson counts of their variance have (of chance at "
            f"least {1 - z * error:.3g}): noise that grows with the light and is none of its photo-electrons; take "
            "cameras whose codes are photo-electrons and read noise"
        )
    if most > MOST_MULTIPLIED or least < 2 - MOST_MULTIPLIED:
        raise DeviceError(
            f"the third moment of the codes may be {least:.3g} to {most:.3g} of what Poisson counts have; allowed is "
            f"{2 - MOST_MULTIPLIED:.3g} to {MOST_MULTIPLIED:g}: take more frames (--frames), or read more pixels"
        )
    return max(1 / (2 - most), 1 / sqrt(least))
