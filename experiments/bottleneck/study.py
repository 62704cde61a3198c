"""`python -m experiments bottleneck`: the bottleneck experiment of Launay et al. 2019 (arXiv 1906.04554).

Of the middle one of three hidden layers of 800 tanh units only some may learn. Finished runs are in results.jsonl and
are not done again; the table and docs/images/bottleneck.png are made of all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.bottleneck.mask import LAUNAY_WIDTHS, mask_gradients
from experiments.bottleneck.picture import draw_bottleneck
from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import finished, keep
from noise_models.randomness.generator import derive_seed
from optical_dfa import align
from optical_dfa.data import load, names
from optical_dfa.data.dataset import Dataset
from optical_dfa.measure.alignment import alignment
from optical_dfa.networks.building import build
from optical_dfa.progress import Progress, progress_for

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "bottleneck.png"
COMMAND = "python -m experiments bottleneck"
RULES = ("dfa", "bp")
LAYERS = ("below", "masked", "above")
COMPARED = 1000  # test records whose signals are compared with backpropagation's


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        rule, dataset: by name.
        kept: units of the middle layer that learn.
        records: of the training set that are used, from its beginning.
        scale: of DFA's feedback matrix.
    """

    rule: str
    kept: int
    dataset: str = "mnist"
    width: int = 800
    records: int = 10_000
    batch_size: int = 64
    epochs: int = 2
    lr: float = 0.02
    momentum: float = 0.9
    scale: float = 3.0
    seed: int = 0


def settings(base: Setting) -> list[Setting]:
    """The table's runs: every number of units under both rules."""
    widths = [kept for kept in LAUNAY_WIDTHS if kept <= base.width]
    return [replace(base, rule=rule, kept=kept) for kept in widths for rule in RULES]


def measure(setting: Setting, data: Dataset) -> dict[str, Any]:
    """Train, and compare the signals with backpropagation's on test records.

    Returns:
        JSON types: the setting, its test accuracy, and by layer the mean cosine of the records and their spread.
    """
    x, y = data.x_train[: setting.records], data.y_train[: setting.records]
    model = f"mlp:{','.join([str(setting.width)] * len(LAYERS))}/tanh"
    net = build(model, tuple(x.shape[1:]), int(data.y_train.max()) + 1, setting.seed)
    options = {"scale": setting.scale} if setting.rule == "dfa" else None
    aligned = align(net, rule=setting.rule, example=x[:1], seed=setting.seed, rule_options=options, show=None)
    masked = [part for part in net.modules() if isinstance(part, nn.Linear)][1]
    mask_gradients(masked, setting.kept, setting.seed)
    optimizer = torch.optim.SGD(net.parameters(), setting.lr, setting.momentum)
    order = torch.Generator().manual_seed(derive_seed(setting.seed, "order"))
    for _ in range(setting.epochs):
        for batch in torch.split(torch.randperm(len(x), generator=order), setting.batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(aligned(x[batch]), y[batch]))
            optimizer.step()
    with torch.no_grad():
        accuracy = float((net(data.x_test).argmax(1) == data.y_test).double().mean())
    compared = data.y_test[:COMPARED]
    found = alignment(aligned, data.x_test[:COMPARED], lambda z: cross_entropy(z, compared)).points
    return {
        "setting": asdict(setting),
        "test_accuracy": accuracy,
        "cosines": dict(zip(LAYERS, [[p.cosine, p.spread] for p in found.values()], strict=True)),
    }


def run(base: Setting, data_dir: Path | None, results: Path, progress: Progress) -> list[dict[str, Any]]:
    """Do the runs that have no line in `results` yet; all of them, in the table's order.

    Raises:
        UsageError: the data set is not there.
    """
    done = _read(results)
    wanted = settings(base)
    missing = [setting for setting in wanted if _key(asdict(setting)) not in done]
    if missing:
        data = load(base.dataset, data_dir)
        progress.start(len(missing))
        for count, setting in enumerate(missing, start=1):
            found = measure(setting, data)
            done[_key(asdict(setting))] = found
            keep(results, found)
            progress.update(count, {setting.rule: setting.kept})
    return [done[_key(asdict(setting))] for setting in wanted]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The finished runs by setting."""
    return {_key(result["setting"]): result for result in finished(path)}


def _key(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)


def table(results: Sequence[dict[str, Any]], base: Setting) -> str:
    """The Markdown table."""
    head = (
        "Units that learn",
        "Test accuracy, BP",
        "Test accuracy, DFA",
        "Cosine below",
        "Cosine at the masked layer",
        "Cosine above",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    by_run = {(r["setting"]["rule"], r["setting"]["kept"]): r for r in results}
    for kept in sorted({kept for _, kept in by_run}):
        dfa, bp = by_run["dfa", kept], by_run["bp", kept]
        cosines = [f"{dfa['cosines'][layer][0]:.3f} ± {dfa['cosines'][layer][1]:.3f}" for layer in LAYERS]
        accuracies = [f"{100 * r['test_accuracy']:.2f} %" for r in (bp, dfa)]
        lines.append(f"| {' | '.join([str(kept), *accuracies, *cosines])} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{base.dataset}, first {base.records:,} training records, three hidden layers of {base.width} tanh units, "
            f"of whose second only so many learn; {base.epochs} epochs, SGD {base.lr:g}, momentum {base.momentum:g}, "
            f"batch {base.batch_size}, DFA's feedback scaled by {base.scale:g}; one seed, so that "
            "tenths of a point of accuracy say nothing. Cosine: of a record's DFA signal and backpropagation's at the "
            f"same weights, all units of a layer, mean ± standard deviation over {COMPARED:,} test records.",
            "",
            f"Made by `{COMMAND} --data-dir DIR`.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, then write table.md and the picture."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the data set's files")
    parser.add_argument("--dataset", choices=names(), default="mnist")
    given = parser.parse_args(arguments)
    base = Setting("", 0, dataset=given.dataset)
    progress = progress_for(sys.stderr, "bottleneck")

    def work() -> int:
        try:
            results = run(base, given.data_dir, FOLDER / RESULTS, progress)
        finally:
            progress.finish()
        draw_bottleneck(results, PICTURE)
        text = table(results, base)
        (FOLDER / TABLE).write_text(text, encoding="utf-8")
        print(text, end="")
        return 0

    return exit_code(work)
