"""Rules and releases on devices that store no matrix: as with the same matrix stored."""

from __future__ import annotations

import pytest
import torch
from small_networks import X, Y, mlp
from torch import Tensor
from torch.nn.functional import cross_entropy

from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.config import TrainConfig
from optical_dfa.feedback import RULES
from optical_dfa.training.trainer import train

DEVICES = ("streamed", "structured")
PROJECTING = [
    name for name, card in RULES.items() if card.projects and not card.own_law and not card.recurrent
]


class Stored(DigitalBackend):
    """Another device's matrix, kept."""

    def __init__(self, other: ProjectionBackend) -> None:
        noise = NoiseGenerator.seeded(0, "noise")
        super().__init__(other.in_features, other.out_features, seed=0, noise=noise)
        matrix = other.matrix()
        assert matrix is not None
        self.values: Tensor = matrix.double()

    def _project(self, e: Tensor) -> Tensor:
        return e @ self.values.to(e).T


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", PROJECTING)
def test_every_rule_teaches_as_with_the_matrix_stored(rule: str, device: str) -> None:
    computed = align(mlp(), rule=rule, backend=device, seed=5, show=None)
    assert computed.backend is not None
    stored = align(mlp(), rule=rule, backend=Stored(computed.backend), seed=5, show=None)
    for aligned in (computed, stored):
        cross_entropy(aligned(X), Y).backward()
    trained = dict(stored.module.named_parameters())
    for name, parameter in computed.module.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, trained[name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "release",
    [
        "digital",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("skellam", "aggregate", "label")),
    ],
)
def test_private_training(release: str, device: str) -> None:
    """A matrix that does not depend on the data is all that a release needs."""
    rule = "gated-dfa" if release == "aggregate" else "dfa"
    found = train(
        TrainConfig(
            rule=rule, backend=device, release=release, model="mlp:12,8", epochs=2, epsilon=4.0, delta=1e-4
        )
    )
    assert (found["backend"], found["release"]) == (device, release)
    assert found["guarantee"]["kind"] == ("label-dp" if release == "label" else "record-dp")
    assert 0.98 * 4 < found["guarantee"]["epsilon"] <= 4
