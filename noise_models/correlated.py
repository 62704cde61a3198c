"""Gaussian read noise that is correlated over the pixels of a frame, under a declared covariance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import cos, pi, sqrt

import torch
from torch import Tensor

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.errors import UsageError
from noise_models.gaussian import REAL_READOUT
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator


@dataclass(frozen=True)
class CorrelatedNoise(NoiseModel):
    """Readout = signal + N(0, Σ) on each frame of rows × columns pixels, independent over frames.

    The declared covariance, with J the all-ones matrix and T(ρ) the tridiagonal one (1 on the diagonal, ρ
    beside it):

        Σ = std² T_rows(ρ) ⊗ T_columns(ρ)  +  row_std² I_rows ⊗ J_columns  +  column_std² J_rows ⊗ I_columns.

    The first term is the pixels' own noise with a correlation ρ of neighbours (crosstalk, amplifier lag), the
    others are noise that a whole row or column shares (reset noise, column amplifiers).

    **Credit.** λ_min(Σ): N(0, Σ) = N(0, λ_min I) ⊛ N(0, Σ − λ_min I), the second an independent Gaussian
    because Σ − λ_min I is positive semi-definite, and a part of a frame keeps at least λ_min (Cauchy
    interlacing). Row and column terms are positive semi-definite too and are counted as nothing (Weyl);
    T_n(ρ) has the eigenvalues 1 + 2ρ cos(kπ/(n+1)), and those of a Kronecker product multiply. The noise does
    not depend on the signal and no converter follows, so data frames earn the same. A real camera's λ_min
    cannot be estimated from frames without such a model (THEORY, Noise credit): the model is a printed assumption.

    Attributes:
        rows, columns: shape of a frame.
        std: standard deviation of a pixel's own noise, in DN.
        neighbour: ρ, correlation of a pixel's own noise with each neighbour's, −1/2 to 1/2.
        row_std, column_std: standard deviations of the noise that a row, or a column, shares, in DN.
    """

    rows: int
    columns: int
    std: float
    neighbour: float = 0.0
    row_std: float = 0.0
    column_std: float = 0.0

    def __post_init__(self) -> None:
        for label in ("rows", "columns"):
            if getattr(self, label) < 1:
                raise UsageError(
                    f"a frame of {getattr(self, label)} {label} was asked for; allowed is 1 or more"
                )
        for label in ("std", "row_std", "column_std"):
            if not 0.0 <= getattr(self, label) < float("inf"):
                raise UsageError(f"{label} is {getattr(self, label)} DN; it must be finite and not negative")
        if not -0.5 <= self.neighbour <= 0.5:
            raise UsageError(f"neighbour correlation is {self.neighbour}; it must lie between -0.5 and 0.5")

    def sample(self, signal: Tensor, generator: NoiseGenerator, frame: Frame) -> Tensor:
        """Readout of frames.

        Args:
            signal: shape (..., rows · columns), float32 or float64, pixels row by row.
        Raises:
            UsageError: another number of pixels.
        """
        pixels = self.rows * self.columns
        if signal.ndim < 1 or signal.shape[-1] != pixels:
            raise UsageError(
                f"frames have {pixels} pixels in their last dimension, not {tuple(signal.shape)}"
            )
        frames = signal.numel() // pixels

        def normals(*shape: int) -> Tensor:
            return generator.normal_(torch.empty(shape, dtype=signal.dtype))

        noise = normals(frames, self.rows + 1, self.columns + 1)
        # Moving averages a w_k + b w_{k+1} with a² + b² = 1 and ab = ρ, down the columns and along the rows.
        a = (sqrt(1 + 2 * self.neighbour) + sqrt(1 - 2 * self.neighbour)) / 2
        b = (sqrt(1 + 2 * self.neighbour) - sqrt(1 - 2 * self.neighbour)) / 2
        noise = a * noise[:, :-1] + b * noise[:, 1:]
        noise = self.std * (a * noise[:, :, :-1] + b * noise[:, :, 1:])
        noise += self.row_std * normals(frames, self.rows, 1)
        noise += self.column_std * normals(frames, 1, self.columns)
        return signal + noise.view(signal.shape).to(signal.device)

    def variance(self, signal: Tensor, frame: Frame) -> Tensor:
        """Variance of one pixel, in DN²."""
        return torch.full_like(signal, self.std**2 + self.row_std**2 + self.column_std**2)

    def least_variance(self) -> float:
        """λ_min of the pixels' own noise, in DN²: a lower bound of λ_min(Σ), met where nothing is shared."""
        down, along = (1 - 2 * abs(self.neighbour) * cos(pi / (n + 1)) for n in (self.rows, self.columns))
        # The product of the smallest eigenvalues is the smallest of the products: none is negative.
        return self.std**2 * down * along

    def credit(self, frame: Frame) -> Credit:
        pixels = self.rows * self.columns
        normals = (self.rows + 1) * (self.columns + 1) + self.rows + self.columns
        return Credit(
            std=sqrt(self.least_variance()),
            step=0.0,
            clipped_mass=NORMAL_TAIL_MASS * normals / pixels,
            beta=0.0,
            argument="the simulated noise is Gaussian and does not depend on the signal, by construction; the "
            "smallest eigenvalue of its covariance is credited",
            assumptions=(
                f"noise is correlated over pixels as declared (neighbours {self.neighbour:g}, "
                f"rows {self.row_std:g} DN, columns {self.column_std:g} DN) and not over frames",
                REAL_READOUT,
            ),
        )

    def describe(self) -> dict[str, float | int | str]:
        values = asdict(self)
        return {
            "model": "correlated",
            **{f"{key}_dn" if key.endswith("std") else key: value for key, value in values.items()},
        }
