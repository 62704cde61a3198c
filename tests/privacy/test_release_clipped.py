"""The clipped Gaussian release: what is added up, how much noise, what it costs (THEORY T3, T11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.contributions.integers import LEAST_BOUND, Factors
from privacy.releases.clipped import (
    CAP_MASS,
    ClippedRelease,
    clip_factors,
    record_cap,
    refuse_imprecise_products,
)
from privacy.releases.digital import DigitalNoise
from privacy.releases.source import Departure, NoiseSource
from privacy.releases.step import FLOATING_POINT, RECORD_ASSUMPTIONS

DIMENSION = 20_000
C = 2.0
STEP = C / LEAST_BOUND  # of the grid
# A record at the clip is rounded from a little below it, so that few are rounded twice.
LOST = 1 - math.sqrt(1 - 3 / math.sqrt(LEAST_BOUND))


class Stacks:
    """Contributions given outright: one row a record."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.parameters = {"w": nn.Parameter(torch.zeros(dimension))}
        self.dimension = dimension
        self.expected_records: Callable[[], int | None] = lambda: len(self.rows)
        self.rows = torch.zeros(0, dimension)
        self.cleared = 0

    def factors(self, keeps: object) -> Iterator[list[Factors]]:
        yield [Factors(0, self.rows)]

    def unpack(self, released: Tensor) -> Tensor:
        return released

    def clear(self) -> None:
        self.rows = self.rows[:0]
        self.cleared += 1


class Silence(NoiseSource):
    """No noise, so that the sum shows; remembers what it was asked for."""

    name = "digital"
    device_share = 0.25

    def __init__(self) -> None:
        self.asked: list[float] = []

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return ()

    def cost(self, dimension: int) -> Departure:
        return Departure(1e-3 * dimension, 2e-3 * dimension, 1e-12 * dimension)

    def add_noise(self, total: Tensor, std: float) -> None:
        self.asked.append(std)


def make(stacks: Stacks, source: NoiseSource, **changes: Any) -> ClippedRelease:
    settings = {"max_grad_norm": C, "expected_batch_size": 10.0, **changes}
    return ClippedRelease(stacks, source, NoiseGenerator.seeded(0, "rounding"), **settings)  # type: ignore[arg-type]


def noised(release: ClippedRelease, noise_multiplier: float) -> Tensor:
    release.add_noise(noise_multiplier)
    return release.release()


def test_a_sum_without_noise_is_never_released() -> None:
    stacks = Stacks(3)
    release = make(stacks, Silence())
    stacks.rows = torch.tensor([[3.0, 0.0, 4.0]])
    release.absorb(first=True)
    with pytest.raises(UsageError, match="without noise"):
        release.release()
    noised(release, 1.0)
    with pytest.raises(UsageError, match="without noise"):
        release.release()  # nor twice
    release.absorb(first=True)
    release.add_noise(1.0)
    release.discard()
    with pytest.raises(UsageError, match="without noise"):
        release.release()


def test_clipped_sum_over_the_expected_batch_size_never_the_realised_one() -> None:
    stacks, source = Stacks(3), Silence()
    release = make(stacks, source)
    for rows in (
        torch.tensor([[3.0, 0.0, 4.0], [1.0, 0.0, 0.0], [0.0, math.nan, 0.0]]),  # norms 5, 1, not finite
        torch.zeros(0, 3),
    ):
        stacks.rows = rows
        release.absorb(first=True)
        flat = noised(release, 0.7)
        expected = torch.tensor([3 * C / 5 + 1, 0.0, 4 * C / 5] if len(rows) else [0.0] * 3)
        assert bool((10 * flat <= expected + STEP).all())
        assert bool((10 * flat >= expected * (1 - LOST) - 2 * STEP).all())
    assert stacks.cleared == 2
    assert source.asked == [0.7 * release.steps] * 2  # in grid steps


def test_parts_of_a_step_are_one_sum() -> None:
    stacks = Stacks(3)
    release = make(stacks, Silence())
    for number, row in enumerate(([3.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])):
        stacks.rows = torch.tensor([row])
        release.absorb(first=number == 0)
    found = 10 * noised(release, 1.0)
    torch.testing.assert_close(found, torch.tensor([1.2, 1.0, 2.6]), rtol=LOST, atol=2 * STEP)
    assert float(found[1]) == pytest.approx(1.0, abs=STEP)  # of a record that is not clipped
    stacks.rows = torch.tensor([[0.0, 1.0, 0.0]])
    release.absorb(first=True)  # the next step starts from nothing
    torch.testing.assert_close(10 * noised(release, 1.0), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=STEP)


def test_a_release_is_within_half_a_grid_step_of_a_record_inside_the_clip() -> None:
    stacks = Stacks(3)
    release = make(stacks, Silence())
    row = torch.tensor([0.1234567, -0.8765432, 0.7654321])
    stacks.rows = row.unsqueeze(0)
    release.absorb(first=True)
    error = (noised(release, 1.0) * 10 - row).double().abs()
    assert 0.01 * STEP < float(error.max()) < STEP / 2 * (1 + 1e-3)


def test_digital_noise_has_the_stated_law() -> None:
    """KS and chi-square of 20000 coordinates; false alarm 1e-6 each, at a fixed seed."""
    stacks = Stacks()
    release = make(stacks, DigitalNoise(NoiseGenerator.seeded(0, "noise")))
    release.absorb(first=True)
    noise = (noised(release, 1.3) * 10 / (1.3 * C)).double().numpy()
    assert stats.kstest(noise, "norm").pvalue > 1e-6
    chi2 = float((noise**2).sum())
    assert stats.chi2.ppf(5e-7, DIMENSION) < chi2 < stats.chi2.ppf(1 - 5e-7, DIMENSION)
    release.absorb(first=True)
    again = (noised(release, 1.3) * 10 / (1.3 * C)).double().numpy()
    assert abs(stats.pearsonr(noise, again).statistic) < 5 / math.sqrt(DIMENSION)  # never the same noise


def test_an_empty_step_releases_pure_noise() -> None:
    release = make(Stacks(), DigitalNoise(NoiseGenerator.seeded(1, "noise")))
    release.absorb(first=True)
    assert noised(release, 1.0).std() * 10 == pytest.approx(C, rel=0.04)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("expected", [1.0, 10.0, 4096.0, 1e6])
def test_sensitivity_is_the_clip_whatever_the_batch_or_its_parts(expected: float, parts: int) -> None:
    """What one record adds to the sum is at most D grid steps, exactly, wherever it stands: there is no surcharge."""
    stacks = Stacks(40)
    release = make(stacks, Silence(), expected_batch_size=expected)
    assert release.sensitivity == release.event(0.1, 1.5).sensitivity == C
    record = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e-3, 1.0, 1e5, 1e30):
        for part in range(parts):
            stacks.rows = torch.cat([torch.zeros(2, 40), scale * record, torch.zeros(1, 40)])
            if part:
                stacks.rows[2] = 0
            release.absorb(first=part == 0)
        moved = sum(x * x for x in release._sum.total.tolist())
        assert moved <= release.steps**2
        assert scale < 10 or moved >= (0.97 * release.steps) ** 2


@pytest.mark.parametrize("steps", [0, 1, 3, 100, 1 << 21])
def test_a_grid_that_is_no_power_of_two_is_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="power of two") as error:
        make(Stacks(3), Silence(), grid_steps=steps)
    assert "\n" not in str(error.value)


def test_the_coins_of_the_rounding_are_among_what_must_be_secret() -> None:
    """A record that joins shifts the coins of those after it."""
    release = make(Stacks(3), DigitalNoise(NoiseGenerator.secure("noise")))
    assert [(generator.name, generator.secret) for generator in release.generators] == [
        ("noise", True),
        ("rounding", False),
    ]
    assert release.describe()["clipping norm in grid steps"] == release.steps == LEAST_BOUND


def test_the_event_states_what_the_source_costs() -> None:
    release = make(Stacks(3), Silence())
    event = release.event(0.1, 1.5)
    assert (event.sample_rate, event.noise_multiplier, event.dimension) == (0.1, 1.5, 3)
    assert event.sensitivity == release.sensitivity
    assert (event.log_ratio, event.log_inflation, event.device_share) == (3e-3, 6e-3, 0.25)
    assert event.mass == 3e-12 + CAP_MASS
    digital = make(Stacks(3), DigitalNoise(NoiseGenerator.secure("noise"))).event(0.1, 1.5)
    assert (digital.log_ratio, digital.log_inflation) == (0.0, 0.0)
    assert digital.mass == 3 * TAIL_MASS + CAP_MASS


def test_no_arithmetic_is_taken_for_exact_but_a_records_own() -> None:
    assumptions = make(Stacks(3), DigitalNoise(NoiseGenerator.secure("noise"))).assumptions
    assert FLOATING_POINT in RECORD_ASSUMPTIONS
    assert FLOATING_POINT not in assumptions
    assert set(RECORD_ASSUMPTIONS) - set(assumptions) == {FLOATING_POINT}
    said = " ".join(text for text in assumptions if text not in RECORD_ASSUMPTIONS)
    assert "a record's numbers are the same to the bit in every place" in said
    assert "sums and noise are whole numbers" in said
    assert "the loss gives a record's error the same bits" in said


@given(
    st.lists(st.one_of(st.floats(0, 1e300), st.just(math.inf), st.just(math.nan)), max_size=20),
    st.floats(1e-6, 1e6),
)
def test_no_factor_lets_a_norm_through(norms: list[float], clip: float) -> None:
    given_norms = torch.tensor(norms, dtype=torch.float64)
    factors = clip_factors(given_norms, clip)
    assert ((factors >= 0) & (factors <= 1 + 1e-15)).all()  # the rounding bound covers an ulp
    for norm, factor in zip(norms, factors.tolist(), strict=True):
        if not math.isfinite(norm):
            assert factor == 0
        elif norm <= clip:
            assert factor == pytest.approx(1, rel=1e-15)
        else:
            assert norm * factor == pytest.approx(clip, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**7), st.floats(1e-4, 1.0))
def test_record_cap_holds_the_tail_it_states(size: int, rate: float) -> None:
    """Against the exact binomial tail of the largest N that the public size allows."""
    cap = record_cap(size * rate)
    assert stats.binom.sf(cap, size, rate) <= CAP_MASS
    assert cap <= 1.1 * size * rate + 15 * math.sqrt(size * rate) + 60


def test_more_records_than_the_public_size_explains_are_refused() -> None:
    stacks = Stacks(3)
    release = make(stacks, Silence())
    cap = record_cap(10.0)
    for records, refused in ((cap, False), (1, True)):
        stacks.rows = torch.zeros(records, 3)
        if refused:
            with pytest.raises(UsageError, match="declare a public size"):
                release.absorb(first=False)
        else:
            release.absorb(first=True)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan, 9e-13, 1.1e12, 1e-300])
def test_clipping_norms_out_of_range_are_refused(norm: float) -> None:
    with pytest.raises(UsageError, match="max_grad_norm") as error:
        make(Stacks(3), Silence(), max_grad_norm=norm)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_products_are_refused(precision: str) -> None:
    release = make(Stacks(3), Silence())
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(UsageError, match="overshoots"):
            release.absorb(first=True)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "name", ["mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "mkldnn", "cudnn", "cuda.matmul", ""]
)
def test_reduced_precision_of_one_backend_is_refused_by_name(name: str) -> None:
    owner: Any = torch.backends
    for part in filter(None, name.split(".")):
        owner = getattr(owner, part)
    stacks = Stacks(3)
    stacks.rows = torch.ones(1, 3)
    release = make(stacks, Silence())
    before = owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        with pytest.raises(UsageError, match=r"fp32_precision is 'tf32'.*overshoots") as error:
            release.absorb(first=True)
        assert "\n" not in str(error.value)
    finally:
        owner.fp32_precision = before
    release.absorb(first=True)


def test_tf32_by_its_older_name_is_refused() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with pytest.raises(UsageError, match="overshoots"):
            refuse_imprecise_products()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    refuse_imprecise_products()


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "any", True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "TF32", True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "F16", True),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT", False),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "strict", False),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "", False),
        ("DNNL_DEFAULT_FPMATH_MODE", "BF16", True),
        ("MKL_BLAS_COMPUTE_MODE", "FLOAT_TO_BF16", True),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", True),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0", False),
        ("NVIDIA_TF32_OVERRIDE", "1", True),
        ("NVIDIA_TF32_OVERRIDE", "0", False),
        ("CUBLAS_EMULATE_SINGLE_PRECISION", "1", True),
        ("HIPBLASLT_ALLOW_TF32", "1", True),
        ("PYTORCH_MPS_FAST_MATH", "1", True),
    ],
)
def test_variables_that_lower_the_precision_are_refused_by_name(
    name: str, value: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the library makes of them on this machine."""
    stacks = Stacks(3)
    stacks.rows = torch.ones(1, 3)
    release = make(stacks, Silence())
    monkeypatch.setenv(name, value)
    if not refused:
        release.absorb(first=True)
        return
    with pytest.raises(UsageError, match=f"{name} is '{value}'.*overshoots") as error:
        release.absorb(first=True)
    assert "\n" not in str(error.value)


def test_products_that_come_out_rounded_are_refused_whatever_made_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A setting nobody listed."""
    release, mm = make(Stacks(3), Silence()), torch.mm
    for kind in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(torch, "mm", lambda a, b, kind=kind: mm(a.to(kind).float(), b.to(kind).float()))
        with pytest.raises(UsageError, match="came out rounded"):
            release.absorb(first=True)


def test_noise_that_no_sampler_reaches_takes_a_coarser_grid() -> None:
    """sigma = 1300 on a grid of 32768 steps would be noise of 4.3e7 steps."""
    release = make(Stacks(3), DigitalNoise(NoiseGenerator.seeded(0, "noise")))
    before = release.steps
    release.prepare(1300.0)
    assert release.steps <= before // 2
    assert 1300.0 * release.steps <= 1e7
    release.absorb(first=True)
    assert 100 < float(noised(release, 1300.0).abs().mean()) * 10 / release.sensitivity < 10_000
    given = make(Stacks(3), DigitalNoise(NoiseGenerator.seeded(0, "noise")), grid_steps=before)
    with pytest.raises(UsageError, match="coarser grid"):
        given.prepare(1300.0)
