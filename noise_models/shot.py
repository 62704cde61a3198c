"""Photon shot noise: true Poisson counts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.places import on_cpu
from noise_models.randomness.chunks import CHUNK, draw_in_chunks
from noise_models.randomness.generator import NoiseGenerator

# Largest mean that is drawn: counts fit in 63 bits with room.
LARGEST_MEAN: Final = 1e18


def draw_poisson(mean: npt.NDArray[Any], out: npt.NDArray[Any], child: np.random.Generator) -> None:
    """Independent Poisson counts of `mean` into `out` (same shape, floating point); NaN gives NaN.

    numpy's exact sampler (Hörmann's PTRS; multiplication below 10). `mean` must lie in 0 … LARGEST_MEAN.
    """
    if np.isnan(mean.sum()):
        unknown = np.isnan(mean)
        np.copyto(out, child.poisson(np.where(unknown, 0.0, mean)), casting="same_kind")
        out[unknown] = np.nan
    else:
        np.copyto(out, child.poisson(mean), casting="same_kind")


def poisson(mean: Tensor, generator: NoiseGenerator) -> Tensor:
    """Independent Poisson counts.

    Args:
        mean: expected counts, float32 or float64, any shape, from 0 to 1e18; NaN stays NaN.
        generator: keys the chunks' streams.
    Returns:
        counts of mean's shape, dtype and device (float32 holds them exactly up to 2^24).
    Raises:
        UsageError: another dtype, or a mean out of range.
    """
    if mean.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"Poisson means are {mean.dtype}; they must be float32 or float64")
    source = on_cpu(mean).view(-1).numpy()
    if source.size and not bool(((source >= 0) & (source <= LARGEST_MEAN) | np.isnan(source)).all()):
        raise UsageError(f"a Poisson mean is outside 0 … {LARGEST_MEAN:g} counts; give non-negative means")
    counts = np.empty_like(source)

    def draw(i: int, child: np.random.Generator) -> None:
        part = slice(i * CHUNK, (i + 1) * CHUNK)
        draw_poisson(source[part], counts[part], child)

    draw_in_chunks(-(-source.size // CHUNK), generator, draw)
    return torch.from_numpy(counts).view(mean.shape).to(mean.device)


class ShotNoise(NoiseModel):
    """The photo-electrons of a pixel: Poisson(signal), signal in electrons; nothing else.

    It earns no credit. In data frames its law moves with the signal: the variance alone tells (THEORY, Noise credit:
    two Gaussians of variance ratio r are αd(r−1)²/4 apart), so such a channel has to be bounded as a whole
    (T6). In dark frames there is no light and so no shot noise; dark current's counts are integers and
    independent of the Gaussian part, which is why they are simply not counted.
    """

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Counts of a `signal` in electrons, as `poisson`."""
        return poisson(signal, generator)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """A Poisson law's variance is its mean."""
        return signal.clone()

    def credit(self, frame: Frame) -> Credit:
        argument = (
            "shot noise follows the signal: its law differs between neighbouring inputs (THEORY, Noise credit, T6)"
            if frame is Frame.DATA
            else "photo-electrons are counted in whole numbers; no part of them is Gaussian (THEORY, Noise credit)"
        )
        return Credit.none(argument)

    def describe(self) -> dict[str, float | int | str]:
        return {"model": "shot"}
