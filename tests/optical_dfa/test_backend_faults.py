"""Injected faults: each does what its line says, from its frame on and not before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.errors import UsageError
from optical_dfa.backends.faults import FAULTS, Fault

ROWS, COLUMNS = 64, 128
BLACK, SIGMA, TOP = 64, 4.0, 255


def frames(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (BLACK + SIGMA * torch.randn(n, ROWS * COLUMNS, generator=generator)).round().to(torch.uint8)


def struck(name: str, n: int = 12, after: int = 5, parts: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """The frames taken and those that arrive, the latter in calls of the given sizes."""
    fault = Fault(name, after=after, shape=(ROWS, COLUMNS), top=TOP)
    taken = frames(n)
    calls = torch.split(taken, list(parts or (n,)))
    return taken, torch.cat([fault.codes(call, setting=Frame.DARK, black=BLACK) for call in calls])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_begins_with_its_frame_however_the_frames_are_asked_for(name: str) -> None:
    taken, arrived = struck(name)
    assert torch.equal(taken[:5], arrived[:5])
    if name != "lamp-off":
        assert all(not torch.equal(a, b) for a, b in zip(taken[5:], arrived[5:], strict=True))
    assert torch.equal(taken, frames(12))  # what the camera holds is not written over
    assert arrived.dtype == taken.dtype
    assert torch.equal(arrived, struck(name, parts=(1, 3, 2, 6))[1])


def test_lamp() -> None:
    fault = Fault("lamp-off", after=2, shape=(ROWS, COLUMNS), top=TOP)
    assert fault.light(0.7) == 0.7
    assert fault.light(0.7, 3) == 0.0  # one of the three is struck
    fault.codes(frames(2), setting=Frame.DATA, black=BLACK)
    assert fault.light(0.7) == 0.0
    assert Fault("gain-drop", after=0, shape=(ROWS, COLUMNS), top=TOP).light(0.7) == 0.7


def test_frozen_and_replayed_frames_are_earlier_ones() -> None:
    _, frozen = struck("frozen-frame")
    assert all(torch.equal(frame, frozen[4]) for frame in frozen[5:])
    taken, replayed = struck("replayed-frame")
    assert [next(i for i, t in enumerate(taken) if torch.equal(t, f)) for f in replayed[5:]] == [
        0, 1, 2, 3, 4, 0, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["frozen-frame", "replayed-frame"])
def test_a_fault_from_the_first_frame_on_repeats_the_first(name: str) -> None:
    taken, arrived = struck(name, after=0)
    assert all(torch.equal(frame, taken[0]) for frame in arrived)


def test_replayed_frames_are_of_their_own_setting() -> None:
    fault = Fault("replayed-frame", after=2, shape=(ROWS, COLUMNS), top=TOP)
    dark, lit = frames(2, seed=1), frames(2, seed=2)
    for setting, frame in ((Frame.DARK, dark), (Frame.DATA, lit)):
        fault.codes(frame[:1], setting=setting, black=BLACK)
    assert torch.equal(fault.codes(lit[1:], setting=Frame.DATA, black=BLACK), lit[:1])
    assert torch.equal(fault.codes(dark[1:], setting=Frame.DARK, black=BLACK), dark[:1])


def test_analog_faults_change_what_they_say_and_nothing_else() -> None:
    """40 frames of 8192 pixels: each figure within 6 of its standard deviations (2e-9)."""
    spread = 6 / (40 * ROWS * COLUMNS) ** 0.5
    variance = SIGMA**2 + 1 / 12
    _, dropped = struck("gain-drop", n=40, after=0)
    assert float(dropped.double().var()) == pytest.approx(0.64 * variance + 1 / 12, rel=spread * 2**0.5 * 1.1)
    assert abs(float(dropped.double().mean()) - BLACK) < spread * SIGMA
    _, mixed = struck("correlated-rows", n=40, after=0)
    noise = mixed.double().view(40, ROWS, COLUMNS) - BLACK
    assert float(noise.var()) == pytest.approx(variance + 1 / 6, rel=spread * 2**0.5 * 1.2)
    above = float((noise[:, 1:] * noise[:, :-1]).mean() / noise.var())
    assert above == pytest.approx(0.1 * (1 - 0.01) ** 0.5, abs=spread * 1.1 + 0.002)
    assert abs(float((noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var())) < spread * 1.1


def test_stuck_rows_and_saturated_pixels() -> None:
    _, stuck = struck("stuck-rows", n=2, after=0)
    constant = (stuck.view(2, ROWS, COLUMNS) == BLACK).all(-1)
    assert constant.sum(-1).tolist() == [2, 2]
    _, bright = struck("saturation", n=2, after=0)
    assert int((bright == TOP).sum()) == 2 * -(-ROWS * COLUMNS // 100)


def test_wrong_faults_are_refused_in_one_line() -> None:
    for name, after in (("flood", 0), ("lamp-off", -1), ("lamp-off", True), ("lamp-off", 0.5)):
        with pytest.raises(UsageError) as error:
            Fault(name, after=after, shape=(1, 1), top=255)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
