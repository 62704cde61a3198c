"""`python -m experiments memory`: the peak memory of a private training step beside plain backpropagation and Opacus.

What `optical-dfa bench memory` finds of all its networks and batches. Writes results.json, table.md and
docs/images/memory.png.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.experiment import TABLE
from optical_dfa.bench import memory
from optical_dfa.bench.findings import PICTURE, keep

FOLDER = Path(__file__).parent
IMAGE = FOLDER.parents[1] / "docs" / "images" / "memory.png"
COMMAND = "python -m experiments memory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; write the results, the table and the picture."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    keep(memory.run(), FOLDER, COMMAND)
    shutil.move(FOLDER / PICTURE, IMAGE)
    print((FOLDER / TABLE).read_text(encoding="utf-8"), end="")
    return 0
