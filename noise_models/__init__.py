"""Noise of optical devices: models, calibration, health, and the generators that noise is drawn from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from noise_models.front_door import front_door

# Read by MKL at its first product: on some processors (AMD's) a row's numbers would else depend on where it lies in
# memory, so that a record that joins a batch moves the others'.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from noise_models.base import NoiseModel, NoNoise
    from noise_models.calibration.document import Calibration
    from noise_models.errors import DeviceError, HealthError, UsageError
    from noise_models.randomness.generator import NoiseGenerator

__all__ = [
    "Calibration",
    "DeviceError",
    "HealthError",
    "NoNoise",
    "NoiseGenerator",
    "NoiseModel",
    "UsageError",
]

__getattr__, __dir__ = front_door(
    __name__,
    {
        "Calibration": "noise_models.calibration.document",
        "DeviceError": "noise_models.errors",
        "HealthError": "noise_models.errors",
        "NoNoise": "noise_models.base",
        "NoiseGenerator": "noise_models.randomness.generator",
        "NoiseModel": "noise_models.base",
        "UsageError": "noise_models.errors",
    },
)
