"""T7: the label mechanism's mu, predicted, exact and simulated; and every condition (a) to (j) dropped."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.theory import t7
from experiments.theory.batch import leverage


def test_predicted_mu_is_the_exact_one_for_every_record_and_pair_of_labels() -> None:
    layers = t7.network()
    for record in (0, 7, 23):
        for change in t7.pairs():
            assert t7.predicted_mu(layers, record, change) == pytest.approx(
                t7.exact_mu(layers, t7.of_record(record, change)), rel=1e-9
            )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_predicted_mu_is_the_exact_one_for_any_network(seed: int, sigma: float) -> None:
    layers, record = t7.network(seed, sigma), seed % t7.RECORDS
    change = t7.pairs()[seed % len(t7.pairs())]
    exact = t7.exact_mu(layers, t7.of_record(record, change))
    assert t7.predicted_mu(layers, record, change) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_predicted_mu_is_what_simulated_releases_show(seed: int) -> None:
    layers, change = t7.network(), t7.pairs()[seed]
    measured, error = t7.measured_mu(layers, seed, change, seed)
    # 4 standard errors: a false alarm in 2e4 for each seed
    assert measured == pytest.approx(t7.predicted_mu(layers, seed, change), abs=4 * error)


def test_the_products_leverage_is_never_below_the_exact_one() -> None:
    assert t7.production_excess() >= -1e-12


def test_a_output_layer_without_noise() -> None:
    assert t7.output_without_noise() == math.inf


def test_b_rounded_errors_move_twice_as_far() -> None:
    predicted = t7.predicted_mu(t7.network(), 0, t7.pairs()[0])
    assert t7.ternarised() == pytest.approx(2 * predicted)  # 2 sqrt 2 for sqrt 2


def test_b_class_weights_change_the_shift() -> None:
    assert t7.weighted() > 2 * t7.predicted_mu(t7.network(), 0, t7.pairs()[0])


def test_b_a_scale_by_the_errors_norm_shows_the_label_in_the_variance() -> None:
    assert t7.rescaled() > 0.99


def test_c_the_records_own_label_does_not_bound_the_others() -> None:
    from_own, over_all = t7.other_labels()
    assert over_all > 1.05 * from_own


def test_d_class_balanced_batches_show_the_label() -> None:
    assert t7.balanced_batches() == 1.0


def test_d_a_public_batch_amplifies_nothing() -> None:
    claimed, found = t7.subsampled()
    assert found > 1000 * claimed


def test_e_shared_noise_can_exceed_the_sum_of_the_leverages() -> None:
    by_sum, stacked = t7.shared_noise()
    assert by_sum == pytest.approx(math.sqrt(1 / 2 + 1 / 5))
    assert stacked == pytest.approx(1.0)


def test_f_a_pseudo_inverse_hides_a_leverage_of_one() -> None:
    cut, whole = t7.cut_off()
    assert cut < 0.2
    assert whole == pytest.approx(1.0)
    product, true = t7.production_bound()
    assert product >= true - 1e-12


def test_g_a_feedback_matrix_learned_from_labels_leaks_in_later_steps() -> None:
    assert t7.learned_feedback() > 0.1


def test_g_forward_noise_that_is_kept_shows_the_energy_of_the_errors() -> None:
    claimed, found = t7.forward_noise()
    assert found > 1.5 * claimed


def test_h_denoised_readouts_have_correlated_rows() -> None:
    independent, joint, at_one = t7.denoised()
    assert joint > 5 * independent
    assert joint <= at_one * (1 + 1e-9)


def test_i_noise_that_follows_the_signal_shows_the_label() -> None:
    assert t7.following_the_signal() > 0.5


def test_j_rounded_readouts_lose_the_leverage_and_dither_brings_it_back() -> None:
    leveraged, rounded, at_one = t7.digitised()
    assert leveraged == pytest.approx(0.227, abs=5e-4)
    assert rounded == pytest.approx(0.383, abs=1.5e-3)
    assert rounded <= at_one
    claimed, dithered = t7.dithered()
    assert dithered <= claimed
    assert dithered > 0.99 * claimed


def test_leverages_add_up_to_the_rank() -> None:
    layer = t7.network()[0]
    for k in range(t7.NEURONS):
        assert leverage(layer.rows(k)).sum() == pytest.approx(t7.INPUTS + 1)
