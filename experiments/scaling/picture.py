"""The scaling curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from experiments.scaling.cells import DEVICES, Cell
from optical_dfa.report.plots import COLOURS, SERIES, drawing_style


def draw_scaling(seconds: Mapping[Cell, float], path: Path) -> None:
    """One PNG: processor seconds of a projection over the side of a square matrix, both logarithmic, a line a device.

    Args:
        seconds: of square cells.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 4.2), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for device, series in zip(DEVICES, SERIES, strict=False):
            points = sorted((cell.inputs, taken) for cell, taken in seconds.items() if cell.device == device)
            axes.plot(
                [side for side, _ in points],
                [taken for _, taken in points],
                marker="o",
                markersize=3,
                color=COLOURS[series],
                label=device,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("inputs, and as many outputs")
        axes.set_title("Processor seconds of a projection of 32 records, one thread")
        axes.legend()
        figure.savefig(path, format="png")
