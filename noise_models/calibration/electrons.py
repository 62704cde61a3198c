"""Photo-electrons of a code, pixel by pixel, with what is common to a frame removed (THEORY T10, its trap).

The variance of a pixel's code rises by the gain, DN an electron, times the mean. Light whose intensity varies from
frame to frame adds to that variance and makes electrons look fewer: at 20,000 of them 1 % of it triples the gain that
the photon-transfer line shows. Here codes are divided by their means and the frame's mean over pixels is taken off,
which removes it exactly. What is not common to a frame shows in the correlation of pixels (refused), in how the gain
depends on the light (charged, and refused from `MOST_EXCESS` on), or, if it is linear in the light, in the third
moment (refused where it shows, and printed how much would not).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from scipy import special, stats

from noise_models.calibration.probed_light import PatternFrames, Reals
from noise_models.errors import DeviceError, UsageError

LEAST_FRAMES: Final = 256
LEAST_ROWS: Final = 8
LEAST_ELECTRONS: Final = 100.0
LEAST_VARIANCE: Final = (
    0.7  # of lit codes in steps²: above it rounding adds 1/12 to the variance, to 1e-5 of it
)
MOST_EXCESS: Final = 0.05
INTENSITY_REACH: Final = 8.0  # standard deviations of the common intensity that are allowed for
ALARM: Final = 1e-7  # of each test of a healthy device
HALF: Final = 0.5  # of the reference's power, the second level
DIM: Final = 1 / 16  # the third: the dimmer, the plainer what is multiplied
# Of the degrees of freedom of a sample variance: counts of `LEAST_ELECTRONS` and more have an excess kurtosis of 1 %.
_KURTOSIS: Final = 1.01
_COMPARED: Final = 256  # pixels whose correlations are looked at
_EDGE: Final = 8.0  # of the Tracy–Widom law of order 1: beyond with less than `ALARM`
_PARTS: Final = 8  # of beta


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
        excess: share of the gain that is charged for noise which rises as the square of the light, upper limit.
        unseen: factor by which multiplied or thermal light may raise the variance without showing in the third moment.
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
    unseen: float


def measure_electrons(frames: PatternFrames, count: int, beta: float) -> Electrons:
    """From frames with a closed shutter, of the reference, of half its power and of a sixteenth, `count` of each.

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
    black, least, still = _closed(frames, count, each)
    full = _Lit(frames, count, 1.0, black)
    half = _Lit(frames, count, HALF, black)
    for lit in (full, half):
        if path.step > 0 and float(lit.variance.min()) < LEAST_VARIANCE * path.step**2:
            raise DeviceError(
                f"lit codes vary by {sqrt(float(lit.variance.min())) / path.step:.2g} steps; it must be "
                f"{sqrt(LEAST_VARIANCE):.2g}: raise the cameras' gain, or the reference's power"
            )
    free = count / 2 / _KURTOSIS
    z = float(-special.ndtri(each / 2))
    pooled = z * sqrt(2 / (free * path.rows))
    noise_lower, noise_upper = (
        full.own(full.raw * free / stats.chi2.ppf(level, free), sign * pooled)
        for level, sign in ((1 - each / 2, 1), (each / 2, -1))
    )
    _refuse_shared(full)
    error = float((z * np.sqrt(noise_upper / count) + z * np.sqrt(still / count) / full.signal).max())
    excess = _excess(full, half, least, still, free, float(-special.ndtri(share)))
    scale = full.unit**2
    lower = (noise_lower * scale - still) / (full.signal * (1 + error)) - excess[:, None]
    upper = noise_upper * scale / (full.signal * (1 - error))
    electrons = full.signal / upper
    if float(electrons.min()) < LEAST_ELECTRONS:
        raise DeviceError(
            f"a pixel receives {float(electrons.min()):.3g} photo-electrons of the reference; it must be "
            f"{LEAST_ELECTRONS:g} or more: raise the reference's power"
        )
    if float(lower.min()) <= 0:
        raise DeviceError(
            "at a pixel nothing of the codes' variance is certain to be shot noise: take more frames, or raise the "
            "reference's power or the cameras' gain"
        )
    dim = _Lit(frames, count, DIM, black)
    plain = path.step == 0 or float(dim.variance.min()) >= LEAST_VARIANCE * path.step**2
    unseen = _skewed(dim if plain else half, least, count)
    shown = (full.noise * scale - least) / full.signal
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
        noise_upper=noise_upper,
        gain=shown,
        gain_lower=lower,
        gain_upper=upper,
        common=common,
        excess=float((excess / shown.mean(axis=1)).max()),
        unseen=unseen,
    )


def _closed(frames: PatternFrames, count: int, beta: float) -> tuple[Reals, Reals, Reals]:
    """Mean code without light, and what read noise and rounding add to the variance of lit codes: a low figure, for
    what only tests, and the upper limit."""
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
    seen, wide = squares / pairs, LEAST_VARIANCE * frames.path.step**2
    least = np.where(seen >= wide, 0.95 * seen, frames.path.step**2 / 12)
    return total / count, least, _before_rounding(limit, frames.path.step)


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
    """PatternFrames of the reference alone.

    Attributes:
        signal: mean above black, shape (2, rows).
        unit: what codes were divided by.
        raw: variance of a relative signal once the mean over pixels is taken off, from differences of successive
            frames.
        noise: variance of a pixel's own.
        variance: the same in DN².
    """

    def __init__(self, frames: PatternFrames, count: int, power: float, black: Reals) -> None:
        unit, pairs, total = (np.zeros((2, frames.path.rows)) for _ in range(3))
        cubes = np.zeros(2)
        mates = np.unique(np.linspace(0, frames.path.rows - 1, _COMPARED).astype(np.int64))
        self._shared = np.zeros((2, len(mates), len(mates)))
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
            relative = above / unit - 1
            mean = relative.mean(2)
            means.append(mean)
            relative -= mean[:, :, None]
            change = (relative[1::2] - relative[::2]) / sqrt(2)
            pairs += np.square(change).sum(0)
            some = change[:, :, mates]
            self._shared += np.einsum("fak,fal->akl", some, some)
            cubes += ((relative - relative.mean(0)) ** 3).sum((0, 2))
        self.signal, self.unit, self.raw = total / count, unit, pairs / (count // 2)
        self.noise = self.own(self.raw)
        self.variance = self.noise * self.unit**2
        self.third = cubes / (count * frames.path.rows)
        self._means, self._count, self._rows = np.concatenate(means), count, frames.path.rows

    def own(self, raw: Reals, error: float = 0.0) -> Reals:
        """A pixel's own variance, from that with the mean over pixels taken off; `error` is that of the pixels' mean
        variance, relative."""
        pixels = raw.shape[1]
        mean = self.raw.mean(axis=1, keepdims=True) / (1 - 1 / pixels) * (1 + error)
        return np.asarray((raw - mean / pixels) / (1 - 2 / pixels))

    def spread(self, beta: float) -> float:
        """Standard deviation of what is common, both cameras' mean, upper limit."""
        both = self._means.mean(1)
        free = self._count - 1
        seen = float(both.var(ddof=1)) * free / stats.chi2.ppf(beta, free)
        return sqrt(max(0.0, seen - 0.95 * float(self.noise.mean()) / (2 * self._rows)))

    def correlation(self) -> tuple[float, float]:
        """Largest eigenvalue of the correlation of pixels, and what chance makes of it, the worse camera's."""
        pairs = self._count // 2
        found = 0.0
        for shared in self._shared:
            scale = 1 / np.sqrt(np.diag(shared))
            found = max(found, float(np.linalg.eigvalsh(shared * np.outer(scale, scale))[-1]))
        pixels = self._shared.shape[1]
        rise = (sqrt(pairs) + sqrt(pixels)) * (1 / sqrt(pairs) + 1 / sqrt(pixels)) ** (1 / 3)
        return found, ((sqrt(pairs) + sqrt(pixels)) ** 2 + _EDGE * rise) / pairs


def _excess(full: _Lit, half: _Lit, least: Reals, still: Reals, free: float, z: float) -> Reals:
    """What noise that rises as the square of the light adds to the apparent gain, each camera's mean, upper limit.

    Raises:
        DeviceError: it is too much to be alike in all pixels.
    """

    def slope(lit: _Lit, rest: Reals) -> Reals:
        return np.asarray(((lit.variance - rest) / lit.signal).mean(1))

    dimmer = half.signal.mean(1) / full.signal.mean(1)
    if not (dimmer < 0.9).all():
        raise DeviceError(
            f"the reference at {HALF:g} of its power gives {float(dimmer.max()):.3g} of the signal; attenuate it"
        )
    error = np.hypot(
        *((lit.variance / lit.signal).mean(1) * sqrt(2 / (free * still.shape[1])) for lit in (full, half))
    )
    upper, lower = (
        (slope(full, rest) - slope(half, rest) + sign * z * error) / (1 - dimmer)
        for rest, sign in ((still, 1), (least, -1))
    )
    shown = slope(full, still)
    if (lower > MOST_EXCESS * shown).any():
        raise DeviceError(
            f"at least {100 * float((lower / shown).max()):.2g} % of the codes' variance rises as the square of the "
            f"light and is not common to a frame; allowed is {100 * MOST_EXCESS:g} %: steady the light"
        )
    return np.asarray(np.maximum(0.0, upper))


def _refuse_shared(lit: _Lit) -> None:
    found, limit = lit.correlation()
    if found > limit:
        raise DeviceError(
            f"pixels vary together beyond what is common to a whole frame (eigenvalue {found:.3g} of their "
            f"correlation, of chance at most {limit:.3g}): steady the light's pointing, switch the cameras' filters off"
        )


def _skewed(lit: _Lit, least: Reals, count: int) -> float:
    """The largest factor on the variance that the third moment leaves open.

    κ₁ κ₃ / κ₂² is 1 for Poisson counts and more for any that are multiplied by chance, by Cauchy and Schwarz, or whose
    rate varies: about the factor on the variance itself, where that is near 1.

    Raises:
        DeviceError: it shows.
    """
    shot = (lit.variance - least) / lit.unit**2
    error = sqrt(6 * float(lit.noise.mean()) ** 3 / (count * least.size)) / float(shot.mean()) ** 2
    ratio = float(lit.third.mean()) / float(shot.mean()) ** 2
    z = float(-special.ndtri(ALARM))
    if ratio - 1 > z * error:
        raise DeviceError(
            f"the third moment of the codes is {ratio:.3g} of what Poisson counts of their variance have (chance at "
            f"most {1 + z * error:.3g}): light that is multiplied or thermal, whose photo-electrons cannot be counted "
            "by their noise; take the light of one laser, and cameras without multiplication"
        )
    return 1 + 2 * z * error
