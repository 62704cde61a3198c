"""Rules with fixed direct feedback in training runs, private ones first: each record counts for itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import M, X, Y, normal
from torch import nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.config import TrainConfig
from optical_dfa.networks.building import build
from optical_dfa.training.trainer import train
from privacy.releases.clipped import clip_factors

C = 4
RULES = ("sign-dfa", "ternary", "bdfa", "ssdfa", "drtp")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: build("mlp:6,7", (5,), C, 0).double(), (5,)),
    "cnn": (lambda: build("cnn:4,3", (2, 8, 8), C, 0).double(), (2, 8, 8)),
}


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        *((rule, {}) for rule in RULES),
        ("ternary", {"relative": True, "threshold": 0.4}),
        ("dfa", {"slices": "shared", "normalisation": "widest"}),
        ("dfa", {"conv": "shared-kernel", "law": "orthogonal"}),
        ("ssdfa", {"nonzeros": 2, "rank": 3, "conv": "shared-kernel"}),
    ],
)
def test_the_clipped_sum_is_that_of_each_record_alone(
    rule: str, options: dict[str, Any], network: str
) -> None:
    make, shape = NETWORKS[network]
    x = normal(M, *shape, seed=2)
    aligned = align(make(), rule=rule, rule_options=options, example=x, show=None)
    stacks = []
    for i in range(M):
        aligned.zero_grad()
        cross_entropy(aligned(x[i : i + 1]), Y[i : i + 1]).backward()
        stacks.append(torch.cat([p.grad.flatten() for p in aligned.trained_parameters().values()]))
    alone = torch.stack(stacks)
    norm = float(alone.norm(dim=1).median())
    capture = aligned.start_capture()
    capture.expected_records = lambda: M
    cross_entropy(aligned(x), Y).backward()
    norms, total = capture.norms(), torch.zeros(capture.dimension, dtype=torch.float64)
    capture.add_clipped(clip_factors(norms, norm), total)
    torch.testing.assert_close(norms, alone.norm(dim=1), rtol=1e-9, atol=0.0)
    clipped = alone * (norm / alone.norm(dim=1, keepdim=True)).clamp_max(1.0)
    torch.testing.assert_close(total, clipped.sum(0), rtol=0.0, atol=1e-9 * norm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_record_that_is_not_finite_adds_exactly_nothing(rule: str, value: float) -> None:
    aligned = align(NETWORKS["mlp"][0](), rule=rule, show=None)
    capture = aligned.start_capture()
    totals = []
    for broken in (True, False):
        x, y = (X.clone(), Y) if broken else (X[:-1], Y[:-1])
        if broken:
            x[-1] = value
        capture.expected_records = lambda x=x: len(x)
        cross_entropy(aligned(x), y).backward()
        norms, total = capture.norms(), torch.zeros(capture.dimension, dtype=torch.float64)
        if broken:
            assert norms.isfinite().tolist() == [True] * (M - 1) + [False]
        capture.add_clipped(clip_factors(norms, 0.5), total)
        capture.clear()
        totals.append(total)
    torch.testing.assert_close(totals[0], totals[1], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("bdfa", {}),
        ("ssdfa", {"nonzeros": 2}),
        ("dfa", {"law": "orthogonal"}),
        ("dfa", {"slices": "shared"}),
        *((rule, None) for rule in ("sign-dfa", "ternary", "drtp", "cdfa")),
    ],
)
def test_label_release_takes_fixed_matrices_alone(rule: str, options: dict[str, Any] | None) -> None:
    config = TrainConfig(
        rule=rule, rule_options=options or {}, backend="digital", release="label", model="mlp:12,8", epochs=1
    )
    if options is None:
        with pytest.raises(UsageError, match="release label needs a fixed feedback matrix"):
            train(config)
    else:
        assert train(config)["guarantee"]["kind"] == "label-dp"


@pytest.mark.parametrize(
    ("rule", "options", "backend", "least"),
    [
        ("dfa", {"law": "orthogonal", "slices": "shared"}, "digital", 0.94),
        ("ternary", {}, "simulated-opu", 0.94),
        ("ternary", {"relative": True, "threshold": 0.4}, "simulated-opu", 0.94),
        ("bdfa", {}, "digital", 0.94),
        ("ssdfa", {}, "digital", 0.93),
        ("drtp", {}, "digital", 0.93),
    ],
)
def test_it_learns_what_frozen_layers_cannot(
    rule: str, options: dict[str, Any], backend: str, least: float
) -> None:
    """On the digits; the same network with frozen hidden layers is at 0.92 after as many steps."""
    found = train(
        TrainConfig(
            rule=rule, rule_options=options, backend=backend, release="none", model="mlp:128,128", epochs=10
        )
    )
    assert found["test_accuracy"] > least
