"""The law of noise that an adversary draws again: only a generator without secrecy leaves it."""

from __future__ import annotations

from dataclasses import dataclass

from privacy.attacks.laws import Array, GaussianLaw


@dataclass(frozen=True)
class KnownNoiseLaw:
    """Z is known but for rounding: its generator was seeded, and the seed is known.

    Attributes:
        noise: shape (trials, steps, dimension), the noise the adversary drew again.
        rounding: standard deviation of what floating-point arithmetic adds.
    """

    noise: Array
    rounding: float

    def log_density(self, noise: Array, spread: float) -> Array:
        return GaussianLaw(self.rounding).log_density(noise - self.noise, spread)
