"""T1: the projection's own noise protects no record, at any sigma. Limits at 99.9 %, fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.theory import t1
from experiments.theory.batch import hidden


@pytest.mark.parametrize("sigma", [1.0, 1e3, 1e6])
def test_a_record_off_the_others_span_shows_at_any_sigma(sigma: float) -> None:
    assert t1.span_attack(sigma, 32) > 0.9


def test_a_pixel_that_is_zero_on_all_others_shows_the_record_in_any_batch() -> None:
    assert t1.span_attack(1e3, 256, dead_pixel=True) > 0.9


def test_the_span_attack_sees_nothing_where_the_others_span_everything() -> None:
    assert t1.span_attack(1e3, 256) == 0.0


def test_an_output_layer_without_noise_shows_every_record() -> None:
    assert t1.output_layer(1e3) == 1.0


@pytest.mark.parametrize(("q", "steps"), [(0.02, 50), (0.2, 3)])
def test_sampling_hides_a_record_only_from_steps_it_is_not_in(q: float, steps: int) -> None:
    # Standard error at most 0.0036; 4.5 of them: a false alarm in 1e5.
    assert t1.whole_run(q, steps) == pytest.approx(1 - (1 - q) ** steps, abs=0.016)


@pytest.mark.parametrize(("others", "dead_pixel", "grows"), [(32, False, 1), (256, True, 1), (256, False, 0)])
def test_the_two_covariances_differ_in_rank(others: int, dead_pixel: bool, grows: int) -> None:
    """The theorem's own statement: ranges differ exactly where the record is off the others' span."""
    layer = hidden(np.random.default_rng(0), others + 1, t1.INPUTS, 1, 10, 1.0)
    if dead_pixel:
        layer.h[1:, 0] = 0.0
    rows = layer.rows(0)
    assert np.linalg.matrix_rank(rows) - np.linalg.matrix_rank(rows[1:]) == grows
