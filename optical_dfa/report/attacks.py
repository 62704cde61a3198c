"""The pictures of attacks: what the span attack separates, and what an inverted step looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optical_dfa.report.plots import COLOURS, drawing_style

Array = NDArray[np.float64]

_FLOOR = 1e-9  # an exact zero on a logarithmic axis
_BINS = 260


def draw_span(scores: Mapping[str, tuple[Array, Array]], path: Path, notes: Sequence[str] = ()) -> None:
    """One PNG: for each release a pane with the scores' histograms without and with the record, on one axis.

    Args:
        scores: release -> (without, with_record), each of shape (trials,).
        path: to write; its folder must exist.
        notes: one a pane, printed in it.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(
            figsize=(9.0, 1.1 + 1.9 * len(scores)), dpi=150, layout="constrained", facecolor="white"
        )
        FigureCanvasAgg(figure)
        panes: Any = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        bins = np.geomspace(_FLOOR, 2.0, _BINS)
        for index, (axes, (release, pair)) in enumerate(zip(panes, scores.items(), strict=True)):
            for values, colour, label in zip(
                pair, ("accent", "second"), ("record absent", "record present"), strict=True
            ):
                axes.hist(
                    np.maximum(values, _FLOOR), bins=bins, color=COLOURS[colour], alpha=0.75, label=label
                )
            axes.set_xscale("log")
            axes.set_ylabel("releases")
            axes.set_title(f"release {release}", loc="left", fontsize=10.5)
            if index < len(notes):
                axes.text(
                    0.2,
                    0.9,
                    notes[index],
                    transform=axes.transAxes,
                    va="top",
                    fontsize=9.5,
                    linespacing=1.5,
                )
        panes[0].legend(loc="upper right", bbox_to_anchor=(0.72, 1.0), frameon=False, fontsize=9.5)
        panes[-1].set_xlabel("share of one released update that lies off the other records' span")
        figure.savefig(path, format="png")


def draw_inversion(original: Array, shown: Mapping[str, Array], shape: tuple[int, int], path: Path) -> None:
    """One PNG: the record, and what each of some releases shows of it.

    Args:
        original: shape (d,), d = rows · columns.
        shown: title -> image, shape (d,); drawn between its own extremes, turned so that it correlates with the
            original (a direction's sign is unknown).
        shape: rows and columns.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        images = {"the record": original, **shown}
        figure = Figure(figsize=(2.3 * len(images), 2.7), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panes: Any = figure.subplots(1, len(images), squeeze=False)[0]
        for axes, (title, image) in zip(panes, images.items(), strict=True):
            centred = image - image.mean()
            sign = -1.0 if centred @ (original - original.mean()) < 0 else 1.0
            axes.imshow((sign * image).reshape(shape), cmap="gray", interpolation="nearest")
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
        figure.savefig(path, format="png")
