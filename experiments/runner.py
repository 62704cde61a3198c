"""Runs an experiment's configurations, keeps every finished run, and writes the table.

Interrupted at any point, the same command goes on: a finished run is never done again, an unfinished one starts
afresh, since nothing of it was kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.experiment import RESULTS, TABLE, Experiment, Results, kept_run, load, runs
from experiments.table import write_table
from noise_models.errors import DeviceError, UsageError
from optical_dfa.config import TrainConfig
from optical_dfa.report.progress import Progress, progress_for
from optical_dfa.training.run_folder import SUMMARY
from optical_dfa.training.trainer import train


def main(folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the experiment in `folder` on a command line's `arguments`.

    Returns:
        0; 1 if a target was missed or a device failed; 2 for a usage mistake; 130 if interrupted.
    """
    try:
        experiment = load(folder)
        given = _parser(folder, experiment).parse_args(arguments)
        if not given.table_only:
            run(experiment, folder, given.data_dir, given.datasets, given.seeds)
        met = write_table(folder, experiment)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    except (UsageError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print((folder / TABLE).read_text(encoding="utf-8"), end="")
    return 1 if False in met else 0


def run(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> None:
    """Do the runs that have no result in `folder` yet, and write the table there after each.

    Args:
        experiment: which runs; `datasets` and `seeds` choose among them.
        folder: of results.jsonl and table.md.
        data_dir: folder with the data sets' files.
    """
    results = Results(folder / RESULTS)
    wanted = runs(experiment, datasets or experiment.datasets, seeds or experiment.seeds, data_dir)
    sources = {config.transfer for _, config in wanted if results.find(config) is None}
    for number, (row, config) in enumerate(wanted, start=1):
        kept = kept_run(config.dataset, row.name, config.seed)
        lacking = kept in sources and not (folder / kept / SUMMARY).is_file()
        if results.find(config) is not None and not lacking:
            continue
        print(
            f"[{number}/{len(wanted)}] {config.dataset}, {row.name}, seed {config.seed}",
            file=sys.stderr,
            flush=True,
        )
        progress = progress_for(sys.stderr)
        try:
            summary = _trained(config, folder, folder / kept if kept in sources else None, progress)
        finally:
            progress.finish()
        results.append(config, summary, _machine())
        write_table(folder, experiment)


def _trained(config: TrainConfig, folder: Path, kept: Path | None, progress: Progress) -> dict[str, Any]:
    """The summary of a run, which stays in the folder `kept` where others start from it."""
    if config.transfer is not None:
        config = config.model_copy(update={"transfer": folder / config.transfer})
    if kept is None:
        return train(config, progress=progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    return train(config, kept, overwrite=True, progress=progress)


def _machine() -> dict[str, str | int]:
    """What the seconds depend on."""
    return {
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count() or 0,
        "processor": platform.machine(),
    }


def _parser(folder: Path, experiment: Experiment) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{folder.name}",
        description="Run the experiment, or go on with it; write results.jsonl and table.md into its folder.",
        epilog=f"Example: {experiment.command}",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the data sets' files")
    parser.add_argument(
        "--datasets", nargs="+", choices=experiment.datasets, default=experiment.datasets, help="only these"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=experiment.seeds, default=experiment.seeds, help="only these"
    )
    parser.add_argument("--table-only", action="store_true", help="rebuild table.md from results.jsonl")
    return parser
