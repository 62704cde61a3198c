"""The pictures of the documents, taken with the simulated device: what its frames look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.photon_transfer import calibrate
from noise_models.camera import CAMERAS, DEFAULT_CAMERA, PhysicalCamera
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.backends.optics import Optics
from optical_dfa.report.photon_transfer import draw_calibration_picture

SIDE = 192
GRAIN = 6.0
MIRRORS = 400


def draw_pictures(folder: Path) -> None:
    """Write speckle.png, interference.png, dark-frame.png and photon-transfer.png into `folder`."""
    generator = NoiseGenerator.seeded(0, "pictures")
    camera = PhysicalCamera(CAMERAS[DEFAULT_CAMERA])
    optics = Optics(
        MIRRORS,
        2 * SIDE * SIDE,
        seed=0,
        camera=camera.camera,
        method="phase-4",
        full_scale=None,
        contrast=None,
        grain=GRAIN,
        decorrelation_seconds=None,
    )
    pattern = torch.randint(0, 2, (1, MIRRORS), generator=torch.Generator().manual_seed(0)).float()
    re, im = optics.fields(pattern)
    # Without the reference there is room: eight times the light, as a longer exposure would gather.
    speckle = camera.sample(8 * (re.square() + im.square()), generator, Frame.DATA)
    steps = [
        camera.sample(image, generator, Frame.DATA) for image in optics.interferometer.intensities(re, im)
    ]
    real, imaginary = optics.interferometer.reconstruct(steps)
    _draw(folder / "speckle.png", [("Speckle |T x|², DN", _image(speckle), "magma")])
    _draw(
        folder / "interference.png",
        [
            ("Phase step 0, DN", _image(steps[0]), "magma"),
            ("Phase step π/2, DN", _image(steps[1]), "magma"),
            ("Phase of T x from four steps, rad", _image(torch.atan2(imaginary, real)), "twilight"),
        ],
    )
    dark = camera.dark_codes(1, generator).view(camera.camera.rows, camera.camera.columns)
    _draw(folder / "dark-frame.png", [("Dark frame at the dark gain, DN", dark[:SIDE, :SIDE], "gray")])
    options = {"fidelity": "physics"}
    with create(
        "simulated-opu", in_features=10, out_features=16, seed=0, noise=generator, options=options
    ) as device:
        draw_calibration_picture(calibrate(device), folder / "photon-transfer.png")


def _image(codes: Tensor) -> Tensor:
    return codes[0, : SIDE * SIDE].view(SIDE, SIDE)


def _draw(path: Path, panels: list[tuple[str, Tensor, str]]) -> None:
    """One picture of some images side by side, each with its scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.8), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, image, colours) in zip(axes, panels, strict=True):
        shown = ax.imshow(image.numpy(), cmap=colours, interpolation="nearest")
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        figure.colorbar(shown, ax=ax, shrink=0.85)
    figure.savefig(path, format="png")
