"""A light path in numpy, every parameter known: an implementation other than the simulated device's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class NumpyLight:
    """Two cameras behind a half mirror; codes = round(black + gain_k (Poisson(f_k ω |r_k e^{iφ} ± E_k|²/2) + read)).

    `columns` are mirrors' own fields, shape (2, p, K, n), in √photo-electrons a unit of light. Gains, sensitivities and
    the reference differ from pixel to pixel; intensity ω is common to both cameras.
    """

    inputs: int = 4
    rows: int = 16
    most: int = 6
    seed: int = 0
    electrons: float = 3000.0
    gain: float = 0.2
    gain_spread: float = 0.02
    sensitivity: float = 0.03
    read: float = 4.0
    current: float = 3.0
    mirror_spread: float = 0.01
    sign_spread: float = 0.01
    intensity: float = 0.01
    single: float = 0.0  # intensity noise of each pixel by itself
    multiplied: float = 1.0  # mean electrons that a photo-electron becomes, geometric
    jitter: float = 0.0
    drift: float = 0.0  # radians over 10^5 frames
    bend: float = 0.0  # of the field, quadratic in what is shown
    attenuator: Callable[[float], float] = lambda light: light
    step: float = 1.0
    top: float = 4095.0
    black: float = 40.3
    name: str = "numpy"
    shown: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 99])
        p, n, most = self.inputs, self.rows, self.most
        self.response = 1 + self.sensitivity * rng.uniform(-1, 1, (2, n))
        self.gains = self.gain * (1 + self.gain_spread * rng.uniform(-1, 1, (2, n)))
        self.reference = np.sqrt(2 * self.electrons * (1 + 0.05 * rng.uniform(-1, 1, n)))

        def normal(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)

        mean = normal(p, n)
        both = np.stack([mean, mean + self.sign_spread * normal(p, n)])
        own = 1 + self.mirror_spread * rng.uniform(-1, 1, (2, p, most)) * np.exp(
            2j * np.pi * rng.uniform(size=(2, p, most))
        )
        self.columns = both[:, :, None, :] * own[..., None]
        self.rng = rng

    def fingerprint(self) -> str:
        return f"numpy-{self.seed}"

    def field_of(self, runs: np.ndarray, light: float) -> np.ndarray:
        new = np.append(True, (runs[1:] != runs[:-1]).any((1, 2, 3)))
        runs = runs[new]
        sums = np.concatenate(
            [np.zeros((2, self.inputs, 1, self.rows)), np.cumsum(self.columns, axis=2)], axis=2
        )
        sign, entry = np.arange(2)[:, None], np.arange(self.inputs)
        each = sums[sign, entry, runs[..., 1]] - sums[sign, entry, runs[..., 0]]
        total = self.attenuator(light) * (each[:, 0] - each[:, 1]).sum(1)
        total = total + self.bend * total**2 / self.reference
        return total[np.cumsum(new) - 1]

    def probe(
        self, runs: np.ndarray, *, light: float, phase: float = 0.0, reference: float = 1.0
    ) -> np.ndarray:
        count = len(runs)
        angle = phase + self.jitter * self.rng.standard_normal((count, 1))
        angle += self.drift * (self.shown + np.arange(count)[:, None]) / 1e5
        self.shown += count
        r = math.sqrt(reference) * self.reference * np.exp(1j * angle)
        e = self.field_of(runs, light)
        common = 1 + self.intensity * self.rng.standard_normal((count, 1, 1))
        rates = np.stack([np.abs(r + e) ** 2, np.abs(r - e) ** 2], axis=1) / 2 * self.response * common
        if self.single:
            rates = rates * (1 + self.single * self.rng.standard_normal(rates.shape)).clip(0)
        counts = self.rng.poisson(rates + self.current).astype(float)
        if self.multiplied > 1:  # a sum of geometric numbers
            counts = counts + self.rng.negative_binomial(np.maximum(counts, 1), 1 / self.multiplied)
        codes = self.black + self.gains * (counts + self.read * self.rng.standard_normal(counts.shape))
        if self.step:
            codes = np.rint(codes)
        return np.minimum(codes, self.top)

    # ---- what is true of it

    def rate(self) -> np.ndarray:
        """Photo-electrons of the reference, shape (2, n)."""
        return self.response * self.reference**2 / 2

    def norm(self, tries: int = 200) -> float:
        """The most that a column of unit norm moves all amplitudes by, over so many choices of mirrors."""
        weights = np.sqrt(2 * self.rate().max(0)) / self.reference
        rng = np.random.default_rng(0)
        worst = 0.0
        for trial in range(tries):
            chosen = self.columns.mean(2)
            if trial:
                pick = rng.integers(0, self.most, (2, self.inputs))
                chosen = self.columns[np.arange(2)[:, None], np.arange(self.inputs), pick]
            matrix = (
                np.where(rng.integers(0, 2, (self.inputs, 1)) > 0, chosen[0], chosen[1]).T * weights[:, None]
            )
            worst = max(worst, float(np.linalg.norm(np.concatenate([matrix.real, matrix.imag]), 2)))
        return worst

    def row(self) -> float:
        weights = np.sqrt(2 * self.rate().max(0)) / self.reference
        largest = np.abs(self.columns).max((0, 2))
        return float((np.linalg.norm(largest, axis=0) * weights).max())

    def ratio(self) -> float:
        """The largest |E| / |r| of entries of 1 at most, all mirrors alike."""
        return float((np.abs(self.columns.mean(2)).max(0).sum(0) / self.reference).max())

    def least(self) -> float:
        return float(np.sqrt(2 * self.rate().min()))
