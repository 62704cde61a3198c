"""The picture of tracking: frames with boxes, and the overlap over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.online.scene import BOX, Stream
from experiments.online.tracker import Track

FRAMES = (0, 15, 30, 45, 59)
COLOURS = {
    "bp": "#0b6e75", "dfa": "#c2571a", "bdfa": "#5b4b9a", "shallow": "#8a7414", "bp, never updated": "#a23a5f",
}  # fmt: skip
BOXED = ("bp", "bdfa", "bp, never updated")


def draw_tracking(path: Path, stream: Stream, tracks: Mapping[str, Sequence[Track]], number: int) -> None:
    """Write the picture.

    Args:
        path: of the PNG.
        stream: one of those tracked.
        tracks: by row's name, one for every stream.
        number: of that stream among them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(FRAMES), height_ratios=(1, 1.15))
    for place, frame in enumerate(FRAMES):
        ax = figure.add_subplot(grid[0, place])
        ax.imshow(stream.frames[frame].numpy(), cmap="gray", interpolation="nearest")
        boxes: dict[str, tuple[Any, str, str]] = {"truth": (stream.boxes[frame], "#ffd400", "--")}
        boxes |= {name: (tracks[name][number].boxes[frame], COLOURS[name], "-") for name in BOXED}
        for name, (corner, colour, style) in boxes.items():
            row, column = corner.tolist()
            box = Rectangle(
                (column - 0.5, row - 0.5), BOX, BOX, fill=False, color=colour, lw=2, ls=style, label=name
            )
            ax.add_patch(box)
        ax.set_title(f"frame {frame}", fontsize=10, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
    handles, names = ax.get_legend_handles_labels()
    below = figure.add_subplot(grid[1, :])
    for name, found in tracks.items():
        mean = torch.stack([track.overlap for track in found]).mean(0)
        below.plot(mean.numpy(), color=COLOURS[name], lw=1.8, label=name)
    below.set_title(
        f"overlap with the true box, mean over {len(tracks['bp'])} streams", fontsize=10, loc="left"
    )
    below.set_xlabel("frame")
    below.set_ylim(0, 1)
    below.margins(x=0)
    for side in ("top", "right"):
        below.spines[side].set_visible(False)
    truth = [(handle, name) for handle, name in zip(handles, names, strict=True) if name == "truth"]
    shown, labels = below.get_legend_handles_labels()
    below.legend(
        [*shown, *(h for h, _ in truth)], [*labels, *(f"{n} (above)" for _, n in truth)], frameon=False, ncols=3,
    )  # fmt: skip
    figure.savefig(path, format="png")
