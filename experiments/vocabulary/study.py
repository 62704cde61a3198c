"""`python -m experiments vocabulary FILE`: errors of 50,000 words projected to hidden layers, and their memory.

The network of `experiments.vocabulary.words` is taught in several ways, each in a fresh process and kept in
results.jsonl; interrupted, the same command goes on. Writes table.md.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from experiments.harness.command import exit_code
from experiments.harness.experiment import RESULTS, TABLE
from experiments.harness.lines import finished, keep
from experiments.vocabulary import words
from noise_models.errors import UsageError

FOLDER = Path(__file__).parent
COMMAND: Final = "python -m experiments vocabulary FILE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in every way that has no result on this text yet; write the table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("text", metavar="FILE", type=Path, help="a text file in UTF-8")
    text: Path = parser.parse_args(arguments).text

    def work() -> int:
        try:
            known = words.records(text.read_text(encoding="utf-8")).known
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{text} cannot be read ({error}); give a text file in UTF-8") from None
        for way in words.WAYS:
            if way not in kept(text.name):
                run = words.in_a_fresh_process(way, text)
                keep(FOLDER / RESULTS, {"text": text.name, "known": known, **run})
        (FOLDER / TABLE).write_text(table(text.name), encoding="utf-8")
        print((FOLDER / TABLE).read_text(encoding="utf-8"), end="")
        return 0

    return exit_code(work)


def kept(text: str) -> dict[words.Way, dict[str, Any]]:
    """What is measured so far on the text of this name."""
    return {
        words.Way(run["rule"], run["backend"]): run
        for run in finished(FOLDER / RESULTS)
        if run["text"] == text
    }


def table(text: str) -> str:
    """The Markdown table of the kept runs on the text of this name, of which there is one."""
    runs = kept(text)
    lines = [
        "| Rule | Backend | Loss before | Loss after | Seconds a step | Memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for way in words.WAYS:
        if way in runs:
            run = runs[way]
            backend = way.backend if way.rule == "dfa" else "–"
            lines.append(
                f"| {way.rule} | {backend} | {run['before']:.2f} | {run['after']:.2f} | {run['seconds']:.2f} | "
                f"{run['peak']:,.0f} |"
            )
    (known, *_) = (run["known"] for run in runs.values())
    matrix = 4 * words.CLASSES * sum(words.HIDDEN) / (1 << 20)
    return "\n".join(
        [
            *lines,
            "",
            f"The next word of {text} from the {words.CONTEXT} before it, {words.CLASSES:,} classes of which the text "
            f"uses {known:,}; hidden layers of {' and '.join(f'{n:,}' for n in words.HIDDEN)} units, {words.STEPS} "
            f"steps of {words.BATCH} records, Adam. Loss: nats a word on the last tenth of the text. A stored feedback "
            f"matrix takes {matrix:,.0f} MiB, and as much again turned round for its product. Memory: how far the "
            "process rose while it trained, weights' gradients and Adam's state included. Processor seconds on one "
            f"thread, fresh processes on {platform.machine()}.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )
