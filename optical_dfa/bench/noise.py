"""Speed of noise: normals, coins, camera frames and projections, each beside what it replaces, in one process."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from noise_models.base import Frame
from noise_models.camera import PhysicalCamera, named_camera
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create

COINS = 60_000
COMPONENTS = 10


def run(rounds: int = 7, normals: int = 1 << 22, side: int = 1024, records: int = 2048) -> dict[str, Any]:
    """Millions a second, at the best of several calls after one that warms up.

    Args:
        rounds: measured calls of each.
        normals: drawn in a call.
        side: rows and columns of a camera frame.
        records: of a projection, onto as many components.
    Returns:
        by what is made (normals, coins, pixels, outputs) and how: millions a second; and the setting.
    """
    generator = NoiseGenerator.secure("benchmark")

    def speed(count: int, action: Callable[[], object]) -> float:
        action()
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return round(count / min(times) / 1e6, 3)

    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64):
        out = torch.zeros(normals, dtype=dtype)
        found[f"normals_{str(dtype).removeprefix('torch.')}"] = {
            "torch": speed(normals, out.normal_),
            "secret": speed(normals, partial(generator.normal_, out)),
            "secret_added": speed(normals, partial(generator.add_normal_, out, 0.5)),
        }
    found["coins"] = speed(COINS, lambda: generator.bernoulli(COINS, 0.07))
    data_sheet = replace(named_camera("machine-vision"), rows=side, columns=side)
    cameras = {"camera": PhysicalCamera(data_sheet), "ideal_camera": PhysicalCamera(data_sheet.ideal())}
    for name, camera in cameras.items():
        dark, light = (torch.full((data_sheet.pixels,), electrons) for electrons in (0.0, 2500.0))
        found[f"pixels_{name}"] = {
            "dark": speed(data_sheet.pixels, partial(camera.sample, dark, generator, Frame.DARK)),
            "dark_codes": speed(data_sheet.pixels, partial(camera.dark_codes, 1, generator)),
            "data": speed(data_sheet.pixels, partial(camera.sample, light, generator, Frame.DATA)),
        }
    e = torch.softmax(torch.randn(records, COMPONENTS), 1)
    e -= torch.eye(COMPONENTS)[torch.randint(COMPONENTS, (records,))]
    outputs: dict[str, float] = {}
    for backend in ("digital", "simulated-opu", "lightonml-simulated"):
        with create(backend, in_features=COMPONENTS, out_features=records, seed=1, noise=generator) as device:
            outputs[backend] = speed(records * records, partial(device.project, e))
    return {
        **found,
        "outputs": outputs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
