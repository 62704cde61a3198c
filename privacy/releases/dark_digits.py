"""`dark-frame` with option `digits`: all of the noise is the device's own, without a dither (THEORY T12).

k fresh pixels a coordinate are the digits of one number, each of which smooths the lattice that the next one leaves:

    Z = sum_j w_j Q(n_j),   w = 1, a, ..., a^(k-2), w_top,   V_j = sum_(i<=j) w_i²,

in grid steps. The sum S is whole, so S + Z is Q(S + n_0 + w_1 Q(n_1) + ...), and the density before Q is that of
N(S, sigma_G² V_(k-1)), convolved with uniform laws, times prod_(0<j<k) (1 ± eta_j), with eta_j = 2 sum_i exp(-2 pi² i²
v_j), v_j = sigma_G² V_(j-1) / V_j >= sigma_G² / (1 + a²). No generator is in it, and so nothing but the device stands
behind it: an uneven converter shows the sum modulo the weights' common divisors.

The base a is the smallest odd number from 3 on that reaches the noise asked for with k digits (odd, so that widths that
alternate, or repeat every four codes, stay hidden). The last weight is as small as the noise allows, so that little
more than what was asked for is added, and no multiple of a, so that not all digits share a divisor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from noise_models.calibration.converter import dither_ripple
from noise_models.calibration.document import Calibration
from noise_models.errors import UsageError
from noise_models.health.monitor import RELEASED_FALSE_ALARM
from noise_models.places import staging
from noise_models.randomness.generator import NoiseGenerator
from privacy.contributions.protocols import DarkFrames
from privacy.releases.dark_source import DarkFrameSource
from privacy.releases.source import Departure

LEAST_BASE = 3
MOST_DIGITS = (
    16  # with base 3 and noise of 4 steps: a standard deviation of 6e7, beyond what any grid is noised with
)
MOST_RIPPLE = 1e-13  # every eta_j; sigma_G >= 1.246 sqrt(1 + a²)


class DarkFrameDigits(DarkFrameSource):
    """Z from `digits` fresh pixels a coordinate."""

    device_share = 1.0

    def __init__(
        self,
        device: DarkFrames | None,
        places: NoiseGenerator,
        digits: object,
        calibration: Calibration | None = None,
        known: Iterable[str] = (),
    ) -> None:
        """
        Args:
            device: the camera.
            places: generator of the pixel that a frame is read from on; nothing rests on its secrecy.
            digits: k, a whole number from 2 to MOST_DIGITS.
            calibration: what the camera's noise was measured to be; None credits what its model knows.
            known: digests of dark frames that earlier parts of the run logged.
        Raises:
            UsageError: `digits` out of range; no device, or one without creditable dark frames; a converter that is not
                known to be ideal; noise too weak to smooth the digit above it.
        """
        if type(digits) is not int or not 2 <= digits <= MOST_DIGITS:
            raise UsageError(
                f"release option digits is {digits!r:.40}; it must be a whole number from 2 to {MOST_DIGITS}, the dark "
                "pixels of a coordinate"
            )
        super().__init__(device, places, calibration, known)
        self._digits = digits
        self._refuse_uneven()
        self._most_base = largest_base(self.sigma)
        self._weights: tuple[int, ...] = ()
        self.assumptions = (
            *self.assumptions,
            "no digital noise stands in for the converter: code widths that repeat would show the sum modulo a small "
            "number (THEORY T12)",
        )

    def _refuse_uneven(self) -> None:
        """A converter that is known not to be ideal, or not known to be (a calibration that nobody vouched for did not
        pass, and earned nothing above)."""
        if self.calibration is None:
            if not self._device.ideal_converter:
                raise UsageError(
                    f"the converter of backend {self._device.name} is not known to be ideal, and digits have no dither "
                    "that would hide its code widths; calibrate it and give --calibration FILE, or leave digits out"
                )
            return
        widths = self.calibration.parameters.get("dnl_codes")
        if widths is None or widths.lower > 0:
            found = (
                "are not in the calibration" if widths is None else f"are off by {widths.lower:.2g} or more"
            )
            raise UsageError(
                f"the converter's code widths {found}, and digits have no dither that would hide it; leave digits out, "
                "or use --release device-entropy"
            )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "theorem": "T12",
            "why": f"release option digits={self._digits}: the device supplies all of the noise",
            "weights": list(self._weights),
            "noise_std_grid_steps": self.sigma * math.hypot(*self._weights),
            "ripple": self._ripple(),
        }

    def _ripple(self) -> float:
        """The largest eta_j, whatever base the noise takes."""
        return dither_ripple(self.sigma, self.sigma / self._most_base)

    def cost(self, dimension: int) -> Departure:
        eta, pixels = self._ripple(), dimension * self._digits
        smoothed = pixels - dimension  # every digit but the lowest
        # Only frames that pass are released: conditioning on that costs what a healthy frame fails with.
        return Departure(
            log_ratio=smoothed * (math.log1p(eta) - math.log1p(-eta)),
            log_inflation=smoothed * math.log1p(eta),
            mass=pixels * self._credit.clipped_mass
            + math.ceil(pixels / self._device.dark_pixels) * RELEASED_FALSE_ALARM,
        )

    def prepare(self, std: float) -> None:
        self._weights = self._weighted(std)

    def _weighted(self, std: float) -> tuple[int, ...]:
        """
        Raises:
            UsageError: noise that takes another number of digits.
        """
        found = digit_weights(std, self.sigma, self._digits)
        if found is not None:
            return found
        enough = next(
            (k for k in range(2, MOST_DIGITS + 1) if digit_weights(std, self.sigma, k) is not None), None
        )
        bases = " or ".join(map(str, range(LEAST_BASE, self._most_base + 1, 2)))
        remedy = "leave digits out" if enough is None else f"take digits={enough}, or leave digits out"
        raise UsageError(
            f"digits={self._digits} of base {bases} make no noise of {std:.6g} grid steps out of dark noise of "
            f"{self.sigma:.4g} converter steps; {remedy}"
        )

    def add_noise(self, total: Tensor, std: float) -> None:
        """
        Raises:
            HealthError: a frame that may not be released.
            UsageError: before `start_up`.
        """
        weights, dimension = self._weighted(std), len(total)
        needed, pixels = dimension * len(weights), self._device.dark_pixels
        level = round(self.offset)
        codes = staging(min(pixels, needed), torch.float64, total.device)
        for start in range(0, needed, pixels):
            block = codes[: needed - start]
            self._take(block)
            block.sub_(level)
            place = start  # of all digits' pixels, the lowest digit's first
            while place < start + len(block):
                digit, first = divmod(place, dimension)
                part = total[first : first + start + len(block) - place]
                part.add_((block[place - start :][: len(part)] * weights[digit]).to(total))
                place += len(part)
        total.sub_(round(sum(weights) * (self.offset - level)))


def largest_base(sigma: float) -> int:
    """The largest odd a that dark noise of `sigma` converter steps smooths.

    Raises:
        UsageError: not even LEAST_BASE.
    """
    base = LEAST_BASE
    if dither_ripple(sigma, sigma / base) > MOST_RIPPLE:
        least = math.sqrt((1 + base**2) * math.log(2 / MOST_RIPPLE) / 2) / math.pi  # eta's first term
        raise UsageError(
            f"the dark noise is credited with {sigma:.4g} converter steps, and digits of base {base} need "
            f"{least:.4g}; raise the analog gain of dark frames, or leave digits out"
        )
    while dither_ripple(sigma, sigma / (base + 2)) <= MOST_RIPPLE:
        base += 2
    return base


def digit_weights(std: float, sigma: float, digits: int) -> tuple[int, ...] | None:
    """Weights w of `digits` digits, lowest first, with sigma · sqrt(sum w²) >= std and hardly more.

    Args:
        std: noise asked for, in grid steps.
        sigma: of a pixel, in converter steps; LEAST_BASE has to be smoothed by it.
        digits: k, 2 or more.
    Returns:
        None where no base does: digits of a smaller one are too few, and a larger one's are more than the noise takes.
    """
    for base in range(LEAST_BASE, largest_base(sigma) + 1, 2):
        lower = [base**j for j in range(digits - 1)]
        rest = (std / sigma) ** 2 - sum(w**2 for w in lower)
        if rest <= 0:
            return None
        top = math.ceil(math.sqrt(rest))
        while top % base == 0 or sigma * math.hypot(*lower, top) < std:
            top += 1
        if top < base ** (digits - 1):
            return (*lower, top)
    return None
