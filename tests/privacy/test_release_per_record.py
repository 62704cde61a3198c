"""The published mechanism: what is released, its law, and that its noise leaves out directions (THEORY T1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from separated_layers import Gated, layers, part, updates
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from privacy import PrivacyEngine
from privacy.contributions.separated import SeparatedLayer
from privacy.notions import Kind
from privacy.releases.per_record import PerRecordRelease, ProjectionNoise

C, EXPECTED, Z = 0.8, 6.0, 1.3


def make(gated: Gated, seed: int = 0, **options: Any) -> PerRecordRelease:
    source = ProjectionNoise(NoiseGenerator.seeded(seed, "noise"))
    return PerRecordRelease(gated, source, max_grad_norm=C, expected_batch_size=EXPECTED, **options)


def step(
    release: PerRecordRelease, gated: Gated, *batches: list[SeparatedLayer], z: float = Z
) -> dict[str, Tensor]:
    for number, batch in enumerate(batches):
        gated.batch = batch
        release.absorb(first=number == 0)
    release.add_noise(z)
    return updates(release.release() * EXPECTED, gated.parameters)


def clipped(batch: list[SeparatedLayer]) -> list[Tensor]:
    """Σ_i c_i X_i of each layer in float64, record by record."""
    sums = [torch.zeros(b.signal.shape[1], b.inputs.shape[1], dtype=torch.float64) for b in batch]
    for i in range(len(batch[0].inputs)):
        stack = [torch.outer(b.signal[i].double(), b.inputs[i].double()) for b in batch]
        norm = math.sqrt(sum(float((x**2).sum()) for x in stack))
        for total, x in zip(sums, stack, strict=True):
            total += x * min(1.0, C / norm)
    return sums


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_without_noise_it_is_the_sum_of_clipped_contributions(scale: float) -> None:
    batch = layers(7, scale=scale)
    gated = Gated(batch)
    found = step(make(gated), gated, batch, z=0.0)
    for layer, expected in zip(batch, clipped(batch), strict=True):
        torch.testing.assert_close(found[layer.name].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("signal", "inputs"),
    [(1e12, 2.6e32), (2.6e32, 1e12), (1e12, 8e31), (1e-38, 1e38), (1e-10, 1e33), (2e25, 1.0)],
)
@pytest.mark.parametrize("flush", [False, True])
def test_no_record_is_above_the_clip_at_the_ends_of_the_range(
    signal: float, inputs: float, flush: bool
) -> None:
    """A factor or a scaled signal among subnormals was rounded up, and met a large input."""
    batch = layers(1)
    for name, size in (("signal", signal), ("inputs", inputs)):
        getattr(batch[0], name).copy_(torch.full_like(getattr(batch[0], name), size))
    torch.set_flush_denormal(flush)
    try:
        found = step(make(Gated(batch)), Gated(batch), batch, z=0.0)
    finally:
        torch.set_flush_denormal(False)
    assert math.sqrt(sum(float(x.double().square().sum()) for x in found.values())) <= C * (1 + 1e-6)


def test_the_output_layer_has_no_noise_and_the_hidden_one_has_that_of_the_equation() -> None:
    """4000 steps of the same batch: each row k ~ N(mean, sigma² Σ_i φ'_ik² h_i h_i^T). False alarm 1e-6 a quantile."""
    batch = layers(4)
    gated = Gated(batch)
    release = make(gated)
    hidden, exact = batch[0], clipped(batch)
    draws = []
    for _ in range(4000):
        found = step(release, gated, batch)
        torch.testing.assert_close(found["3"].double(), exact[1], rtol=1e-5, atol=1e-6)
        draws.append(found["1"].double() - exact[0])
    noise = torch.stack(draws).numpy()
    sigma = Z * C / (math.sqrt(EXPECTED) * 0.25)
    assert release.noise_std(Z) == pytest.approx(sigma, rel=1e-12)
    for k in range(3):
        weighted = (hidden.inputs * hidden.gate[:, k : k + 1]).double().numpy()
        coordinates = (
            noise[:, k] @ np.linalg.pinv(weighted) / sigma
        )  # g itself, as there are fewer records than inputs
        assert stats.kstest(coordinates.ravel(), "norm").pvalue > 1e-6
        square = float((coordinates**2).sum())
        assert stats.chi2.ppf(5e-7, coordinates.size) < square < stats.chi2.ppf(1 - 5e-7, coordinates.size)
    between = np.corrcoef(noise[:, 0, 0], noise[:, 1, 0])[0, 1]
    assert abs(between) < 5 / math.sqrt(4000)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1e4))
def test_off_the_span_of_the_others_nothing_is_noised_at_any_sigma(seed: int, z: float) -> None:
    """T1's attack: the residual is 0 without the record, to rounding, and is not with it."""
    batch = layers(4, inputs=8, seed=seed)
    gated = Gated(batch)
    others = part(batch, slice(0, 3))
    basis = torch.linalg.qr(others[0].inputs.double().T).Q
    off = torch.eye(9, dtype=torch.float64) - basis @ basis.T
    without = step(make(gated, seed), gated, others, z=z)["1"].double()
    with_record = step(make(gated, seed + 1), gated, batch, z=z)["1"].double()
    assert (without @ off).norm() <= 1e-5 * without.norm()
    assert (with_record @ off).norm() >= 1e-4 * with_record.norm()


def test_parts_of_a_step_are_one_sum_and_no_noise_is_used_twice() -> None:
    batch = layers(6)
    gated = Gated(batch)
    release = make(gated)
    whole = step(make(gated), gated, batch, z=0.0)
    parts = step(release, gated, part(batch, slice(0, 4)), part(batch, slice(4, 6)), z=0.0)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    first, second = (step(release, gated, batch)["1"] for _ in range(2))
    assert not torch.allclose(first, second)


def test_an_empty_step_is_silent_and_a_record_that_is_not_finite_contributes_nothing() -> None:
    batch = layers(5)
    gated = Gated(batch)
    release = make(gated)
    gated.batch = None
    release.absorb(first=True)
    release.add_noise(Z)
    assert not release.release().any()  # not even noise: the published mechanism tells that nobody was there
    broken = layers(5)
    for layer, values in ((broken[0], "signal"), (broken[1], "inputs")):
        getattr(layer, values)[2, 0] = math.nan
    broken[0].gate[2, 1] = math.inf
    found = step(release, gated, broken, z=0.0)
    kept = [i for i in range(5) if i != 2]
    for layer, expected in zip(batch, clipped(part(batch, kept)), strict=True):
        torch.testing.assert_close(found[layer.name].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(step(release, gated, broken)["1"]).all()


def test_a_sum_without_noise_is_never_released() -> None:
    batch = layers(3)
    gated = Gated(batch)
    release = make(gated)
    release.absorb(first=True)
    with pytest.raises(UsageError, match="without noise"):
        release.release()
    release.add_noise(1.0)
    release.discard()
    with pytest.raises(UsageError, match="without noise"):
        release.release()


def test_more_records_than_the_public_size_explains_are_refused() -> None:
    batch = layers(1000)
    gated = Gated(batch)
    with pytest.raises(UsageError, match="declare a public size"):
        make(gated).absorb(first=True)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "0.5"])
def test_floors_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="activation_floor") as error:
        make(Gated(layers(3)), activation_floor=value)
    assert "\n" not in str(error.value)


def test_floors_set_the_noise_for_a_multiplier() -> None:
    release = make(Gated(layers(3)), activation_floor=0.1, derivative_floor=0.2)
    assert release.noise_std(2.0) == pytest.approx(2.0 * C / (math.sqrt(EXPECTED) * 0.02), rel=1e-12)


def private_run(secret: bool, rule: str = "dfa", **settings: object) -> PrivacyEngine:
    torch.manual_seed(0)
    x, y = torch.randn(60, 12), torch.randint(0, 3, (60,))
    net = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3))
    engine = PrivacyEngine(reproducible_seed=None if secret else 0)
    module, optimizer, loader = engine.make_private(
        module=align(net, rule=rule, loss_reduction="sum", show=None),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=6),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        release="per-record",
        target_delta=1e-5,
        **settings,  # type: ignore[arg-type]
    )
    for xb, yb in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(xb), yb, reduction="sum").backward()
        optimizer.step()
    return engine


def test_its_epsilon_is_always_conditional_and_names_what_fails() -> None:
    engine = private_run(secret=True, release_options={"activation_floor": 0.4})
    guarantee = engine.get_guarantee(1e-5)
    assert math.isinf(engine.get_epsilon(1e-5))  # a conditional epsilon never stands alone
    assert guarantee.kind is Kind.CONDITIONAL
    assert 0 < guarantee.epsilon < math.inf
    text = str(guarantee)
    assert "NOT a worst-case guarantee" in text.splitlines()[0]
    assert "FAILS: every released coordinate is noised [2: " in text
    assert "every activation is at least 0.4 and every derivative at least 0.5" in text
    assert private_run(secret=False).get_guarantee(1e-5).kind is Kind.NONE


def test_the_certificate_looks_at_records_only_where_it_was_asked_to() -> None:
    engine = private_run(secret=True)
    assert isinstance(engine.step, PerRecordRelease)
    assert not engine.step.certificate.private
    batch = layers(5)
    gated = Gated(batch)
    release = make(gated, diagnoses=True)
    step(release, gated, part(batch, slice(0, 2)), part(batch, slice(2, 5)))
    assert release.certificate.private
    looked = release.certificate
    step(release, gated, batch)
    assert release.certificate is looked  # the first step's, whatever comes later
    assert any("and 5 records" in finding.meaning for finding in looked.findings)


@pytest.mark.parametrize("rule", ["bp", "shallow"])
def test_a_rule_without_projection_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="projects nothing; use rule dfa") as error:
        private_run(secret=True, rule=rule)
    assert "\n" not in str(error.value)
