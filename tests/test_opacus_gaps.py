"""What Opacus 1.6.0 lets through (each case reproduced by running it): here it is refused, or does no harm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from small_networks import D, N, network, records
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa.aligning import align
from privacy import accounting
from privacy.engine import PrivacyEngine
from privacy.mechanisms import MECHANISMS

C = 0.5
TINY = 1e-6  # a noise multiplier below which the clipped sum itself is seen


class Made:
    """A private training set-up that sees every record at every step, unless told otherwise."""

    def __init__(
        self,
        module: nn.Module | None = None,
        data: tuple[Tensor, Tensor] | None = None,
        batch_size: int = N,
        reproducible_seed: int | None = 7,
        **options: Any,
    ) -> None:
        plain = network() if module is None else module
        given = {"noise_multiplier": TINY, "max_grad_norm": C, **options}
        self.engine = PrivacyEngine(reproducible_seed=reproducible_seed)
        aligned = align(plain, rule="dfa", backend="digital", show=None)
        self.original = torch.optim.SGD(aligned.parameters(), lr=1.0)
        loader = DataLoader(TensorDataset(*(data or records())), batch_size=batch_size, shuffle=True)
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=aligned, optimizer=self.original, data_loader=loader, **given
        )

    def step(self, criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy) -> Tensor:
        """One step at learning rate 1; the released average as a flat vector."""
        before = self.weights()
        x, y = next(iter(self.loader))
        criterion(self.module(x), y).backward()
        self.optimizer.step()
        return before - self.weights()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.module.parameters()])

    @property
    def releases(self) -> int:
        assert self.engine.ledger is not None
        return self.engine.ledger.count()


# ---- 1. BatchNorm and InstanceNorm that hold no trained parameter


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(8, affine=False),
        nn.BatchNorm1d(8).requires_grad_(False),
        nn.BatchNorm1d(8).eval(),
        nn.SyncBatchNorm(8, affine=False),
        nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(1)),
    ],
    ids=["affine=False", "frozen", "eval", "SyncBatchNorm", "InstanceNorm with running statistics"],
)
def test_normalisation_over_records_is_refused_trained_or_not(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match="GroupNorm"):
        Made(network(layer))


# ---- 2. a criterion of the user's own


def shouting(z: Tensor, y: Tensor) -> Tensor:
    """A mean loss no library knows, with gradients a million times too large."""
    return 1e6 * (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]).square().mean()


def test_a_criterion_of_ones_own_is_clipped_noised_and_accounted() -> None:
    released = Made().step(shouting)
    assert 0 < released.norm() <= C * (1 + 1e-3)  # N records of norm C over the expected N

    noised = Made(noise_multiplier=50.0)
    released = noised.step(shouting)
    std = 50.0 * C / N
    # The clipped part moves a coordinate by at most C; the rest is noise of this spread (5 sigma: 6e-7).
    assert released.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * len(released)) + C / std / 2)
    assert noised.releases == 1


def test_gradients_formed_beside_the_release_are_refused() -> None:
    made = Made()
    x, y = next(iter(made.loader))
    penalty = sum(p.square().sum() for p in made.module.parameters())
    before = made.weights()
    (nn.functional.cross_entropy(made.module(x), y) + penalty).backward()
    with pytest.raises(UsageError, match="outside the release"):
        made.optimizer.step()
    assert torch.equal(made.weights(), before)
    assert made.releases == 0


# ---- 3. the original optimizer


def test_the_original_optimizer_refuses_to_step() -> None:
    made = Made()
    before = made.weights()
    x, y = next(iter(made.loader))
    nn.functional.cross_entropy(made.module(x), y).backward()
    with pytest.raises(UsageError, match="make_private returned"):
        made.original.step()
    assert torch.equal(made.weights(), before)
    assert all(
        p.grad is None for p in made.module.parameters()
    )  # another optimizer would find nothing either


# ---- 4. shuffled batches


def test_shuffled_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="poisson_sampling is False"):
        Made(poisson_sampling=False)


def test_a_shuffling_loader_is_redrawn_by_poisson_sampling() -> None:
    """Sizes are binomial: mean 5 and variance 3.75 of 20 records at rate 1/4, over 400 steps (5 sigma: 6e-7)."""
    made = Made(batch_size=5, reproducible_seed=3)
    sizes = []
    for _ in range(100):
        for x, y in made.loader:
            sizes.append(len(y))
            nn.functional.cross_entropy(made.module(x), y).backward()
            made.optimizer.step()
    assert len(sizes) == 400
    assert abs(np.mean(sizes) - 5) < 5 * math.sqrt(3.75 / 400)
    assert abs(np.var(sizes) - 3.75) < 5 * 3.75 * math.sqrt(2 / 400)


# ---- 5. a record that is not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_a_record_that_is_not_finite_adds_nothing(value: float) -> None:
    x, y = records()
    x[4] = value
    others = [i for i in range(N) if i != 4]
    with_it = Made(data=(x, y), public_size=N).step()
    without = Made(data=(x[others], y[others]), public_size=N).step()
    assert bool(with_it.isfinite().all())
    if math.isfinite(value):  # overflows on the way: clipped like any other record
        assert (with_it - without).norm() <= C / N * (1 + 1e-3)
    else:
        assert (with_it - without).norm() <= 0.02 * C  # the others' coins are other ones


# ---- 6. a forward pass that mixes records


class Centred(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Ranked(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + h.detach().amax(0, keepdim=True)


@pytest.mark.parametrize("layer", [Centred(), Ranked()], ids=["mean", "maximum"])
def test_a_forward_pass_that_mixes_records_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match="mixes records"):
        Made(network(layer))


# ---- 7. the size of the data set


def test_the_size_of_the_data_set_does_not_show_once_a_public_one_is_declared() -> None:
    made = [
        Made(data=records(count), batch_size=4, public_size=N, noise_multiplier=1.0) for count in (N, N + 1)
    ]
    headers = [m.engine.ledger.header() for m in made if m.engine.ledger is not None]
    assert headers[0] == headers[1]
    assert headers[0]["nominal_size"] == N
    assert [len(m.loader) for m in made] == [N // 4, N // 4]
    assert made[0].loader.sample_rate == made[1].loader.sample_rate == 4 / N
    # The release divides by the expected number of records, not by the realised one.
    steps = [Made(data=records(count), public_size=N).step() for count in (N, N + 1)]
    assert (steps[0] - steps[1]).norm() <= C / N * (1 + 1e-3)


def test_a_size_that_was_not_declared_is_stated_to_be_public() -> None:
    made = Made(batch_size=4, noise_multiplier=1.0)
    stated = " ".join(made.engine.get_guarantee(1e-5).assumptions)
    assert "the size N of the data set" in stated


# ---- 8. several processes, of which one has an empty batch (tests/test_workers.py has those of more)


def test_an_empty_batch_releases_its_noise_and_is_accounted() -> None:
    made = Made(
        data=(torch.zeros(1, D), torch.zeros(1, dtype=torch.long)),
        batch_size=1,
        public_size=1000,
        noise_multiplier=1.0,
    )
    released = made.step()  # one record at rate 1/1000: seed 7 draws none
    assert made.loader.current is not None
    assert made.loader.current.records == 0
    # standard deviation C over the expected batch size 1 (5 sigma: 6e-7)
    assert released.std().item() == pytest.approx(C, rel=5 / math.sqrt(2 * len(released)))
    assert made.releases == 1


# ---- 9. low precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_network_is_refused_or_within_its_sensitivity(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match="float32"):
        Made(network().to(dtype), data=(records()[0].to(dtype), records()[1]))


def test_low_precision_matrix_products_are_refused() -> None:
    made = Made()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(UsageError, match="overshoots"):
            made.step()
    finally:
        torch.set_float32_matmul_precision(before)
    assert made.releases == 0


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-3])
def test_one_record_moves_the_sum_by_at_most_the_sensitivity(scale: float) -> None:
    x, y = records()
    for removed in range(0, N, 7):
        others = [i for i in range(N) if i != removed]
        full = Made(data=(x * scale, y), public_size=N, noise_multiplier=TINY).step(shouting)
        less = Made(data=(x[others] * scale, y[others]), public_size=N, noise_multiplier=TINY).step(shouting)
        # Beside C the coins of the others, which are other ones: 3 % of it are many times what they do.
        assert (full - less).norm() * N <= C * (1 + 0.03)


# ---- 10. secure noise


def test_noise_is_cryptographic_without_asking_and_torch_seeds_do_not_touch_it() -> None:
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        made = Made(noise_multiplier=1.0, reproducible_seed=None)
        assert made.engine.source is not None
        assert all(generator.secret for generator in made.engine.source.generators)
        steps.append(made.step())
        stated = made.engine.get_guarantee(1e-5)
        assert stated.kind.value == "record-dp"
        assert any("sums and noise are whole numbers" in text for text in stated.assumptions)
    assert not torch.equal(steps[0], steps[1])


# ---- 11. the central-limit accountant


def central_limit(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon of Gaussian DP with the CLT's mu (Bu, Dong, Long, Su 2020, corollary 2), as Opacus's GDP accountant."""
    mu = q * math.sqrt(steps * math.expm1(sigma**-2))

    def excess(epsilon: float) -> float:
        a, b = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
        return float(norm.cdf(a) - math.exp(epsilon) * norm.cdf(b)) - delta

    return float(brentq(excess, 0.0, 500.0))


def test_the_central_limit_accountant_is_not_on_offer_and_no_accountant_reports_as_little() -> None:
    for name in ("gdp", "clt"):
        with pytest.raises(UsageError, match="unknown accountant"):
            accounting.accountant_for("gaussian", name)
    q, sigma, steps, delta = 256 / 60000, 0.7, 1000, 1e-5
    step = accounting.gaussian(q, sigma)
    optimistic = central_limit(q, sigma, steps, delta)
    for name in MECHANISMS["gaussian"].accountants:
        assert accounting.epsilon({step: steps}, delta, accountant=name) > 1.05 * optimistic
