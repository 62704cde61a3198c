"""What the adversary believes about the noise of a release: log-densities of the law it attacks with.

One attack (`privacy.attacks.likelihood_ratio`) takes any of them: `GaussianLaw` is what a sound release claims, the
others are what remains of a release whose noise lost its secrecy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class NoiseLaw(Protocol):
    """The law of one release's noise Z, in units of the released sum."""

    def log_density(self, noise: Array, spread: float) -> Array:
        """log of the density of Z + N(0, spread² I), up to a constant that depends on neither.

        Args:
            noise: shape (trials, steps, dimension).
            spread: how well the adversary knows the contribution that it took off, >= 0.
        Returns:
            shape (trials, steps), summed over the coordinates.
        """


@dataclass(frozen=True)
class GaussianLaw:
    """Z ~ N(0, std² I): the claim of THEORY T3, and of T4 up to its ripple.

    Attributes:
        std: noise multiplier times sensitivity.
    """

    std: float

    def log_density(self, noise: Array, spread: float) -> Array:
        return _total(_log_normal(noise, math.hypot(self.std, spread)))


@dataclass(frozen=True)
class CorrelatedGaussianLaw:
    """Z ~ N(0, covariance), or whatever else has that covariance: noise that a projection or a layer's inputs shape.

    Attributes:
        covariance: shape (dimension, dimension); where it is singular, Z has no part.
    """

    covariance: Array

    def log_density(self, noise: Array, spread: float) -> Array:
        values, vectors = np.linalg.eigh(self.covariance + spread**2 * np.eye(len(self.covariance)))
        kept = values > _SINGULAR * values[-1]
        whitened = (noise @ vectors[:, kept]) / np.sqrt(values[kept])
        return np.asarray(-0.5 * np.square(whitened).sum(-1) - 0.5 * np.log(values[kept]).sum())


_SINGULAR = 1e-10  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True)
class LatticeLaw:
    """Z = step · (k - offset) with integer camera codes k: dark frames without dither (THEORY T4's trap).

    Attributes:
        step: s, what one code is worth.
        offset: the dark level subtracted from the codes.
        sigma: standard deviation of the codes.
        rounding: standard deviation of what floating-point arithmetic adds, in codes.
    """

    step: float
    offset: float
    sigma: float
    rounding: float = 1e-4

    def log_density(self, noise: Array, spread: float) -> Array:
        codes = noise / self.step
        nearest = np.round(codes + self.offset) - self.offset
        blur = math.hypot(self.rounding, spread / self.step)
        comb = _log_normal(codes - nearest, blur) + _log_normal(nearest, self.sigma)
        envelope = _log_normal(codes, math.hypot(self.sigma, blur))
        return _total(np.logaddexp(comb, envelope + _OFF_LATTICE))


_OFF_LATTICE = math.log(1e-9)  # an un-modelled event must not decide a trial by itself


def _log_normal(x: Array, std: float) -> Array:
    return np.asarray(-0.5 * np.square(x / std) - math.log(std * math.sqrt(2 * math.pi)))


def _total(parts: Array) -> Array:
    return np.asarray(parts.sum(-1))
