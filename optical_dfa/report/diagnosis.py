"""The report's figures of a diagnosed run: alignment over the steps, and what a record's step costs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from optical_dfa.report.plots import COLOURS, SERIES, svg
from optical_dfa.runs.reading import FloatArray, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COSTS = {
    "forward": "forward",
    "weight_gradient": "weight gradient",
    "error": "error",
    "words": "words moved",
}
_LABELLED = 6  # layers a legend can hold


def diagnosis_html(run: Run) -> str:
    """The section of a run's page; empty where the run was not diagnosed."""
    layers, costs = _layers(run), _costs(run)
    if not layers and not costs:
        return ""
    figures = []
    if layers:
        picture = svg("alignment", (5.0, 2.9), lambda figure: draw_alignment(figure.add_subplot(), run))
        figures.append(
            _figure(
                picture,
                "Cosine between the rule's teaching signal and backpropagation's, record by record, on the same "
                "weights and batch: mean over the records, and ± one standard deviation. 1 is backpropagation, 0 "
                "is no relation, below 0 teaches the wrong way.",
            )
        )
    angles = _angles(run)
    if angles:
        picture = svg("angles", (5.0, 2.9), lambda figure: draw_angles(figure.add_subplot(), run))
        figures.append(
            _figure(
                picture, "Angle between each feedback matrix and the product of the forward weights above it."
            )
        )
    if any(run.series(name)[0].size for name in ("estimator_bias", "estimator_variance")):
        picture = svg("estimator", (5.0, 2.9), lambda figure: draw_estimator(figure.add_subplot(), run))
        figures.append(
            _figure(
                picture, "The rule's gradient as an estimate of backpropagation's, relative to that gradient."
            )
        )
    if costs:
        picture = svg("cost", (5.0, 2.9), lambda figure: draw_costs(figure.add_subplot(), costs))
        figures.append(
            _figure(
                picture,
                "Multiply-adds of one record's step, and words of errors and changing weights that its units must "
                "receive. A projection is counted as a matrix product, whatever device computes it.",
            )
        )
    return f'<h2>How the rule teaches</h2><div class="plots">{"".join(figures)}</div>'


def draw_alignment(axes: Axes, run: Run) -> None:
    """One line a hidden output, with its spread."""
    layers = _layers(run)
    for index, (name, (steps, means, spreads)) in enumerate(layers.items()):
        colour = COLOURS[SERIES[index % len(SERIES)]]
        axes.plot(steps, means, color=colour, label=name, marker="o" if steps.size == 1 else "")
        axes.fill_between(steps, means - spreads, means + spreads, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.set_title("Alignment with backpropagation (cosine)")
    axes.set_xlabel("step")
    if len(layers) <= _LABELLED:
        axes.legend(loc="best", handlelength=1.3)


def draw_angles(axes: Axes, run: Run) -> None:
    """One line a feedback point."""
    for index, (name, (steps, degrees)) in enumerate(_angles(run).items()):
        axes.plot(
            *(steps, degrees),
            color=COLOURS[SERIES[index % len(SERIES)]],
            label=name,
            marker="o" if steps.size == 1 else "",
        )
    axes.axhline(90, color=COLOURS["muted"], linewidth=0.8)
    axes.set_title("Angle of feedback and forward weights (degrees)")
    axes.set_xlabel("step")
    axes.legend(loc="best", handlelength=1.3)


def draw_estimator(axes: Axes, run: Run) -> None:
    """Relative bias and total variance."""
    for name, label, colour in (
        ("estimator_bias", "bias", "accent"),
        ("estimator_variance", "variance", "second"),
    ):
        steps, values = run.series(name)
        if steps.size:
            axes.plot(
                steps, values, color=COLOURS[colour], label=label, marker="o" if steps.size == 1 else ""
            )
    axes.set_ylim(bottom=0)
    axes.set_title("Gradient estimate: relative bias and variance")
    axes.set_xlabel("step")
    axes.legend(loc="best", handlelength=1.3)


def draw_costs(axes: Axes, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Bars of the rule beside those of backpropagation, on a logarithmic axis."""
    places = np.arange(len(_COSTS))
    for offset, (who, colour) in enumerate((("bp", "bars"), ("rule", "accent"))):
        values = [max(costs[who][key], 0.5) for key in _COSTS]  # a zero is below the axis
        label = "backpropagation" if who == "bp" else "this rule"
        axes.bar(places + 0.38 * offset - 0.19, values, width=0.36, color=COLOURS[colour], label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1, top=12 * max(max(counts.values()) for counts in costs.values()))
    axes.set_xticks(places, list(_COSTS.values()))
    axes.set_title("Cost of one record's step")
    axes.legend(loc="best", handlelength=1.3)


def _layers(run: Run) -> dict[str, tuple[FloatArray, FloatArray, FloatArray]]:
    """Steps, mean cosines and spreads of each hidden output, where there are numbers."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in run.metrics:
        step, points = number(row.get("step")), row.get("alignment")
        if step is None or not isinstance(points, dict):
            continue
        for name, values in points.items():
            if not isinstance(values, list) or len(values) < 2:
                continue
            mean, spread = number(values[0]), number(values[1])
            if mean is not None and spread is not None:
                found.setdefault(str(name), []).append((step, mean, spread))
    columns = {name: np.array(rows, dtype=np.float64).T for name, rows in found.items()}
    return {name: (c[0], c[1], c[2]) for name, c in columns.items()}


def _angles(run: Run) -> dict[str, tuple[FloatArray, FloatArray]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in run.metrics:
        step, points = number(row.get("step")), row.get("feedback_angles")
        if step is None or not isinstance(points, dict):
            continue
        for name, value in points.items():
            if (degrees := number(value)) is not None:
                found.setdefault(str(name), []).append((step, degrees))
    columns = {name: np.array(rows, dtype=np.float64).T for name, rows in found.items()}
    return {name: (c[0], c[1]) for name, c in columns.items()}


def _costs(run: Run) -> dict[str, dict[str, float]]:
    """The rule's and backpropagation's counts; empty where they are not all there."""
    given: Any = run.summary.get("cost_per_record")
    if not isinstance(given, dict):
        return {}
    found: dict[str, dict[str, float]] = {}
    for who in ("rule", "bp"):
        counts = given.get(who)
        if not isinstance(counts, dict):
            return {}
        values = {key: number(counts.get(key)) for key in _COSTS}
        found[who] = {key: value for key, value in values.items() if value is not None}
        if found[who].keys() != _COSTS.keys():
            return {}
    return found


def _figure(picture: str, caption: str) -> str:
    return f'<figure class="card">{picture}<figcaption>{escape(caption)}</figcaption></figure>'
