"""T5: one analog frame a column is a Gaussian mechanism; rounded bit planes, batch scales and late grids are not."""

from __future__ import annotations

import pytest

from experiments.theory import t5


def test_no_record_moves_an_aggregate_by_more_than_the_claim_and_one_moves_it_by_that() -> None:
    assert t5.largest_shift() == pytest.approx(t5.claimed_mu(t5.feedback()), rel=1e-12)


def test_rounded_bit_planes_tell_15_from_16() -> None:
    claimed, actual = t5.rounded_frames(0.35)
    assert claimed < 0.07
    assert actual > 0.6


@pytest.mark.parametrize(("read_noise", "holds"), [(1.5, True), (1.0, False)])
def test_planes_may_be_added_up_only_where_noise_hides_the_rounding(read_noise: float, holds: bool) -> None:
    """It is the rounding of each frame that breaks the claim, barely at a read noise of one step."""
    claimed, actual = t5.rounded_frames(read_noise)
    assert (actual <= claimed) is holds
    assert actual == pytest.approx(claimed, rel=0.05)


def test_a_dither_on_every_plane_repairs_it() -> None:
    bound, actual = t5.dithered_frames()
    _, rounded = t5.rounded_frames(0.6)
    assert actual <= bound < rounded / 4
    assert actual == pytest.approx(
        t5.total_variation(1 / (341**0.5 * (0.6**2 + 1.5**2 + 1 / 12) ** 0.5)), rel=0.02
    )


def test_one_rounded_frame_is_post_processing() -> None:
    demonstration = next(d for d in t5.demonstrations() if d.case.startswith("one analog frame"))
    assert demonstration.holds


def test_the_vector_of_frames_moves_by_root_five() -> None:
    one, vector = t5.frame_sensitivity()
    assert vector / one == pytest.approx((5 * 341) ** 0.5)


def test_denoising_by_the_pseudo_inverse_leaves_p_over_n_of_the_energy() -> None:
    # 192,000 normals: the ratio's standard error is 0.5 %; 5 of them.
    assert t5.denoised() == pytest.approx(t5.N / t5.P, rel=0.025)


def test_a_scale_from_the_batch_gives_the_record_away() -> None:
    assert t5.scaled_by_maximum()[1] > 0.99


def test_a_grid_after_the_clip_lengthens_a_record_and_before_it_does_not() -> None:
    assert t5.quantised_after_the_clip() > 1.5
    assert t5.quantised_before_the_clip() <= 1.0
