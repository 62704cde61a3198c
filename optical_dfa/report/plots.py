"""The report's figures, as inline SVG (in the page's colours, light or dark) and as a PNG picture."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noise_models.errors import UsageError
from optical_dfa.runs.reading import DarkHistogram, Run
from privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light-scheme colours. In the inline SVG each becomes the CSS variable of its name, so no two may be equal.
COLOURS = {
    "ink": "#1f2428",
    "muted": "#6b747c",
    "rule": "#dfe3e6",
    "accent": "#0b6e75",
    "second": "#c2571a",
    "third": "#5b4b9a",
    "fourth": "#8a7414",
    "fifth": "#a23a5f",
    "bars": "#a9c9cb",
}
SERIES = ("accent", "second", "third", "fourth", "fifth")

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "optical-dfa",  # equal figures are equal texts: an audit compares them
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titlecolor": COLOURS["ink"],
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


def accuracy_svg(runs: Sequence[Run], prefix: str) -> str | None:
    """Test accuracy over steps, one line a run; None where no run recorded any."""
    drawn = [run for run in runs if run.series("test_accuracy")[0].size]
    return (
        svg(prefix, (5.0, 2.9), lambda figure: draw_accuracy(figure.add_subplot(), drawn)) if drawn else None
    )


def epsilon_svg(runs: Sequence[Run], prefix: str) -> str | None:
    """ε over steps with the budget; None where no run has a finite ε (nominal ones are labelled so)."""
    drawn = [run for run in runs if _epsilons(run)[0].size]
    return (
        svg(prefix, (5.0, 2.9), lambda figure: draw_epsilon(figure.add_subplot(), drawn)) if drawn else None
    )


def calibration_svg(calibration: DarkHistogram, prefix: str) -> str:
    """Histogram of the start-up's dark frames against the credited law, residuals below where it is all there is."""

    def draw(figure: Figure) -> None:
        _draw_calibration(figure, calibration)

    return svg(prefix, (5.0, 3.5), draw)


def plot_picture(run_dir: Path, out_png: Path) -> None:
    """Accuracy and ε over steps beside the calibration histogram, as one PNG (the README's picture).

    Raises:
        UsageError: `run_dir` is no finished run, or recorded neither accuracy nor a calibration.
    """
    run = Run.read(run_dir)
    if not run.series("test_accuracy")[0].size:
        raise UsageError(
            f"{run_dir} recorded no test accuracy over steps; give a run with at least one epoch"
        )
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 4.1), dpi=160, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        with_epsilon = bool(_epsilons(run)[0].size)
        columns = 2 if run.calibration else 1
        panes: Any = figure.subfigures(1, columns, wspace=0.04, squeeze=False)[0]
        left = panes[0].subplots(2 if with_epsilon else 1, 1, sharex=True, squeeze=False)[:, 0]
        draw_accuracy(left[0], [run])
        if with_epsilon:
            left[0].set_xlabel("")
            draw_epsilon(left[1], [run])
        if run.calibration:
            _draw_calibration(panes[1], run.calibration)
        figure.savefig(out_png, format="png")


def draw_accuracy(axes: Axes, runs: Sequence[Run]) -> None:
    """Lines of test accuracy in percent on `axes`; a single run's last value is written at its end."""
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        steps, values = run.series("test_accuracy")
        axes.plot(
            steps, 100 * values, color=COLOURS[colour], label=run.name, marker="o" if steps.size == 1 else ""
        )
        if len(runs) == 1:
            _mark_end(axes, float(steps[-1]), float(100 * values[-1]), f"{100 * values[-1]:.1f} %", colour)
    axes.set_title("Test accuracy (%)")
    axes.set_xlabel("step")
    _legend(axes, runs)


def draw_epsilon(axes: Axes, runs: Sequence[Run]) -> None:
    """Lines of ε spent, with each run's budget dashed (once where they agree)."""
    budgets: list[float] = []
    titles: set[str] = set()
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        steps, values, reserve = _epsilons(run)
        titles.add(_TITLES[reserve])
        label = f"{run.name} ({reserve})" if reserve else run.name
        axes.plot(steps, values, color=COLOURS[colour], label=label, linestyle=":" if reserve else "-")
        if len(runs) == 1:
            _mark_end(
                axes, float(steps[-1]), float(values[-1]), rounded_up(float(values[-1])), colour, below=True
            )
        if run.budget is not None and run.budget not in budgets:
            budgets.append(run.budget)
    for budget in budgets:
        axes.axhline(
            budget, color=COLOURS["second" if len(runs) == 1 else "muted"], linewidth=1.1, linestyle="--"
        )
        axes.annotate(
            f"budget {budget:g}",
            (0.01, budget),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=COLOURS["muted"],
            fontsize=8.5,
        )
    axes.set_title(titles.pop() if len(titles) == 1 else _TITLES[""])
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0, top=1.12 * max([axes.get_ylim()[1] / 1.05, *budgets]))
    _legend(axes, runs)


def _draw_calibration(figure: Any, calibration: DarkHistogram) -> None:
    """On a figure or a part of one."""
    if calibration.noisier:
        axes = figure.subplots()
        draw_histogram(axes, calibration)
        axes.set_xlabel("readout code (DN)")
        return
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    draw_histogram(above, calibration)
    draw_residuals(below, calibration)


def _shown(calibration: DarkHistogram) -> Any:
    return (calibration.expected() >= 0.5) | (calibration.counts > 0)


def draw_histogram(axes: Axes, calibration: DarkHistogram) -> None:
    """Dark frames and the credited law, in percent of all readouts."""
    expected, shown = calibration.expected(), _shown(calibration)
    codes, share = calibration.codes[shown], 100 / calibration.counts.sum()
    axes.bar(
        codes,
        share * calibration.counts[shown],
        width=0.82 * calibration.step,
        color=COLOURS["bars"],
        label="dark frames",
    )
    law = f"rounded N({calibration.black_level:.2f}, {calibration.sigma:.2f}²)"
    axes.plot(
        codes,
        share * expected[shown],
        color=COLOURS["accent"],
        label=f"credited: {law}" if calibration.noisier else law,
        marker="o",
        markersize=2.6,
        linewidth=1.2,
    )
    axes.set_title("Dark frames of the start-up (% of readouts)")
    axes.legend(loc="upper left", handlelength=1.3)
    axes.set_ylim(top=1.22 * share * float(max(expected.max(), calibration.counts.max())))


def draw_residuals(axes: Axes, calibration: DarkHistogram) -> None:
    """Standardised residuals of the histogram from the credited law, with their ±2 band."""
    shown = _shown(calibration)
    codes, residuals = calibration.codes[shown], calibration.residuals()[shown]
    axes.axhspan(-2, 2, color=COLOURS["rule"], alpha=0.6, linewidth=0)
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.plot(codes, residuals, linestyle="", marker="o", markersize=3.2, color=COLOURS["accent"])
    finite = np.abs(residuals[np.isfinite(residuals)])
    limit = max(3.5, 1.15 * float(finite.max())) if finite.size else 3.5
    axes.set_ylim(-limit, limit)
    axes.set_ylabel("residual (σ)")
    axes.set_xlabel("readout code (DN)")


_TITLES = {
    "": "Privacy loss ε spent",
    "conditional": "Conditional ε: NOT a worst-case guarantee",
    "nominal": "Nominal ε, had the noise been secret",
}


def _epsilons(run: Run) -> tuple[Any, Any, str]:
    """Steps, ε values, and under which reserve: "" for a guarantee (a reproducible run's ε is nominal)."""
    for reserve, name in (("", "epsilon"), ("conditional", "conditional_epsilon")):
        steps, values = run.series(name)
        if steps.size:
            return steps, values, reserve
    return *run.series("nominal_epsilon"), "nominal"


def _cycle(count: int) -> list[str]:
    return [SERIES[index % len(SERIES)] for index in range(count)]


def _legend(axes: Axes, runs: Sequence[Run]) -> None:
    if len(runs) > 1:
        axes.legend(loc="best", handlelength=1.3)


def _mark_end(axes: Axes, x: float, y: float, text: str, colour: str, *, below: bool = False) -> None:
    axes.plot([x], [y], marker="o", markersize=4.5, color=COLOURS[colour])
    offset, side = ((0, -6), "top") if below else ((0, 6), "bottom")
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="right",
        va=side,
        color=COLOURS["ink"],
        fontweight="bold",
    )
    axes.margins(x=0.03, y=0.14)


def drawing_style() -> Any:
    """Context in which all figures of the project are drawn."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def svg(prefix: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw on a fresh figure of `size` inches and return SVG to be inlined; `prefix` keeps its ids apart."""
    with drawing_style():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Sized by the page, not by inches.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'((?:xlink:)?href=")#', rf"\1#{prefix}-", svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", r"font: \1\2 var(--plot-font)", svg)
