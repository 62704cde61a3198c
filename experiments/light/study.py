"""`python -m experiments light`: what a step of release `photon` takes of a device, for each modulator and camera.

Computed from the light paths that the release itself uses; nothing is exposed, no hardware was timed. Writes table.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from experiments.harness.experiment import TABLE
from noise_models.camera import CAMERAS, Camera
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from privacy.accounting import noise_multiplier
from privacy.contributions.protocols import PhotonDevice
from privacy.releases.photon import ROWS, PhotonRelease, ShotNoise

FOLDER = Path(__file__).parent
COMMAND = "python -m experiments light"

WIDTHS = (784, 512, 512, 10)
INPUTS = 80  # p: eight public gates of ten classes
SIGMA = 1.0
READ = 10  # entries of a column of a sum that is read back
PLAN = (3.0, 1e-5, 4096 / 60_000, 586)  # epsilon, delta, sampling rate, steps: 40 epochs of 60,000 records


@dataclass(frozen=True)
class Modulator:
    """What shows a column.

    Attributes:
        levels: of the amplitude of one pixel.
        rate_hz: patterns a second.
    """

    name: str
    pixels: int
    levels: int
    rate_hz: float


MODULATORS = (
    Modulator("binary mirrors", 1_000_000, 1, 20_000.0),
    Modulator("8-bit liquid crystal", 1_000_000, 255, 200.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table.md."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    text = table()
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def table() -> str:
    """The Markdown table."""
    head = (
        "Modulator", "Camera", "Photo-electrons of the reference, a pixel of an arm", "Largest entry K, in norms D",
        "Largest field over the reference, ρ", "Largest change of an amplitude, η", "A step",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for modulator in MODULATORS:
        lines += [f"| {' | '.join(_row(modulator, camera))} |" for camera in CAMERAS.values()]
    return "\n".join(
        [
            *lines,
            "",
            f"Rule `gated-dfa` with p = {INPUTS}, {'-'.join(map(str, WIDTHS))}, noise multiplier {SIGMA:g}, D = "
            f"{_bound():,}: {exposures():,} columns of one exposure each by `homodyne`, at the slower of modulator and "
            "camera. K is what pixels and levels of a macro-pixel hold, or what keeps ρ at 1/4; entries of the sum "
            "beyond it are clamped, a bias. Cameras as above; modulators are assumptions too: a million pixels, 20 kHz "
            "and 200 Hz.",
            "",
            *lost(),
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def lost() -> list[str]:
    """How much more noise an entry of the sum has than under `digital` at the same epsilon, factor by factor."""
    epsilon, delta, rate, steps = PLAN
    exact, bound = (noise_multiplier(epsilon, delta, rate, steps, accountant=name) for name in ("pld", "rdp"))
    with SimulatedOpuBackend(
        READ, sum(WIDTHS[1:-1]), seed=0, noise=NoiseGenerator.seeded(0, "light"), method="homodyne"
    ) as device:
        readout = device.photon_readout(ROWS * READ)
        level = ShotNoise(cast(PhotonDevice, device), readout, _bound()).level(bound)
        norm = readout.limits(level.ratio).norm
        values = np.linalg.svd(readout.response, compute_uv=False)
    spread = float(values[0] * np.sqrt(np.mean(values**-2.0)))
    factors = (
        ("Rényi's divergences instead of a privacy-loss distribution", bound / exact),
        ("reading back, ‖R‖ against R's singular values", spread),
        ("γ, the field in quadrature, and allowances: M against ‖R‖", norm / float(values[0])),
    )
    total = float(np.prod([factor for _, factor in factors]))
    return [
        f"Any other rule's sum is read back: p = {READ} entries from {ROWS * READ} pixels, ρ = {level.ratio:.2g}, "
        f"η = {level.change:.2g}. At epsilon {epsilon:g} (adding or removing a record, δ = {delta:g}, {steps} steps of "
        f"a Poisson sample of {rate:.3g}) its noise is × {total:.3f} that of `digital`:",
        "",
        "| Factor | × |",
        "|---|---|",
        *(f"| {name} | {factor:.3f} |" for name, factor in factors),
    ]


def shapes() -> list[tuple[int, int]]:
    """Blocks of the stack: of every hidden layer (p, inputs and bias), and of the output layer."""
    *hidden, output = [(d + 1, n) for d, n in pairwise(WIDTHS)]
    return [*((INPUTS, d) for d, _ in hidden), (output[1], output[0])]


def exposures() -> int:
    """Columns of a step; the output layer's are filled up to p entries."""
    entries = sum(rows * columns for rows, columns in shapes())
    return -(-entries // INPUTS)


def _bound() -> int:
    return PhotonRelease.least_steps(shapes())


def _row(modulator: Modulator, camera: Camera) -> tuple[str, ...]:
    with SimulatedOpuBackend(
        INPUTS,
        sum(WIDTHS[1:-1]),
        seed=0,
        noise=NoiseGenerator.seeded(0, "light"),
        camera=camera.name,
        method="homodyne",
        mirrors=modulator.pixels * modulator.levels,
    ) as device:
        bound = _bound()
        level = ShotNoise(cast(PhotonDevice, device), device.photon_readout(), bound).level(SIGMA)
        rate = min(modulator.rate_hz, camera.frame_rate_hz)
        return (
            modulator.name,
            camera.name,
            f"{device.optics.reference**2 / 2:,.0f}",
            f"{level.most / bound:.3g}",
            f"{level.ratio:.2g}",
            f"{level.change:.2g}",
            f"{exposures() / rate:.2g} s at {rate:,.0f} Hz",
        )
