"""`python -m experiments online`: rules that learn from a stream of few records. Writes table.md and a picture.

The learning rate of every row, and a DFA rule's feedback scale, are chosen by the command itself on streams that the
table does not have.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from scipy.stats import t

from experiments.harness.experiment import TABLE
from experiments.online.digits import Outcome, learn_digits
from experiments.online.pictures import draw_tracking
from experiments.online.scene import make_stream
from experiments.online.tracker import SUCCESS, Track, follow, learner_of
from optical_dfa.progress import Progress, progress_for

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "online.png"
COMMAND = "python -m experiments online"
Result = TypeVar("Result")
RULES = ("bp", "dfa", "bdfa", "shallow")
NEVER = "bp, never updated"
RATES = (0.01, 0.03, 0.1, 0.3)
SCALES = (0.1, 1.0)  # of the feedback, for the rules that have one
SCALED = ("dfa", "bdfa")
STREAMS, CHOOSING = 20, 5  # streams of the table, and others, on which rates and scales are chosen
LENGTH = 60  # frames of a tracking stream
PATCHES = (8, 32)
SHOTS = (4, 16, 40)


class Chosen(NamedTuple):
    """What is chosen for a row."""

    rate: float
    options: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{value:g}" for value in (self.rate, *self.options.values()))


@dataclass(frozen=True)
class Row:
    """One rule's outcome on the streams of the table.

    Attributes:
        chosen: learning rate, and feedback scale where the rule has one: by the mean of the first figure.
        first, second: two figures a stream.
    """

    rule: str
    chosen: Chosen
    first: list[float]
    second: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and the picture."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    progress = progress_for(sys.stderr, "streams")
    started = time.process_time()
    try:
        text, tracks = measure(progress)
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    finally:
        progress.finish()
    text += (
        f"The whole took {time.process_time() - started:.0f} s of processor time, {torch.get_num_threads()} threads on "
        f"{platform.machine()}, PyTorch {torch.__version__}.\n\nMade by `{COMMAND}`.\n"
    )
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    shown = sorted(range(STREAMS), key=lambda stream: tracks["bp"][stream].mean_overlap())[STREAMS // 2]
    draw_tracking(PICTURE, make_stream(shown, LENGTH), tracks, shown)
    print(text, end="")
    return 0


def measure(progress: Progress) -> tuple[str, dict[str, list[Track]]]:
    """The text of the table but for its end, and every track with the larger number of patches, by row."""
    each = sum(CHOOSING * len(grid(rule)) + STREAMS for rule in RULES)
    progress.start(each * (len(PATCHES) + len(SHOTS)) + STREAMS * len(PATCHES))
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        progress.update(done, {})

    tracking: dict[int, list[Row]] = {}
    tracks: dict[str, list[Track]] = {}
    for patches in PATCHES:
        rows: list[Row] = []
        for rule in (*RULES, NEVER):
            taught, update = ("bp", False) if rule == NEVER else (rule, True)

            def run(
                chosen: Chosen, seed: int, rule: str = taught, patches: int = patches, update: bool = update
            ) -> Track:
                count()
                learner = learner_of(rule, chosen.rate, seed, **chosen.options)
                return follow(make_stream(seed, LENGTH), learner, seed, patches, update)

            # The control is the row of backpropagation without its updates.
            chosen = rows[0].chosen if rule == NEVER else best(rule, run, Track.mean_overlap)
            found = [run(chosen, seed) for seed in range(STREAMS)]
            rows.append(Row(rule, chosen, [f.mean_overlap() for f in found], [f.success() for f in found]))
            tracks[rule] = found
        tracking[patches] = rows
    digits: dict[int, list[Row]] = {}
    for shots in SHOTS:
        digits[shots] = []
        for rule in RULES:

            def learn(chosen: Chosen, seed: int, rule: str = rule, shots: int = shots) -> Outcome:
                count()
                return learn_digits(rule, chosen.rate, seed, shots, **chosen.options)

            chosen = best(rule, learn, lambda outcome: outcome.prequential)
            outcomes = [learn(chosen, seed) for seed in range(STREAMS)]
            digits[shots].append(
                Row(rule, chosen, [o.prequential for o in outcomes], [o.final for o in outcomes])
            )
    return table(tracking, digits), tracks


def grid(rule: str) -> list[Chosen]:
    """What is chosen among."""
    scales: list[dict[str, float]] = [{"scale": scale} for scale in SCALES] if rule in SCALED else [{}]
    return [Chosen(rate, options) for rate in RATES for options in scales]


def best(rule: str, run: Callable[[Chosen, int], Result], figure: Callable[[Result], float]) -> Chosen:
    """That of the largest mean figure on streams that the table does not have."""

    def mean(chosen: Chosen) -> float:
        return statistics.fmean(figure(run(chosen, 1000 + seed)) for seed in range(CHOOSING))

    return max(grid(rule), key=mean)


def table(tracking: Mapping[int, Sequence[Row]], digits: Mapping[int, Sequence[Row]]) -> str:
    """Two Markdown tables and what they say of bdfa."""
    return "\n".join(
        [
            *lines("Patches a frame", "Mean overlap", f"Frames with {SUCCESS:g} or more", tracking),
            "",
            "Tracking: a textured disc that moves, turns, and changes its looks and light, over clutter and among "
            f"others of its kind; {LENGTH} frames, the first labelled, the rest labelled by the tracker's own "
            "estimates. Overlap is intersection over union with the true box.",
            "",
            *lines("Records a class", "Right before learning", "Held-out records at the end", digits),
            "",
            "Digits: the ten classes join two at a time, and every record is seen once: predicted, then learned.",
            "",
            f"Both: mean over {STREAMS} streams ± half width of the 95 % t-interval. The last column is the mean of "
            "the differences to bp on the same streams, of the first figure. Learning rates were chosen for each row "
            f"among {', '.join(f'{rate:g}' for rate in RATES)}, and feedback scales among "
            f"{', '.join(f'{scale:g}' for scale in SCALES)}, by that figure on {CHOOSING} other streams. Han and Yoo "
            "2019 report binary DFA (bdfa) above BP in their abstract, especially where data are few; the streams, the "
            f"front end and the rule are reconstructions [R]. Here: {verdict([*tracking.values(), *digits.values()])}.",
            "",
            "",
        ]
    )


def lines(size: str, first: str, second: str, parts: Mapping[int, Sequence[Row]]) -> list[str]:
    """One table."""
    head = (size, "Rule", "Learning rate, feedback scale", first, second, "Against bp, paired")
    out = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for number, rows in parts.items():
        for row in rows:
            apart = differences(row, rows)
            cells = (
                f"{number}",
                row.rule,
                str(row.chosen),
                interval(row.first),
                interval(row.second),
                "–" if row.rule == "bp" else interval(apart, signed=True),
            )
            out.append(f"| {' | '.join(cells)} |")
    return out


def differences(row: Row, rows: Sequence[Row]) -> list[float]:
    """Of the first figure to that of bp, stream by stream."""
    (reference,) = (other for other in rows if other.rule == "bp")
    return [a - b for a, b in zip(row.first, reference.first, strict=True)]


def half_width(values: Sequence[float]) -> float:
    """Of Student's 95 % interval of the mean."""
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], signed: bool = False) -> str:
    """Mean ± half width, in per cent."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:{'+' if signed else ''}.1f} % ± {100 * half_width(values):.1f}"


def verdict(parts: Sequence[Sequence[Row]], rule: str = "bdfa") -> str:
    """In how many of the parts `rule` is above or below bp by more than the paired interval."""
    signs = []
    for rows in parts:
        (row,) = (row for row in rows if row.rule == rule)
        apart = differences(row, rows)
        mean, width = statistics.fmean(apart), half_width(apart)
        signs.append((mean > width) - (mean < -width))
    return (
        f"{rule} is above bp in {signs.count(1)} of {len(signs)} settings, below it in {signs.count(-1)}, and not told "
        f"from it in {signs.count(0)}"
    )
