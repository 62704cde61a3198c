"""`distinguish`: the likelihood-ratio attack on worst-case neighbours, through the production release path.

The network is tiny, so that one step is quick and the target record moves the sum by the whole sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from noise_models.errors import UsageError
from noise_models.generator import derive_seed
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import Worlds, claimed, claimed_kind, noise_std
from privacy.attacks.distinguish import Knowledge, distinguish
from privacy.attacks.finding import Finding
from privacy.attacks.laws import CorrelatedGaussianLaw, GaussianLaw, NoiseLaw
from privacy.kind import Kind

EPSILON = 1.0
# Trials in each world that show 60 % of epsilon at 99.9 % confidence, by what the ideal mechanism's bound needs.
TRIALS = ((0.5, 22_000), (1.0, 7000), (2.0, 3000), (4.0, 1500), (64.0, 1200))
# Releases whose noise is N(0, std² I) in the very coordinates that are released.
ISOTROPIC = ("digital", "dark-frame", "device-entropy")
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
    trials = setting.trials or next(count for limit, count in TRIALS if epsilon <= limit)
    worlds = Worlds.of(setting)
    sigma = worlds.calibrated(epsilon, setting.delta)
    isotropic = setting.release in ISOTROPIC
    own = 0 if isotropic else min(max(trials, OWN_RUNS[0]), OWN_RUNS[1])
    setting.progress.start(2 * (trials + own))
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        setting.progress.update(done, {})

    releases, engines = [], []
    for second in (False, True):
        sums, engine = worlds.make(second, sigma, derive_seed(setting.seed, f"world {second}"))
        releases.append(sums.take(trials, tell=tell))
        engines.append(engine)
    known = worlds.knowledge()
    law: NoiseLaw
    if isotropic:
        law = GaussianLaw(noise_std(engines[0]))
    else:
        known, law = _learnt(worlds, sigma, known, own, tell)
    claim = claimed(engines[0], 1, setting.delta)
    found = distinguish(
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
        epsilon_lower=found.gaussian_family.epsilon,
        confidence=setting.confidence,
        epsilon_claimed=claim,
        delta=setting.delta,
        kind=claimed_kind(setting.release).value,
        trials=2 * trials,
        claim="one released step on worst-case neighbours (q = 1)",
        details={
            "noise_multiplier": sigma,
            "epsilon_lower_assumption_free": found.worst_case.epsilon,
            "false_alarms": found.gaussian_family.false_alarms,
            "misses": found.gaussian_family.misses,
        },
        notes=(
            "epsilon_lower is within the family of Gaussian mechanisms, to which the release claims to belong"
            + (" (a Skellam mechanism approximately)" if setting.release == "skellam" else "")
            + "; epsilon_lower_assumption_free assumes nothing, and is looser",
            "the generators are seeded, so that the attack can be repeated; the claim is that of secret noise",
        ),
    )


def _learnt(
    worlds: Worlds, sigma: float, known: Knowledge, runs: int, tell: Callable[[], None]
) -> tuple[Knowledge, NoiseLaw]:
    """Mean and covariance of the noised sums, from the adversary's own runs of both worlds with other seeds."""
    sums = [
        worlds.make(second, sigma, 700 + second)[0].take(runs, tell=tell)[:, 0] for second in (False, True)
    ]
    covariance = (np.cov(sums[0].T) + np.cov(sums[1].T)) / 2
    return Knowledge(known.others, known.change, 0.0), CorrelatedGaussianLaw(covariance)
