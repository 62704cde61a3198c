"""Release `skellam`: integers in, integer noise, integers out (THEORY T6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_networks import CLASSES, D, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.integer_sampler import TABLE_MASS
from optical_dfa.aligning import align
from optical_dfa.capture.records import Capture
from optical_dfa.config import TrainConfig
from optical_dfa.training.trainer import train
from privacy import accounting
from privacy.auditing.audit import audit
from privacy.engine import PrivacyEngine
from privacy.ledger import ReleaseEvent
from privacy.releases.clipped import CAP_MASS
from privacy.releases.skellam import IntegerNoise, SkellamRelease

N, C = 24, 0.5
GRID = 8192  # steps of the clipping norm: the least number, which small networks get
SILENT = 1e-8  # a noise multiplier at which the noise is 0 but for a chance of 1e-6 a step


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, CLASSES)
    )


def records(count: int = N, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(1))
    return scale * x, torch.arange(count) % CLASSES


def make(
    net: nn.Module | None = None,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int | None = 5,
    **options: Any,
) -> tuple[PrivacyEngine, nn.Module, Any, Any]:
    """A private set-up that sees every record at every step."""
    engine = PrivacyEngine(reproducible_seed=seed)
    aligned = align(net or network(), rule="dfa", backend="digital", example=torch.zeros(1, D), show=None)
    settings = {
        "noise_multiplier": SILENT,
        "max_grad_norm": C,
        "release": "skellam",
        "public_size": N,
        **options,
    }
    module, optimizer, loader = engine.make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(*(data or records())), batch_size=N),
        **settings,
    )
    return engine, module, optimizer, loader


def step(made: tuple[PrivacyEngine, nn.Module, Any, Any]) -> Tensor:
    """One step's released gradient, flat, float64."""
    _, module, optimizer, loader = made
    x, y = next(iter(loader))
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()
    return torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None])


def sizes(net: nn.Module) -> list[torch.Size]:
    return [p.shape for p in net.parameters()]


@pytest.mark.parametrize("net", [network, images], ids=["linear", "convolution"])
@pytest.mark.parametrize("noise_multiplier", [SILENT, 0.05])
def test_what_is_released_is_whole_numbers_of_the_grid(net: Any, noise_multiplier: float) -> None:
    """Whatever the records are: the released average is an integer times C / (D · batch)."""
    unit = C / SkellamRelease.least_steps(sizes(net())) / N
    for data in (records(), records(scale=1e4), records(scale=1e-4)):
        released = step(make(net(), data=data, noise_multiplier=noise_multiplier)) / unit
        torch.testing.assert_close(
            released, released.round(), rtol=1e-6, atol=1e-4
        )  # float32 of the gradient
        assert noise_multiplier == SILENT or released.any()


@pytest.mark.parametrize("net", [network, images], ids=["linear", "convolution"])
def test_it_stands_for_the_clipped_average(net: Any) -> None:
    """Against release `digital` without noise, up to rounding: a grid's standard deviation a record and coordinate."""
    found = step(make(net()))
    exact = step(make(net(), release="digital", noise_multiplier=1e-9))
    bound = SkellamRelease.least_steps(sizes(net()))
    # Rounding adds at most a twentieth of C² to a record's squared norm, its room takes up to 3 % off a norm.
    assert (found - exact).norm() <= C * math.sqrt(0.05 / N) * 3 + 0.04 * exact.norm()
    assert found.norm() <= C
    assert bound == GRID


def test_noise_beyond_the_samplers_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = {"dataset": "digits", "release": "skellam", "backend": "digital", "epsilon": 0.02, "delta": 1e-5}
    with pytest.raises(UsageError, match="needs a table") as refused:
        train(TrainConfig(**config, epochs=1), out=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, CLASSES))


def doubles() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("net", "x"),
    [(tokens, torch.arange(3 * N).reshape(N, 3) * 5 % 9), (doubles, records()[0].double())],
    ids=["embedding and positions", "float64"],
)
def test_any_supported_layer_and_several_passes(net: Any, x: Tensor, passes: int) -> None:
    """Explicit contributions, and uses of a batch that add up before the clip: as `digital`, within 4 %."""
    sums = []
    for release in ("digital", "skellam"):
        torch.manual_seed(0)
        aligned = align(net(), rule="dfa", example=x[:1], show=None)
        module, optimizer, loader = PrivacyEngine(reproducible_seed=3).make_private(
            module=aligned,
            optimizer=torch.optim.SGD(aligned.parameters(), lr=1.0),
            data_loader=DataLoader(TensorDataset(x, records()[1]), batch_size=N),
            noise_multiplier=SILENT,
            max_grad_norm=C,
            release=release,
        )
        given, y = next(iter(loader))
        for _ in range(passes):
            nn.functional.cross_entropy(module(given), y).backward()
        optimizer.step()
        sums.append(torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None]))
    assert (sums[1] - sums[0]).norm() < 0.04 * sums[0].norm()


def test_one_record_moves_the_integers_by_at_most_the_sensitivity() -> None:
    """Alone in its batch, at any scale: the norm of the sum is that record's."""
    unit = C / GRID / N
    for scale in (1e-3, 1.0, 1e5, 1e30):
        released = step(make(data=records(1, scale))) / unit
        assert int(released.round().square().sum()) <= GRID**2


def test_the_noise_is_skellam_of_the_stated_variance() -> None:
    """At integers, over 1500 empty steps of 83 coordinates; chi-square, false alarm 1e-6."""
    sigma = 3 / GRID  # in units of the sensitivity: a standard deviation of 3 grid steps
    _, module, _, _ = make()
    release = SkellamRelease(
        module._capture,  # type: ignore[arg-type]
        IntegerNoise(NoiseGenerator.seeded(1, "noise")),
        NoiseGenerator.seeded(1, "rounding"),
        max_grad_norm=float(GRID),
        expected_batch_size=1.0,
    )
    drawn = []
    for _ in range(1500):
        release.absorb(first=True)
        release.add_noise(sigma)
        drawn.append(release.release())
    values = torch.cat(drawn).double().numpy()
    assert np.array_equal(values, np.round(values))
    law = stats.skellam(4.5, 4.5)
    edge = 11
    inner = np.arange(-edge, edge + 1)
    expected = np.concatenate(([law.cdf(-edge - 1)], law.pmf(inner), [law.sf(edge)])) * len(values)
    found = np.bincount(np.clip(values, -edge - 1, edge + 1).astype(int) + edge + 1, minlength=len(expected))
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-6


def test_the_ledger_states_it_in_grid_steps() -> None:
    engine, *_ = made = make(noise_multiplier=0.5, target_epsilon=50.0, target_delta=1e-5)
    step(made)
    assert engine.ledger is not None
    (row,) = engine.ledger.releases()
    assert (row.mechanism, row.source) == ("skellam", "skellam")
    assert row.sensitivity == GRID
    assert row.noise_multiplier == 0.5
    assert row.dimension == sum(p.numel() for p in network().parameters())
    assert row.mass == row.dimension * TABLE_MASS + CAP_MASS
    assert row.log_ratio == row.log_inflation == 0.0
    header = engine.ledger.header()
    assert header["credit"] == {"clipping norm in grid steps": GRID}
    assert header["accountant"] == "skellam-rdp"
    guarantee = engine.get_guarantee(1e-5)
    assert not any("floating-point noise" in text for text in guarantee.assumptions)
    assert any("whole numbers" in text for text in guarantee.assumptions)


def test_its_epsilon_is_close_to_the_gaussian_mechanisms() -> None:
    """A grid of 8192 steps costs little over a Gaussian under the same accountant (RDP)."""
    epsilons = []
    for release, accountant in (("skellam", "skellam-rdp"), ("digital", "rdp")):
        engine = PrivacyEngine(reproducible_seed=1, accountant=accountant)
        aligned = align(network(), rule="dfa", show=None)
        engine.make_private(
            module=aligned,
            optimizer=torch.optim.SGD(aligned.parameters(), lr=1.0),
            data_loader=DataLoader(TensorDataset(*records()), batch_size=6),
            noise_multiplier=2.0,
            max_grad_norm=C,
            release=release,
        )
        assert engine.ledger is not None
        header = engine.ledger.header()
        row = ReleaseEvent(
            mechanism="skellam" if release == "skellam" else "gaussian",
            source=release,
            sample_rate=0.25,
            noise_multiplier=header["noise_multiplier"],
            sensitivity=header["sensitivity"],
            dimension=header["dimension"],
        )
        epsilons.append(accounting.epsilon({row: 100}, 1e-5, accountant=accountant))
    assert epsilons[1] * 0.99 < epsilons[0] < epsilons[1] * 1.1


def test_an_empty_batch_releases_pure_noise() -> None:
    made = make(data=records(1), public_size=1000, noise_multiplier=0.1)
    released = step(made)
    assert made[3].current.records == 0
    # standard deviation C / 10 over the expected batch (5 standard errors: 6e-7)
    assert float(released.std()) == pytest.approx(0.1 * C / N, rel=5 / math.sqrt(2 * len(released)))


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_record_that_is_not_finite_adds_nothing(value: float) -> None:
    x, y = records()
    x[4] = value
    released = step(make(data=(x, y)))
    assert bool(released.isfinite().all())
    others = [i for i in range(N) if i != 4]
    without = step(make(data=(x[others], y[others])))
    # Other coins round the others: both are the same average but for the grid (as above).
    assert (released - without).norm() <= 2 * C * math.sqrt(0.05 / N) * 3 + C / N * (
        0 if value != 3e38 else 1
    )


def test_parts_of_a_step_are_one_sum() -> None:
    whole, parts = (make(max_physical_batch_size=size) for size in (None, 5))
    one = step(whole)
    _, module, optimizer, loader = parts
    batches = iter(loader)
    for x, y in batches:
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        if loader.current.final:
            break
    many = torch.cat([p.grad.double().flatten() for p in module.parameters() if p.grad is not None])
    assert (one - many).norm() <= 2 * C * math.sqrt(0.05 / N) * 3
    assert one.norm() > 0.1 * C


def test_a_sum_without_noise_is_never_released_and_a_failed_step_leaves_nothing() -> None:
    *_, module, _, _ = make()
    release = SkellamRelease(
        module._capture,  # type: ignore[arg-type]
        IntegerNoise(NoiseGenerator.secure("noise")),
        NoiseGenerator.secure("rounding"),
        max_grad_norm=C,
        expected_batch_size=N,
    )
    release.absorb(first=True)
    with pytest.raises(UsageError, match="without noise"):
        release.release()
    release.add_noise(0.01)
    release.discard()
    assert not release._sum.total.any()
    with pytest.raises(UsageError, match="without noise"):
        release.release()


def test_noise_and_rounding_have_secret_keys_of_their_own() -> None:
    """A record that joins shifts the coins of those after it, so they are as secret as the noise."""
    engine, *_ = make(seed=None, noise_multiplier=1.0)
    assert engine.step is not None
    assert {generator.name for generator in engine.step.generators} == {"noise", "rounding"}
    assert all(generator.secret for generator in engine.step.generators)
    assert engine.ledger is not None
    assert len(engine.ledger.events("key")) == 4  # and the sampling coins and the masks


@pytest.mark.parametrize("steps", [2, 8])
def test_a_grid_on_which_nothing_is_left_of_a_record_is_refused(steps: int) -> None:
    with pytest.raises(UsageError, match="so few that rounding leaves little of a record; take 16 or more"):
        make(release_options={"grid_steps": steps})


@pytest.mark.parametrize("steps", [0, 1, 3, 100, 1 << 21])
def test_a_grid_that_is_no_power_of_two_is_refused(steps: int) -> None:
    *_, module, _, _ = make()
    capture: Capture = module._capture  # type: ignore[assignment]
    with pytest.raises(UsageError, match="power of two"):
        SkellamRelease(
            capture,
            IntegerNoise(NoiseGenerator.secure("noise")),
            NoiseGenerator.secure("rounding"),
            max_grad_norm=C,
            expected_batch_size=N,
            grid_steps=steps,
        )


def test_reduced_precision_products_are_refused() -> None:
    made = make()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(UsageError, match="overshoots"):
            step(made)
    finally:
        torch.set_float32_matmul_precision(before)
    assert made[0].ledger is not None
    assert made[0].ledger.count() == 0


def test_a_run_stays_within_its_budget_is_resumed_and_audited(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": "digits",
        "model": "mlp:4",
        "backend": "digital",
        "release": "skellam",
        "release_options": {"grid_steps": 256},
        "epochs": 1,
        "batch_size": 256,
        "max_physical_batch_size": 100,
        "epsilon": 8.0,
    }
    first = train(TrainConfig(**settings), tmp_path / "run")
    assert 7.5 < first["guarantee"]["epsilon"] <= 8.0
    assert first["guarantee"]["kind"] == "record-dp"
    again = train(TrainConfig(**settings), tmp_path / "run", resume=True)
    assert again["releases"] == first["releases"]
    assert again["guarantee"]["epsilon"] == first["guarantee"]["epsilon"]
    report = audit(tmp_path / "run")
    assert report.consistent, report.findings
    assert report.releases == first["releases"]


def test_the_grid_is_a_public_option() -> None:
    made = make(noise_multiplier=30.0, release_options={"grid_steps": 64})
    released = step(made) / (C / 64 / N)
    torch.testing.assert_close(released, released.round(), rtol=1e-6, atol=1e-4)
    assert made[0].ledger is not None
    assert made[0].ledger.releases()[0].sensitivity == 64.0
    for value in (65, 64.0, True, "64"):
        with pytest.raises(UsageError, match="power of two"):
            make(release_options={"grid_steps": value})


def test_noise_that_no_table_holds_makes_no_engine() -> None:
    with pytest.raises(UsageError, match="coarser grid or less noise"):
        make(noise_multiplier=1e5)
