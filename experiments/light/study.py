"""`python -m experiments light`: what a step of release `photon` takes of a device, for each modulator and camera.

Computed from the light paths that the release itself uses; nothing is exposed, no hardware was timed. Writes table.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from experiments.harness.experiment import TABLE
from noise_models.camera import CAMERAS, Camera
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.interferometry import METHODS
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from optical_dfa.networks.building import build
from privacy import PrivacyEngine
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
        spread: of a mirror, or of the step to a level.
        rate_hz: patterns a second.
    """

    name: str
    pixels: int
    levels: int
    spread: float
    rate_hz: float

    def options(self, camera: Camera, method: str) -> dict[str, Any]:
        """Of the simulated device."""
        return {
            "camera": camera.name,
            "method": method,
            "mirrors": self.pixels,
            "levels": self.levels,
            "mirror_spread": self.spread,
            "frame_rate_hz": min(self.rate_hz, camera.frame_rate_hz),
        }


MIRRORS = Modulator("binary mirrors", 1_000_000, 1, 0.01, 20_000.0)
LIQUID_CRYSTAL = Modulator("8-bit liquid crystal", 1_000_000, 255, 0.05, 200.0)
WAYS = ((MIRRORS, "homodyne"), (MIRRORS, "off-axis"), (LIQUID_CRYSTAL, "homodyne"))
IMAGE = (1, 28, 28)


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
        "Modulator", "Detection", "Camera", "Photo-electrons of the reference, a pixel", "Largest entry K, in norms D",
        "Largest field over the reference, ρ", "Largest change of an amplitude, η", "A step",
    )  # fmt: skip
    return "\n".join(
        [
            *_lines(head, [_row(*way, camera) for way in WAYS for camera in CAMERAS.values()]),
            "",
            f"Rule `gated-dfa` with p = {INPUTS}, {'-'.join(map(str, WIDTHS))}, noise multiplier {SIGMA:g}, D = "
            f"{_bound():,}: {exposures():,} columns of one exposure each, at the slower of modulator and camera. K is "
            "what pixels and levels of a macro-pixel hold, or what ρ leaves room for: 1/4 by two arms, a tenth by one; "
            "entries of the sum beyond it are clamped, a bias. Cameras as above; modulators are assumptions too: a "
            f"million pixels; 20 kHz, mirrors alike within {MIRRORS.spread:.0%}; 200 Hz, steps between levels alike "
            f"within {LIQUID_CRYSTAL.spread:.0%}, each of which makes M and so the noise as much larger.",
            "",
            *gated(),
            "",
            *lost(),
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def gated() -> list[str]:
    """A step of `--model gated`, as its release says."""
    head = ("Modulator", "Detection", "Camera", "Largest entry K, in norms D", "ρ", "η", "A step")
    rows: list[tuple[str, ...]] = []
    for modulator, method in WAYS:
        for camera in (CAMERAS["machine-vision"], CAMERAS["high-speed"]):
            shown, bound = gated_step(modulator.options(camera, method))
            rows.append(
                (
                    modulator.name,
                    method,
                    camera.name,
                    f"{shown['clamp'] / bound:.3g}",
                    f"{shown['largest_field_over_reference']:.2g}",
                    f"{shown['largest_change_of_an_amplitude']:.2g}",
                    f"{shown['seconds_a_step']:.2g} s at {shown['exposures_a_step'] / shown['seconds_a_step']:,.0f} Hz",
                )
            )
    path = shown["light_path"]
    return [
        f"`--model gated` on images of {IMAGE[1]} × {IMAGE[2]} pixels: {shown['columns_a_step']:,} columns of "
        f"{path['macro_pixels'] // 2} entries, {shown['counts_a_column']:,} counts each; noise multiplier {SIGMA:g}, "
        f"D = {bound:,}:",
        "",
        *_lines(head, rows),
    ]


def gated_step(options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What release `photon` says of a step of that network, and D."""
    blank = torch.zeros(1, *IMAGE)
    net = build("gated", IMAGE, 10, 0)
    aligned = align(
        net, rule="gated-dfa", backend="simulated-opu", backend_options=options, seed=0, example=blank, show=None,
        loss_reduction="sum", noise=NoiseGenerator.seeded(0, "light"),
    )  # fmt: skip
    engine = PrivacyEngine(reproducible_seed=0)
    engine.make_private(
        module=aligned, optimizer=torch.optim.SGD(net.parameters(), lr=0.0), release="photon", max_grad_norm=1.0,
        data_loader=DataLoader(TensorDataset(blank, torch.zeros(1, dtype=torch.int64)), batch_size=1),
        noise_multiplier=SIGMA,
    )  # fmt: skip
    release = engine.step
    assert isinstance(release, PhotonRelease)
    return release.describe(), release.steps


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


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
        *_lines(("Factor", "×"), [(name, f"{factor:.3f}") for name, factor in factors]),
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


def _row(modulator: Modulator, method: str, camera: Camera) -> tuple[str, ...]:
    with SimulatedOpuBackend(
        INPUTS,
        sum(WIDTHS[1:-1]),
        seed=0,
        noise=NoiseGenerator.seeded(0, "light"),
        **modulator.options(camera, method),
    ) as device:
        bound = _bound()
        level = ShotNoise(cast(PhotonDevice, device), device.photon_readout(), bound).level(SIGMA)
        return (
            modulator.name,
            method,
            camera.name,
            f"{device.optics.reference**2 * METHODS[method].light:,.0f}",
            f"{level.most / bound:.3g}",
            f"{level.ratio:.2g}",
            f"{level.change:.2g}",
            f"{exposures() / device.frame_rate_hz:.2g} s at {device.frame_rate_hz:,.0f} Hz",
        )
