"""Certificates: each assumption of the published proof is found to fail where it was made to, and only there."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from separated_layers import layers

from privacy.contributions.separated import SeparatedLayer
from privacy.releases.certificates import AssumptionCheck, Certificate, public_findings, realised_findings

RANK = "every direction of a row of the update is noised"
EIGENVALUE = "the smallest eigenvalue of a row's covariance is not below the variance that is claimed"
CONSTANT = "no coordinate is constant over the batch"
LEAVING_OUT = "leaving a record out moves the law of the update by no more than is claimed of a step"
NORMALISED = "errors are clipped, not normalised"
FLOOR = 0.1


def healthy(records: int = 400, seed: int = 0) -> list[SeparatedLayer]:
    """Factors of which everything that the proof assumes is true: inputs of ±1 to ±2, gates of 0.5 to 1."""
    hidden, output = layers(records, seed=seed)
    source = torch.Generator().manual_seed(seed + 1)
    size = 1 + torch.rand(records, 5, generator=source)
    sign = torch.randint(0, 2, (records, 5), generator=source) * 2.0 - 1
    gate = 0.5 + torch.rand(records, 3, generator=source) / 2
    inputs = torch.cat([size * sign, torch.ones(records, 1)], 1)
    # The projected error follows the error's size, as B e does.
    taught = output.signal.norm(dim=1, keepdim=True) * torch.randn(records, 3, generator=source)
    return [replace(hidden, inputs=inputs, gate=gate, taught=taught, signal=taught * gate), output]


def findings(
    batch: list[SeparatedLayer], noise_std: float = 50.0, noise_multiplier: float = 1.0
) -> tuple[AssumptionCheck, ...]:
    return realised_findings(batch, FLOOR, FLOOR, noise_std=noise_std, noise_multiplier=noise_multiplier)


def verdicts(batch: list[SeparatedLayer], **noise: float) -> dict[str, AssumptionCheck]:
    return {finding.assumption: finding for finding in findings(batch, **noise)}


def with_inputs(batch: list[SeparatedLayer], inputs: torch.Tensor) -> list[SeparatedLayer]:
    return [replace(batch[0], inputs=inputs), batch[1]]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_fails_where_everything_holds(seed: int) -> None:
    found = verdicts(healthy(seed=seed))
    assert len(found) == 7
    assert all(finding.holds for finding in found.values())
    assert not any(finding.public for finding in found.values())


def test_a_batch_narrower_than_the_layer_leaves_directions_out() -> None:
    found = verdicts(healthy(records=4))
    assert found[RANK].holds is False
    assert found[RANK].figure == 4
    assert found[EIGENVALUE].holds is False
    assert found[EIGENVALUE].figure == 0


def test_a_dead_pixel_is_found_at_any_constant_value() -> None:
    batch = healthy()
    for value in (0.0, -0.42):
        inputs = batch[0].inputs.clone()
        inputs[:, 2] = value
        found = verdicts(with_inputs(batch, inputs))
        assert found[CONSTANT].holds is False
        assert found[CONSTANT].figure == 1
        assert found[RANK].figure == 5
    alone = [
        replace(batch[0], inputs=inputs[:, :-1], bias=None),
        batch[1],
    ]  # without a bias only zeros are un-noised
    assert verdicts(alone)[CONSTANT].holds is True


def test_saturated_units_and_small_activations_are_counted() -> None:
    batch = healthy()
    gate = batch[0].gate.clone()
    gate[::4, 1] = 1e-3
    inputs = batch[0].inputs.clone()
    inputs[::5, 0] *= 1e-3
    found = verdicts([replace(batch[0], gate=gate, inputs=inputs), batch[1]])
    assert found[f"no unit is saturated: no derivative is below {FLOOR:g}"].figure == pytest.approx(1 / 12)
    assert found[f"no activation is below {FLOOR:g}"].figure == pytest.approx(1 / 25)
    assert found[RANK].holds is True


def test_normalised_errors_are_told_from_clipped_ones() -> None:
    batch = healthy()
    taught = batch[0].taught / batch[0].taught.norm(dim=1, keepdim=True)
    found = verdicts([replace(batch[0], taught=taught), batch[1]])
    assert found[NORMALISED].holds is False
    assert found[NORMALISED].figure < 1e-6


def test_leaving_out_against_the_closed_form_of_the_whole_covariances() -> None:
    """D_2 of two Gaussians by their covariance matrices, row by row (THEORY T2)."""
    batch = healthy(12)
    sigma, totals = 3.0, [0.0, 0.0]
    for k in range(3):
        weighted = (batch[0].inputs * batch[0].gate[:, k : k + 1]).double().numpy()
        both = [sigma**2 * w.T @ w for w in (weighted, weighted[1:])]
        shift = float(batch[0].signal[0, k]) * batch[0].inputs[0].double().numpy()
        for way, (first, second) in enumerate((both, both[::-1])):
            mixed = 2 * second - first
            assert np.linalg.eigvalsh(mixed)[0] > 0
            logs = [np.linalg.slogdet(matrix)[1] for matrix in (mixed, first, second)]
            totals[way] += shift @ np.linalg.solve(mixed, shift) - 0.5 * (logs[0] + logs[1] - 2 * logs[2])
    found = verdicts(batch, noise_std=sigma)[LEAVING_OUT]
    assert found.figure == pytest.approx(max(totals), rel=1e-6)
    assert verdicts(batch, noise_std=sigma, noise_multiplier=0.01)[LEAVING_OUT].holds is True
    assert verdicts(batch, noise_std=sigma, noise_multiplier=100.0)[LEAVING_OUT].holds is False


def test_leaving_out_a_record_outside_the_others_span_is_infinite_at_any_noise() -> None:
    found = verdicts(healthy(4), noise_std=1e9)[LEAVING_OUT]
    assert (found.holds, found.figure) == (False, math.inf)
    assert Certificate((found,)).to_dict()["findings"][0]["figure"] == "inf"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20))
def test_rank_and_eigenvalue_against_numpy(seed: int, records: int) -> None:
    batch = layers(records, seed=seed)
    inputs, gate = batch[0].inputs.double().numpy(), batch[0].gate.double().numpy()
    found = verdicts(batch)
    ranks, smallest = [], []
    for k in range(3):
        covariance = sum(gate[i, k] ** 2 * np.outer(inputs[i], inputs[i]) for i in range(records))
        ranks.append(np.linalg.matrix_rank(inputs * gate[:, k : k + 1], rtol=1e-6))
        smallest.append(max(0.0, np.linalg.eigvalsh(covariance)[0]))
    assert found[RANK].figure == min(ranks)
    claimed = records * FLOOR**4
    assert found[EIGENVALUE].figure * claimed == pytest.approx(min(smallest), rel=1e-6, abs=1e-9)


def test_public_findings_follow_from_the_sizes() -> None:
    narrow, wide, output = public_findings([("1", 785), ("3", 65)], ("5", 5130), 480)
    assert (narrow.holds, narrow.figure) == (False, 480 - 785)
    assert wide.holds is None  # whether 480 records span 65 directions is for the records to say
    assert (output.holds, output.figure, output.where) == (False, 5130, "5")
    assert public_findings([("1", 65)], None, 480) == (replace(wide, where="1"),)


def test_json_and_text_say_whether_records_were_looked_at() -> None:
    public = Certificate(public_findings([("1", 785)], ("3", 10), 480))
    private = Certificate((*public.findings, *findings(healthy(4))))
    for certificate, looked in ((public, False), (private, True)):
        stored = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
        assert stored["computed_from_private_records"] is looked
        assert stored["kind"] == "conditional"
        assert stored["failing"] == len(certificate.failing()) == str(certificate).count("FAILS: ")
        assert ("do not publish" in str(certificate)) is looked
