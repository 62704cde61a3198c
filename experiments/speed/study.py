"""`python -m experiments speed`: a private training step beside plain backpropagation and Opacus.

What `optical-dfa bench step` and the same beside busy processes find, in one table. Writes results.json, table.md and
docs/images/speed.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness.experiment import TABLE
from optical_dfa.bench import step
from optical_dfa.bench.contestants import CONTESTANTS
from optical_dfa.bench.findings import RESULTS, draw, meaning, refusals, shown

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "speed.png"
COMMAND = "python -m experiments speed"
LARGE, LARGE_BATCH = "mlp-4096", 2048  # too slow for the smaller batch to say anything else
BUSY = 2
PAIR = ("private", "backprop")
HEAD = (
    "Network",
    "Batch",
    *CONTESTANTS.values(),
    f"Beside {BUSY} busy processes, private",
)

Found = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write the results, the table and the picture."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    quiet = step.run()
    quiet["cells"] += step.run([LARGE], [LARGE_BATCH])["cells"]
    busy = step.run(busy=BUSY, contestants=PAIR)
    text = table(quiet, busy)
    found = {"quiet": quiet, "busy": busy}
    (FOLDER / RESULTS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    draw(quiet, PICTURE)
    print(text, end="")
    return 0


def table(quiet: Found, busy: Found) -> str:
    """The Markdown table of two documents of `optical_dfa.bench.findings`."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for each in quiet["cells"]:
        cells = (
            each["network"],
            str(each["batch_size"]),
            *(shown(quiet, each, name) for name in CONTESTANTS),
            _over_plain(busy, each),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            meaning(quiet),
            "",
            "The last column is of private training, × of plain backpropagation's, in the same loop beside "
            f"{BUSY} processes that keep a processor busy each.",
            "",
            *refusals(quiet),
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def _over_plain(found: Found, cell: Found) -> str:
    """Private training's figure in the cell of the same network and batch, and its ratio to plain backpropagation's."""
    for each in found["cells"]:
        if (each["network"], each["batch_size"]) == (cell["network"], cell["batch_size"]):
            own, over = shown(found, each, "private"), each["private_over"].get("backprop")
            return own if over is None else f"{own}, × {over:.2f}"
    return "–"
