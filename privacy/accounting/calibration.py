"""The noise for a target epsilon, and the steps within one. What they return was checked: no overshoot."""

from __future__ import annotations

import math
from collections.abc import Callable

from noise_models.errors import UsageError
from privacy.accounting import LARGEST_NOISE as _LARGEST_MULTIPLIER
from privacy.accounting import LEAST_NOISE as _SMALLEST_MULTIPLIER


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
        if high >= _LARGEST_MULTIPLIER:
            raise UsageError(
                f"epsilon = {target:g} is out of reach: even noise multiplier {high:g} gives {at_high:.4g}; "
                "ask for more epsilon or delta, take fewer steps, or reduce the device's extra loss"
            )
        low, at_low = high, at_high
        high = min(high * factor, _LARGEST_MULTIPLIER)
        at_high, factor = epsilon(high), min(factor**2, 4.0)
    while at_low <= target:
        if low <= _SMALLEST_MULTIPLIER:
            return low
        high, at_high = low, at_low
        low = max(low / factor, _SMALLEST_MULTIPLIER)
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

    `epsilon` does not decrease.
    """
    low, at_low = 0, 0.0
    high = max(1, min(start, limit))
    stride = max(1, high // 64)
    at_high = epsilon(high)
    while at_high <= target:
        if high == limit:
            return limit
        low, at_low = high, at_high
        high = min(limit, high + stride)
        at_high, stride = epsilon(high), stride * 4
    if low == 0 and high > 1:  # `start` was too far: step back before the bisection
        while high - stride > 0:
            value = epsilon(high - stride)
            if value <= target:
                low, at_low = high - stride, value
                break
            high, at_high, stride = high - stride, value, stride * 4
    while high - low > 1:
        fraction = _fraction(at_low, at_high, target)
        middle = min(high - 1, max(low + 1, round(low + fraction * (high - low))))
        value = epsilon(middle)
        if value <= target:
            low, at_low = middle, value
        else:
            high, at_high = middle, value
    return low


def _fraction(at_low: float, at_high: float, target: float) -> float:
    """Where between two ends to look next: linear interpolation off the ends; the middle if one is
    infinite."""
    if not (math.isfinite(at_low) and math.isfinite(at_high)) or at_low == at_high:
        return 0.5
    return min(0.9, max(0.1, (target - at_low) / (at_high - at_low)))
