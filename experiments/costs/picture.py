"""The picture of the counts: words, and multiply-adds relative to backpropagation's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.costs.networks import total
from optical_dfa.measure.costs import Cost
from optical_dfa.report.plots import COLOURS, SERIES, drawing_style

# BDFA and ternary stand where DFA does.
_DRAWN = {"BP": "BP", "DFA": "DFA, BDFA, ternary", "SSDFA, k = 1": "SSDFA, k = 1"}


def draw_costs(costs: Mapping[str, Mapping[str, Cost]], path: Path) -> None:
    """One PNG: bars by network and rule, words on a logarithmic axis, and a step's multiply-adds as shares of BP's.

    Args:
        costs: network -> rule -> its cost.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.0, 5.2), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panes: Any = figure.subplots(2, 1, sharex=True)
        width = 0.8 / len(_DRAWN)
        for index, (rule, label) in enumerate(_DRAWN.items()):
            places = [network + width * (index - 1) for network in range(len(costs))]
            words = [by_rule[rule].words for by_rule in costs.values()]
            shares = [total(by_rule[rule]) / total(by_rule["BP"]) for by_rule in costs.values()]
            for axes, values in zip(panes, (words, shares), strict=True):
                axes.bar(places, values, width, color=COLOURS[SERIES[index]], label=label)
                axes.grid(visible=False, axis="x")
        panes[0].set_yscale("log")
        panes[0].set_title("Words that hidden units must receive, a record")
        panes[0].legend(ncols=len(_DRAWN), loc="upper left")
        panes[0].margins(y=0.15)
        panes[1].set_title("Multiply-adds of a whole step, backpropagation = 1")
        panes[1].set_xticks(range(len(costs)), list(costs))
        figure.savefig(path, format="png")
