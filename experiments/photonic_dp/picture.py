"""The picture of the study: what rising noise costs, what is claimed for it and shown of it, and what is true."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.photonic_dp.plan import EPSILON, Found, Plan, key, step_claim, trained
from experiments.photonic_dp.training import DELTA
from optical_dfa.report.plots import COLOURS, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour says what a figure is worth: none asked for, claimed for noise inside the projection, true.
_PLAIN = {
    "BP": ("ink", "-"),
    "DFA": ("muted", "-"),
    "photonic DFA": ("muted", "--"),
    "hidden layers frozen": ("muted", ":"),
}
_CLAIMED, _TRUE, _SHOWN = "second", "accent", "ink"
_LEAST_BAR = 50.0  # that holds its own name, in percent
_TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}


def draw_study(plan: Plan, found: Found, path: Path) -> None:
    """One PNG of four panes: accuracy and alignment by epoch, one step's epsilon by noise, accuracy at EPSILON.

    Args:
        plan: of which the attacked data set is drawn; other ones are dots in the last pane.
        found: every part of the plan.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.0, 7.8), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panes: Any = figure.subplots(2, 2)
        _draw_epochs(panes[0, 0], panes[0, 1], plan, found)
        handles, labels = panes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1.8)
        _draw_claims(panes[1, 0], plan, found)
        _draw_releases(panes[1, 1], plan, found)
        figure.savefig(path, format="png")


def _title(dataset: str) -> str:
    return _TITLES.get(dataset, dataset)


def _mean(results: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [statistics.fmean(values) for values in zip(*(r[name] for r in results), strict=True)]


def _shade(index: int, count: int) -> tuple[float, ...]:
    """Of the claimed colour: deep for little noise, pale for much."""
    from matplotlib.colors import to_rgb

    pale = 0.62 * index / max(1, count - 1)
    return tuple(c + (1 - c) * pale for c in to_rgb(COLOURS[_CLAIMED]))


def _draw_epochs(accuracy: Axes, cosine: Axes, plan: Plan, found: Found) -> None:
    dataset = plan.attacked
    epochs = range(1, plan.epochs + 1)
    rows: list[tuple[str, str, Any, str]] = [
        (name, name, COLOURS[colour], style) for name, (colour, style) in _PLAIN.items()
    ]
    noised = [
        name for name, t in plan.trainings(dataset, plan.seeds[0]).items() if t.noise_multiplier is not None
    ]
    for index, name in enumerate(noised):
        noise = trained(plan, found, dataset, name)[0]["noise_std"]
        rows.append((name, f"with noise σ = {noise:.2g}", _shade(index, len(noised)), "-"))
    for name, label, colour, style in rows:
        results = trained(plan, found, dataset, name)
        drawn: dict[str, Any] = {"color": colour, "linestyle": style, "label": label}
        accuracy.plot(epochs, [100 * value for value in _mean(results, "test_accuracy")], **drawn)
        if name not in ("BP", "hidden layers frozen"):  # 1 and 0 by definition
            cosine.plot(epochs, _mean(results, "alignment"), **drawn)
    accuracy.set_title(f"Test accuracy, {_title(dataset)} (%)")
    cosine.set_title("Second layer's update against backpropagation's (cosine)")
    cosine.set_ylim(bottom=min(0.0, cosine.get_ylim()[0]))
    for axes in (accuracy, cosine):
        axes.set_xlabel("epoch")
        axes.set_xlim(1, plan.epochs)


def _draw_claims(axes: Axes, plan: Plan, found: Found) -> None:
    attacks = plan.attacks()
    firsts = [trained(plan, found, plan.attacked, f"photonic DFA, z = {z:g}")[0] for z in attacks]
    noises = [result["noise_std"] for result in firsts]
    run = [result["epsilon"] for result in firsts]
    step = [step_claim(z) for z in attacks]
    shown = [found[key("attack", setting)]["epsilon_lower"] for setting in attacks.values()]
    mark: dict[str, Any] = {"marker": "o", "markersize": 4}
    axes.plot(noises, run, color=_shade(3, 5), linestyle="--", label="published ε, whole run", **mark)
    axes.plot(noises, step, color=COLOURS[_CLAIMED], label="published ε, one step", **mark)
    axes.plot(
        noises, shown, color=COLOURS[_SHOWN], marker="^", markersize=6, label="shown of one step: at least"
    )
    # On a fine grid, so that the shade ends where the lines cross.
    from numpy import exp, interp, linspace, log

    fine = linspace(log(noises[0]), log(noises[-1]), 400)
    above, below = (exp(interp(fine, log(noises), log(values))) for values in (shown, step))
    axes.fill_between(
        exp(fine), below, above, where=above > below, color=COLOURS[_CLAIMED], alpha=0.16, linewidth=0
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(noises, [f"{noise:.2g}" for noise in noises])
    axes.minorticks_off()
    ticks = [t for t in (0.3, 1, 3, 10, 30, 100, 1e3, 1e4, 1e5) if 0.7 * min(run) < t < 1.6 * max(run)]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlabel(
        "noise σ on an entry of a record's projected error\n"
        f"δ = {DELTA:g}, adding or removing a record; published: conditional"
    )
    axes.set_title("The noise inside the projection: ε claimed, and ε shown by attack")
    if (above > below).any():
        axes.annotate(
            "claim refuted",
            (noises[-1], shown[-1]),
            xytext=(-6, -8),
            textcoords="offset points",
            color=COLOURS[_CLAIMED],
            ha="right",
            va="top",
            fontweight="bold",
        )
    axes.legend(loc="upper right", handlelength=1.8)


def _draw_releases(axes: Axes, plan: Plan, found: Found) -> None:
    bars: list[tuple[str, dict[str, float], str, str]] = []
    for name in ("BP", "DFA"):
        accuracies = {
            dataset: 100 * _mean(trained(plan, found, dataset, name), "test_accuracy")[-1]
            for dataset in plan.datasets
        }
        bars.append((f"{name}, not private", accuracies, "rule", ""))
    for name in plan.releases:
        results = {dataset: found[key("release", plan.release(dataset, name))] for dataset in plan.datasets}
        false = next(iter(results.values()))["kind"] == "conditional"
        accuracies = {dataset: 100 * r["test_accuracy"] for dataset, r in results.items()}
        bars.append((name, accuracies, _CLAIMED if false else _TRUE, "////" if false else ""))
    for place, (name, accuracies, colour, hatch) in enumerate(reversed(bars)):
        first, *others = (
            accuracies[d] for d in (plan.attacked, *(d for d in plan.datasets if d != plan.attacked))
        )
        axes.barh(
            place,
            first,
            0.66,
            color="white" if hatch else COLOURS[colour],
            edgecolor=COLOURS[colour],
            hatch=hatch,
        )
        inside = first > _LEAST_BAR
        said: dict[str, Any] = {
            "va": "center",
            "color": "white" if inside and colour == _TRUE else COLOURS["ink"],
            "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if hatch else None,
        }
        value = f"{first:.1f}"
        if inside:
            axes.text(1.5, place, name, fontsize=8.8, **said)
            axes.text(first - 1.5, place, value, ha="right", fontweight="bold", **said)
        else:
            axes.annotate(
                value, (first, place), (6, 0), textcoords="offset points", fontweight="bold", **said
            )
            axes.annotate(name, (first, place), (36, 0), textcoords="offset points", fontsize=8.8, **said)
        for other in others:
            shade = "white" if other < first else COLOURS["ink"]
            axes.plot([other], [place], marker="D", markersize=4.5, color=shade, linestyle="")
    axes.set_yticks([])
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_title(f"Test accuracy where ε = {EPSILON:g} is claimed (%)")
    rest = " and ".join(_title(d) for d in plan.datasets if d != plan.attacked)
    sets = _title(plan.attacked) + (f"; diamonds: {rest}" if rest else "")
    axes.set_xlabel(f"{sets}\nδ = {DELTA:g}, adding or removing a record (labels alone: changing a label)")
