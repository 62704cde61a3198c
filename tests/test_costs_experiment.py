"""The counts of the SSDFA paper's networks against closed forms, and the table against the counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from experiments import costs
from experiments.costs import study as experiment
from experiments.costs.networks import NETWORKS, RULES, backward, counted, total
from experiments.costs.picture import draw_costs
from experiments.harness.experiment import TABLE
from optical_dfa.measure.costs import Cost


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Cost]]:
    return {name: {rule: counted(network, rule) for rule in RULES} for name, network in NETWORKS.items()}


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("MNIST-FC", (784, 400, 10)),
        ("CIFAR10-FC", (3072, 1000, 1000, 1000, 10)),
        ("CIFAR100-FC", (3072, 1000, 1000, 1000, 100)),
        ("AlexNet, FC part", (9216, 4096, 4096, 1000)),
    ],
)
def test_connected_networks_are_their_closed_forms(
    name: str, widths: tuple[int, ...], found: dict[str, dict[str, Cost]]
) -> None:
    """F = sum n_{l-1} n_l twice; the error: sum of n_l n_{l+1} above the first layer, c n_l, or k n_l."""
    forward = sum(a * b for a, b in pairwise(widths))
    hidden, classes = sum(widths[1:-1]), widths[-1]
    through = sum(a * b for a, b in pairwise(widths[1:]))
    expected = {
        "BP": (through, 2 * through),
        "DFA": (classes * hidden,) * 2,
        "BDFA": (classes * hidden,) * 2,
        "ternary": (classes * hidden,) * 2,
        "SSDFA, k = 1": (hidden,) * 2,
    }
    for rule, (error, words) in expected.items():
        assert found[name][rule] == Cost(forward, forward, error, words)


def test_the_worked_example(found: dict[str, dict[str, Cost]]) -> None:
    errors = [found["CIFAR10-FC"][rule].error for rule in ("BP", "DFA", "SSDFA, k = 1")]
    assert errors == [2_010_000, 30_000, 3_000]


@pytest.mark.parametrize(
    ("name", "channels", "sides"), [("MNIST-conv", 1, (28, 14, 7, 4)), ("CIFAR10-conv", 3, (32, 16, 8, 4))]
)
def test_convolutional_networks_are_their_closed_forms(
    name: str, channels: int, sides: tuple[int, ...], found: dict[str, dict[str, Cost]]
) -> None:
    """A 5x5 convolution costs 25 c_in c_out a position before its pooling; units are those after it."""
    layers = [
        25 * before * after * side**2
        for (before, after), side in zip(pairwise((channels, 96, 128, 256)), sides[:3], strict=True)
    ]
    layers += [256 * sides[3] ** 2 * 2048, 2048 * 2048, 2048 * 10]
    units = 96 * sides[1] ** 2 + 128 * sides[2] ** 2 + 256 * sides[3] ** 2 + 2 * 2048
    forward, through = sum(layers), sum(layers[1:])
    assert found[name]["BP"] == Cost(forward, forward, through, 2 * through)
    assert found[name]["DFA"] == Cost(forward, forward, 10 * units, 10 * units)
    assert found[name]["SSDFA, k = 1"] == Cost(forward, forward, units, units)


def test_no_step_can_be_twice_as_cheap(found: dict[str, dict[str, Cost]]) -> None:
    for by_rule in found.values():
        bp, sparse = by_rule["BP"], by_rule["SSDFA, k = 1"]
        assert 1 < total(bp) / total(sparse) < 1.5
        assert 1 < backward(bp) / backward(sparse) < 2


def test_nothing_large_is_held() -> None:
    """58.6 million weights and 8 million entries of feedback: not a hundredth is allocated at once."""

    def largest(call: Callable[[], object]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            call()
        return max(event.cpu_memory_usage for event in seen.events())

    weights = 58_621_952
    assert largest(lambda: torch.zeros(weights // 50)) >= 4 * weights // 50  # it would show
    assert largest(lambda: counted(NETWORKS["AlexNet, FC part"], "DFA")) < 4 * weights // 100


def test_the_published_table_is_the_counts(found: dict[str, dict[str, Cost]], tmp_path: Path) -> None:
    folder = Path(costs.__file__).parent
    assert (folder / TABLE).read_text(encoding="utf-8") == experiment.table(found)
    draw_costs(found, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 5000
