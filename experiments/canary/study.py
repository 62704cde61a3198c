"""`python -m experiments canary`: what one whole training run shows of itself, by canaries in its training set.

Writes table.md. Exit code 1 where a bound passes its claim, shows nothing, or took longer than ten minutes.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.harness.experiment import TABLE
from noise_models.errors import DeviceError, UsageError
from optical_dfa.attacks import attack
from optical_dfa.attacks.setting import Setting
from optical_dfa.progress import progress_for
from privacy.attacks.finding import Finding
from privacy.guarantee import rounded_up

FOLDER = Path(__file__).parent
COMMAND = "python -m experiments canary --data-dir DIR"
DATASET = "fashion-mnist"
EPSILON = 8.0
RELEASES = ("digital",)
MOST_SECONDS = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train once with each release and bound what it showed; write the table."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with Fashion-MNIST's files")
    parser.add_argument("--seed", type=int, default=0, help="of weights, canaries and noise")
    given = parser.parse_args(arguments)
    found: list[tuple[Finding, float]] = []
    try:
        for release in RELEASES:
            progress = progress_for(sys.stderr, f"canaries in a run with {release}")
            setting = Setting(
                release=release,
                dataset=DATASET,
                data_dir=given.data_dir,
                epsilon=EPSILON,
                seed=given.seed,
                progress=progress,
            )
            started = time.perf_counter()
            try:
                finding = attack("canary", setting)
            finally:
                progress.finish()
            found.append((finding, time.perf_counter() - started))
    except (UsageError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    text = table(found)
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if all(as_expected(*result) for result in found) else 1


def as_expected(finding: Finding, seconds: float) -> bool:
    """Whether the bound is above 0 and not above the claim, within the time."""
    shown = finding.epsilon_lower is not None and finding.epsilon_lower > 0
    return shown and finding.consistent is True and seconds <= MOST_SECONDS


def table(found: Sequence[tuple[Finding, float]]) -> str:
    """The Markdown table of findings and the seconds they took."""
    head = (
        "Release", "Claimed ε", "Lower bound on ε", "Claim stands", "Guesses", "Right", "Seconds",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for finding, seconds in found:
        cells = (
            finding.release,
            rounded_up(finding.epsilon_claimed),
            f"{finding.epsilon_lower:.3f}",
            "yes" if finding.consistent else "**no**",
            str(finding.details["guesses"]),
            str(finding.details["right"]),
            f"{seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = found[0][0]
    return "\n".join(
        [
            *lines,
            "",
            f"Fashion-MNIST, {first.claim} with the shipped settings, of which every update is seen; "
            f"{first.details['canaries']} canaries next to {first.details['records']} records, each in the training "
            f"set by its own fair coin, and the coins of some guessed. δ = {first.delta:g}; lower bound at "
            f"{100 * first.confidence:g} % confidence (Steinke, Nasr and Jagielski 2023). One run says far less than "
            f"the thousands behind the table above. {torch.get_num_threads()} threads on {platform.machine()}, PyTorch "
            f"{torch.__version__}.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )
