"""What a comparison of training steps found: as JSON types, as a Markdown table, as a picture."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from noise_models.drafts import replacing
from noise_models.errors import UsageError
from optical_dfa.bench.contestants import CONTESTANTS
from optical_dfa.bench.networks import NETWORKS
from optical_dfa.report.plots import COLOURS, SERIES, drawing_style

RESULTS, TABLE, PICTURE = "results.json", "table.md", "picture.png"
UNITS = {"step": "ms", "memory": "MiB"}


def check(network: Sequence[str], batch: Sequence[int]) -> None:
    """
    Raises:
        UsageError: there is no such network, or a batch has no records.
    """
    for name in network:
        if name not in NETWORKS:
            raise UsageError(f"there is no network {name!r}; choose of: {', '.join(NETWORKS)}")
    for size in batch:
        if size < 1:
            raise UsageError(f"batch is {size}; it must be at least 1")


def cell(
    network: str, batch: int, measured: Mapping[str, Sequence[float]], cannot: Mapping[str, str]
) -> dict[str, Any]:
    """One network at one batch size.

    Args:
        network: its name.
        batch: records a step.
        measured: contestant -> what each of its rounds gave, from the first on.
        cannot: contestant -> why it cannot train this network here.
    Returns:
        `median` of each contestant; `private_over` each other, the median of the ratios within the rounds of both;
        `rounds`; `cannot`.
    """
    own = measured.get("private", ())
    return {
        "network": network,
        "batch_size": batch,
        "median": {name: round(statistics.median(values), 3) for name, values in measured.items()},
        "private_over": {
            name: round(statistics.median(p / q for p, q in zip(own, values, strict=False)), 3)
            for name, values in measured.items()
            if own and name != "private"
        },
        "rounds": {name: len(values) for name, values in measured.items()},
        "cannot": dict(cannot),
    }


def document(what: str, cells: Iterable[Mapping[str, Any]], busy: int = 0) -> dict[str, Any]:
    """The cells, and what their figures depend on."""
    return {
        "what": what,
        "unit": UNITS[what],
        "busy": busy,
        "cells": list(cells),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "opacus": version("opacus"),
        "machine": platform.processor() or platform.machine(),
    }


def table(found: Mapping[str, Any], command: str) -> str:
    """The Markdown table of a document, with what its figures mean."""
    head = ("Network", "Batch", *CONTESTANTS.values())
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for each in found["cells"]:
        cells = (
            each["network"],
            str(each["batch_size"]),
            *(shown(found, each, name) for name in CONTESTANTS),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", meaning(found), "", *refusals(found), f"Made by `{command}`.", ""])


def shown(found: Mapping[str, Any], cell: Mapping[str, Any], name: str) -> str:
    """A contestant's figure, and how many times as much private training takes."""
    if name in cell["cannot"]:
        return "cannot"
    if name not in cell["median"]:
        return "–"
    text = f"{_rounded(cell['median'][name])} {found['unit']}"
    over = cell["private_over"].get(name)
    return text if over is None else f"{text}, × {over:.2f}"


def meaning(found: Mapping[str, Any]) -> str:
    """What the figures of a document's table are, in a paragraph."""
    rounds = [count for each in found["cells"] for count in each["rounds"].values()]
    counted = "–".join(str(count) for count in sorted({min(rounds, default=0), max(rounds, default=0)}))
    beside = f", beside {found['busy']} busy processes" if found["busy"] else ""
    networks = dict.fromkeys(each["network"] for each in found["cells"])
    own = [name for name in networks if NETWORKS[name].ghost is not None]
    sentences = [
        {
            "step": f"A training step: medians over {counted} rounds in which the contestants take turns{beside}.",
            "memory": "Peak resident set of training steps above what stood before them: medians over "
            f"{counted} fresh processes each.",
        }[found["what"]],
        "× is how many times as much private training takes, the median of the rounds' ratios.",
        "Each is its library's ordinary loop with SGD, Opacus' loader not counted; private is the digital release with "
        f"secure noise and Poisson sampling, by rule {_rules(networks)}.",
        *(f"{name}: {NETWORKS[name].what}." for name in networks),
        *([f"Opacus ghost has Opacus' own layers in {', '.join(own)}."] if own else []),
        f"{found['threads']} threads on {found['machine']}, PyTorch {found['torch']}, Opacus {found['opacus']}.",
    ]
    return " ".join(sentences)


def refusals(found: Mapping[str, Any]) -> list[str]:
    """Paragraphs that say why a contestant cannot train a network."""
    lines = []
    for each in found["cells"]:
        for name, why in each["cannot"].items():
            lines += [
                f"{CONTESTANTS[name]} cannot train {each['network']} at {each['batch_size']}: {why}.",
                "",
            ]
    return lines


def draw(found: Mapping[str, Any], path: Path) -> None:
    """One PNG: what each contestant takes of a network and batch, with plain backpropagation as 1.

    Args:
        found: a document.
        path: to write; its folder must exist.
    """
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        cells = [each for each in found["cells"] if "backprop" in each["private_over"]]
        others = [name for name in CONTESTANTS if name != "backprop"]
        figure = Figure(figsize=(9.0, 3.2), dpi=150, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots()
        width = 0.8 / len(others)
        for index, name in enumerate(others):
            bars = [
                (place + width * (index - 1), each["private_over"]["backprop"] / taken)
                for place, each in enumerate(cells)
                if (taken := {"private": 1.0, **each["private_over"]}.get(name)) is not None
            ]
            axes.bar(
                [place for place, _ in bars],
                [height for _, height in bars],
                width,
                color=COLOURS[SERIES[index]],
                label=CONTESTANTS[name],
            )
        axes.axhline(1, color=COLOURS["muted"], linewidth=1.1, linestyle="--")
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(len(cells)), [f"{each['network']}\n{each['batch_size']}" for each in cells])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        of = {"step": "Time of a training step", "memory": "Peak memory of a training step"}[found["what"]]
        axes.set_title(f"{of}, plain backpropagation = 1")
        axes.legend(ncols=len(others), loc="upper left")
        axes.margins(y=0.2)
        figure.savefig(path, format="png")


def keep(found: Mapping[str, Any], folder: Path, command: str) -> None:
    """Write the document, its table and its picture into `folder`, which must exist."""
    with replacing(folder / RESULTS) as draft:
        draft.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    with replacing(folder / TABLE) as draft:
        draft.write_text(table(found, command), encoding="utf-8")
    with replacing(folder / PICTURE) as draft:
        draw(found, draft)


def _rules(networks: Iterable[str]) -> str:
    by_rule: dict[str, list[str]] = {}
    for name in networks:
        by_rule.setdefault(NETWORKS[name].rule, []).append(name)
    if len(by_rule) == 1:
        return next(iter(by_rule))
    return ", ".join(f"{rule} ({', '.join(names)})" for rule, names in by_rule.items())


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
