"""What a source of the release's noise is, and what it costs beyond an ideal Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from noise_models.generator import NoiseGenerator


@dataclass(frozen=True)
class Cost:
    """One step's distance from the ideal Gaussian mechanism (THEORY T4); see `privacy.ledger.Release`."""

    log_ratio: float
    log_inflation: float
    mass: float


class NoiseSource(ABC):
    """Supplies Z, dominated by N(0, std² I) up to its stated cost.

    Attributes:
        name: the release's registered name.
        device_share: fraction of the noise variance that the device supplies.
        beta: probability that the device's calibration is wrong (THEORY T8).
        assumptions: what has to hold.
    """

    name: ClassVar[str]
    device_share: float = 0.0
    beta: float = 0.0
    assumptions: tuple[str, ...] = ()

    @property
    @abstractmethod
    def generators(self) -> tuple[NoiseGenerator, ...]:
        """Every generator whose secrecy the guarantee rests on."""

    @abstractmethod
    def cost(self, dimension: int) -> Cost:
        """What `dimension` coordinates of one step cost beyond an ideal Gaussian."""

    def describe(self) -> dict[str, Any]:
        """What is credited to the device (JSON types), for the ledger."""
        return {}

    @abstractmethod
    def add_noise(self, total: Tensor, std: float) -> None:
        """`total += Z`, Z of standard deviation `std` in every coordinate; `total` has shape (dimension,)."""


def add_secret_normals(total: Tensor, std: float, generator: NoiseGenerator) -> None:
    """`total += std·N(0, 1)`, drawn on the CPU wherever `total` lives."""
    if total.device.type == "cpu":
        generator.add_normal_(total, std)
    else:
        noise = generator.normal_(total.new_empty(total.shape, device="cpu"))
        total.add_(noise.to(total.device), alpha=std)
