"""One step shows nothing by its low bits and depends on no order: whole numbers end to end (THEORY T11).

The old step, a float32 sum with normal noise in floating point, is kept HERE as what the attacks break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.health.min_entropy import MinEntropy
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.capture.aggregated import AggregatedCapture
from optical_dfa.capture.records import Capture
from privacy import PrivacyEngine
from privacy.contributions import integers
from privacy.contributions.integers import Factors
from privacy.contributions.products import multiplies_int8
from privacy.contributions.rounding import _Lane
from privacy.releases import device_entropy
from privacy.releases.clipped import ClippedRelease, clip_factors
from privacy.releases.digital import DigitalNoise

INPUTS, SIGMA, STEPS = 8192, 4.0, 40
RELEASES = ["digital", "device-entropy", "aggregate", "dark-frame"]
FALSE_ALARM = 1e-6  # of each test of a law, at fixed seeds
Array = npt.NDArray[np.float64]


# ---- low bits: the target's contributions are what the others leave at exactly 0


def net() -> nn.Module:
    """A record of zeros contributes exactly nothing; C = 1 and one expected record leave all bits in the average."""
    made = nn.Sequential(nn.Linear(INPUTS, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        made[0].get_parameter("weight").fill_(2.0**-10)
        made[2].get_parameter("weight").copy_(torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))
    return made


def released(
    release: str, present: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Array, ClippedRelease]:
    """What `STEPS` steps of the production loop release before anything is made of it, shape (STEPS, dimension)."""
    x = torch.zeros(1 + present, INPUTS)
    if present:
        x[1] = torch.randn(INPUTS, generator=torch.Generator().manual_seed(1))
    camera = release in ("device-entropy", "dark-frame")
    aligned = align(
        net(),
        rule="gated-dfa" if release == "aggregate" else "dfa",
        backend="simulated-opu" if camera else "digital",
        backend_options={"dark_pixels": 1 << 15} if camera else None,
        noise=NoiseGenerator.seeded(seed, "device"),
        loss_reduction="sum",
        show=None,
    )
    engine = PrivacyEngine(reproducible_seed=seed)
    module, optimizer, loader = engine.make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(x, torch.zeros(1 + present, dtype=torch.int64)), batch_size=1),
        noise_multiplier=SIGMA,
        max_grad_norm=1.0,
        public_size=1,
        release=release,
    )
    found = []
    kind = AggregatedCapture if release == "aggregate" else Capture
    unpack = kind.unpack
    monkeypatch.setattr(
        kind, "unpack", lambda self, flat: (found.append(flat.clone()), unpack(self, flat))[1]
    )
    while len(found) < STEPS:
        for given, y in loader:
            assert len(given) == 1 + present
            nn.functional.cross_entropy(module(given), y, reduction="sum").backward()
            optimizer.step()
            if release != "aggregate":  # which projects it
                flat = torch.cat([p.grad.flatten() for p in aligned.parameters() if p.grad is not None])
                assert torch.equal(flat, found[-1])
    assert isinstance(engine.step, ClippedRelease)
    return torch.stack(found[:STEPS]).double().numpy(), engine.step


class FloatingPoint:
    """The old step: clip factors from floating-point norms, a float32 sum, normal noise in floating point.

    Attributes:
        sums: before the noise, one a step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums: list[Tensor] = []
        self._total = torch.zeros(0)
        for name in ("_absorb", "_add_noise", "_released"):
            own = getattr(self, name)
            monkeypatch.setattr(ClippedRelease, name, lambda *args, own=own, **named: own(*args, **named))

    def _absorb(self, release: ClippedRelease, *, first: bool) -> None:
        if first:
            self._total = torch.zeros(release.dimension)
        factors = clip_factors(release.contributions.norms(), release.max_grad_norm)
        release.contributions.add_clipped(factors, self._total)

    def _add_noise(self, release: ClippedRelease, noise_multiplier: float) -> None:
        self.sums.append(self._total.clone())
        assert isinstance(release.source, DigitalNoise)
        release.source._generator.add_normal_(self._total, noise_multiplier * release.max_grad_norm)

    def _released(self, release: ClippedRelease) -> Tensor:
        return release.contributions.unpack(self._total / release.expected_batch_size)


def finer(sums: Array, record: Array) -> int:
    """How many steps show a value that the record, were it there, could not have left: none of its ulp's halves.

    Where |s + Z| is below |s| the sum is exact, a multiple of ulp(s) / 2; without s, Z has finer bits.
    """
    where = record != 0
    unit = np.spacing(np.abs(record[where]).astype(np.float32)).astype(np.float64) / 2
    return int((sums[:, where] / unit % 1 != 0).any(1).sum())


@cache
def contribution(release: str) -> Array:
    """What the record adds to the old sum, whose noise does not matter: the attacker has the code, and the record."""
    with pytest.MonkeyPatch.context() as patch:
        old = FloatingPoint(patch)
        released("aggregate" if release == "aggregate" else "digital", True, 0, patch)
        record: Array = old.sums[0].double().numpy()
    assert np.linalg.norm(record) == pytest.approx(1.0, abs=1e-5)  # at the clip
    return record


@pytest.mark.parametrize("release", ["digital", "aggregate"])
def test_the_low_bits_of_the_old_sum_show_whether_a_record_is_there(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In nearly every step, and never wrongly: one look tells more than any epsilon that was claimed."""
    record = contribution(release)
    FloatingPoint(monkeypatch)
    worlds = [released(release, present, 10 + present, monkeypatch)[0] for present in (False, True)]
    without, with_record = (finer(sums, record) for sums in worlds)
    assert without >= 0.9 * STEPS
    assert with_record == 0


@pytest.mark.parametrize("release", RELEASES)
def test_low_bits_show_nothing_in_whole_numbers(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value is a whole number of grid steps in both worlds, and no statistic of its bits tells them apart.

    Fisher's test of the old attack and chi-square tests of the last bits; false alarm 1e-6 each.
    """
    monkeypatch.setattr(device_entropy, "assess", lambda samples: MinEntropy(1.2, {}, len(samples), 54))
    worlds, counts = [], []
    for present in (False, True):
        sums, step = released(release, present, 20 + present, monkeypatch)
        whole = sums * (step.steps * step.expected_batch_size / step.max_grad_norm)
        assert np.array_equal(whole, np.round(whole))  # exactly
        assert whole.std() == pytest.approx(SIGMA * step.steps, rel=0.02)  # noise and all
        worlds.append(whole.astype(np.int64).ravel())
        counts.append(finer(sums, contribution(release)))
    assert stats.fisher_exact([[n, STEPS - n] for n in counts]).pvalue > FALSE_ALARM
    for bits in (1, 4, 8):
        seen = [np.bincount(whole % 2**bits, minlength=2**bits) for whole in worlds]
        assert stats.chi2_contingency(seen).pvalue > FALSE_ALARM
        for histogram in seen:
            assert stats.chisquare(histogram).pvalue > FALSE_ALARM


# ---- order: the same coins round a record alike wherever it stands; then only sums could differ


class Given:
    """Contributions given outright: a layer with its bias, a layer without, a convolution's sums, an embedding."""

    def __init__(self, records: int) -> None:
        g = torch.Generator().manual_seed(3)

        def drawn(*shape: int) -> Tensor:
            sizes = 10.0 ** torch.linspace(-3, 1, records).view(-1, *[1] * len(shape))
            return sizes * torch.randn(records, *shape, generator=g)

        tokens = torch.randint(0, 4, (records, 2), generator=g)
        entries = drawn(2, 3)
        entries[tokens[:, 0] == tokens[:, 1], 1] = 0.0  # a token stands once
        sparse = drawn(30) * (torch.rand(records, 30, generator=g) < 0.05)  # entries that do not fit int8
        self.all = [
            Factors(0, drawn(20), drawn(30), bias=600),
            Factors(620, drawn(10), sparse),
            Factors(920, drawn(50)),
            Factors(970, entries.flatten(1), tokens=tokens, entries=4),
        ]
        self.parameters = {
            name: nn.Parameter(torch.zeros(*shape))
            for name, shape in {"a": (20, 30), "b": (20,), "c": (10, 30), "d": (50,), "e": (4, 3)}.items()
        }
        self.dimension = 982
        self.chosen = torch.arange(records)
        self.expected_records: Callable[[], int | None] = lambda: len(self.chosen)

    def factors(self, keeps: object) -> Iterator[list[Factors]]:
        yield [part.part(self.chosen) for part in self.all]

    def unpack(self, flat: Tensor) -> Tensor:
        return flat

    def clear(self) -> None:
        self.chosen = self.chosen[:0]


def one_step(given: Given, orders: Sequence[Tensor]) -> Tensor:
    """What a step over these physical batches releases."""
    release = ClippedRelease(
        given,  # type: ignore[arg-type]
        DigitalNoise(NoiseGenerator.seeded(1, "noise")),
        NoiseGenerator.seeded(2, "rounding"),
        max_grad_norm=0.7,
        expected_batch_size=300.0,
    )
    for number, order in enumerate(orders):
        given.chosen = order
        release.absorb(first=number == 0)
    release.add_noise(1e-3)
    return release.release()


def floating_sum(given: Given, order: Tensor) -> Tensor:
    """The old sum of one layer."""
    part = given.all[0]
    assert part.cols is not None
    return part.rows[order].T @ part.cols[order]


@pytest.mark.parametrize("unit", ["int8", "float32"])
def test_a_release_is_the_same_to_the_bit_in_any_order_and_in_any_parts(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unit == "float32":
        monkeypatch.setattr(integers, "multiplies_int8", lambda *_: False)
    elif not multiplies_int8(torch.device("cpu"), 8, 8):
        pytest.skip("this processor has no exact products of int8")
    monkeypatch.setattr(_Lane, "_drawn", lambda self, count: torch.full((count, 1), 4660.0))
    records = 301
    given, g = Given(records), torch.Generator().manual_seed(4)
    straight = torch.arange(records)
    expected = one_step(given, [straight])
    assert expected.any()
    orders = [straight.flip(0), *(torch.randperm(records, generator=g) for _ in range(10))]
    assert any(not torch.equal(floating_sum(given, order), floating_sum(given, straight)) for order in orders)
    for number, order in enumerate(orders):
        for size in (records, 128, 37, *((1,) if number == 0 else ())):
            assert torch.equal(one_step(given, torch.split(order, size)), expected)


def test_a_network_of_one_output_learns_its_gradient() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(24, 16), torch.randint(0, 2, (24, 1)).float()
    plain = nn.Linear(16, 1)
    aligned = align(nn.Sequential(plain), rule="bp", loss_reduction="sum", show=None)
    module, optimizer, loader = PrivacyEngine(reproducible_seed=1).make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=0.0),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=24),
        noise_multiplier=1e-6,
        max_grad_norm=10.0,
    )
    for given, target in loader:
        nn.functional.binary_cross_entropy_with_logits(module(given), target, reduction="sum").backward()
        optimizer.step()
    error = (plain(x).sigmoid() - y).detach()
    assert plain.weight.grad is not None
    assert torch.allclose(plain.weight.grad * 24, error.T @ x, rtol=0.02, atol=0.3)
