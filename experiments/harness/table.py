"""The produced table of an experiment: its rows, and whether each target was met. Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from experiments.harness.experiment import RESULTS, TABLE, Experiment, Figure, Results, Target
from noise_models.drafts import replacing
from optical_dfa.data import names
from privacy.guarantee import Kind, rounded_up

ABSENT = "not measured"
WORST_CASE = (Kind.RECORD_DP, Kind.LABEL_DP)


@dataclass(frozen=True)
class Cell:
    """The finished runs of one row on one data set, one result a seed; `wanted` seeds make it whole."""

    results: Sequence[dict[str, Any]]
    wanted: int

    def figures(self, name: Figure) -> list[float]:
        """The figure of every finished run; a run without a worst-case guarantee has an infinite epsilon."""
        if name == "epsilon":
            return [float(r["epsilon"]) if r["kind"] in WORST_CASE else math.inf for r in self.results]
        if name == "test_loss":  # none where it was not finite
            return [math.inf if r.get(name) is None else float(r[name]) for r in self.results]
        return [float(r.get(name) or 0.0) for r in self.results]

    def judged(self, name: Figure) -> float:
        """The one number that a target is about: a mean, or the worst seed of a guarantee."""
        values = self.figures(name)
        if name == "epsilon":
            return max(values)
        return min(values) if name == "device_share" else statistics.fmean(values)

    @property
    def whole(self) -> bool:
        return len(self.results) == self.wanted

    def half_width(self, name: Figure) -> float:
        """Half of Student's 95 % interval of a figure's mean; infinite for one seed."""
        from scipy.stats import t

        values = self.figures(name)
        if len(values) < 2:
            return math.inf
        spread = statistics.stdev(values) / math.sqrt(len(values))
        return float(t.ppf(0.975, len(values) - 1)) * spread


def cells_of(folder: Path, experiment: Experiment) -> dict[tuple[str, str], Cell]:
    """(data set, row's name) -> the finished runs in `folder`."""
    results = Results(folder / RESULTS)
    cells: dict[tuple[str, str], Cell] = {}
    for dataset in experiment.datasets:
        for row in experiment.row:
            found = [results.find(experiment.config(dataset, row, seed)) for seed in experiment.seeds]
            cells[dataset, row.name] = Cell([r for r in found if r is not None], len(experiment.seeds))
    return cells


def document(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """The table as JSON types: every row's figures, and whether each target was met (None: not measured)."""
    cells = cells_of(folder, experiment)
    published = {row.name: row.published or None for row in experiment.row}
    rows = [
        {
            "dataset": dataset,
            "run": name,
            **{name: cell.figures(name) for name in experiment.figures},
            "seconds": cell.figures("seconds"),
            "seeds": len(cell.results),
            "seeds_wanted": cell.wanted,
            "published": published[name],
        }
        for (dataset, name), cell in cells.items()
    ]
    judged = [_judge(target, cells) for target in experiment.target]
    targets = [{"target": text, "measured": measured, "met": met} for text, measured, met in judged]
    return {"rows": rows, "targets": targets}


def write_table(folder: Path, experiment: Experiment) -> list[bool | None]:
    """Write `table.md` from `results.jsonl`, and say of every target whether it was met (None: not measured)."""
    cells = cells_of(folder, experiment)
    judged = [_judge(target, cells) for target in experiment.target]
    private = any(experiment.config(experiment.datasets[0], row, 0).private for row in experiment.row)
    spread = "standard deviation" if experiment.spread == "std" else "half width of the 95 % t-interval"
    targets = ["| Target | Measured | Met |", "|---|---|---|"]
    targets += [f"| {text} | {measured} | {_MET[met]} |" for text, measured, met in judged]
    lines = [
        *_rows(experiment, cells, private),
        "",
        f"{_measured(experiment)} the mean over {len(experiment.seeds)} seeds ± {spread}.{_circumstances(cells)}",
        "",
        *([experiment.note, ""] if experiment.note else []),
        *([*targets, ""] if judged else []),
        f"Made by `{experiment.command}`.",
    ]
    with replacing(folder / TABLE) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [met for _, _, met in judged]


_HEADS = {
    "test_accuracy": "Test accuracy",
    "test_auc": "Test AUC",
    "test_loss": "Test loss",
}
_MET = {True: "yes", False: "**no**", None: "–"}


def _rows(experiment: Experiment, cells: dict[tuple[str, str], Cell], private: bool) -> list[str]:
    head = ["Data set", "Run", *(_HEADS[name] for name in experiment.figures)]
    head += ["ε", "Noise variance from the device"] if private else []
    shown = any(row.published for row in experiment.row)
    head += ["Seconds", *(["Published"] if shown else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for dataset in experiment.datasets:
        for row in experiment.row:
            cell = cells[dataset, row.name]
            figures = [_figure(cell, experiment, name) for name in experiment.figures]
            figures += [_epsilon(cell), _share(cell)] if private else []
            figures += [f"{cell.judged('seconds'):.0f}" if cell.results else ABSENT]
            figures += [row.published or "–"] if shown else []
            lines.append(f"| {' | '.join([_title(dataset), row.name, *figures])} |")
    return lines


def _title(dataset: str) -> str:
    """A data set's name; of a file, its own."""
    return dataset if dataset in names() else Path(dataset).stem


def _measured(experiment: Experiment) -> str:
    names = [_HEADS[name] for name in experiment.figures]
    first = " and ".join([names[0], *(name[0].lower() + name[1:] for name in names[1:])])
    return f"{first} is" if len(names) == 1 else f"{first} are each"


def _figure(cell: Cell, experiment: Experiment, name: Figure) -> str:
    values = cell.figures(name)
    if not values:
        return ABSENT
    text = _shown(name, statistics.fmean(values))
    if len(values) > 1:
        apart = statistics.stdev(values) if experiment.spread == "std" else cell.half_width(name)
        text += f" ± {_shown(name, apart).removesuffix(' %')}"
    return text if cell.whole else f"{text} ({len(values)} of {cell.wanted} seeds)"


def _epsilon(cell: Cell) -> str:
    if not cell.results:
        return ABSENT
    epsilon = cell.judged("epsilon")
    return "no guarantee" if math.isinf(epsilon) else rounded_up(epsilon)


def _share(cell: Cell) -> str:
    return f"{100 * cell.judged('device_share'):.1f} %" if cell.results else ABSENT


def _circumstances(cells: dict[tuple[str, str], Cell]) -> str:
    """δ, and the versions and machines of the runs in the table."""
    results = [result for cell in cells.values() for result in cell.results]
    deltas = sorted({float(r["delta"]) for r in results if r["kind"] in WORST_CASE})
    text = f" δ = {', '.join(f'{delta:g}' for delta in deltas)}." if deltas else ""
    machines = sorted({f"{r['machine']['threads']} threads on {r['machine']['processor']}" for r in results})
    versions = sorted({r["versions"]["torch"] for r in results})
    if results:
        text += f" Seconds: mean of whole runs, {'; '.join(machines)}, PyTorch {', '.join(versions)}."
    return text


def _judge(target: Target, cells: dict[tuple[str, str], Cell]) -> tuple[str, str, bool | None]:
    """(the target in words, what was measured, whether it was met or None)."""
    found = [cells[target.dataset, name] for name in target.rows]
    text = f"{_title(target.dataset)}: {_wanted(target)}"
    figure = target.figure
    if not all(cell.whole for cell in found):
        return text, ABSENT, None
    values = [cell.judged(figure) for cell in found]
    if target.within is not None:
        apart = max((abs(a - b) for a, b in combinations(values, 2)), default=0.0)
        return text, _difference(figure, apart), apart <= target.within
    if target.below_by is not None:
        below = values[0] - values[-1]
        disjoint = below > found[0].half_width(figure) + found[-1].half_width(figure)
        measured = f"{_difference(figure, below)}, intervals {'disjoint' if disjoint else 'overlap'}"
        return text, measured, below >= target.below_by and disjoint
    if target.above is not None:
        above = values[-1] / values[0] - 1
        return text, f"{100 * above:+.2f} %", above <= target.above
    worst = min(values) if target.at_least is not None else max(values)
    low = -math.inf if target.at_least is None else target.at_least
    high = math.inf if target.at_most is None else target.at_most
    return text, _shown(figure, worst), low <= worst <= high


_FIGURES = {
    "test_accuracy": "mean test accuracy",
    "test_auc": "mean test AUC",
    "test_loss": "mean test loss",
    "epsilon": "ε",
    "device_share": "share of the noise variance from the device",
    "seconds": "seconds a run",
}


def _wanted(target: Target) -> str:
    of = {"test_auc": "AUC", "test_loss": "loss"}.get(target.figure, "accuracy")
    if target.within is not None:
        return (
            f"{'; '.join(target.rows)}: {of} within {_difference(target.figure, target.within)} of each other"
        )
    if target.below_by is not None:
        first, last = target.rows[0], target.rows[-1]
        least = _difference(target.figure, target.below_by)
        return f"{last} at least {least} below {first} in {of}, 95 % intervals disjoint"
    name, rows = _FIGURES[target.figure], "; ".join(target.rows)
    if target.above is not None:
        return f"{target.rows[-1]}: {name} at most {100 * target.above:g} % above that of {target.rows[0]}"
    if target.at_least is not None:
        return f"{rows}: {name} at least {_shown(target.figure, target.at_least)}"
    return f"{rows}: {name} at most {_shown(target.figure, target.at_most or 0.0)}"


def _shown(figure: Figure, value: float) -> str:
    if figure in ("test_accuracy", "device_share"):
        return f"{100 * value:.2f} %"
    if figure == "test_auc":
        return f"{value:.4f}"
    if figure == "test_loss":
        return f"{value:.3f}"
    if figure == "seconds":
        return f"{value:.0f}"
    return "no guarantee" if math.isinf(value) else rounded_up(value)


def _difference(figure: Figure, value: float) -> str:
    return f"{100 * value:.2f} points" if figure == "test_accuracy" else _shown(figure, value)
