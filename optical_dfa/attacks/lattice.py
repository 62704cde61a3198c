"""`lattice`: dark-frame noise read modulo the converter's step, without THEORY T4's dither and with it.

The variant without dither exists here alone: what is attacked as the release is the production one, whose bound must
stay below its claim, while the same attack passes the claim that its neighbour without dither would have made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import Worlds, claimed, claimed_kind, noise_std
from privacy.attacks.finding import Finding
from privacy.attacks.laws import Array, LatticeLaw
from privacy.attacks.likelihood_ratio import Distinguished, distinguish
from privacy.engine import PrivacyEngine
from privacy.releases import dark_frame
from privacy.releases.dark_frame import DarkFrameNoise
from privacy.releases.source import Departure
from privacy.releases.step import StepRelease

EPSILON = 4.0
TRIALS = 1200


class UnditheredDarkFrames(DarkFrameNoise):
    """The trap: Z_k = s (Q(n_k) − offset), claimed to be a Gaussian."""

    def __init__(self, sound: DarkFrameNoise) -> None:
        """Takes the sound source's place, with all it knows of its device."""
        self.__dict__.update(sound.__dict__)

    def cost(self, dimension: int) -> Departure:
        return Departure(0.0, 0.0, super().cost(dimension).mass)  # the naive claim: no ripple

    def prepare(self, std: float) -> None:
        """Nothing: there is no dither."""

    def add_noise(self, total: Tensor, std: float) -> None:
        pixels = self._device.dark_pixels
        for start in range(0, len(total), pixels):
            part = total[start : start + pixels]
            block = torch.empty(len(part), dtype=torch.float64)
            self._take(block)
            scale = round(std / (self._credit.step * self.sigma))
            part.add_(block.mul_(scale).sub_(round(scale * self.offset)).to(total))


class UnditheredEngine(PrivacyEngine):
    """The production engine around the trap."""

    def _release(self, *args: Any) -> StepRelease:
        made = super()._release(*args)
        assert isinstance(made.source, DarkFrameNoise)
        made.source = UnditheredDarkFrames(made.source)
        return made


def run(setting: Setting) -> Finding:
    """
    Raises:
        UsageError: another release than dark-frame.
    """
    if setting.release != "dark-frame":
        raise UsageError(
            f"release {setting.release} has no lattice; attack lattice is about --release dark-frame"
        )
    epsilon = setting.epsilon or EPSILON
    trials = setting.trials or TRIALS
    setting.progress.start(4 * trials)
    broken, naive, _ = _attack(setting, UnditheredEngine, 0.0, epsilon, trials, 0)
    sound, claim, backend = _attack(setting, PrivacyEngine, dark_frame.TAU, epsilon, trials, 2 * trials)
    bound = max(sound.worst_case.epsilon, 0.0)
    return Finding(
        attack="lattice",
        release=setting.release,
        backend=backend,
        epsilon_lower=bound,
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=2 * trials,
        claim="one released step on worst-case neighbours (q = 1)",
        details={
            "dither_std_steps": dark_frame.TAU,
            "without_dither": {
                "epsilon_lower": broken.worst_case.epsilon,
                "epsilon_claimed": naive,
                "consistent": broken.worst_case.epsilon <= naive,
                "trials": 2 * trials,
            },
        },
        notes=(
            "without_dither is the release with its dither taken out, made for this attack alone",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def _attack(
    setting: Setting, engine: type[PrivacyEngine], dither: float, epsilon: float, trials: int, done: int
) -> tuple[Distinguished, float, str]:
    """What the lattice law finds, the claim of one step, and the device's name."""
    worlds = Worlds.of(setting, engine=engine)
    sigma = worlds.calibrated(epsilon, setting.delta)
    releases: list[Array] = []
    law, claim = LatticeLaw(1.0, 0.0, 1.0), 0.0

    def tell() -> None:
        nonlocal done
        done += 1
        setting.progress.update(done, {})

    for second in (False, True):
        sums, made = worlds.make(second, sigma, derive_seed(setting.seed, f"lattice {dither} {second}"))
        releases.append(sums.take(trials, tell=tell))
        source = made.source
        assert isinstance(source, DarkFrameNoise)
        step = noise_std(made) / float(np.hypot(source.sigma, dither))
        law = LatticeLaw(step, source.offset, source.sigma)
        claim = claimed(made, 1, setting.delta)
    found = distinguish(
        releases[0], releases[1], worlds.knowledge(), law,
        sample_rate=1.0, delta=setting.delta, confidence=setting.confidence,
    )  # fmt: skip
    return found, claim, worlds.backend_name
