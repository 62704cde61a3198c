"""Two worlds for the distinguishing attack: one production training loop without the target record, one with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.generator import NoiseGenerator
from optical_dfa import align
from privacy import PrivacyEngine, accounting
from privacy.attacks.distinguish import Knowledge, ReleasedSums

DELTA = 1e-5
NEGLIGIBLE = 1e-9  # a noise multiplier with which the adversary reads the noiseless sums
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "digital": ("digital", {}),
    "dark-frame": ("simulated-opu", {"dark_pixels": 1024}),
}


def small_net() -> nn.Module:
    """1 -> 2 tanh -> 2 without biases: a record with x = 0 contributes exactly nothing."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-0.5]]))
        net[2].weight.zero_()
    return net


@dataclass
class Worlds:
    """Everything public about the two worlds; `others` and `target` are (inputs, labels)."""

    release: str = "digital"
    sample_rate: float = 1.0
    max_grad_norm: float = 0.05
    net: Callable[[], nn.Module] = small_net
    others: tuple[Tensor, Tensor] = field(
        default_factory=lambda: (torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    )
    target: tuple[Tensor, Tensor] = field(
        default_factory=lambda: (torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    )
    backend: Callable[[int], Any] | None = None  # a device made from a seed, in place of the registered one

    def make(
        self, with_record: bool, noise_multiplier: float, seed: int, sample_rate: float | None = None
    ) -> tuple[ReleasedSums, PrivacyEngine]:
        """The production loop of one world."""
        q = self.sample_rate if sample_rate is None else sample_rate
        name, options = BACKENDS[self.release]
        aligned = align(
            self.net(),
            backend=name if self.backend is None else self.backend(seed),
            backend_options=options,
            seed=3,
            noise=NoiseGenerator.seeded(seed, "device"),
            loss_reduction="sum",
            show=None,
        )
        parts = zip(self.others, self.target, strict=True)
        data = TensorDataset(*(torch.cat(pair) if with_record else pair[0] for pair in parts))
        expected = len(self.others[0])
        engine = PrivacyEngine(reproducible_seed=seed)
        module, optimizer, loader = engine.make_private(
            module=aligned,
            optimizer=torch.optim.SGD([p for p in aligned.parameters() if p.requires_grad], lr=0.0),
            data_loader=DataLoader(data, batch_size=expected),
            noise_multiplier=noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            release=self.release,
            public_size=round(expected / q),
        )
        loss = nn.CrossEntropyLoss(reduction="sum")
        return ReleasedSums(module, optimizer, loader, loss, expected_batch_size=expected), engine

    def knowledge(self) -> Knowledge:
        """S and v, from the adversary's own runs of the same code."""
        sums = [self.make(present, NEGLIGIBLE, 900 + present, 1.0)[0].take(32) for present in (False, True)]
        return Knowledge.of(*sums)


def noise_std(engine: PrivacyEngine) -> float:
    """Standard deviation of the noise in the sum, public."""
    header = engine.ledger.header()
    return float(header["noise_multiplier"] * header["sensitivity"])


def claimed(engine: PrivacyEngine, steps: int) -> float:
    """Epsilon that the ledger's first `steps` releases claim (nominal: the generators are seeded)."""
    return accounting.epsilon(engine.ledger.releases()[:steps], DELTA)


def calibrated(epsilon: float, sample_rate: float, steps: int) -> float:
    """Least noise multiplier for `epsilon`, short of the dark frames' and the generator's own small cost."""
    sigma = accounting.noise_multiplier(
        epsilon, DELTA, sample_rate, steps, accountant="numerical", mass=1e-15
    )
    assert math.isfinite(sigma)
    return sigma
