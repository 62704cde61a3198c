"""The same attack on releases broken on purpose: its assumption-free bound passes the claimed epsilon.

Products are broken by subclassing them HERE; every breakage has its intact control, which the attack must not
pass. 95 % confidence, fixed seeds; the broken releases separate the worlds almost perfectly, so that a miss of the
bound would take many misclassified trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from known_noise import KnownNoiseLaw
from scipy import stats
from torch import Tensor, nn

from noise_models.health.monitor import HealthMonitor
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import RoundedGaussianSampler
from optical_dfa.attacks.worlds import Worlds, claimed, noise_std
from optical_dfa.backends.encoding import ModulatorFrames, Ternary
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from privacy import PrivacyEngine
from privacy.attacks.laws import Array, GaussianLaw, LatticeLaw, NoiseLaw
from privacy.attacks.likelihood_ratio import distinguish
from privacy.contributions.integers import Factors, Whole, WholeSum, _sizes
from privacy.releases import clipped, dark_frame
from privacy.releases.dark_digits import DarkFrameDigits

DELTA = 1e-5
CONFIDENCE = 0.95
TRIALS = {1.0: 120, 4.0: 700}  # in each world: e^-epsilon has to be seen
SEED = 30
Law = Callable[[PrivacyEngine, int, int], NoiseLaw]  # (engine, seed, trials)


def gaussian(engine: PrivacyEngine, seed: int, trials: int) -> NoiseLaw:
    return GaussianLaw(noise_std(engine))


def grid_step(engine: PrivacyEngine) -> float:
    """One of the sum's."""
    assert engine.ledger is not None
    header = engine.ledger.header()
    return float(header["sensitivity"] / header["credit"]["clipping norm in grid steps"])


def attack(worlds: Worlds, epsilon: float, law: Law = gaussian) -> tuple[float, float]:
    """(lower bound, claimed epsilon); one step, q = 1."""
    trials, sigma = TRIALS[epsilon], worlds.calibrated(epsilon, DELTA)
    releases: list[Array] = []
    laws: list[NoiseLaw] = []
    for present in (False, True):
        sums, engine = worlds.make(present, sigma, SEED + present)
        releases.append(sums.take(trials))
        laws.append(law(engine, SEED + present, trials))
    result = distinguish(
        releases[0],
        releases[1],
        worlds.knowledge(),
        (laws[0], laws[1]),
        sample_rate=1.0,
        delta=DELTA,
        confidence=CONFIDENCE,
    )
    return result.worst_case.epsilon, claimed(engine, 1, DELTA)


broken_or_not = pytest.mark.parametrize(
    ("broken", "epsilon"),
    [(True, 1.0), pytest.param(True, 4.0, marks=pytest.mark.slow), (False, 1.0)],
    ids=["broken-1", "broken-4", "intact-1"],
)


def check(found: tuple[float, float], broken: bool, epsilon: float) -> None:
    bound, claim = found
    assert 0.99 * epsilon < claim < 1.01 * epsilon
    assert bound > claim if broken else bound < claim


# ---- dither switched off: the sum shows modulo the converter's step (THEORY T4)


@broken_or_not
def test_dark_frames_without_dither(broken: bool, epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    dither = 0.0 if broken else dark_frame.TAU
    monkeypatch.setattr(dark_frame, "TAU", dither)
    monkeypatch.setattr(dark_frame, "dither_ripple", lambda sigma, tau: 0.0)  # the naive claim

    def lattice(engine: PrivacyEngine, seed: int, trials: int) -> NoiseLaw:
        source = engine.source
        assert isinstance(source, dark_frame.DarkFrameNoise)
        unit = grid_step(engine)
        # What whole numbers leave of the noise is dither, here a few hundredths of a code.
        scale, rest = source._shares(noise_std(engine) / unit)
        return LatticeLaw(scale * unit, round(scale * source.offset) / scale, source.sigma, rest / scale)

    check(attack(Worlds(release="dark-frame"), epsilon, lattice), broken, epsilon)


# ---- a converter that hands out every third code: digits without a dither show the sum modulo 3 (THEORY T12)


def every_third_code(device: SimulatedOpuBackend, monkeypatch: pytest.MonkeyPatch) -> SimulatedOpuBackend:
    """Width errors of period 3 at their most; its health is not looked at, which would have refused it."""
    dark = device.dark
    device.dark = lambda frames: dark(frames) // 3 * 3  # type: ignore[method-assign]
    for test in ("start_up", "released", "dark"):
        monkeypatch.setattr(HealthMonitor, test, lambda monitor, codes: {})
    return device


@pytest.mark.parametrize("broken", [True, False], ids=["broken", "intact"])
def test_digits_of_an_uneven_converter(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event: all coordinates are 0 modulo 3, as the sum is without the record, and with it seldom is."""

    def device(seed: int) -> SimulatedOpuBackend:
        made = SimulatedOpuBackend(
            2, 2, seed=5, noise=NoiseGenerator.seeded(seed, "device"), dark_pixels=1024
        )
        return every_third_code(made, monkeypatch) if broken else made

    trials, epsilon = TRIALS[1.0], 1.0
    worlds = Worlds(release="dark-frame", release_options={"digits": 11}, device=device)
    sigma, seen = worlds.calibrated(epsilon, DELTA), []
    for present in (False, True):
        sums, engine = worlds.make(present, sigma, SEED + present)
        source = engine.source
        assert isinstance(source, DarkFrameDigits)
        found = np.rint(sums.take(trials)[:, 0] / grid_step(engine))
        # The public constant that was taken off the codes.
        level, weights = round(source.offset), sum(source.describe()["weights"])
        codes = found + weights * level + round(weights * (source.offset - level))
        seen.append(int((codes % 3 == 0).all(-1).sum()))
    least, most = interval(seen[0], trials)[0], interval(seen[1], trials)[1]
    bound = math.log(max(least - DELTA, 1e-9) / most)
    claim = claimed(engine, 1, DELTA)
    assert 0.99 * epsilon < claim < 1.01 * epsilon
    assert bound > 1.5 * claim if broken else bound < claim


def interval(count: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's limits, either at 97.5 %."""
    found = stats.binomtest(count, trials).proportion_ci(CONFIDENCE, "exact")
    return float(found.low), float(found.high)


# ---- one layer left out of the norms: it is scaled by the others' clip factor, and not bounded by it


class OutputUnclipped(WholeSum):
    def whole(self, stack: Sequence[Factors]) -> list[Whole]:
        hidden = [part for part in stack if part.offset == 0]
        _, shrink = self._aim(hidden, [_sizes(part) for part in hidden])
        return self._rounded(stack, [_sizes(part) for part in stack], shrink, torch.float32)[0]


@broken_or_not
def test_one_layer_unclipped(broken: bool, epsilon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        monkeypatch.setattr(clipped, "WholeSum", OutputUnclipped)
    # tanh is saturated at x = 8: the hidden layer's contribution is small, the output layer's is not.
    worlds = Worlds(target=(torch.full((1, 1), 8.0), torch.zeros(1, dtype=torch.int64)), max_grad_norm=1e-3)
    check(attack(worlds, epsilon), broken, epsilon)


# ---- a ternary threshold from the whole batch: one record silences the others


class BatchMaximumTernary(Ternary):
    def encode(self, e: Tensor) -> ModulatorFrames:
        largest = e.abs().max() if len(e) else torch.zeros(())
        signs = torch.sign(e) * (e.abs() > self.threshold * largest)
        planes = torch.stack((signs > 0, signs < 0)).to(e.dtype)
        scale = (e * signs).sum(dim=1) / signs.abs().sum(dim=1).clamp_min(1)
        return ModulatorFrames(planes, (1.0, -1.0), scale)


def confident_net() -> nn.Module:
    """Sure of class 0 at x = 1, by a frozen output layer: only the taught hidden layer is released."""
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.copy_(torch.tensor([[2.0, 2.0], [-2.0, -2.0]]))
    net[2].weight.requires_grad_(False)
    return net


@broken_or_not
def test_ternary_threshold_of_the_batch(broken: bool, epsilon: float) -> None:
    def device(seed: int) -> SimulatedOpuBackend:
        backend = SimulatedOpuBackend(2, 2, seed=5, noise=NoiseGenerator.seeded(seed, "device"))
        if broken:
            backend.encoding = BatchMaximumTernary()
        return backend

    records = 32
    worlds = Worlds(
        net=confident_net,
        others=(torch.ones(records, 1), torch.zeros(records, dtype=torch.int64)),
        target=(
            torch.ones(1, 1),
            torch.ones(1, dtype=torch.int64),
        ),  # mislabelled: its error is 3000 times theirs
        max_grad_norm=1e-5,
        device=device,
    )
    check(attack(worlds, epsilon), broken, epsilon)


# ---- the noise generator's seed is known


@broken_or_not
def test_noise_from_a_known_seed(broken: bool, epsilon: float) -> None:
    def redrawn(engine: PrivacyEngine, seed: int, trials: int) -> NoiseLaw:
        guess = NoiseGenerator.seeded(seed if broken else seed + 1000, "noise from release 0")
        unit, std = grid_step(engine), noise_std(engine)
        assert engine.ledger is not None
        sampler, dimension = RoundedGaussianSampler(std / unit), engine.ledger.header()["dimension"]
        rows = [sampler.sample(dimension, guess) * unit for _ in range(trials)]
        return KnownNoiseLaw(np.array(rows)[:, None], 1e-5 * std)

    check(attack(Worlds(), epsilon, redrawn), broken, epsilon)
