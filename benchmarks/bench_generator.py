"""Speed of noise: normals, dark frames and projections, each beside what it replaces, in one process.

    OMP_NUM_THREADS=1 python benchmarks/bench_generator.py

Prints the best of several repetitions; ratios come from the same run on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from noise_models.base import Frame
from noise_models.camera import PhysicalCamera, named_camera
from noise_models.generator import NoiseGenerator
from optical_dfa.backends import create

REPETITIONS = 7


def best_seconds(action: Callable[[], object]) -> float:
    """Shortest of several runs, after one that warms up."""
    action()
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def report(label: str, count: int, action: Callable[[], object], unit: str) -> None:
    seconds = best_seconds(action)
    print(f"{label:<44} {seconds * 1e3:9.2f} ms   {count / seconds / 1e6:9.1f} M {unit}/s")


def main() -> None:
    print(f"{torch.get_num_threads()} thread(s) for torch; the generator always uses one")
    generator = NoiseGenerator.secure("benchmark")
    n = 1 << 22
    for dtype in (torch.float32, torch.float64):
        out = torch.zeros(n, dtype=dtype)
        report(f"torch normal_, {dtype}", n, out.normal_, "normals")
        report(f"NoiseGenerator.normal_, {dtype}", n, partial(generator.normal_, out), "normals")
        report(f"NoiseGenerator.add_normal_, {dtype}", n, partial(generator.add_normal_, out, 0.5), "normals")
    report("NoiseGenerator.bernoulli, p = 0.07", 60_000, lambda: generator.bernoulli(60_000, 0.07), "coins")
    data_sheet = replace(named_camera("machine-vision"), rows=1024, columns=1024)
    for label, camera in (("", PhysicalCamera(data_sheet)), (", ideal", PhysicalCamera(data_sheet.ideal()))):
        pixels = data_sheet.pixels
        for light in (0.0, 2500.0):
            signal = torch.full((pixels,), light)
            frame = Frame.DATA if light else Frame.DARK
            action = partial(camera.sample, signal, generator, frame)
            report(f"camera{label}, {light:g} e- by sample()", pixels, action, "pixels")
        report(f"camera{label}, dark_codes()", pixels, partial(camera.dark_codes, 1, generator), "pixels")
    m, n_out = 2048, 2048
    e = torch.softmax(torch.randn(m, 10), 1) - torch.eye(10)[torch.randint(10, (m,))]
    for name in ("digital", "simulated-opu", "lightonml-simulated"):
        with create(name, in_features=10, out_features=n_out, seed=1, noise=generator) as device:
            label = f"project ({m}, 10) -> {n_out}: {name}"
            report(label, m * n_out, partial(device.project, e), "outputs")


if __name__ == "__main__":
    main()
