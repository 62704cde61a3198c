"""Runs an experiment's configurations, keeps every finished run, and writes the table.

Interrupted at any point, the same command goes on: a finished run is never done again, an unfinished one starts
afresh, since nothing of it was kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE, Experiment, Results, kept_run, load, runs
from experiments.harness.table import write_table
from optical_dfa.config import TrainConfig
from optical_dfa.progress import Progress, SilentProgress, progress_for
from optical_dfa.runs.folder import SUMMARY
from optical_dfa.training.trainer import train


def main(
    folder: Path, arguments: Sequence[str] | None = None, prepare: Callable[[], None] | None = None
) -> int:
    """Run the experiment in `folder` on a command line's `arguments`.

    Args:
        prepare: makes what it needs besides its runs.
    Returns:
        0; 1 if a target was missed or a device failed; 2 for a usage mistake; 130 if interrupted.
    """

    def work() -> int:
        experiment = load(folder)
        given = _parser(folder, experiment).parse_args(arguments)
        if prepare is not None:
            prepare()
        if not given.table_only:
            run(experiment, folder, given.data_dir, given.datasets, given.seeds, given.jobs)
        met = write_table(folder, experiment)
        print((folder / TABLE).read_text(encoding="utf-8"), end="")
        return 1 if False in met else 0

    return exit_code(work)


class _Run(NamedTuple):
    """One run to do: which of the table it is, and the folder in which it stays where others start from it."""

    title: str
    config: TrainConfig
    kept: Path | None


def run(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
) -> None:
    """Do the runs that have no result in `folder` yet, and write the table there after each.

    Args:
        experiment: which runs; `datasets` and `seeds` choose among them.
        folder: of results.jsonl and table.md.
        data_dir: folder with the data sets' files.
        jobs: runs side by side, which share the processor's threads.
    """
    results = Results(folder / RESULTS)
    wanted = runs(experiment, datasets or experiment.datasets, seeds or experiment.seeds, data_dir)
    sources = {config.transfer for _, config in wanted if results.find(config) is None}
    missing: list[_Run] = []
    for number, (row, config) in enumerate(wanted, start=1):
        kept = kept_run(config.dataset, row.name, config.seed)
        lacking = kept in sources and not (folder / kept / SUMMARY).is_file()
        if results.find(config) is None or lacking:
            title = f"[{number}/{len(wanted)}] {config.dataset}, {row.name}, seed {config.seed}"
            missing.append(_Run(title, config, folder / kept if kept in sources else None))
    for done, summary, threads in (
        _one_by_one(missing, folder) if jobs == 1 else _abreast(missing, folder, jobs)
    ):
        results.append(done.config, summary, _machine(threads))
        write_table(folder, experiment)


def _one_by_one(missing: Sequence[_Run], folder: Path) -> Iterator[tuple[_Run, dict[str, Any], int]]:
    for each in missing:
        print(each.title, file=sys.stderr, flush=True)
        progress = progress_for(sys.stderr)
        try:
            summary = _trained(each, folder, progress)
        finally:
            progress.finish()
        yield each, summary, torch.get_num_threads()


def _abreast(missing: Sequence[_Run], folder: Path, jobs: int) -> Iterator[tuple[_Run, dict[str, Any], int]]:
    """Runs in processes of their own, in the order in which they end; those that start from another's come last."""
    threads = max(1, torch.get_num_threads() // jobs)
    for later in (False, True):
        part = [each for each in missing if (each.config.transfer is not None) is later]
        with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (threads,)) as pool:
            started = {pool.submit(_trained, each, folder, SilentProgress()): each for each in part}
            try:
                for future in as_completed(started):
                    summary = future.result()
                    print(started[future].title, "done", file=sys.stderr, flush=True)
                    yield started[future], summary, threads
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _begin(threads: int) -> None:
    """A process of `_abreast`: its share of the threads; Ctrl-C is heard by the training in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _trained(each: _Run, folder: Path, progress: Progress) -> dict[str, Any]:
    config = each.config
    if config.transfer is not None:
        config = config.model_copy(update={"transfer": folder / config.transfer})
    if each.kept is None:
        return train(config, progress=progress)
    each.kept.parent.mkdir(parents=True, exist_ok=True)
    return train(config, each.kept, overwrite=True, progress=progress)


def _machine(threads: int) -> dict[str, str | int]:
    """What the seconds depend on."""
    return {
        "threads": threads,
        "processors": os.cpu_count() or 0,
        "processor": platform.machine(),
    }


def _parser(folder: Path, experiment: Experiment) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {folder.name}",
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
    parser.add_argument(
        "--jobs", type=int, choices=range(1, 65), default=1, metavar="N", help="runs side by side"
    )
    parser.add_argument("--table-only", action="store_true", help="rebuild table.md from results.jsonl")
    return parser
