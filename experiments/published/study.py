"""`python -m experiments published`: the span attack on the published mechanism, and on the sound releases.

Writes table.md and docs/images/span-attack.png. Exit code 1 where the published mechanism's claim stands, or a sound
release's falls.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.experiment import TABLE
from noise_models.errors import DeviceError, UsageError
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.span import SpanScores, judged, measure
from optical_dfa.progress import progress_for
from optical_dfa.report.attacks import draw_span
from privacy.attacks.finding import Finding
from privacy.guarantee import rounded_up

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "span-attack.png"
COMMAND = "python -m experiments published"
BROKEN = "per-record"
RELEASES = (BROKEN, "digital", "dark-frame", "aggregate")
DRAWN = (BROKEN, "dark-frame")


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack all releases; write the table and the picture."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with MNIST's files")
    given = parser.parse_args(arguments)
    found: dict[str, tuple[Finding, SpanScores]] = {}
    try:
        for release in RELEASES:
            progress = progress_for(sys.stderr, f"span on {release}")
            setting = Setting(release=release, dataset="mnist", data_dir=given.data_dir, progress=progress)
            try:
                scores = measure(setting)
            finally:
                progress.finish()
            found[release] = judged(setting, scores), scores
    except (UsageError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    draw_span(
        {release: (found[release][1].without, found[release][1].with_record) for release in DRAWN},
        PICTURE,
        [note(found[release][0]) for release in DRAWN],
    )
    text = table([finding for finding, _ in found.values()])
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    as_expected = all(finding.consistent is (release != BROKEN) for release, (finding, _) in found.items())
    return 0 if as_expected else 1


def note(finding: Finding) -> str:
    """What the picture says of a release."""
    lower = 0.0 if finding.epsilon_lower is None else finding.epsilon_lower
    return (
        f"claimed: ε = {rounded_up(finding.epsilon_claimed)} ({finding.kind})\n"
        f"shown: ε ≥ {lower:.2f} at {100 * finding.confidence:g} % confidence"
        + ("\nthe claim is refuted" if finding.consistent is False else "")
    )


def table(findings: Sequence[Finding]) -> str:
    """The Markdown table."""
    head = (
        "Release", "Kind of its claim", "Claimed ε", "Lower bound on ε", "Claim stands",
        "Off the span, at most, without", "At least, with",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for finding in findings:
        details = finding.details
        cells = (
            finding.release,
            finding.kind,
            rounded_up(finding.epsilon_claimed),
            f"{finding.epsilon_lower:.2f}",
            "yes" if finding.consistent else "**no**",
            f"{details['largest_share_without']:.2g}",
            f"{details['least_share_with']:.2g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = findings[0]
    return "\n".join(
        [
            *lines,
            "",
            f"MNIST, {first.details['batch']} records in one step (q = 1), {first.trials} releases, half of them with "
            f"the record; δ = {first.delta:g}, lower bounds at {100 * first.confidence:g} % confidence, assuming "
            "nothing about the release (Clopper and Pearson). Off the span: the share of the first layer's released "
            "update along the part of the target's input that the other records' inputs do not span.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )
