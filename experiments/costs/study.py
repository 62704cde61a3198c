"""`python -m experiments costs`: SSDFA's savings in data movement and multiply-adds, counted by our rule.

Writes table.md and docs/images/costs.png. Nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.costs.networks import NETWORKS, RULES, backward, counted, total
from experiments.costs.picture import draw_costs
from experiments.harness.experiment import TABLE
from optical_dfa.measure.costs import Cost

FOLDER = Path(__file__).parent
PICTURE = FOLDER.parents[1] / "docs" / "images" / "costs.png"
COMMAND = "python -m experiments costs"
SPARSE = "SSDFA, k = 1"
ORDERS, NEARLY_TWICE = 100.0, 1.9  # what is taken for orders of magnitude, and for nearly 2 times

Costs = Mapping[str, Mapping[str, Cost]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write table.md and the picture."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    costs = {name: {rule: counted(network, rule) for rule in RULES} for name, network in NETWORKS.items()}
    draw_costs(costs, PICTURE)
    text = table(costs)
    (FOLDER / TABLE).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def table(costs: Costs) -> str:
    """Two Markdown tables: the counts, and what they say of the paper's claims."""
    ratios = {name: backward(by_rule["BP"]) / backward(by_rule[SPARSE]) for name, by_rule in costs.items()}
    nearly = {name: ratio for name, ratio in ratios.items() if ratio >= NEARLY_TWICE}
    return "\n".join(
        [
            *_counts(costs),
            "",
            "Of one record, as `optical_dfa/measure/costs.py` says; M = 10⁶. Words: what hidden units must receive to "
            "be taught, through a matrix an error and a weight for every multiply-add, through fixed feedback an "
            "error. BDFA's and ternary's products are additions and their words shorter, but as many as DFA's. "
            "Convolutions padded to the size of their input, feedback after the pooling; MNIST-conv is taken to have "
            "CIFAR10-conv's layers.",
            "",
            *_claims(costs),
            "",
            f"Claims of the abstract (Crafton et al. 2019): improvements of orders of magnitude in data movement, "
            f"asked for here as at least {ORDERS:g} times, and of 2 times in multiply-adds. Were a weight moved once a "
            "batch and not once a multiply-add, BP's words would be half as many. The forward pass and the weight "
            "gradients are the same under all rules, and BP's error passes every layer but the first: a step can be at "
            "most 1.5 times cheaper, its backward part (error and weight gradients) at most 2 times. Half of the "
            f"multiply-adds is thus saved only backward, and nearly, where the first layer is small: "
            f"{', '.join(f'{name} ({ratio:.2f})' for name, ratio in nearly.items())}.",
            "",
            f"Made by `{COMMAND}`.",
            "",
        ]
    )


def _counts(costs: Costs) -> list[str]:
    head = ("Network", "Rule", "Error, M multiply-adds", "Step, M multiply-adds", "Words, M")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for network, by_rule in costs.items():
        for rule, cost in by_rule.items():
            cells = (network, rule, *(f"{n / 1e6:,.4g}" for n in (cost.error, total(cost), cost.words)))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _claims(costs: Costs) -> list[str]:
    head = (
        "Network",
        "Words, BP to SSDFA",
        "Words, DFA to SSDFA",
        "Orders of magnitude",
        "Step, BP to SSDFA",
        "Backward, BP to SSDFA",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for network, by_rule in costs.items():
        bp, dfa, sparse = (by_rule[rule] for rule in ("BP", "DFA", SPARSE))
        moved, step = bp.words / sparse.words, total(bp) / total(sparse)
        cells = (
            network,
            f"{moved:,.0f}",
            f"{dfa.words / sparse.words:,.0f}",
            "yes" if moved >= ORDERS else "no",
            f"{step:.3f}",
            f"{backward(bp) / backward(sparse):.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines
