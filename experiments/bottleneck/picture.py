"""The bottleneck experiment's picture: alignment over the number of units that learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optical_dfa.report.plots import COLOURS, SERIES, drawing_style

_LABELS = {"below": "layer below", "masked": "masked layer", "above": "layer above"}


def draw_bottleneck(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One PNG: mean cosines of DFA's signals with backpropagation's, layer by layer.

    Args:
        results: finished runs, as `measure` returns them, in the order of the units.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 3.3), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots()
        taught = [r for r in results if r["setting"]["rule"] == "dfa"]
        for colour, (layer, label) in zip(SERIES, _LABELS.items(), strict=False):
            axes.plot(
                [r["setting"]["kept"] for r in taught],
                [r["cosines"][layer][0] for r in taught],
                color=COLOURS[colour],
                marker="o",
                markersize=3.5,
                label=label,
            )
        axes.set_title("Cosine of DFA's signals with backpropagation's")
        axes.set_xscale("log")
        axes.set_xlabel("units of the masked layer that learn")
        axes.legend(loc="best")
        figure.savefig(path, format="png")
