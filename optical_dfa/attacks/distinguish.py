"""`distinguish`: the likelihood-ratio attack on worst-case neighbours, through the production release path.

The network is tiny, so that one step is quick and the target record moves the sum by the whole sensitivity. Where a
record's contribution is clipped by itself, one step holds COPIES targets, each with an input of its own: target k moves
column k of the update and nothing else, so each column is a trial of its own (of data sets that differ by record k).
"""

from __future__ import annotations

import numpy as np
import torch

from noise_models.errors import UsageError
from noise_models.randomness.generator import derive_seed
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import NEGLIGIBLE, Worlds, claimed, claimed_kind, noise_std, wide_net
from privacy import PrivacyEngine
from privacy.attacks.finding import Finding
from privacy.attacks.laws import Array, CorrelatedGaussianLaw, GaussianLaw, NoiseLaw
from privacy.attacks.likelihood_ratio import Knowledge, distinguish
from privacy.notions import Kind
from privacy.releases import terms

EPSILON = 1.0
# Trials in each world that show 60 % of epsilon at 99.9 % confidence, by what the ideal mechanism's bound needs.
TRIALS = ((0.5, 22_000), (1.0, 7000), (2.0, 3000), (4.0, 1500), (64.0, 1200))
COPIES = 128
AMPLE = 3  # times as many trials where a step holds COPIES of them
LIT_UNITS = (
    32  # of the hidden layer where light is read back: as many pixels, so that no direction is read badly
)
_FAMILY = {
    "skellam": "to which the release claims to belong (a Skellam mechanism approximately)",
    "photon": "which counts of much light resemble, and none of which the release claims to be",
}
OWN_RUNS = (200, 1000)  # least and most runs of each world from which noise in few coordinates is learnt


def run(setting: Setting) -> Finding:
    """
    Raises:
        UsageError: a release whose claim is no worst-case guarantee.
    """
    if claimed_kind(setting.release) not in (Kind.RECORD_DP, Kind.LABEL_DP):
        raise UsageError(
            f"release {setting.release} claims no worst-case guarantee; attack span shows what it leaks, distinguish "
            "is for sound releases"
        )
    epsilon = setting.epsilon or EPSILON
    needed = next(count for limit, count in TRIALS if epsilon <= limit)
    trials = setting.trials or (needed if terms(setting.release).noise_by_records else AMPLE * needed)
    copies = 1 if terms(setting.release).noise_by_records else min(COPIES, trials)
    worlds = Worlds.of(setting) if copies == 1 else wide(setting, copies)
    sigma = worlds.calibrated(epsilon, setting.delta)
    isotropic = terms(setting.release).isotropic
    own = 0 if isotropic else min(max(trials, OWN_RUNS[0]), OWN_RUNS[1])
    setting.progress.start(2 * (-(-trials // copies) + -(-own // copies)))
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        setting.progress.update(done, {})

    def take(second: bool, noise: float, seed: int, count: int) -> tuple[Array, PrivacyEngine]:
        """At least `count` trials, shape (trials, 1, coordinates)."""
        sums, engine = (worlds if noise == sigma else worlds.readable).make(second, noise, seed)
        rows = sums.take(-(-count // copies), tell=tell if noise == sigma else None)
        split = rows.reshape(len(rows), -1, copies).swapaxes(1, 2)  # a column a target
        return split.reshape(len(rows) * copies, 1, -1), engine

    releases, engines = [], []
    for second in (False, True):
        found, engine = take(second, sigma, derive_seed(setting.seed, f"world {second}"), trials)
        releases.append(found)
        engines.append(engine)
    # What the adversary learns from its own runs of the same code.
    noiseless = [take(second, NEGLIGIBLE, 900 + second, 32)[0] for second in (False, True)]
    known = Knowledge.of(*noiseless)
    law: NoiseLaw = GaussianLaw(noise_std(engines[0]))
    if not isotropic:
        runs = [take(second, sigma, 700 + second, own)[0][:, 0] for second in (False, True)]
        known = Knowledge(known.others, known.change, 0.0)
        law = CorrelatedGaussianLaw((np.cov(runs[0].T) + np.cov(runs[1].T)) / 2)
    claim = claimed(engines[0], 1, setting.delta)
    result = distinguish(
        releases[0],
        releases[1],
        known,
        law,
        sample_rate=1.0,
        delta=setting.delta,
        confidence=setting.confidence,
    )
    return Finding(
        attack="distinguish",
        release=setting.release,
        backend=worlds.backend_name,
        epsilon_lower=result.gaussian_family.epsilon,
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=2 * len(releases[0]),
        claim="one released step on worst-case neighbours (q = 1)",
        details={
            "noise_multiplier": sigma,
            "epsilon_lower_assumption_free": result.worst_case.epsilon,
            "false_alarms": result.gaussian_family.false_alarms,
            "misses": result.gaussian_family.misses,
        },
        notes=(
            "epsilon_lower is within the family of Gaussian mechanisms, "
            + _FAMILY.get(terms(setting.release).mechanism, "to which the release claims to belong")
            + "; epsilon_lower_assumption_free assumes nothing, and is looser",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def wide(setting: Setting, copies: int) -> Worlds:
    """Worlds with as many targets, and others that contribute exactly nothing."""
    return Worlds.of(
        setting,
        net=lambda: wide_net(copies, LIT_UNITS if terms(setting.release).light else 2),
        others=(torch.zeros(copies, copies), torch.zeros(copies, dtype=torch.int64)),
        target=(torch.eye(copies), torch.zeros(copies, dtype=torch.int64)),
        declared_batch=2 * copies,
    )
