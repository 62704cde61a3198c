"""Slow gain drift as a function of PUBLIC time.

Time moves by `advance` alone, on a schedule that is fixed beforehand. Were it the realised time, or a count of
records, one record's presence would move the gain of the others' frames, which THEORY T3 forbids.
"""

from __future__ import annotations

from abc import abstractmethod
from math import exp, floor, isfinite, pi, sin, sqrt

import numpy as np
import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator

HOUR = 3600.0


class GainDrift(NoiseModel):
    """Multiplies a signal by the gain at the present time, exp(x(t)) with x(0) = 0; adds no noise.

    **Credit.** None in either kind of frame: the path is public (its parameters and seed are in the ledger),
    so it is not noise at all. What it takes from the credit of what is amplified is the amplifier's business
    (`PhysicalCamera.drift_limit`).

    Attributes:
        seconds: public time since the start.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def advance(self, seconds: float) -> None:
        """Let public time pass.

        Raises:
            UsageError: time is negative or not finite.
        """
        if not 0.0 <= seconds < float("inf"):
            raise UsageError(f"time advances by {seconds} s; it must be finite and not negative")
        self.seconds += seconds

    @property
    def factor(self) -> float:
        """Gain now, over the gain at time 0."""
        return exp(self.log_gain(self.seconds))

    @abstractmethod
    def log_gain(self, seconds: float) -> float:
        """x(t), the logarithm of the relative gain at public time t."""

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """`signal` times the present gain; takes nothing from `generator`."""
        return signal * self.factor

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Nothing is random between two `advance` calls."""
        return torch.zeros_like(signal)

    def credit(self, frame: Frame) -> Credit:
        return Credit.none("gain drift is public: it hides nothing")


class LinearDrift(GainDrift):
    """x(t) = rate t: a lamp that ages, a detector that warms.

    Attributes:
        per_hour: relative change of the gain in an hour, either sign.
    """

    def __init__(self, per_hour: float) -> None:
        super().__init__()
        self.per_hour = _finite("drift an hour", per_hour)

    def log_gain(self, seconds: float) -> float:
        return self.per_hour * seconds / HOUR

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "linear-drift", "relative_per_hour": self.per_hour}


class SinusoidalDrift(GainDrift):
    """x(t) = amplitude sin(2π t / period): air conditioning, day and night.

    Attributes:
        amplitude: largest relative change.
        period_seconds: its period.
    """

    def __init__(self, amplitude: float, period_seconds: float) -> None:
        super().__init__()
        self.amplitude = _finite("drift amplitude", amplitude)
        if not 0.0 < period_seconds < float("inf"):
            raise UsageError(f"drift period is {period_seconds} s; it must be positive and finite")
        self.period_seconds = period_seconds

    def log_gain(self, seconds: float) -> float:
        return self.amplitude * sin(2 * pi * seconds / self.period_seconds)

    def describe(self) -> dict[str, float | int | str]:
        return {
            "model": "sinusoidal-drift",
            "amplitude": self.amplitude,
            "period_seconds": self.period_seconds,
        }


class RandomWalkDrift(GainDrift):
    """x(t): Brownian motion at whole seconds, straight lines between; variance grows as t.

    The path depends on seed and time only, not on how the time was divided into `advance` calls, so a run
    that is resumed finds the gain where it left it.

    Attributes:
        per_root_hour: standard deviation of x after one hour.
        seed: of the public path.
    """

    def __init__(self, per_root_hour: float, seed: int = 0) -> None:
        super().__init__()
        if not 0.0 <= per_root_hour < float("inf"):
            raise UsageError(f"drift after an hour is {per_root_hour}; it must be finite and not negative")
        self.per_root_hour = per_root_hour
        self.seed = int(seed)
        self._restart()

    def _restart(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._whole = 0
        self._last = 0.0
        self._next = float(self._rng.standard_normal())

    def log_gain(self, seconds: float) -> float:
        whole = floor(seconds)
        if whole < self._whole:
            self._restart()
        # The walk is kept at the last whole second asked for, in units of one second's standard deviation.
        if whole > self._whole:
            steps = self._rng.standard_normal(whole - self._whole)
            self._last += self._next + float(steps[:-1].sum())
            self._next = float(steps[-1])
            self._whole = whole
        return self.per_root_hour / sqrt(HOUR) * (self._last + (seconds - whole) * self._next)

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "random-walk-drift", "relative_per_root_hour": self.per_root_hour, "seed": self.seed}


def _finite(label: str, value: float) -> float:
    if not isfinite(value):
        raise UsageError(f"{label} is {value}; it must be finite")
    return value
