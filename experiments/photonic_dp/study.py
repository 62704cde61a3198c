"""`python -m experiments photonic_dp`: the study of the published photonic mechanism, with what its epsilon is worth.

One network learns by backpropagation, by direct feedback, and by direct feedback through light whose noise rises
(release `per-record`, a reconstruction of Ohana et al. 2021, arXiv 2106.03645, THEORY T1), then under the releases
whose epsilon is true. Beside every noise stand the published epsilon and the bound that the span attack certifies.
Finished parts are in results.jsonl and are not done again; table.md and, once all is there,
docs/images/photonic-dp.png are made of them. Exit code 1 where no published claim falls, or a true one passes EPSILON.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import keep
from experiments.photonic_dp.picture import draw_study
from experiments.photonic_dp.plan import (
    EPSILON,
    MOST_CLAIM,
    RELEASES,
    Found,
    Plan,
    key,
    read,
    step_claim,
    trained,
)
from experiments.photonic_dp.training import DELTA, LOOKED, MAX_GRAD_NORM, THRESHOLD, Training, measure
from optical_dfa.attacks import attack
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.span import WIDTH
from optical_dfa.config import merge
from optical_dfa.data import load
from optical_dfa.data.dataset import Dataset
from optical_dfa.progress import Progress, progress_for
from optical_dfa.training.trainer import train
from privacy.guarantee import rounded_up

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "photonic-dp.png"
COMMAND = "python -m experiments photonic_dp"
ABSENT = "not measured"


# ---- doing it


def run(
    plan: Plan,
    data_dir: Path | None,
    results: Path,
    datasets: Sequence[str],
    progress: Callable[[str], Progress],
) -> None:
    """Do what is not in `results` yet, one line a part.

    Args:
        datasets: of the plan's, those that are done now.
        progress: of a part with this name.
    Raises:
        UsageError: a data set is not there.
        DeviceError: a simulated device failed.
    """
    done = read(results)

    @cache
    def data(name: str) -> Dataset:
        return load(name, data_dir)

    for part, setting, do in _parts(plan, data_dir, data, datasets):
        if key(part, setting) in done:
            continue
        shown = progress(f"{part} {setting['dataset']}")
        try:
            found = do(shown)
        finally:
            shown.finish()
        keep(results, {"part": part, "setting": dict(setting), **found})


_Part = tuple[str, Mapping[str, Any], Callable[[Progress], dict[str, Any]]]


def _parts(
    plan: Plan, data_dir: Path | None, data: Callable[[str], Dataset], datasets: Sequence[str]
) -> Iterator[_Part]:
    """Everything, a whole seed of every training first."""
    for dataset in datasets:
        for number, seed in enumerate(plan.seeds):
            for training in plan.trainings(dataset, seed).values():
                yield "training", asdict(training), _training(training, data)
            if number == 0 and dataset == plan.attacked:
                for setting in plan.attacks().values():
                    yield "attack", setting, _attack(setting, data_dir)
            if number == 0:
                for name in plan.releases:
                    setting = plan.release(dataset, name)
                    yield "release", setting, _release(setting, data_dir)


def _training(setting: Training, data: Callable[[str], Dataset]) -> Callable[[Progress], dict[str, Any]]:
    return lambda progress: measure(setting, data(setting.dataset), progress)


def _attack(setting: Mapping[str, Any], data_dir: Path | None) -> Callable[[Progress], dict[str, Any]]:
    def do(progress: Progress) -> dict[str, Any]:
        begun = time.perf_counter()
        finding = attack(
            "span",
            Setting(
                release="per-record",
                dataset=setting["dataset"],
                data_dir=data_dir,
                epsilon=setting["epsilon"],
                delta=setting["delta"],
                trials=setting["trials"],
                progress=progress,
            ),
        )
        return {
            "epsilon_lower": finding.epsilon_lower,
            "epsilon_claimed": finding.epsilon_claimed,
            "noise_multiplier": finding.details["noise_multiplier"],
            "confidence": finding.confidence,
            "trials": finding.trials,
            "batch": finding.details["batch"],
            "kind": finding.kind,
            "seconds": round(time.perf_counter() - begun, 1),
        }

    return do


def _release(setting: Mapping[str, Any], data_dir: Path | None) -> Callable[[Progress], dict[str, Any]]:
    def do(progress: Progress) -> dict[str, Any]:
        summary = train(merge(setting, {"data_dir": data_dir}), progress=progress)
        stated = summary["guarantee"]
        return {
            "test_accuracy": summary["test_accuracy"],
            **{name: stated[name] for name in ("epsilon", "kind", "adjacency", "device_share")},
            "steps": summary["steps"],
            "seconds": summary["seconds"],
        }

    return do


def whole(plan: Plan, found: Found) -> bool:
    """Whether every part of the plan is finished."""
    return all(key(part, setting) in found for part, setting, _ in _parts(plan, None, load, plan.datasets))


# ---- saying it


def as_expected(found: Found) -> bool:
    """Whether some published claim fell, and no true one passes EPSILON."""
    fell = [r["epsilon_lower"] > r["epsilon_claimed"] for r in found.values() if r["part"] == "attack"]
    claims = [r["epsilon"] for r in found.values() if r["part"] == "release"]
    return any(fell) and all(float(claim) <= EPSILON for claim in claims)


def table(plan: Plan, found: Found) -> str:
    """The Markdown table."""
    head = (
        "Data set", "Run", "Noise σ", "Test accuracy", "Alignment, layer 2", "Claimed ε", "Kind",
        "Claimed ε, one step", "Shown ε, one step, at least",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for dataset in plan.datasets:
        for name, training in plan.trainings(dataset, plan.seeds[0]).items():
            cells = _trained_cells(plan, found, dataset, name, training.noise_multiplier)
            lines.append(f"| {' | '.join((dataset, name, *cells))} |")
        for name in plan.releases:
            result = found.get(key("release", plan.release(dataset, name)))
            cells = (ABSENT,) * 3 if result is None else _release_cells(result)
            lines.append(f"| {' | '.join((dataset, name, '–', cells[0], '–', *cells[1:], '–', '–'))} |")
    return "\n".join([*lines, "", _note(plan, found), "", f"Made by `{COMMAND} --data-dir DIR`.", ""])


def _trained_cells(
    plan: Plan, found: Found, dataset: str, name: str, multiplier: float | None
) -> tuple[str, ...]:
    results = trained(plan, found, dataset, name)
    if not results:
        return (ABSENT,) * 7
    accuracies = [100 * r["test_accuracy"][-1] for r in results]
    first, last = (statistics.fmean(r["alignment"][n] for r in results) for n in (0, -1))
    accuracy = f"{statistics.fmean(accuracies):.2f} %"
    if len(accuracies) > 1:
        accuracy += f" ± {statistics.stdev(accuracies):.2f}"
    if len(accuracies) < len(plan.seeds):
        accuracy += f" ({len(accuracies)} of {len(plan.seeds)} seeds)"
    noise = results[0]["noise_std"]
    cells = (f"{noise:.2g}" if noise else "none", accuracy, f"{first:.3f}, {last:.3f}")
    if multiplier is None:
        return (*cells, "none", "none", "–", "–")
    attacked = plan.attacks().get(multiplier) if dataset == plan.attacked else None
    lower = "–"
    if attacked is not None:
        shown = found.get(key("attack", attacked))
        lower = ABSENT if shown is None else _lower(shown)
    return (
        *cells,
        rounded_up(results[0]["epsilon"]),
        results[0]["kind"],
        rounded_up(step_claim(multiplier)),
        lower,
    )


def _lower(shown: Mapping[str, Any]) -> str:
    lower = f"{shown['epsilon_lower']:.2f}"
    return f"**{lower}**" if shown["epsilon_lower"] > shown["epsilon_claimed"] else lower


def _release_cells(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{100 * result['test_accuracy']:.2f} %", rounded_up(float(result["epsilon"])), result["kind"]


def _note(plan: Plan, found: Found) -> str:
    """What the table's figures are."""
    attacked = [found[k] for setting in plan.attacks().values() if (k := key("attack", setting)) in found]
    evidence = (
        ""
        if not attacked
        else f" Shown: a bound at {100 * attacked[0]['confidence']:g} % confidence that assumes nothing of the release "
        f"(Clopper and Pearson), of the span attack on one step of {attacked[0]['batch']} records of {plan.attacked}, "
        f"in {attacked[0]['trials']:,} releases of a network with one hidden layer of {WIDTH}; **bold** where it "
        "passes the claim. No noise hides the record from it: its bound is what so many releases can show, and a claim "
        f"above {MOST_CLAIM:g} is not attacked."
    )
    seeds = f"{len(plan.seeds)} seeds, mean ± standard deviation" if len(plan.seeds) > 1 else "one seed"
    return (
        f"Network {plan.model}, tanh; δ = {DELTA:g}. Photonic: ternary errors (threshold {THRESHOLD:g}) through a "
        f"simulated OPU. Without a release: {plan.epochs} epochs of batches of {plan.batch_size:,}, SGD {plan.lr:g}, "
        f"momentum {Training.momentum:g}, {seeds}. With z: the same under release per-record of noise multiplier z, "
        f"that is clipped at C = {MAX_GRAD_NORM:g}, Poisson batches, SGD {plan.noised_lr:g}. Noise σ: standard "
        "deviation on an entry of a record's projected error; without z the device's own, measured; with z normal "
        "noise of 4 z C / √batch, drawn at the place of the device's, which adds to it. Alignment: cosine of the "
        f"second layer's update and backpropagation's gradient of the same batch, mean of the last {LOOKED} steps of "
        "the first and of the last epoch; it is computed from records, which voids any claim. Claimed ε with z: the "
        "published reading for adding or removing a record, of the run, and of one step in which every record takes "
        f"part; conditional: its assumptions fail (THEORY T1).{evidence} The last rows of a data set: ε = "
        f"{EPSILON:g} asked for, {plan.release_epochs} epochs of batches of {plan.release_batch_size:,}, all else as "
        "shipped, one seed, secret noise; record-dp: adding or removing a record; label-dp: changing a label, inputs "
        "being public, without leverages (τ = 1), which are refused for layers this wide."
        + "".join(
            f" {name}: {own['epochs']} epochs, SGD {own['lr']:g}."
            for name, own in RELEASES.items()
            if name in plan.releases and "lr" in own
        )
    )


def main(arguments: Sequence[str] | None = None, plan: Plan | None = None) -> int:
    """Do what is missing, then write table.md and, once all is there, the picture."""
    plan = plan or Plan()
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the data sets' files")
    parser.add_argument(
        "--datasets", nargs="+", choices=plan.datasets, default=plan.datasets, help="only these"
    )
    parser.add_argument(
        "--table-only", action="store_true", help="rebuild table and picture from results.jsonl"
    )
    given = parser.parse_args(arguments)

    def work() -> int:
        if not given.table_only:
            run(
                plan,
                given.data_dir,
                FOLDER / RESULTS,
                given.datasets,
                lambda what: progress_for(sys.stderr, what),
            )
        found = read(FOLDER / RESULTS)
        if whole(plan, found):
            draw_study(plan, found, PICTURE)
        text = table(plan, found)
        (FOLDER / TABLE).write_text(text, encoding="utf-8")
        print(text, end="")
        return 0 if as_expected(found) else 1

    return exit_code(work, "finished parts")
