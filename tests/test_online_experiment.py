"""The online experiment's streams, tracker and table, against what they say they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from experiments.online.digits import HELD_OUT, learn_digits, make_digits
from experiments.online.scene import BOX, SIDE, Stream, _paint, make_stream
from experiments.online.study import (
    CHOOSING,
    RULES,
    STREAMS,
    Chosen,
    Row,
    best,
    differences,
    half_width,
    table,
    verdict,
)
from experiments.online.tracker import (
    CELL,
    FAR,
    FEATURES,
    Track,
    channels,
    features,
    follow,
    labelled,
    learner_of,
    overlap,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the streams


def test_a_disc_is_painted_where_its_box_is() -> None:
    centres = torch.tensor([[30.0, 61.5], [12.25, 80.0]])
    painted = _paint(
        torch.zeros(2, 1, SIDE, SIDE),
        torch.ones(1, 1, BOX, BOX).expand(2, 1, -1, -1),
        centres,
        torch.zeros(2),
    )
    pixel = torch.arange(SIDE) + 0.5
    for image, centre in zip(painted[:, 0], centres, strict=True):
        mass = image.sum()
        assert float(mass) == pytest.approx(math.pi * (BOX / 2 - 0.5) ** 2, rel=0.02)
        found = torch.stack([image.sum(1) @ pixel, image.sum(0) @ pixel]) / mass
        torch.testing.assert_close(found, centre, rtol=0.0, atol=0.02)


def test_a_quarter_turn_is_one() -> None:
    skin = torch.rand(1, 1, BOX, BOX, generator=draws())
    centre = torch.tensor([[48.0, 48.0]])
    still, turned = (
        _paint(torch.zeros(1, 1, SIDE, SIDE), skin, centre, torch.tensor([angle]))[0, 0]
        for angle in (0.0, math.pi / 2)
    )
    either = [torch.rot90(still, k) for k in (1, -1)]
    assert min(float((turned - other).abs().max()) for other in either) < 1e-4
    assert float((turned - still).abs().max()) > 0.1


def test_a_stream_follows_its_seed_and_stays_inside() -> None:
    one, again, other = make_stream(3, 20), make_stream(3, 20), make_stream(4, 20)
    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.boxes, again.boxes)
    assert not torch.equal(one.boxes, other.boxes)
    assert one.frames.shape == (20, SIDE, SIDE)
    assert float(one.boxes.min()) >= 0
    assert float(one.boxes.max()) <= SIDE - BOX
    assert 0.1 < float((one.boxes[1:] - one.boxes[:-1]).norm(dim=1).mean()) < 4


def test_a_disc_changes_the_inside_of_its_box_only() -> None:
    first, last = (
        torch.rand(1, 1, BOX, BOX, generator=draws(1)),
        torch.rand(1, 1, BOX, BOX, generator=draws(2)),
    )
    bare = torch.full((1, 1, SIDE, SIDE), 0.5)
    centre = torch.tensor([[40.0, 50.0]])
    for skin in (first, last):
        changed = (_paint(bare, skin, centre, torch.zeros(1)) - bare)[0, 0] != 0
        rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
        assert rows.min() >= 40 - BOX // 2
        assert rows.max() < 40 + BOX // 2
        assert columns.min() >= 50 - BOX // 2
        assert columns.max() < 50 + BOX // 2


# ---- the tracker


def test_overlap_is_that_of_counted_pixels() -> None:
    for first, second in (((0, 0), (0, 0)), ((3, 4), (10, 2)), ((0, 0), (20, 0)), ((5, 5), (60, 60))):
        masks = []
        for row, column in (first, second):
            mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            mask[row : row + BOX, column : column + BOX] = True
            masks.append(mask)
        counted = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
        assert float(overlap(torch.tensor(first).float(), torch.tensor(second).float())) == pytest.approx(
            counted
        )


def test_features_are_of_the_patch_alone_and_do_not_know_the_lights_strength() -> None:
    frame = torch.rand(1, SIDE, SIDE, generator=draws())
    corner = torch.tensor([[30, 41]])
    found = features(channels(frame)[0], corner)
    assert found.shape == (1, FEATURES)
    torch.testing.assert_close(features(channels(3.7 * frame)[0], corner), found, rtol=1e-4, atol=1e-4)
    elsewhere = frame.clone()
    elsewhere[:, :25] = 0
    elsewhere[:, :, 70:] = 9
    assert torch.equal(features(channels(elsewhere)[0], corner), found)
    grey = (
        frame[0, 30 : 30 + BOX, 41 : 41 + BOX]
        .view(BOX // CELL, CELL, BOX // CELL, CELL)
        .mean((1, 3))
        .flatten()
    )
    grey = (grey - grey.mean()) / grey.std()
    torch.testing.assert_close(found[0, -len(grey) :], grey, rtol=1e-4, atol=1e-4)


def test_labelled_patches_are_near_and_far() -> None:
    maps, place = channels(torch.rand(1, SIDE, SIDE, generator=draws()))[0], torch.tensor([40.0, 2.0])
    x, y = labelled(maps, place, 64, draws())
    assert x.shape == (len(y), FEATURES)
    assert int(y.sum()) == 16
    assert 24 < len(y) <= 64
    assert float(overlap(torch.tensor([40.0 + 2, 2.0 + 2]), place)) > 0.65  # the farthest foreground
    assert float(overlap(torch.tensor([40.0 + FAR[0], 2.0]), place)) < 0.5


def test_a_track_follows_its_seed_and_begins_with_the_truth() -> None:
    stream = make_stream(5, 6)
    one, again = (follow(stream, learner_of("bdfa", 0.03, 5), 5, 8) for _ in range(2))
    assert torch.equal(one.boxes, again.boxes)
    assert float(one.overlap[0]) == 1.0
    other = follow(stream, learner_of("bdfa", 0.03, 6), 6, 8)
    assert not torch.equal(one.boxes, other.boxes)


def test_later_truth_is_never_read() -> None:
    stream = make_stream(5, 6)
    lied = Stream(stream.frames, torch.cat([stream.boxes[:1], torch.zeros(5, 2)]))
    tracks = [follow(s, learner_of("bp", 0.03, 5), 5, 8) for s in (stream, lied)]
    assert torch.equal(tracks[0].boxes, tracks[1].boxes)


def test_a_target_that_stays_is_kept() -> None:
    stream = make_stream(5, 2)
    still = Stream(stream.frames[:1].expand(10, -1, -1), stream.boxes[:1].expand(10, -1))
    assert follow(still, learner_of("bp", 0.03, 5), 5, 32).success() == 1.0


def test_the_figures_of_a_track_leave_the_given_frame_out() -> None:
    track = Track(torch.zeros(4, 2), torch.tensor([1.0, 0.5, 0.2, 0.8]))
    assert track.mean_overlap() == pytest.approx(0.5)
    assert track.success() == pytest.approx(2 / 3)


# ---- digits


def joined(y: Tensor) -> int:
    return len(set(y.tolist()))


def test_classes_join_in_pairs_and_every_record_comes_once() -> None:
    x, y, held, labels = make_digits(seed=2, shots=16)
    assert len(x) == len(y) == 160
    assert len(held) == len(labels) == HELD_OUT
    assert [joined(y[: 32 * (k + 1)]) for k in range(5)] == [2, 4, 6, 8, 10]
    everything = torch.cat([x, held]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)
    again = make_digits(seed=2, shots=16)
    assert torch.equal(again[0], x)
    assert not torch.equal(make_digits(seed=3, shots=16)[1], y)


def test_one_pass_over_digits_beats_guessing() -> None:
    """By chance 400 held-out records would be right a tenth of the time: 0.2 is 6.7 standard deviations away."""
    outcome = learn_digits("bp", 0.1, seed=1, shots=16)
    assert outcome == learn_digits("bp", 0.1, seed=1, shots=16)
    assert outcome.final > 0.2
    assert 0 <= outcome.prequential <= 1


# ---- the table


def rows(gap: float) -> list[Row]:
    base = [0.5, 0.6, 0.7, 0.8]
    wiggle = [0.01, -0.01, 0.0, 0.0]
    return [
        Row(
            rule,
            Chosen(0.03, {"scale": 0.1} if rule == "bdfa" else {}),
            [b + (gap + w if rule == "bdfa" else 0.0) for b, w in zip(base, wiggle, strict=True)],
            base,
        )
        for rule in RULES
    ]


def test_differences_are_paired_and_judged_by_students_interval() -> None:
    found = differences(rows(0.1)[2], rows(0.1))
    assert found == pytest.approx([0.11, 0.09, 0.1, 0.1])
    # 3.182 (tables, 3 degrees of freedom) * 0.0081650 / 2 = 0.01299
    assert half_width(found) == pytest.approx(0.01299, rel=1e-3)
    said = verdict([rows(0.1), rows(-0.1), rows(0.012), rows(-0.012), rows(0.014)])
    assert said == "bdfa is above bp in 2 of 5 settings, below it in 1, and not told from it in 2"


def test_rates_and_scales_are_chosen_on_streams_that_the_table_does_not_have() -> None:
    asked: set[int] = set()

    def run(chosen: Chosen, seed: int) -> float:
        asked.add(seed)
        return -abs(chosen.rate - 0.1) + chosen.options.get("scale", 0.0)

    assert best("bp", run, float) == Chosen(0.1, {})
    assert best("bdfa", run, float) == Chosen(0.1, {"scale": 1.0})
    assert len(asked) == CHOOSING
    assert asked.isdisjoint(range(STREAMS))


def test_the_table_shows_each_row() -> None:
    text = table({8: rows(0.1)}, {4: rows(-0.1)})
    (line,) = (line for line in text.splitlines() if line.startswith("| 8 | bdfa | 0.03, 0.1 | 75.0 % ± "))
    assert line.endswith(" | 65.0 % ± 20.5 | +10.0 % ± 1.3 |")
    assert "| 4 | bp | 0.03 | 65.0 % ± 20.5 | 65.0 % ± 20.5 | – |" in text
    assert "[R]. Here: bdfa is above bp in 1 of 2 settings, below it in 1," in text
