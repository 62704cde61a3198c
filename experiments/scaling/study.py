"""`python -m experiments scaling`: time and memory of stored, streamed and structured matrices, by their size.

Every cell is measured in a fresh process and kept in results.jsonl; an interrupted study goes on with the same command.
Writes table.md and docs/images/scaling.png. The last cells are parts of a matrix of 10^12 entries, which takes
one and a half hours of one core.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import finished, keep
from experiments.scaling.cells import DEVICES, PARTS, Cell, in_a_fresh_process
from experiments.scaling.nearness import ROUNDS, SEEDS, SHAPES, means
from experiments.scaling.picture import draw_scaling

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "scaling.png"
COMMAND: Final = "python -m experiments scaling"
BATCH: Final = 32
LARGEST: Final = {"digital": 1 << 14, "streamed": 1 << 15, "structured": 1 << 20}
CURVE: Final = tuple(
    Cell(device, 1 << k, 1 << k, BATCH)
    for device in DEVICES
    for k in range(6, 21)
    if 1 << k <= LARGEST[device]
)
# 50,000 classes to 8,192 hidden units, and 10 classes to as many.
THIN: Final = tuple(Cell(device, n, 8192, BATCH) for n in (10, 50_000) for device in DEVICES)
STREAMED: Final = Cell("streamed", 100_000, 100_000, BATCH)
PAIR: Final = (Cell("digital", 10_000, 10_000, 512), Cell("streamed", 10_000, 10_000, 512))
STRUCTURED: Final = Cell("structured", 1 << 20, 1 << 20, BATCH)
WHOLE: Final = tuple(Cell("streamed", 10**6, 10**6, 1, part) for part in range(1, PARTS + 1))
CELLS: Final = (*CURVE, *THIN, *PAIR, STREAMED, *WHOLE)

Found = Mapping[Cell, Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not kept yet; write the table and the picture after each cell."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)

    def work() -> int:
        statistics = nearness_table()
        for cell in CELLS:
            if cell not in kept():
                keep(FOLDER / RESULTS, in_a_fresh_process(cell))
            write(kept(), statistics)
        print((FOLDER / TABLE).read_text(encoding="utf-8"), end="")
        return 0

    return exit_code(work, "measured cells")


def kept() -> dict[Cell, dict[str, Any]]:
    """What is measured so far; of a cell that was measured again, the last."""
    return {
        Cell(**{name: line[name] for name in Cell._fields if name in line}): line
        for line in finished(FOLDER / RESULTS)
    }


def write(found: Found, statistics: Sequence[str]) -> None:
    """Write table.md and the picture of the cells found so far."""
    (FOLDER / TABLE).write_text(table(found, statistics), encoding="utf-8")
    draw_scaling({cell: line["seconds"] for cell, line in found.items() if cell in CURVE}, PICTURE)


def table(found: Found, statistics: Sequence[str]) -> str:
    """The Markdown tables: cells, crossovers, targets, and how near the structured matrix is to independent entries."""
    return "\n".join(
        [
            *_sizes(found),
            "",
            f"Processor seconds of one projection on one thread, the least of five where it takes under two; MiB above "
            f"what stood before, of building the device and projecting. Batch {BATCH}, float32, fresh processes on "
            f"{platform.machine()}.",
            "",
            *crossovers(found),
            "",
            *_targets(found),
            "",
            *statistics,
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def _sizes(found: Found) -> list[str]:
    lines = [f"| Inputs | Outputs | {' | '.join(DEVICES)} |", "|" + "---|" * (2 + len(DEVICES))]
    for inputs, outputs in dict.fromkeys((cell.inputs, cell.outputs) for cell in (*CURVE, *THIN)):
        shown = (_shown(found.get(Cell(device, inputs, outputs, BATCH))) for device in DEVICES)
        lines.append(f"| {inputs:,} | {outputs:,} | {' | '.join(shown)} |")
    return lines


def _shown(line: Mapping[str, Any] | None) -> str:
    return "–" if line is None else f"{line['seconds']:.2g} s, {line['peak']:,.0f} MiB"


def crossovers(found: Found) -> list[str]:
    """From which square size on one device is quicker than another at every larger one that both were measured at."""
    sentences = []
    for quick, slow in (("structured", "digital"), ("structured", "streamed")):
        sizes = [
            cell.inputs
            for cell in CURVE
            if cell.device == quick and cell in found and cell._replace(device=slow) in found
        ]
        later = [
            n
            for n in sizes
            if all(
                found[Cell(quick, m, m, BATCH)]["seconds"] < found[Cell(slow, m, m, BATCH)]["seconds"]
                for m in sizes
                if m >= n
            )
        ]
        if later:
            sentences.append(
                f"{quick} is quicker than {slow} from {min(later):,} x {min(later):,} entries on."
            )
    return sentences


def _targets(found: Found) -> list[str]:
    def seconds(cell: Cell) -> float | None:
        return found[cell]["seconds"] if cell in found else None

    parts = [found[cell]["seconds"] for cell in WHOLE if cell in found]
    whole = f"streamed, 10⁶ x 10⁶, batch 1, in {PARTS} parts of its outputs: it runs"
    if len(parts) < PARTS:
        whole += f"; of {len(parts)} parts so far"
    pair = [seconds(cell) for cell in PAIR]
    ratio = pair[1] / pair[0] if pair[0] is not None and pair[1] is not None else None
    peak = found[STREAMED]["peak"] / 1024 if STREAMED in found else None
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("streamed, 100,000 x 100,000, batch 32: at most 60 s", seconds(STREAMED), 60, "s"),
        ("the same: at most 2 GiB", peak, 2, "GiB"),
        ("streamed, 10,000 x 10,000, batch 512: at most 2 times digital's product", ratio, 2, "times"),
        ("structured, 2²⁰ x 2²⁰, batch 32: at most 3 s", seconds(STRUCTURED), 3, "s"),
        (whole, sum(parts) if parts else None, None, "s"),
    ]
    lines = ["| Target | Measured | Met |", "|---|---|---|"]
    for what, value, limit, unit in rows:
        if value is None:
            lines.append(f"| {what} | not measured | – |")
        else:
            met = "–" if limit is None else "yes" if value <= limit else "no"
            lines.append(f"| {what} | {value:.3g} {unit} | {met} |")
    return lines


def nearness_table() -> list[str]:
    """Kurtosis, spectrum and coherence of structured matrices, beside those of independent normal entries."""
    lines = [
        "| Outputs | Inputs | Entries | Kurtosis | Largest singular value | Spectrum | Coherence |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, columns in SHAPES:
        for rounds in ROUNDS:
            entries = f"structured, rounds: {rounds}" if rounds else "independent, normal"
            figures = " | ".join(f"{figure:.3f}" for figure in means(rounds, rows, columns))
            lines.append(f"| {rows:,} | {columns:,} | {entries} | {figures} |")
    return [
        *lines,
        "",
        f"Means over {len(SEEDS)} seeds; the device has 3 rounds. Largest singular value: over √outputs + √inputs. "
        "Spectrum: Kolmogorov distance of the squared singular values from the Marchenko-Pastur law, up to 1. "
        "Coherence: greatest |cosine| of two rows or columns, whichever are fewer, times the root of their length. "
        "A side of a transform that is not cut is exactly orthogonal: the entries look normal, the spectrum is flat.",
    ]
