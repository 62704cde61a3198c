"""`python -m experiments layers`: training steps of workers that own layers, of one process and of a BP pipeline.

Two fresh processes, a thread each, take turns at all. Writes results.jsonl, table.md and docs/images/layers.png;
with --quick it prints the table of a small network, one round of it, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import finished
from experiments.layers.contest import CLASSES, INPUTS, PARTS, QUICK, STEPS, WHOLE, Size
from experiments.layers.picture import draw_time_lines

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "layers.png"
COMMAND: Final = "python -m experiments layers"
DRAWN: Final = 2  # parts: as many as workers, which is the default
NAMES: Final = {
    ("dfa", 1): "DFA, one process",
    ("dfa", 2): "DFA, two workers that own layers",
    ("bp", 1): "BP, one process",
    ("bp", 2): "BP, a pipeline of two (GPipe)",
}

Sample = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write the results, the table and the picture."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, one round; nothing is written")
    quick = parser.parse_args(arguments).quick

    def work() -> int:
        samples = measured(quick=quick)
        text = table(samples, QUICK if quick else WHOLE)
        if not quick:
            lines = "".join(json.dumps(sample) + "\n" for sample in samples)
            (FOLDER / RESULTS).write_text(lines, encoding="utf-8")
            write(samples)
        print(text, end="")
        return 0

    return exit_code(work, "earlier results")


def measured(*, quick: bool) -> list[dict[str, Any]]:
    """The samples of two fresh processes."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    command = [sys.executable, "-m", *launcher, "experiments.layers.contest", *(["--quick"] if quick else [])]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=one_thread)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def kept() -> list[dict[str, Any]]:
    """What was measured last."""
    return finished(FOLDER / RESULTS)


def write(samples: Sequence[Sample]) -> None:
    """Write table.md and the picture."""
    (FOLDER / TABLE).write_text(table(samples, WHOLE), encoding="utf-8")
    draw_time_lines(
        {
            f"{NAMES[rule, 2]}, {DRAWN} parts of a batch": middle(samples, rule, DRAWN)["spans"]
            for rule in ("dfa", "bp")
        },
        PICTURE,
    )


def of(samples: Sequence[Sample], rule: str, workers: int, parts: int) -> list[Sample]:
    """The samples of one contestant."""
    return [
        each for each in samples if (each["rule"], each["workers"], each["parts"]) == (rule, workers, parts)
    ]


def middle(samples: Sequence[Sample], rule: str, parts: int) -> Sample:
    """The sample of two workers whose time is the median, or the next lower one."""
    ordered = sorted(of(samples, rule, 2, parts), key=lambda each: each["seconds"])
    return ordered[(len(ordered) - 1) // 2]


def table(samples: Sequence[Sample], size: Size) -> str:
    """The Markdown table: medians over the rounds, and what is sent."""
    alone = of(samples, "dfa", 1, 1)
    lines = [
        "| | Parts of a batch | A step | Of DFA's one process | Processor time | Idle | Sent forward | Sent back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (rule, workers), name in NAMES.items():
        for parts in PARTS if workers == 2 else (1,):
            found = of(samples, rule, workers, parts)
            ratios = [each["seconds"] / other["seconds"] for each, other in zip(found, alone, strict=True)]
            sent = found[0]["bytes"]
            cells = (
                name,
                str(parts) if workers == 2 else "–",
                f"{1000 * median(each['seconds'] for each in found):,.0f} ms",
                f"× {median(ratios):.2f}",
                f"{1000 * median(each['cpu'] for each in found):,.0f} ms",
                f"{100 * median(each['idle'] for each in found):.0f} %" if workers == 2 else "–",
                f"{sent['forward']:,}" if workers == 2 else "–",
                f"{sent['back'] + sent['error']:,}" if workers == 2 else "–",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"A network of {INPUTS} inputs, {size.layers} hidden layers of {size.width:,} and {CLASSES} outputs; "
            f"batch {size.batch}, SGD, one thread a process, on {platform.machine()}. Medians of {len(alone)} rounds, "
            f"of {STEPS} steps each, in which all take turns; ratios within a round. Processor time: of all processes. "
            "Idle: the share of the workers' time in which they compute nothing of the step. Sent: bytes a step; "
            "forward what layers put out; back, under DFA the error at the output, to all workers, under BP the "
            "gradient at the cut.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )
