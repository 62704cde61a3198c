"""The white-box attack on a step that several workers make together, with the record in any share, and on broken ones.

Every worker runs the attack in step with the others. The intact step keeps its claim tightly, whoever has the target.
Workers that draw the noise in shares of which one is missing pass their claim, and so do workers that clip their sum
instead of each record. 99.9 % confidence, fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor

from optical_dfa.attacks import distinguish
from optical_dfa.attacks.setting import Setting
from optical_dfa.attacks.worlds import Worlds, claimed, noise_std
from privacy.attacks import likelihood_ratio
from privacy.attacks.laws import GaussianLaw
from privacy.releases.clipped import ClippedRelease
from privacy.workers import Workers

pytestmark = pytest.mark.slow

EPSILON, DELTA, CONFIDENCE = 4.0, 1e-5, 0.999
TIGHT = 0.75  # of the claim, which the attack reaches


@dataclass
class Placed(Worlds):
    """Worlds whose targets stand first, last, or between the others: in one worker's share or another's."""

    place: str = "last"

    def records(self, second: bool) -> tuple[Tensor, Tensor]:
        x, y = super().records(second)
        if not second or self.place == "last":
            return x, y
        others = len(self.others[0])
        order = torch.cat((torch.arange(others, len(x)), torch.arange(others)))
        if self.place == "spread":
            order = order.view(2, -1).T.flatten()
        return x[order], y[order]


def found(
    release: str, place: str, trials: int | None, change: Callable[[], None] | None
) -> tuple[float, float]:
    """Lower bound and claim of one step; `change` is made to the release first."""
    if change is not None:
        change()
    wide = distinguish.wide
    distinguish.wide = lambda setting, copies: Placed(**vars(wide(setting, copies)), place=place)
    setting = Setting(release=release, epsilon=EPSILON, delta=DELTA, confidence=CONFIDENCE, trials=trials)
    finding = distinguish.run(setting)
    return finding.epsilon_lower, finding.epsilon_claimed


@pytest.mark.parametrize("release", ["digital", "skellam", "aggregate"])
@pytest.mark.parametrize(("count", "place"), [(2, "first"), (2, "spread"), (2, "last"), (4, "last")])
def test_a_step_of_several_workers_keeps_its_claim_tightly(
    release: str, count: int, place: str, tmp_path: Path
) -> None:
    outcomes = together(found, count, tmp_path / "group", release, place, None, None)
    assert len(set(outcomes)) == 1  # all see the same releases
    bound, claim = outcomes[0]
    assert claim == pytest.approx(EPSILON, rel=0.01)
    assert TIGHT * claim < bound < claim


# ---- noise in shares: everybody's sum is noised with 1/W of the variance


def in_shares(missing: bool) -> None:
    """Every worker adds a share to what it took in before the sums are added up; the last one may leave it out."""
    add_up, prepare = ClippedRelease.add_up, ClippedRelease.prepare
    asked: dict[int, float] = {}

    def prepare_share(self: ClippedRelease, noise_multiplier: float) -> None:
        asked[id(self)] = noise_multiplier
        prepare(self, noise_multiplier)

    def add_share(self: ClippedRelease, workers: Workers) -> None:
        if not (missing and workers.rank == workers.count - 1):
            self.source.add_noise(self._sum.total, asked[id(self)] * self.steps / math.sqrt(workers.count))
        add_up(self, workers)

    ClippedRelease.prepare = prepare_share  # type: ignore[method-assign]
    ClippedRelease.add_up = add_share  # type: ignore[method-assign]
    ClippedRelease._add_noise = lambda self, noise_multiplier: None  # type: ignore[method-assign]


def all_shares() -> None:
    in_shares(missing=False)


def one_share_missing() -> None:
    in_shares(missing=True)


def first_share_only() -> None:
    """The first worker draws its share, and takes the others' for there."""
    add_noise = ClippedRelease._add_noise
    ClippedRelease._add_noise = lambda self, noise_multiplier: add_noise(  # type: ignore[method-assign]
        self, noise_multiplier / math.sqrt(Workers.here().count)
    )


@pytest.mark.parametrize(
    ("change", "count", "broken"),
    [
        (all_shares, 2, False),
        (one_share_missing, 2, True),
        (one_share_missing, 4, True),
        (first_share_only, 2, True),
    ],
)
def test_a_share_of_the_noise_that_is_missing(
    change: Callable[[], None], count: int, broken: bool, tmp_path: Path
) -> None:
    bound, claim = together(found, count, tmp_path / "group", "digital", "last", 20_000, change)[0]
    assert claim == pytest.approx(EPSILON, rel=0.01)
    assert (bound > 1.1 * claim) if broken else (bound < claim)


# ---- a clip of each worker's sum: a record that turns the sum round moves it by 2 C


def clip_sums() -> None:
    def absorb(self: ClippedRelease, *, first: bool) -> None:
        assert first
        total = torch.zeros(self.dimension, dtype=torch.float64)
        for stack in self._factored.factors(lambda *_: False):
            for part in stack:
                assert part.cols is not None
                total[part.offset : part.offset + part.numel] += (part.rows.T @ part.cols).flatten()
        total *= min(1.0, self.max_grad_norm / max(float(total.norm()), 1e-30))
        self._sum.clear()
        self._records = self.contributions.expected_records() or 0
        self._sum.total += (total * self._grid).round().to(self._sum.total.dtype)

    ClippedRelease._absorb = absorb  # type: ignore[method-assign]


def turned(change: Callable[[], None] | None, trials: int) -> tuple[float, float]:
    """Lower bound and claim where the target outweighs the only other record of its worker that contributes."""
    if change is not None:
        change()
    worlds = Placed(
        others=(torch.tensor([[0.0], [0.01]]), torch.tensor([0, 1])),
        target=(torch.tensor([[0.05]]), torch.tensor([0])),
        max_grad_norm=1e-3,
    )
    sigma = worlds.calibrated(EPSILON, DELTA)
    sums, engines = zip(*(worlds.make(second, sigma, 30 + second) for second in (False, True)), strict=True)
    result = likelihood_ratio.distinguish(
        *(found.take(trials) for found in sums),
        worlds.knowledge(),
        GaussianLaw(noise_std(engines[0])),
        sample_rate=1.0,
        delta=DELTA,
        confidence=CONFIDENCE,
    )
    return result.gaussian_family.epsilon, claimed(engines[0], 1, DELTA)


@pytest.mark.parametrize(("change", "broken"), [(None, False), (clip_sums, True)], ids=["records", "sums"])
def test_a_clip_of_each_workers_sum(change: Callable[[], None] | None, broken: bool, tmp_path: Path) -> None:
    outcomes: list[Any] = together(turned, 2, tmp_path / "group", change, 400)
    bound, claim = outcomes[0]
    assert claim == pytest.approx(EPSILON, rel=0.01)
    assert (bound > claim) if broken else (bound < claim)
