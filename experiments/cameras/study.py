"""`python -m experiments cameras`: what four cameras make of a projection, and what their dark noise is worth.

With `--pictures` it draws docs/images/ instead: speckle, interference, a dark frame, and the photon-transfer curve.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from experiments.cameras.pictures import draw_pictures
from experiments.harness.experiment import TABLE
from noise_models.calibration.photon_transfer import calibrate
from noise_models.camera import CAMERAS, Camera
from noise_models.errors import DeviceError, UsageError
from noise_models.health.monitor import look_frames
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.backends.base import ProjectionBackend
from privacy.releases.dark_frame import TAU

FOLDER = Path(__file__).parent
IMAGES = FOLDER.parents[1] / "docs" / "images"
COMMAND = "python -m experiments cameras"

WIDTHS = (784, 512, 512, 10)
BATCH = 256
RATE_HZ = 1000
RECORDS = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table.md, or the pictures."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="draw docs/images/ instead")
    given = parser.parse_args(arguments)
    try:
        if given.pictures:
            draw_pictures(IMAGES)
            return 0
        text = table()
    except (UsageError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def table() -> str:
    """The Markdown table, every figure measured on the simulated device."""
    head = (
        "Camera",
        "Full well, read noise, bits",
        "SNR of a ternary projection",
        "Read noise of a dark pixel",
        "Credited: lower limit",
        "Device's share of the privacy noise",
        "Dark frames a step",
        f"A step of {BATCH} records at {RATE_HZ} Hz",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_row(camera))} |" for camera in CAMERAS.values()]
    network = "-".join(map(str, WIDTHS))
    return "\n".join(
        [
            *lines,
            "",
            f"Fidelity `physics`, ternary error of one positive and one negative entry among 10, four phase "
            f"steps, {sum(WIDTHS[1:-1])} outputs. SNR: power of B e over that of the noise. Credited: what a "
            "calibration found every pixel's Gaussian noise to reach, except with probability 1e-6; with a "
            f"dither of {TAU:g} DN it supplies the stated share. Dark frames: one pixel for each of the "
            f"{_dimension():,} weights of {network}, and the frames of the health tests. Time: the frames of "
            f"{BATCH} records, the dark ones and a lit one, from the frame count; no hardware was timed.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def _device(camera: Camera) -> ProjectionBackend:
    return create(
        "simulated-opu",
        in_features=WIDTHS[-1],
        out_features=sum(WIDTHS[1:-1]),
        seed=0,
        noise=NoiseGenerator.seeded(0, f"camera {camera.name}"),
        options={"fidelity": "physics", "camera": camera.name, "encoding": "ternary"},
    )


def _row(camera: Camera) -> tuple[str, ...]:
    print(f"camera {camera.name}: projecting, then calibrating", file=sys.stderr)
    with _device(camera) as device:
        calibration = calibrate(device)
        frames = math.ceil(_dimension() / device.dark_pixels) + look_frames(device.dark_pixels)
        seconds = (BATCH * device.frames_per_record + frames + 1) / RATE_HZ
        lower = calibration.credit().std
        return (
            camera.name,
            f"{camera.full_well_electrons:,.0f} e⁻, {camera.read_noise_electrons:g} e⁻, {camera.bits}",
            _ratio(_snr(device)),
            f"{calibration.credit_dn:.3g} DN",
            f"{lower:.3g} DN" if calibration.passed else "none",
            f"{100 * lower**2 / (lower**2 + TAU**2):.0f} %",
            str(frames),
            f"{seconds:.2f} s",
        )


def _dimension() -> int:
    """Weights and biases of the network."""
    return sum((d + 1) * n for d, n in pairwise(WIDTHS))


def errors(records: int) -> Tensor:
    """Ternary errors of one positive and one negative entry, shape (records, classes)."""
    stream = torch.Generator().manual_seed(0)
    order = torch.rand(records, WIDTHS[-1], generator=stream).argsort(dim=1)
    e = torch.zeros(records, WIDTHS[-1])
    return e.scatter_(1, order[:, :1], 1.0).scatter_(1, order[:, 1:2], -1.0)


def _snr(device: ProjectionBackend) -> float:
    matrix = device.matrix()
    assert matrix is not None  # the device is simulated
    e = errors(RECORDS)
    signal = e @ matrix.T
    noise = device.project(e) - signal
    return float(signal.double().square().mean() / noise.double().square().mean())


def _ratio(power: float) -> str:
    return f"{power:.0f} ({10 * math.log10(power):.1f} dB)"
