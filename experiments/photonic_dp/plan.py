"""What the study measures: its trainings, attacks and releases, and which of them are finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.harness.lines import finished
from experiments.photonic_dp.training import DELTA, MAX_GRAD_NORM, THRESHOLD, Training
from privacy.accounting import published
from privacy.ledger import ReleaseEvent
from privacy.notions import Adjacency

EPSILON = 3.0
MOST_CLAIM = 64.0  # that an attack takes up; above it no number of trials would tell

# What is trained without a release, by rule and device.
PLAIN = {
    "hidden layers frozen": ("shallow", "digital"),
    "BP": ("bp", "digital"),
    "DFA": ("dfa", "digital"),
    "DFA, ternary errors": ("ternary", "digital"),
    "photonic DFA": ("ternary", "simulated-opu"),
}
# What is trained at EPSILON; the first is the published mechanism, whose claim is none.
RELEASES: dict[str, dict[str, Any]] = {
    "per-record, as published": {
        "release": "per-record",
        "rule": "ternary",
        "rule_options": {"threshold": THRESHOLD},
        "backend": "simulated-opu",
    },
    "dark-frame, dither (T4)": {"release": "dark-frame", "rule": "dfa", "backend": "simulated-opu"},
    "dark-frame, digits (T12)": {
        "release": "dark-frame",
        "release_options": {"digits": 10},
        "rule": "dfa",
        "backend": "simulated-opu",
    },
    "photon (T10)": {"release": "photon", "rule": "gated-dfa", "backend": "simulated-opu"},
    "aggregate (T5)": {"release": "aggregate", "rule": "gated-dfa", "backend": "digital"},
    # Leverages of this many units and inputs are refused; without them (τ = 1) every record pays in full. The shipped
    # rate is for clipped sums, which this release does not make.
    "labels alone, τ = 1 (T7)": {
        "release": "label",
        "epochs": 10,
        "lr": 0.003,
        "release_options": {"leverage": False},
        "rule": "dfa",
        "backend": "digital",
    },
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seeds: of the trainings; each release is trained once, with the first.
        multipliers: z of the published mechanism, rising.
        attacked: data set whose records the attack uses.
        trials: of the attack in each world; None is its default.
        lr, noised_lr: learning rates of trainings without, and with clipping and noise.
        release_batch_size, release_epochs: of the trainings at EPSILON; all else is what is shipped.
    """

    datasets: tuple[str, ...] = ("fashion-mnist", "mnist")
    seeds: tuple[int, ...] = (0,)
    multipliers: tuple[float, ...] = (0.1, 0.375, 0.75, 1.5, 3.0, 6.0)
    attacked: str = "fashion-mnist"
    trials: int | None = None
    model: str = "mlp:512,512"
    batch_size: int = 1024
    epochs: int = 10
    lr: float = 0.1
    noised_lr: float = 0.3
    releases: tuple[str, ...] = tuple(RELEASES)
    release_batch_size: int = 4096
    release_epochs: int = 20

    def trainings(self, dataset: str, seed: int) -> dict[str, Training]:
        """By the table's name: without a release, then at every noise."""
        same: dict[str, Any] = {"model": self.model, "batch_size": self.batch_size, "epochs": self.epochs}
        plain = {
            name: Training(dataset, rule, backend, self.lr, seed=seed, **same)
            for name, (rule, backend) in PLAIN.items()
        }
        rule, backend = PLAIN["photonic DFA"]
        noised = {
            f"photonic DFA, z = {z:g}": Training(dataset, rule, backend, self.noised_lr, z, seed, **same)
            for z in self.multipliers
        }
        return {**plain, **noised}

    def release(self, dataset: str, name: str) -> dict[str, Any]:
        """Settings of a training at EPSILON, over the shipped ones."""
        return {
            "dataset": dataset,
            "model": self.model,
            "seed": self.seeds[0],
            "batch_size": self.release_batch_size,
            "epochs": self.release_epochs,
            "epsilon": EPSILON,
            "delta": DELTA,
            **RELEASES[name],
        }

    def attacks(self) -> dict[float, dict[str, Any]]:
        """By multiplier, an attack on one step at this noise, whose claim is the published one."""
        claims = {z: step_claim(z) for z in self.multipliers}
        return {
            z: {
                "dataset": self.attacked,
                "noise_multiplier": z,
                "epsilon": claim,
                "delta": DELTA,
                "trials": self.trials,
            }
            for z, claim in claims.items()
            if claim <= MOST_CLAIM
        }


Found = Mapping[str, Mapping[str, Any]]  # finished parts by `key`


def step_claim(multiplier: float) -> float:
    """The published epsilon at DELTA of one step in which every record takes part."""
    event = ReleaseEvent(
        mechanism="published",
        source="per-record",
        sample_rate=1.0,
        noise_multiplier=multiplier,
        sensitivity=MAX_GRAD_NORM,
        dimension=1,
    )
    return published.epsilon({event: 1}, DELTA, Adjacency.ADD_REMOVE, "published")


def key(part: str, setting: Mapping[str, Any]) -> str:
    """What makes two parts the same."""
    return json.dumps([part, setting], sort_keys=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The finished parts by `key`."""
    return {key(result["part"], result["setting"]): result for result in finished(path)}


def trained(plan: Plan, found: Found, dataset: str, name: str) -> list[Mapping[str, Any]]:
    """The finished trainings of one row, one a seed."""
    keys = [key("training", asdict(plan.trainings(dataset, seed)[name])) for seed in plan.seeds]
    return [found[k] for k in keys if k in found]
