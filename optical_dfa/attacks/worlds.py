"""Two worlds for an attack: the production training loop without the target record, and with it.

Where the release protects labels, both worlds hold the target, with two different labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.attacks.setting import Setting
from privacy import PrivacyEngine, accounting
from privacy.attacks.likelihood_ratio import Knowledge, ReleasedSums
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency, Kind
from privacy.releases import terms

NEGLIGIBLE = 1e-9  # a noise multiplier with which the adversary reads the noiseless sums
FEEDBACK_SEED = 3


def rule_for(release: str) -> str:
    """The rule that a release is attacked with where none is asked for."""
    return terms(release).rule or "dfa"


def backend_for(release: str) -> str:
    """The device that a release is attacked with where none is asked for: the digital one, unless it needs a camera."""
    return "simulated-opu" if terms(release).dark_frames else "digital"


def small_net() -> nn.Module:
    """1 -> 2 tanh -> 2 without biases: a record with x = 0 contributes exactly nothing."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    hidden, _, output = net
    with torch.no_grad():
        hidden.get_parameter("weight").copy_(torch.tensor([[1.0], [-0.5]]))
        output.get_parameter("weight").zero_()
    return net


def wide_net(records: int, units: int = 2) -> nn.Module:
    """records -> 2 tanh -> 2, the output layer frozen: one-hot record k moves column k of the first layer alone.

    Args:
        records: inputs.
        units: of the hidden layer, an even number in place of 2.
    """
    hidden, output = nn.Linear(records, units, bias=False), nn.Linear(units, 2, bias=False)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([[1.0], [-0.5]]).repeat(units // 2, records))
        # Not zero, for rules that go back through it.
        output.weight.copy_(torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).repeat(1, units // 2) * 2 / units)
    output.weight.requires_grad_(False)
    return nn.Sequential(hidden, nn.Tanh(), output)


def device_options(backend: str, release: str, dark_pixels: int) -> dict[str, Any]:
    """Options of a simulated device whose frames are just large enough, so that a step is quick."""
    if backend == "simulated-opu":
        return {"dark_pixels": dark_pixels} | dict(terms(release).backend_options)
    if backend == "lightonml-simulated" and terms(release).dark_frames:
        return {"device": "physics", "dark_pixels": dark_pixels}
    return {}


@dataclass
class Worlds:
    """Everything public about the two worlds; `others` and `target` are (inputs, labels).

    Attributes:
        release, backend, rule: registered names; None is one that the release can work with.
        release_options: the release's own settings.
        sample_rate: q; the expected batch is the number of others (of all records where labels are protected).
        max_grad_norm: C.
        learning_rate: 0 lets all releases answer the same question.
        net: makes the network, with its initial weights.
        others, target: the records.
        other_label: the target's label in the second world, where labels are protected.
        declared_batch: the expected batch that is declared, where it is not the number of others.
        dark_pixels: of a simulated camera.
        device: makes a device from a seed, in place of the registered one.
        engine: the class that makes the training private.
    """

    release: str = "digital"
    backend: str | None = None
    rule: str | None = None
    release_options: dict[str, Any] = field(default_factory=dict)
    sample_rate: float = 1.0
    max_grad_norm: float = 0.05
    learning_rate: float = 0.0
    net: Callable[[], nn.Module] = small_net
    others: tuple[Tensor, Tensor] = field(
        default_factory=lambda: (torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    )
    target: tuple[Tensor, Tensor] = field(
        default_factory=lambda: (torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    )
    other_label: int = 1
    declared_batch: int | None = None
    dark_pixels: int = 1024
    device: Callable[[int], Any] | None = None
    engine: type[PrivacyEngine] = PrivacyEngine

    @classmethod
    def of(cls, setting: Setting, **settings: Any) -> Worlds:
        """For an attack's setting."""
        return cls(release=setting.release, backend=setting.backend, rule=setting.rule, **settings)

    @property
    def backend_name(self) -> str:
        return self.backend or backend_for(self.release)

    @property
    def changes_label(self) -> bool:
        """Whether the worlds differ by a label instead of a record."""
        return terms(self.release).adjacency is Adjacency.LABEL

    def records(self, second: bool) -> tuple[Tensor, Tensor]:
        """Inputs and labels of one world."""
        if self.changes_label:
            label = torch.full_like(self.target[1], self.other_label) if second else self.target[1]
            return torch.cat((self.others[0], self.target[0])), torch.cat((self.others[1], label))
        if not second:
            return self.others
        x, y = zip(self.others, self.target, strict=True)
        return torch.cat(x), torch.cat(y)

    def world(
        self,
        second: bool,
        seed: int,
        *,
        noise_multiplier: float = 1.0,
        claim: tuple[float, float, int] | None = None,
        sample_rate: float | None = None,
    ) -> World:
        """The production loop of one world.

        Args:
            second: with the record (or with the other label).
            seed: of all its randomness.
            noise_multiplier: of the release.
            claim: instead, (epsilon, delta, epochs) that the noise is calibrated to; such a world stops there.
            sample_rate: instead of the worlds' own.
        """
        q = self.sample_rate if sample_rate is None else sample_rate
        name = self.backend_name
        aligned = align(
            self.net(),
            rule=self.rule or rule_for(self.release),
            backend=name if self.device is None else self.device(seed),
            backend_options=device_options(name, self.release, self.dark_pixels)
            if self.device is None
            else None,
            seed=FEEDBACK_SEED,
            noise=NoiseGenerator.seeded(seed, "device"),
            loss_reduction="sum",
            show=None,
        )
        expected = self.declared_batch or len(self.records(self.changes_label)[0])
        engine = self.engine(reproducible_seed=seed)
        shared: dict[str, Any] = {
            "module": aligned,
            "optimizer": torch.optim.SGD(
                [p for p in aligned.parameters() if p.requires_grad], lr=self.learning_rate
            ),
            "data_loader": DataLoader(TensorDataset(*self.records(second)), batch_size=expected),
            "max_grad_norm": self.max_grad_norm if terms(self.release).clips else None,
            "release": self.release,
            "release_options": self.release_options,
            "public_size": round(expected / q),
        }
        if claim is not None:
            epsilon, delta, epochs = claim
            made = engine.make_private_with_epsilon(
                **shared, target_epsilon=epsilon, target_delta=delta, epochs=epochs
            )
        else:
            made = engine.make_private(**shared, noise_multiplier=noise_multiplier)
        return World(engine, *made, expected_batch_size=expected)

    def make(
        self, with_record: bool, noise_multiplier: float, seed: int, sample_rate: float | None = None
    ) -> tuple[ReleasedSums, PrivacyEngine]:
        """What one world releases for ever, and its engine."""
        world = self.world(with_record, seed, noise_multiplier=noise_multiplier, sample_rate=sample_rate)
        return world.sums(), world.engine

    def calibrated(self, epsilon: float, delta: float, steps: int = 1) -> float:
        """The noise multiplier with which the release claims (epsilon, delta) for `steps` steps."""
        epochs = steps * self.sample_rate
        if epochs != int(epochs):
            raise UsageError(f"{steps} steps at sample rate {self.sample_rate} are no whole number of epochs")
        world = self.world(False, 0, claim=(epsilon, delta, int(epochs)))
        assert world.engine.ledger is not None
        return float(world.engine.ledger.header()["noise_multiplier"])

    @property
    def readable(self) -> Worlds:
        """Worlds of the same sums that can be had with NEGLIGIBLE noise, which a camera's codes are too coarse for."""
        if not terms(self.release).dark_frames:
            return self
        return replace(
            self, release="digital", release_options={}, backend=self.backend_name, engine=PrivacyEngine
        )

    def knowledge(self) -> Knowledge:
        """S and v, from the adversary's own runs of the same code."""
        worlds = self.readable
        sums = [worlds.make(second, NEGLIGIBLE, 900 + second, 1.0)[0].take(32) for second in (False, True)]
        return Knowledge.of(*sums)

    def with_records(self, others: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Worlds:
        """The same worlds around other records."""
        return replace(self, others=others, target=target)


@dataclass
class World:
    """One world's production loop."""

    engine: PrivacyEngine
    module: nn.Module
    optimizer: Any
    loader: Any
    expected_batch_size: int

    def batches(self) -> Iterator[Any]:
        """Its batches, for ever; each must be followed by a step."""
        while True:
            yield from self.loader

    def sums(self) -> ReleasedSums:
        """Its releases, read for ever."""
        loss = nn.CrossEntropyLoss(reduction="sum")
        return ReleasedSums(
            self.module, self.optimizer, self.loader, loss, expected_batch_size=self.expected_batch_size
        )


def releases(engine: PrivacyEngine) -> list[ReleaseEvent]:
    """The ledger's rows."""
    assert engine.ledger is not None  # the engine made a module private
    return list(engine.ledger.releases())


def noise_std(engine: PrivacyEngine) -> float:
    """Standard deviation of the noise in the sum, public."""
    assert engine.ledger is not None
    header = engine.ledger.header()
    return float(header["noise_multiplier"] * header["sensitivity"])


def claimed(engine: PrivacyEngine, steps: int, delta: float) -> float:
    """Epsilon that the ledger's first `steps` releases claim (nominal: the generators are seeded)."""
    assert engine.ledger is not None
    header = engine.ledger.header()
    return accounting.epsilon(
        releases(engine)[:steps], delta, Adjacency(header["adjacency"]), header["accountant"]
    )


def claimed_kind(release: str) -> Kind:
    """Kind of the claim that the release makes where its noise is secret."""
    return terms(release).kind
