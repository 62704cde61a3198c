"""The noise for a target epsilon, and the steps within one. What they return was checked: no overshoot."""

from __future__ import annotations

import math
from collections.abc import Callable

from noise_models.errors import UsageError
from privacy.accounting.ranges import LARGEST_NOISE, LEAST_NOISE

_QUICK = 10  # evaluations


def smallest_multiplier(
    epsilon: Callable[[float], float], target: float, start: float, tolerance: float
) -> float:
    """Smallest sigma with epsilon(sigma) <= target, to `tolerance` relative, searched from `start`.

    `epsilon` does not increase. Raises UsageError where no multiplier up to 1e6 reaches the target.
    """
    high, at_high = start, epsilon(start)
    factor = 1 + 8 * tolerance
    low, at_low = high, at_high
    while at_high > target:
        if high >= LARGEST_NOISE:
            raise UsageError(
                f"epsilon = {target:g} is out of reach: even noise multiplier {high:g} gives {at_high:.4g}; "
                "ask for more epsilon or delta, take fewer steps, or reduce the device's extra loss"
            )
        low, at_low = high, at_high
        high = min(high * factor, LARGEST_NOISE)
        at_high, factor = epsilon(high), min(factor**2, 4.0)
    while at_low <= target:
        if low <= LEAST_NOISE:
            return low
        high, at_high = low, at_low
        low = max(low / factor, LEAST_NOISE)
        at_low, factor = epsilon(low), min(factor**2, 4.0)
    while high / low > 1 + tolerance:
        middle = low * math.exp(_fraction(at_low, at_high, target) * math.log(high / low))
        value = epsilon(middle)
        if value <= target:
            high, at_high = middle, value
        else:
            low, at_low = middle, value
        if target * (1 - tolerance) <= at_high:
            break
    return high


def most_steps(epsilon: Callable[[int], float], target: float, start: int, limit: int) -> int:
    """Largest T <= limit with epsilon(T) <= target, 0 if there is none; exact, searched from `start`.

    `epsilon` does not decrease. It is nearly a power of T, at first taken for the square root: the next T is where the
    power through the last two pairs meets the target, or twice as far where both fell on the same side. Where that
    tells nothing, or does not end soon, the bracket is halved.
    """
    low, high, tried, count = 0, limit + 1, max(1, min(start, limit)), 0
    before, other, power = 0, 0.0, 2.0
    while True:
        value, count = epsilon(tried), count + 1
        low, high = (tried, high) if value <= target else (low, tried)
        if high - low == 1:
            return low
        guess = math.sqrt((low + 1) * high)
        if 0 < value < math.inf and (count < _QUICK or count % 2):
            if before and other != value:
                power = math.log(tried / before) / math.log(value / other)
            guess = tried * math.exp(min(max(power * math.log(target / value), -40.0), 40.0))
            if before and (other <= target) == (value <= target):
                guess = tried + 2 * (guess - tried)
            before, other = tried, value
        tried = int(min(max(guess, low + 1), high - 1))


def _fraction(at_low: float, at_high: float, target: float) -> float:
    """Where between two ends to look next: linear interpolation off the ends; the middle if one is
    infinite."""
    if not (math.isfinite(at_low) and math.isfinite(at_high)) or at_low == at_high:
        return 0.5
    return min(0.9, max(0.1, (target - at_low) / (at_high - at_low)))
