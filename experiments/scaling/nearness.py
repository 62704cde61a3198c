"""How near a structured matrix comes to independent normal entries: kurtosis, spectrum, coherence."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import cumulative_simpson
from torch import Tensor

from optical_dfa.backends.matrix import RandomMatrix
from optical_dfa.backends.structured_matrix import StructuredMatrix

# (outputs, inputs): all of a transform, the part of one where both sides are cut, and one side of it whole.
SHAPES: Final = ((1024, 1024), (600, 600), (1024, 64), (1024, 10), (10, 1024))
ROUNDS: Final = (
    0,
    1,
    2,
    3,
)  # 0 is independent normal entries, the same figures of which are their own spread
SEEDS: Final = range(5)


class Nearness(NamedTuple):
    """Figures of a matrix of entries of variance 1; of independent normal ones: 3, 1, near 0, and log-sized.

    Attributes:
        kurtosis: mean fourth power of the entries.
        norm: largest singular value over √rows + √columns.
        spectrum: Kolmogorov distance of the squared singular values from the Marchenko-Pastur law of this shape.
        coherence: greatest |cosine| between two rows or two columns, whichever are shorter, times the root of their
            length: √(4 ln k) or so among k independent ones.
    """

    kurtosis: float
    norm: float
    spectrum: float
    coherence: float


def nearness(values: Tensor) -> Nearness:
    """Of one matrix, shape (rows, columns)."""
    matrix = values.double()
    rows, columns = matrix.shape
    squares = torch.linalg.svdvals(matrix).square().numpy()[::-1] / max(rows, columns)
    short = matrix if rows <= columns else matrix.T  # few vectors, long ones
    units = short / short.norm(dim=1, keepdim=True)
    cosines = (units @ units.T).fill_diagonal_(0).abs()
    return Nearness(
        float(matrix.pow(4).mean()),
        math.sqrt(squares[-1] * max(rows, columns)) / (math.sqrt(rows) + math.sqrt(columns)),
        _distance(squares, min(rows, columns) / max(rows, columns)),
        float(cosines.max()) * math.sqrt(short.shape[1]),
    )


def means(rounds: int, rows: int, columns: int) -> Nearness:
    """Over `SEEDS`, of structured matrices of so many rounds; of 0 rounds, of independent normal entries."""
    found = [
        nearness(
            StructuredMatrix(columns, rows, seed, rounds=rounds).values()
            if rounds
            else RandomMatrix(columns, rows, seed, "normal").values
        )
        for seed in SEEDS
    ]
    return Nearness(*(float(np.mean(figure)) for figure in zip(*found, strict=True)))


def _distance(squares: npt.NDArray[np.float64], ratio: float) -> float:
    """Kolmogorov distance of increasing numbers from the Marchenko-Pastur law of this ratio, up to 1."""
    below, above = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # In an angle, in which the density's root and the pole at 0 are smooth.
    angle = np.linspace(1e-6, math.pi, 20_001)
    x = (above + below) / 2 - (above - below) / 2 * np.cos(angle)
    density = np.sqrt((above - x).clip(0) * (x - below).clip(0)) / (2 * math.pi * ratio * x)
    law = cumulative_simpson(density * (above - below) / 2 * np.sin(angle), x=angle, initial=0.0)
    expected = np.interp(squares, x, law)
    steps = np.arange(len(squares) + 1) / len(squares)
    return float(max(np.max(expected - steps[:-1]), np.max(steps[1:] - expected)))
