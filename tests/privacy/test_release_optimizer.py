"""The user's loop on released gradients: optimizers, schedulers, parts of a batch, and every way to misuse it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa import align
from privacy.contributions.integers import LEAST_BOUND
from privacy.engine import PrivacyEngine
from privacy.errors import BudgetExhaustedError
from privacy.optimizer import PrivateOptimizer
from privacy.sampling import PoissonLoader

N, BATCH, C = 60, 12, 0.5
# Six standard deviations of a coordinate's rounding over a step: 50 grid steps a record, of factors of 180 steps.
ROUNDED = 6 * 50 * C / LEAST_BOUND / math.sqrt(BATCH)
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))
Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Run:
    """A private run with seeded generators."""

    def __init__(self, make: Make = sgd, *, rule: str = "dfa", seed: int | None = 0, **settings: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.engine = PrivacyEngine(reproducible_seed=seed)
        self.aligned = align(self.net, rule=rule, show=None)
        self.plain = make(self.net.parameters())
        arguments: dict[str, Any] = {
            "noise_multiplier": 1.0,
            "max_grad_norm": C,
            "release": "digital",
            **settings,
        }
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=self.aligned, optimizer=self.plain,
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=BATCH), **arguments,
        )  # fmt: skip

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def epoch(self) -> list[list[Tensor]]:
        """The released gradients of one epoch."""
        ledger = self.engine.ledger
        assert ledger is not None
        released = []
        for x, y in self.loader:
            before = ledger.count()
            self.step(x, y)
            if ledger.count() > before:
                released.append([v.clone() for v in self.optimizer._views])
        return released

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.net.parameters()]


def assert_refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ---- post-processing


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.Adagrad(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
])  # fmt: skip
def test_any_optimizer_is_post_processing_of_what_was_released(make: Make) -> None:
    """The same optimizer fed copies of the released gradients arrives at the same weights."""
    run = Run(make)
    twin = [nn.Parameter(p.detach().clone()) for p in run.net.parameters()]
    other = make(iter(twin))
    for _ in range(2):
        for released in run.epoch():
            for p, g in zip(twin, released, strict=True):
                p.grad = g
            other.step()
    assert all(torch.equal(a, b) for a, b in zip(run.weights(), twin, strict=True))
    assert run.optimizer.state_dict()["param_groups"] == run.plain.state_dict()["param_groups"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("on", ["plain", "optimizer"])
def test_schedulers_work_on_either_optimizer(on: str) -> None:
    run = Run()
    schedule = torch.optim.lr_scheduler.StepLR(getattr(run, on), 1, gamma=0.5)
    for x, y in run.loader:
        run.step(x, y)
        schedule.step()
    assert run.plain.param_groups[0]["lr"] == run.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**5


def test_a_learning_rate_of_zero_moves_nothing_but_is_still_a_release() -> None:
    run = Run(lambda p: torch.optim.SGD(p, lr=0.0))
    before = run.weights()
    run.epoch()
    assert all(torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))
    assert run.engine.ledger is not None
    assert run.engine.ledger.count() == len(run.loader) == 5


def test_parameter_groups_keep_their_settings() -> None:
    run = Run(
        lambda p: torch.optim.SGD(
            [{"params": [q], "lr": lr} for q, lr in zip(p, (0, 0.1, 0, 0.1), strict=True)]
        )
    )
    before = run.weights()
    run.epoch()
    moved = [not torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True)]
    assert moved == [False, True, False, True]


def test_zeroing_instead_of_dropping_gradients_is_harmless() -> None:
    """A released gradient is a view of the step's buffer: zeroing it must not reach into the next step."""
    weights = []
    for set_to_none in (True, False):
        run = Run(max_physical_batch_size=4)
        for x, y in run.loader:
            run.optimizer.zero_grad(set_to_none=set_to_none)
            run.plain.zero_grad(set_to_none=set_to_none)
            run.aligned.zero_grad(set_to_none=set_to_none)
            cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
        weights.append(run.weights())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("physical", [1, 4, 7, 1000])
def test_parts_of_a_batch_give_the_same_release(physical: int) -> None:
    """Up to the coins of the rounding, which are drawn in another order: their spread is a few grid steps a record."""
    whole, parts = Run().epoch(), Run(max_physical_batch_size=physical)
    found = parts.epoch()
    assert len(found) == len(whole) == 5  # the seed fixes coins and noise
    for step, other in zip(found, whole, strict=True):
        for a, b in zip(step, other, strict=True):
            assert a.norm() > 0.05  # noise and all
            torch.testing.assert_close(a, b, rtol=0, atol=ROUNDED)


def test_a_kept_release_does_not_show_the_next_steps_sum_before_its_noise() -> None:
    run = Run(max_physical_batch_size=3)
    kept: list[tuple[Tensor, Tensor]] = []
    for x, y in run.loader:
        run.step(x, y)
        kept += [(p.grad, p.grad.clone()) for p in run.net.parameters() if p.grad is not None]
        assert all(torch.equal(view, copy) for view, copy in kept)
    assert len(kept) == 5 * 4


@pytest.mark.parametrize("rule", ["dfa", "bp", "shallow"])
def test_a_release_is_the_clipped_average_plus_noise_of_the_stated_size(rule: str) -> None:
    """At a tiny noise multiplier, the clipped sum over the EXPECTED batch size shows, up to the grid."""
    run = Run(rule=rule, noise_multiplier=1e-9)
    x, y = next(iter(run.loader))
    before = run.weights()
    run.step(x, y)
    released = torch.cat([v.flatten() for v in run.optimizer._views])
    assert len(x) != BATCH  # the realised size is not the expected one
    assert released.norm() * BATCH <= C * len(x)
    twin = Run(rule=rule, noise_multiplier=1e-9)
    total = torch.zeros_like(released)
    twin.aligned.stop_capture()
    for i in range(len(x)):
        twin.aligned.zero_grad()
        cross_entropy(twin.aligned(x[i : i + 1]), y[i : i + 1]).backward()
        trained = twin.aligned.trained_parameters()
        stack = torch.cat([p.grad.flatten() for p in trained.values() if p.grad is not None])
        total += stack * min(1.0, C / float(stack.norm()))
    # A record at the clip is rounded from about 2 % below it, by coins that spread by 1 % of it a coordinate.
    assert (released - total / BATCH).norm() < 0.05 * (total / BATCH).norm()
    assert float(released @ total) > 0.9995 * float(released.norm() * total.norm())
    assert not all(torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))


# ---- misuse


def test_the_original_optimizer_raises() -> None:
    run = Run()
    x, y = next(iter(run.loader))
    cross_entropy(run.model(x), y).backward()
    before = run.weights()
    assert_refused(run.plain.step, "neither clipped nor noised", "make_private returned")
    assert all(torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))
    run.optimizer.step()


def test_a_step_without_a_batch_is_refused() -> None:
    run = Run()
    assert_refused(run.optimizer.step, "without a new batch")
    x, y = next(iter(run.loader))
    run.step(x, y)
    assert_refused(run.optimizer.step, "without a new batch")
    assert run.engine.ledger is not None
    assert run.engine.ledger.count() == 1


def test_a_batch_without_a_step_is_refused() -> None:
    run = Run()
    batches = iter(run.loader)
    x, y = next(batches)
    cross_entropy(run.model(x), y).backward()
    assert_refused(lambda: next(batches), "not followed by optimizer.step()")
    assert_refused(lambda: next(iter(run.loader)), "not followed by optimizer.step()")  # nor by a new epoch


def test_a_batch_that_is_not_the_loaders_is_refused() -> None:
    run = Run()
    assert_refused(lambda: run.model(X), "loader that make_private returned")
    x, y = next(iter(run.loader))
    assert_refused(lambda: run.model(torch.cat([x, x])), "records")
    run.step(x, y)
    assert_refused(lambda: run.model(x), "loader that make_private returned")  # its step is over


def test_a_closure_is_refused() -> None:
    run = Run()
    next(iter(run.loader))
    assert_refused(lambda: run.optimizer.step(lambda: 0.0), "closure")


def test_gradients_from_outside_the_release_are_refused() -> None:
    run = Run()
    before = run.weights()
    x, y = next(iter(run.loader))
    loss = cross_entropy(run.model(x), y) + 0.1 * sum(p.square().sum() for p in run.net.parameters())
    loss.backward()
    assert_refused(run.optimizer.step, "outside the release", "weight_decay")
    run.step(x, y)
    assert not all(torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))


def test_a_foreign_gradient_on_top_of_a_released_one_does_not_reach_the_weights() -> None:
    """backward() adds in place to the last release's view; the next release starts from a clean sum."""
    weights = []
    for penalised in (False, True):
        run = Run()
        for x, y in run.loader:
            if penalised and run.optimizer._views:
                (100 * sum(p.square().sum() for p in run.net.parameters())).backward()
            cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
        weights.append(run.weights())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_gradients_from_before_the_run_are_dropped() -> None:
    net = nn.Sequential(nn.Linear(5, 4))
    cross_entropy(net(X), Y).backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    PrivacyEngine().make_private(
        module=align(net, show=None), optimizer=optimizer, noise_multiplier=1.0, max_grad_norm=1.0,
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=BATCH),
    )  # fmt: skip
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("which", ["foreign", "missing"])
def test_the_optimizers_parameters_must_be_the_modules(which: str) -> None:
    def make(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        return sgd(iter([*held, nn.Parameter(torch.zeros(2))] if which == "foreign" else held[1:]))

    assert_refused(lambda: Run(make), "another" if which == "foreign" else "0.weight")


def test_groups_cannot_be_added() -> None:
    run = Run()
    assert_refused(lambda: run.optimizer.add_param_group({"params": []}), "make the module private again")


@pytest.mark.parametrize("settings", [
    *({"noise_multiplier": value} for value in (0.0, -1.0, math.nan, math.inf)),
    {"release": "aggregate-nothing"}, {"poisson_sampling": False}, {"public_size": BATCH - 1},
    {"max_physical_batch_size": 0}, {"max_grad_norm": 0.0}, {"target_epsilon": 1.0},
])  # fmt: skip
def test_wrong_settings_are_one_line_and_leave_the_module_as_it_was(settings: dict[str, Any]) -> None:
    assert_refused(lambda: Run(**settings))


def test_a_refusal_leaves_the_optimizer_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(5, 4))
    optimizer = sgd(net.parameters())
    aligned = align(net, show=None)
    loader = DataLoader(TensorDataset(X, Y), batch_size=BATCH)
    arguments = {"module": aligned, "optimizer": optimizer, "data_loader": loader, "max_grad_norm": 1.0}
    assert_refused(
        lambda: PrivacyEngine().make_private(noise_multiplier=1.0, release="dark-frame", **arguments)
    )  # type: ignore[arg-type]
    cross_entropy(aligned(X), Y).backward()
    optimizer.step()


# ---- the budget


def test_training_stops_on_the_budget_before_the_release_that_would_pass_it() -> None:
    run = Run(target_epsilon=1.0, target_delta=1e-5, noise_multiplier=2.0)
    allowed = run.engine.steps_left()
    assert allowed is not None
    assert 0 < allowed < 200

    def forever() -> None:
        while True:
            run.epoch()

    with pytest.raises(BudgetExhaustedError, match=str(allowed)):
        forever()
    assert run.engine.ledger is not None
    assert run.engine.ledger.count() == allowed
    assert run.engine.steps_left() == 0
    guarantee = run.engine.get_guarantee(1e-5)
    assert guarantee.nominal_epsilon is not None  # seeded: the guarantee itself is none
    assert guarantee.nominal_epsilon <= 1.0
    before = run.weights()
    for _ in range(2):
        with pytest.raises(BudgetExhaustedError):
            run.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))
    assert run.engine.ledger.count() == allowed


def test_the_ledger_has_the_release_before_the_weights_move() -> None:
    run = Run()
    counts: list[int] = []
    ledger = run.engine.ledger
    assert ledger is not None
    run.optimizer.register_step_pre_hook(lambda *_: counts.append(ledger.count()))
    run.epoch()
    assert counts == [1, 2, 3, 4, 5]


def test_secret_generators_never_repeat_a_run() -> None:
    first, second = Run(seed=None), Run(seed=None)
    first.epoch(), second.epoch()
    assert isinstance(first.optimizer, PrivateOptimizer)
    assert isinstance(first.loader, PoissonLoader)
    assert not any(torch.equal(a, b) for a, b in zip(first.weights(), second.weights(), strict=True))
