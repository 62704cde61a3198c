"""The scattering medium: a complex random transmission matrix, its speckle, and how both age.

A coherent field that enters the medium through many mirrors leaves it as speckle. The entries of the transmission
matrix T are circular complex Gaussian (Goodman, Speckle Phenomena in Optics, 2007, §3.2; measured by Popoff et
al., Phys. Rev. Lett. 104, 100601, 2010), so |T x|² is exponential.
"""

from __future__ import annotations

from math import ceil, exp, pi, sqrt
from typing import ClassVar

import torch
from scipy.fft import next_fast_len
from scipy.special import j1
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed

# Complex numbers that are transformed at a time.
_BLOCK = 1 << 20


def speckle_correlation(distance: float, grain: float) -> float:
    """Correlation of the speckle FIELD at two points: 2 J₁(π r/g) / (π r/g), a circular pupil (Goodman, §5.3).

    Args:
        distance: r, in pixels.
        grain: g, in pixels: wavelength times distance over the pupil's diameter.
    """
    argument = pi * distance / grain
    return 1.0 if argument == 0 else float(2 * j1(argument) / argument)


class Medium:
    """T, shape (pixels, inputs), E|T_ij|² = 1, kept as the real matrix √2 [Re T; Im T]ᵀ of unit variance.

    Pixels fill a near-square patch of the camera row by row. With `grain` None they are independent; else the
    speckle is band-limited by a circular pupil (`speckle_correlation`), sampled at points: the blur of a pixel's
    own area is not modelled. A medium that decorrelates follows an Ornstein-Uhlenbeck process in PUBLIC time,
    T(t+s) = r T(t) + √(1−r²) T', r = exp(−s/τ): its intensity pattern's correlation falls as r².

    Attributes:
        inputs, pixels: sizes.
        shape: rows and columns of the patch that holds the pixels; its last row may be partly filled.
        columns: √2 [Re T; Im T]ᵀ, shape (inputs, 2 pixels), float32.
        moved: whether it has aged since it was made.
        public_generators: attributes that draw how the medium ages, in public time, and nothing in a pass.
    """

    public_generators: ClassVar[tuple[str, ...]] = ("_ageing",)

    def __init__(
        self,
        inputs: int,
        pixels: int,
        seed: int,
        *,
        grain: float | None = None,
        decorrelation_seconds: float | None = None,
    ) -> None:
        """
        Args:
            seed: determines T, and how it ages.
            grain: speckle grain in pixels, 1 to 64 (below 1 a camera would alias it); None is independent pixels.
            decorrelation_seconds: τ, the field's 1/e time; None is a stable medium.

        Raises:
            UsageError: grain or time out of its range.
        """
        if grain is not None and not 1.0 <= grain <= 64.0:
            raise UsageError(f"speckle grain is {grain} pixels; it must lie between 1 and 64, or be left out")
        if decorrelation_seconds is not None and not 0.0 < decorrelation_seconds < float("inf"):
            raise UsageError(
                f"decorrelation_seconds is {decorrelation_seconds}; it must be positive and finite, or left out"
            )
        self.inputs, self.pixels = inputs, pixels
        height = ceil(sqrt(pixels))
        self.shape = (height, ceil(pixels / height))
        self.moved = False
        self._grain, self._tau = grain, decorrelation_seconds
        self._drawn = pixels
        self._kept: Tensor | None = None
        self._ageing = torch.Generator().manual_seed(derive_seed(seed, "medium-ageing"))
        self.columns = self._draw(torch.Generator().manual_seed(derive_seed(seed, "projection-matrix")))

    def keep(self, pixels: Tensor) -> None:
        """Read only these pixels (increasing indices) from now on; once."""
        self._kept = torch.cat((pixels, pixels + self.pixels))
        self.columns = self.columns[:, self._kept].contiguous()
        self.pixels = len(pixels)

    def advance(self, seconds: float) -> None:
        """Age by `seconds` of public time, not negative."""
        if self._tau is None or seconds == 0:
            return
        kept = exp(-seconds / self._tau)
        fresh = self._draw(self._ageing)
        if self._kept is not None:
            fresh = fresh[:, self._kept]
        # A new tensor: who holds the old one keeps it.
        self.columns = (self.columns * kept).add_(fresh, alpha=sqrt(1 - kept**2))
        self.moved = True

    def state(self) -> tuple[Tensor, Tensor]:
        """T as it is now, and where its ageing stands."""
        return self.columns, self._ageing.get_state()

    def restore(self, state: tuple[Tensor, Tensor]) -> None:
        """Take up a `state` of a medium made alike."""
        self.columns = state[0]
        self._ageing.set_state(state[1])
        self.moved = True

    def _draw(self, stream: torch.Generator) -> Tensor:
        """A fresh, independent medium of the same law, shape (inputs, 2 pixels drawn)."""
        if self._grain is None:
            return torch.randn(2 * self._drawn, self.inputs, generator=stream).t().contiguous()
        return self._speckle(stream, self._grain)

    def _speckle(self, stream: torch.Generator, grain: float) -> Tensor:
        """White light through a circular pupil of 1/(2 grain) cycles a pixel, one pattern for each input."""
        height, width = self.shape
        # The transform is periodic: the margin keeps opposite edges apart, and the pupil's disc well resolved.
        side = next_fast_len(max(max(height, width) + ceil(4 * grain), ceil(32 * grain)))
        frequency = torch.fft.fftfreq(side, dtype=torch.float64)
        pupil = torch.hypot(frequency[:, None], frequency) <= 1 / (2 * grain)
        open_points = int(pupil.sum())
        scale = side**2 / sqrt(open_points)
        out = torch.empty(self.inputs, 2 * self._drawn)
        step = max(1, _BLOCK // side**2)
        for start in range(0, self.inputs, step):
            count = min(step, self.inputs - start)
            waves = torch.zeros(count, side, side, dtype=torch.complex64)
            waves[:, pupil] = torch.randn(count, open_points, generator=stream, dtype=torch.complex64)
            field = torch.fft.ifft2(waves).mul_(scale * sqrt(2))[:, :height, :width]
            pixels = field.reshape(count, -1)[:, : self._drawn]
            out[start : start + count, : self._drawn] = pixels.real
            out[start : start + count, self._drawn :] = pixels.imag
        return out
