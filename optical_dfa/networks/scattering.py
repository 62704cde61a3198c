"""A public front for images: scattering coefficients of the first order, which nothing is trained in.

    |x * ψ_{s,θ}| low-passed, and x low-passed, on a grid of every fourth pixel

ψ are Morlet wavelets of two scales and six directions (Bruna and Mallat 2013, arXiv 1203.1513). Each map is then
centred and brought to norm 1, record by record. All of it is a function of the record alone, so that a private
run pays nothing for it: what a record moves is bounded after it (Tramèr and Boneh 2021, arXiv 2011.11660, who took two
orders).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

DIRECTIONS = 6
SIZES = (7, 11)  # of the wavelets of each scale, in pixels
GRID = 4  # pixels to an entry of a map
LEAST_SIDE = 16
_STRIDE = 2  # of the wavelets
_BLUR = 2.0  # standard deviation of the low-pass, in pixels
_FAINT = 0.02  # root mean square of a map's entries, in units of the input's, below which it stays fainter


class Scattering(nn.Module):
    """Images to their scattering coefficients.

    Attributes:
        maps: one of each channel, and one of each of its wavelets.
        width: of what comes out, maps times places.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        """
        Args:
            shape: of an image (channels, height, width), `LEAST_SIDE` pixels a side or more.
        """
        super().__init__()
        self.channels, *sides = shape
        for scale, size in enumerate(SIZES):
            self.register_buffer(
                f"wavelets{scale}", torch.empty(2 * DIRECTIONS * self.channels, 1, size, size)
            )
        places = [-(-side // GRID) for side in sides]
        for axis, (side, count) in enumerate(zip(sides, places, strict=True)):
            self.register_buffer(f"blur{axis}", torch.empty(count, side))
            self.register_buffer(f"coarse{axis}", torch.empty(count, -(-side // _STRIDE)))
        self.maps = self.channels * (1 + len(SIZES) * DIRECTIONS)
        self.width = self.maps * math.prod(places)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Compute the filters, the same on every machine to rounding."""
        with torch.no_grad():
            for scale, size in enumerate(SIZES):
                waves = torch.stack(
                    [_morlet(size, scale, k * math.pi / DIRECTIONS) for k in range(DIRECTIONS)]
                )
                both = torch.cat([waves.real, waves.imag])[:, None]
                self.get_buffer(f"wavelets{scale}").copy_(both.repeat(self.channels, 1, 1, 1))
            for axis in (0, 1):
                for name, step in (("blur", 1), ("coarse", _STRIDE)):
                    low = self.get_buffer(f"{name}{axis}")
                    low.copy_(_low_pass(len(low), low.shape[1], step))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, channels, height, width) -> (m, width); rows of Euclidean norm sqrt(maps) at most."""
        found = [self._blurred(x, "blur")]
        for scale, side in enumerate(SIZES):
            filters = self.get_buffer(f"wavelets{scale}").to(x.dtype)
            around = pad(x, 4 * [side // 2], mode="replicate")  # whatever the background is
            waves = conv2d(around, filters, stride=_STRIDE, groups=self.channels)
            real, imaginary = torch.unflatten(waves, 1, (self.channels, 2, DIRECTIONS)).unbind(2)
            moduli = (real * real + imaginary * imaginary + 1e-12).sqrt()
            found.append(self._blurred(moduli.flatten(1, 2), "coarse"))
        maps = torch.cat(found, 1).flatten(2)
        maps = maps - maps.mean(2, keepdim=True)
        size = (maps * maps).sum(2, keepdim=True).sqrt()
        return (maps / (size + _FAINT * math.sqrt(maps.shape[2]))).flatten(1)

    def _blurred(self, maps: Tensor, name: str) -> Tensor:
        down, across = (self.get_buffer(f"{name}{axis}").to(maps.dtype) for axis in (0, 1))
        return (maps @ across.T).transpose(2, 3) @ down.T


def _morlet(size: int, scale: int, angle: float) -> Tensor:
    """A wavelet of absolute sum 1 and sum 0, complex, shape (size, size)."""
    along = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    width, frequency = 0.8 * 2**scale, 0.75 * math.pi / 2**scale
    window = torch.exp(-(u**2 + v**2 / 4) / (2 * width**2))
    wave = torch.polar(torch.ones_like(u), frequency * u)
    found = window * (wave - (window * wave).sum() / window.sum())
    return found / found.abs().sum()


def _low_pass(places: int, pixels: int, step: int) -> Tensor:
    """Gaussian weights of a line's pixels at places in equal steps, rows of sum 1, shape (places, pixels)."""
    at = (torch.arange(places, dtype=torch.float64) + 0.5) * (pixels / places) - 0.5
    weights = torch.exp(-(((torch.arange(pixels) - at[:, None]) * step / _BLUR) ** 2) / 2)
    return weights / weights.sum(1, keepdim=True)
