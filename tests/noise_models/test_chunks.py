"""The children that simulated noise is drawn from: as secret as the generator that keys them, and of one law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from noise_models.randomness.chunks import draw_in_chunks
from noise_models.randomness.generator import NoiseGenerator


class Given(NoiseGenerator):
    """A generator whose next words are given."""

    words: np.ndarray[Any, np.dtype[np.uint64]]

    def uint64(self, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        assert n == len(self.words)
        return self.words


def child(words: list[int]) -> tuple[int, ...]:
    """The state of the one child keyed with these words."""
    generator = Given(bytes(32), "given", None)
    generator.words = np.array(words, dtype=np.uint64)
    states: list[tuple[int, ...]] = []
    draw_in_chunks(
        1,
        generator,
        lambda i, child: states.append(tuple(child.bit_generator.state["state"]["state"].tolist())),
    )
    return states[0]


def test_every_one_of_128_bits_decides_about_a_child() -> None:
    """Where masks have 32 bits of a seed, an adversary tries them all; a child of 128 bits has no such list."""
    base = [0x0123456789ABCDEF, 0xFEDCBA9876543210]
    states = {child(base)}
    for word in range(2):
        for bit in range(64):
            flipped = list(base)
            flipped[word] ^= 1 << bit
            states.add(child(flipped))
    assert len(states) == 129
    assert all(len(set(state[:3])) == 3 for state in states)


def test_no_two_children_of_one_generator_are_alike() -> None:
    generator, states = NoiseGenerator.secure("x"), set()
    for _ in range(20):
        draw_in_chunks(
            50, generator, lambda i, child: states.add(tuple(child.bit_generator.state["state"]["state"]))
        )
    assert len(states) == 1000


def test_a_call_uses_a_child_once() -> None:
    """What one call drew is not drawn again by the next, whatever the position."""
    generator, drawn = NoiseGenerator.secure("x"), []
    for _ in range(3):
        draw_in_chunks(4, generator, lambda i, child: drawn.append(child.standard_normal(8).tobytes()))
    assert len(set(drawn)) == 12


@pytest.mark.parametrize("place", [0, 1, 37, 63])
def test_the_law_of_a_record_does_not_depend_on_its_place(place: int) -> None:
    """Row `place` of a batch whose rows share a child, over many calls: normal, and not the row before it."""
    generator = NoiseGenerator.seeded(place, "device")
    rows = np.empty((400, 2, 8))

    def draw(i: int, child: np.random.Generator) -> None:
        block = child.standard_normal((65, 8), dtype=np.float32)
        rows[i] = block[place : place + 2]

    draw_in_chunks(len(rows), generator, draw)
    assert stats.kstest(rows[:, 0].ravel(), "norm").pvalue > 1e-4
    assert stats.pearsonr(rows[:, 0].ravel(), rows[:, 1].ravel()).pvalue > 1e-4
    assert torch.from_numpy(rows).isfinite().all()
