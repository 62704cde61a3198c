"""Which worker computes what, when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optical_dfa.report.plots import COLOURS, SERIES, drawing_style

KINDS: Final = {
    "forward": "forward",
    "teach": "gradients of weights, under BP of inputs too",
    "update": "update",
}

Span = Sequence[Any]


def draw_time_lines(found: Mapping[str, Sequence[Span]], path: Path) -> None:
    """One PNG: a panel a way to train, in it a row a worker, a bar for all that it computes; the same milliseconds.

    Args:
        found: by title, (worker, what, begin, end) in seconds.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 3.6), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, spans) in zip(panels, found.items(), strict=True):
            origin = min(begin for _, _, begin, _ in spans)
            for kind, series in zip(KINDS, SERIES, strict=False):
                for worker in sorted({span[0] for span in spans}):
                    bars = [
                        (1000 * (begin - origin), 1000 * (end - begin))
                        for who, what, begin, end in spans
                        if (who, what) == (worker, kind)
                    ]
                    axes.broken_barh(
                        bars,
                        (worker - 0.4, 0.8),
                        color=COLOURS[series],
                        edgecolor="white",
                        linewidth=0.6,
                        label=KINDS[kind] if worker == 0 else None,
                    )
            workers = sorted({span[0] for span in spans})
            axes.set_yticks(workers, [f"worker {worker}" for worker in workers])
            axes.invert_yaxis()
            axes.set_title(title)
        panels[-1].set_xlim(left=0)
        panels[-1].set_xlabel("milliseconds, two steps")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, format="png")
