"""Online learning: what the reservoir keeps, that prediction comes first, determinism, and that updating pays."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.networks.building import build
from optical_dfa.training.online import OnlineLearner, Reservoir

RULES = ["bp", "dfa", "bdfa", "shallow", "fdfa", "fa"]


def learner(rule: str = "bdfa", seed: int = 0, **more: object) -> OnlineLearner:
    net = build("mlp:16", (4,), 2, seed)
    return OnlineLearner(net, rule=rule, seed=seed, example=torch.zeros(1, 4), **more)  # type: ignore[arg-type]


def drifting(seed: int, frames: int = 25, records: int = 8) -> tuple[Tensor, Tensor]:
    """Two classes on either side of a line that turns by 180 degrees: at the end every first answer is wrong."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, records, 4, generator=draws)
    angle = math.pi * torch.arange(frames) / (frames - 1)
    normal = torch.stack([angle.cos(), angle.sin()], 1)
    return x, ((x[:, :, :2] * normal.unsqueeze(1)).sum(2) > 0).long()


# ---- the reservoir


def test_every_record_of_the_past_is_kept_with_the_same_probability() -> None:
    """Chi-square of how often each of 30 records is among the 6 kept, over 1500 seeds; false alarm 1e-6.

    Counts of a sample without replacement have covariance n p (1 - p) (I - 1/k) k/(k - 1): so scaled, the statistic is
    chi-square with k - 1 degrees of freedom.
    """
    k, size, seeds = 30, 6, 1500
    counts = torch.zeros(k)
    for seed in range(seeds):
        reservoir = Reservoir(size, seed)
        for start, stop in ((0, 1), (1, 10), (10, 12), (12, k)):  # frames of several sizes
            reservoir.add(torch.arange(start, stop).unsqueeze(1), torch.arange(start, stop))
        kept, _ = reservoir.draw(size) or (torch.empty(0), None)
        assert len(kept.unique()) == size
        counts[kept.flatten()] += 1
    p = size / k
    found = float(((counts - seeds * p) ** 2).sum() / (seeds * p * (1 - p))) * (k - 1) / k
    assert found < chi2.ppf(1 - 1e-6, k - 1)


def test_a_draw_is_uniform_over_what_is_kept() -> None:
    """4000 draws of 2 of 8; false alarm 1e-6 as above."""
    reservoir = Reservoir(8, 3)
    reservoir.add(torch.arange(8).unsqueeze(1), torch.arange(8))
    counts = torch.zeros(8)
    for _ in range(4000):
        drawn = reservoir.draw(2)
        assert drawn is not None
        assert len(drawn[1].unique()) == 2
        counts[drawn[1]] += 1
    found = float(((counts - 1000) ** 2).sum() / (4000 * 0.25 * 0.75)) * 7 / 8
    assert found < chi2.ppf(1 - 1e-6, 7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.lists(st.integers(0, 12), max_size=8), st.integers(0, 2**31))
def test_it_keeps_pairs_as_they_came_and_no_more_than_its_size(
    size: int, frames: list[int], seed: int
) -> None:
    reservoir, start = Reservoir(size, seed), 0
    for records in frames:
        y = torch.arange(start, start + records)
        reservoir.add(10.0 * y.unsqueeze(1), y)
        start += records
    assert (reservoir.seen, len(reservoir)) == (start, min(size, start))
    drawn = reservoir.draw(100)
    if drawn is None:
        assert len(reservoir) == 0
        return
    x, y = drawn
    assert torch.equal(x[:, 0], 10.0 * y)
    assert len(set(y.tolist())) == len(y) == len(reservoir)
    assert set(y.tolist()) <= set(range(start))


def test_what_is_kept_is_a_copy() -> None:
    reservoir, x = Reservoir(4, 0), torch.ones(2, 1)
    reservoir.add(x, torch.zeros(2))
    x.zero_()
    drawn = reservoir.draw(4)
    assert drawn is not None
    assert drawn[0].eq(1).all()


# ---- the learner


@pytest.mark.parametrize("rule", RULES)
def test_one_seed_gives_one_result_whatever_else_draws(rule: str) -> None:
    x, y = drifting(0, frames=6)
    ends = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        one = learner(rule)
        outputs = [one.observe(a, b) for a, b in zip(x, y, strict=True)]
        torch.rand(5)
        ends.append((outputs, list(one.aligned.parameters())))
    for first, second in zip(ends[0], ends[1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = learner(rule, seed=1)
    assert not torch.equal(other.observe(x[0], y[0]), ends[0][0][0])


def test_masks_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    x, y = drifting(0, frames=1)
    ends = []
    for _ in range(2):
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
        with torch.no_grad():
            for number, p in enumerate(net.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p) * (number + 1) / 4)
        one = OnlineLearner(net)
        state = torch.get_rng_state()
        one.learn(x[0], y[0])
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("rule", ["bp", "bdfa", "fdfa"])
def test_prediction_comes_before_learning(rule: str) -> None:
    """A frame's logits are those of the learner before it, and do not depend on the frame's labels."""
    x, y = drifting(0, frames=4)
    one = learner(rule)
    for a, b in zip(x, y, strict=True):
        before, lied = one.predict(a), copy.deepcopy(one)
        told = one.observe(a, b)
        assert torch.equal(told, before)
        assert torch.equal(lied.observe(a, 1 - b), before)
        assert not torch.equal(one.predict(a), before)  # then it learned
        assert not torch.equal(one.predict(a), lied.predict(a))


def test_prediction_changes_nothing() -> None:
    one = learner()
    before = copy.deepcopy(one.aligned.state_dict())
    one.predict(torch.randn(5, 4))
    after = one.aligned.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (len(one.reservoir), one.reservoir.seen) == (0, 0)


def test_a_frame_joins_the_reservoir_after_it_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(steps=2, replay=3, reservoir=5)
    sizes: list[int] = []
    forward = one.aligned.forward
    monkeypatch.setattr(one.aligned, "forward", lambda x: sizes.append(len(x)) or forward(x))
    x, y = drifting(0, frames=3, records=2)
    for a, b in zip(x, y, strict=True):
        one.learn(a, b)
    one.learn(x[0, :0], y[0, :0], steps=1)  # nothing new: the past alone
    assert sizes == [2, 2, 4, 4, 5, 5, 3]
    assert (one.reservoir.seen, len(one.reservoir)) == (6, 5)


def test_an_empty_beginning_learns_nothing() -> None:
    one = learner()
    before = [p.clone() for p in one.aligned.parameters()]
    one.learn(torch.empty(0, 4), torch.empty(0, dtype=torch.long))
    assert all(torch.equal(a, b) for a, b in zip(before, one.aligned.parameters(), strict=True))


@pytest.mark.parametrize("rule", ["bp", "bdfa"])
def test_learning_on_beats_a_classifier_that_was_never_updated(rule: str) -> None:
    """On each of 10 drifting streams; were updating of no use, that would come about with probability 2^-10."""
    for seed in range(10):
        x, y = drifting(seed)
        right = {True: 0, False: 0}
        for update in right:
            one = learner(rule, seed, lr=0.1)
            one.learn(x[0], y[0], steps=30)
            for a, b in zip(x[1:], y[1:], strict=True):
                logits = one.observe(a, b) if update else one.predict(a)
                right[update] += int((logits.argmax(1) == b).sum())
        assert right[True] > right[False]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"replay": -1}, "replay is -1"),
        ({"reservoir": 1.5}, "reservoir is 1.5"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"rule": "bdaf"}, "bdaf"),
    ],
)
def test_what_cannot_be_is_one_line(more: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        learner(**more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_labels_of_another_number_are_refused() -> None:
    with pytest.raises(UsageError, match=r"5 records .* \(4,\)"):
        learner().learn(torch.zeros(5, 4), torch.zeros(4, dtype=torch.long))
