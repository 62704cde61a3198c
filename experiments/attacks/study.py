"""`python -m experiments attacks`: the distinguishing attack on every sound release × device × epsilon.

Writes table.md. Interrupted at any point, the same command goes on: finished cells are in results.jsonl. Exit code 1
where a bound passes its claim, or stays below 60 % of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import finished, keep
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks import attack
from optical_dfa.attacks.setting import Setting
from optical_dfa.progress import progress_for

FOLDER = Path(__file__).parent
COMMAND = "python -m experiments attacks"
EPSILONS = (0.5, 1.0, 4.0, 8.0)
# Release -> devices it works with. What label supports projects without noise; dark frames need a camera.
CELLS: dict[str, tuple[str, ...]] = {
    "digital": ("digital", "simulated-opu", "lightonml-simulated"),
    "dark-frame": ("simulated-opu", "lightonml-simulated"),
    "device-entropy": ("simulated-opu", "lightonml-simulated"),
    "aggregate": ("digital", "simulated-opu", "lightonml-simulated"),
    "label": ("digital",),
    "skellam": ("digital", "simulated-opu", "lightonml-simulated"),
}
LEAST_SHARE = 0.6
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack the cells that are not finished; write the table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--releases", nargs="+", choices=CELLS, default=list(CELLS), help="only these")
    parser.add_argument("--table-only", action="store_true", help="rebuild table.md from results.jsonl")
    given = parser.parse_args(arguments)
    path = FOLDER / RESULTS

    def work() -> int:
        for release in () if given.table_only else given.releases:
            for backend in CELLS[release]:
                for epsilon in EPSILONS:
                    if (release, backend, epsilon) not in attacked(path):
                        _attack(path, release, backend, epsilon)
        cells = attacked(path)
        (FOLDER / TABLE).write_text(table(cells), encoding="utf-8")
        print(table(cells), end="")
        return 0 if all(_as_expected(cell) for cell in cells.values()) else 1

    return exit_code(work, "finished cells")


def attacked(path: Path) -> dict[tuple[str, str, float], dict[str, Any]]:
    """(release, backend, epsilon asked for) -> finding."""
    return {(cell["release"], cell["backend"], cell["epsilon"]): cell for cell in finished(path)}


def _attack(path: Path, release: str, backend: str, epsilon: float) -> None:
    print(f"{release}, {backend}, epsilon {epsilon:g}", file=sys.stderr, flush=True)
    progress = progress_for(sys.stderr, "attacking")
    try:
        finding = attack(
            "distinguish",
            Setting(
                release=release,
                backend=backend,
                epsilon=epsilon,
                seed=derive_seed(SEED, f"{release} {backend} {epsilon}"),  # cells are evidence of their own
                progress=progress,
            ),
        )
    finally:
        progress.finish()
    keep(path, {**finding.to_dict(), "epsilon": epsilon})


def _as_expected(cell: Mapping[str, Any]) -> bool:
    lower, claimed = float(cell["epsilon_lower"]), float(cell["epsilon_claimed"])
    return LEAST_SHARE * claimed <= lower <= claimed


def table(cells: Mapping[tuple[str, str, float], Mapping[str, Any]]) -> str:
    """The Markdown table: one row a release and device, one column an epsilon."""
    head = ("Release", "Device", *(f"Claimed ε = {epsilon:g}" for epsilon in EPSILONS))
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for release, backends in CELLS.items():
        for backend in backends:
            row = [cells.get((release, backend, epsilon)) for epsilon in EPSILONS]
            lines.append(f"| {' | '.join((release, backend, *map(_shown, row)))} |")
    confidence = sorted({100 * cell["confidence"] for cell in cells.values()})
    return "\n".join(
        [
            *lines,
            "",
            f"Lower bounds on ε at {', '.join(f'{c:g}' for c in confidence)} % confidence each and δ = 1e-5, of one "
            "released step on worst-case neighbours through the production path (`optical-dfa attack distinguish`), "
            "within the family of Gaussian mechanisms (skellam: approximately one). A bound above its claim, or below "
            f"{100 * LEAST_SHARE:g} % of it, is marked.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def _shown(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not measured"
    text = f"{cell['epsilon_lower']:.3g}"
    return text if _as_expected(cell) else f"**{text}**"
