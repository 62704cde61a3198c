"""An experiment: the settings in a folder's `config.toml`, one finished run a line in its `results.jsonl`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.harness.lines import finished, keep
from noise_models.errors import UsageError
from optical_dfa.config import TrainConfig, merge
from optical_dfa.data import DATASETS, names, registered

CONFIG, RESULTS, TABLE = "config.toml", "results.jsonl", "table.md"
QUICK_EPOCHS = 2
Figure = Literal["test_accuracy", "test_auc", "test_loss", "epsilon", "device_share", "seconds"]
Shown = Literal["test_accuracy", "test_auc", "test_loss"]
SHOWN: tuple[Shown, ...] = get_args(Shown)


class Row(BaseModel):
    """One row of the table, for every data set and seed.

    Attributes:
        name: what the table calls it.
        settings: of `TrainConfig`, over the experiment's common ones.
        published: the same figure elsewhere, with its source; [R] marks one that was quoted from memory. Its setting
            is never exactly this one.
        source: an earlier row, from whose run on the same data and seed the convolutions are taken (`transfer`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: dict[str, Any]
    published: str = ""
    source: str | None = None


class Target(BaseModel):
    """What the table is expected to show. Exactly one of the limits is set.

    Attributes:
        dataset, rows: what is judged; every row by itself for `at_least` and `at_most`, the last against the first
            for `below_by`.
        figure: accuracy, area under the ROC curve, loss and seconds are judged by their means over the seeds, epsilon
            and the device's share of the noise variance by the worst seed.
        at_least, at_most: limit of the figure.
        within: largest difference between any two rows.
        below_by: least distance below the first row, which must also have a disjoint 95 % interval.
        above: most that the last row may lie above the first, as a share of the first: 0.05 is 5 %.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    rows: tuple[str, ...]
    figure: Figure = "test_accuracy"
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None
    below_by: float | None = None
    above: float | None = None


class Quick(BaseModel):
    """What `quick` runs instead: data that need no file, and a batch that fits them.

    Attributes:
        dataset: a name, or a file in the experiment's folder.
        batch_size: of every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = "digits"
    batch_size: int = 128


class Experiment(BaseModel):
    """The settings of one experiment.

    Attributes:
        command: the line that produces the table.
        datasets: names, or paths of .npz files that the package's `prepare()` makes.
        seeds: of weights, feedback and device; never of privacy noise, which is secret in every run.
        figures: what the table gives of a row beside the seconds.
        spread: what follows the mean of a figure: the standard deviation over the seeds, or the half width of
            Student's 95 % interval of the mean.
        common: settings of every run.
        note: a paragraph under the table.
        quick_run: what `quick` changes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    figures: tuple[Shown, ...] = ("test_accuracy",)
    spread: Literal["std", "interval"]
    common: dict[str, Any]
    row: tuple[Row, ...]
    target: tuple[Target, ...]
    note: str = ""
    quick_run: Quick = Quick()

    def config(self, dataset: str, row: Row, seed: int, data_dir: Path | None = None) -> TrainConfig:
        """The configuration of one run; its `transfer` is relative to the folder of the results.

        Raises:
            UsageError: a setting that does not exist or has a value that is not allowed.
        """
        flags: dict[str, Any] = {"dataset": dataset, "seed": seed, "data_dir": data_dir}
        if row.source is not None:
            flags["transfer"] = kept_run(dataset, row.source, seed)
        return merge({**self.common, **row.settings}, flags)

    def quick(self) -> Experiment:
        """The same rows for one seed on data that need no file, a few steps each: whether they run, no more.

        Those are `quick_run`'s, or a table that the experiment makes itself.
        """
        few = {"epochs": QUICK_EPOCHS, "batch_size": self.quick_run.batch_size}
        rows: list[Row] = []
        for row in self.row:
            short = Row(name=row.name, settings={**row.settings, **few}, source=row.source)
            if all((short.settings, short.source) != (other.settings, other.source) for other in rows):
                rows.append(short)  # rows that differ in their epochs alone are one
        own = tuple(name for name in self.datasets if name not in names())
        return self.model_copy(
            update={
                "datasets": own or (self.quick_run.dataset,),
                "seeds": self.seeds[:1],
                "row": tuple(rows),
                "target": (),
                "note": "",
            }
        )


def kept_run(dataset: str, row: str, seed: int) -> Path:
    """Where the run of a row that others start from is kept, relative to the folder of the results."""
    return Path("runs") / f"{dataset}-{row}-{seed}"


def load(folder: Path) -> Experiment:
    """The experiment in `folder`.

    Raises:
        UsageError: no valid `config.toml` there.
    """
    path = folder / CONFIG
    try:
        found = Experiment.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"experiment {path}: {reason}; correct that file") from None
    beside = folder / found.quick_run.dataset
    if not beside.is_file():
        return found
    return found.model_copy(update={"quick_run": found.quick_run.model_copy(update={"dataset": str(beside)})})


def identity(config: TrainConfig) -> dict[str, Any]:
    """What makes two runs the same run (JSON types): the settings and the shipped defaults behind them.

    Where the data lie is no part of it, nor what is only watched. A changed default makes a new run: its old results
    count no more.
    """
    given = config.model_dump(mode="json", exclude={"data_dir", "diagnose"}, exclude_none=True)
    same: dict[str, Any] = json.loads(
        json.dumps(
            {**given, "defaults": asdict(DATASETS[registered(config.dataset)].shipped(config.private))}
        )
    )
    return same


class Results:
    """The finished runs in a `results.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every finished run, as `append` wrote it; an absent file holds none."""
        return finished(self.path)

    def find(self, config: TrainConfig) -> dict[str, Any] | None:
        """The result of the run `config`, the last one if it was run again."""
        wanted = identity(config)
        return next((result for result in reversed(self.read()) if result["identity"] == wanted), None)

    def append(self, config: TrainConfig, summary: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """Keep one finished run."""
        guarantee = summary["guarantee"]
        shown: dict[str, float] = {name: summary[name] for name in SHOWN if summary.get(name) is not None}
        result = {
            "identity": identity(config),
            **shown,
            "kind": guarantee["kind"],
            "epsilon": guarantee["epsilon"],
            "delta": guarantee["delta"],
            "device_share": guarantee["device_share"],
            "noise_multiplier": summary["noise_multiplier"],
            "steps": summary["steps"],
            "seconds": summary["seconds"],
            "machine": dict(machine),
            "versions": summary["versions"],
        }
        keep(self.path, result)


def runs(
    experiment: Experiment, datasets: Sequence[str], seeds: Sequence[int], data_dir: Path | None
) -> list[tuple[Row, TrainConfig]]:
    """All runs of a part of the table, seed by seed, so that an interrupted table has whole rows."""
    return [
        (row, experiment.config(dataset, row, seed, data_dir))
        for seed in seeds
        for dataset in datasets
        for row in experiment.row
    ]
