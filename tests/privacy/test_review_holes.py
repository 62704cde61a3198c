"""Ordinary training code that would break the guarantee, each refused or harmless (found by a hostile review)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import DeviceError, UsageError
from optical_dfa import align
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.points import Point
from optical_dfa.feedback.rule import ProjectingRule, Rule
from optical_dfa.feedback.rules.layerwise import LayerwiseFeedback
from optical_dfa.feedback.state import FeedbackState, Placement
from privacy import PrivacyEngine
from privacy.releases.clipped import ClippedRelease

N, D = 120, 6
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))
cross_entropy = nn.functional.cross_entropy


def net(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), *extra, nn.Linear(8, 3))


def private(
    module: nn.Module | None = None, batch: int = 40, seed: int | None = None, keep: int = N, **settings: Any
) -> tuple[Any, Any, Any, PrivacyEngine]:
    aligned = align(module or net(), rule=settings.pop("rule", "dfa"), example=X[:2], show=None)
    engine = PrivacyEngine(reproducible_seed=seed)
    made = engine.make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=settings.pop("lr", 0.1)),
        data_loader=DataLoader(TensorDataset(X[:keep], Y[:keep]), batch_size=batch),
        noise_multiplier=settings.pop("noise_multiplier", 1.0),
        max_grad_norm=1.0,
        **settings,
    )
    return (*made, engine)


def one_step(module: Any, optimizer: Any, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(module(x), y).backward()
    optimizer.step()


def test_random_masks_come_from_a_secret_seed() -> None:
    """With the user's own generator, one record more would shift the masks of all records after it."""
    sums = []
    for _ in range(2):
        torch.manual_seed(0)
        module, optimizer, loader, _ = private(net(nn.Dropout(0.5)), batch=N, lr=0.0, noise_multiplier=1e-9)
        torch.manual_seed(0)
        one_step(module, optimizer, *next(iter(loader)))
        sums.append([p.grad.clone() for p in module.parameters()])
    assert not torch.allclose(sums[0][0], sums[1][0])


def test_a_reproducible_run_repeats_its_masks() -> None:
    sums = []
    for _ in range(2):
        torch.manual_seed(0)
        module, optimizer, loader, _ = private(net(nn.Dropout(0.5)), batch=N, lr=0.0, seed=4)
        one_step(module, optimizer, *next(iter(loader)))
        sums.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=0)


@pytest.mark.parametrize("where", ["noise", "ledger", "sum"])
def test_a_step_that_fails_half_way_is_the_last(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer, loader, engine = private()
    batches = iter(loader)
    one_step(module, optimizer, *next(batches))
    kept = next(iter(module.parameters())).grad
    earlier = kept.clone()
    assert engine.ledger is not None
    assert engine.source is not None

    def fail(*args: Any, **kwargs: Any) -> None:
        raise DeviceError("the lamp is off")

    if where == "noise":
        monkeypatch.setattr(type(engine.source), "add_noise", fail)
    elif where == "ledger":
        monkeypatch.setattr(engine.ledger, "append_release", fail)
    else:
        monkeypatch.setattr(module._capture, "factors", fail)
    with pytest.raises(DeviceError):
        one_step(module, optimizer, *next(batches))
    monkeypatch.undo()
    assert torch.equal(kept, earlier)  # whoever kept an earlier release does not hold the un-noised sum
    assert isinstance(engine.step, ClippedRelease)
    assert not engine.step._sum.total.any()  # nor does anybody else
    with pytest.raises(UsageError, match="failed half-way"):
        optimizer.step()


def test_a_loop_left_inside_a_step_cannot_go_on() -> None:
    module, optimizer, loader, _ = private(max_physical_batch_size=10)
    for x, y in islice(loader, 1):
        one_step(module, optimizer, x, y)
    with pytest.raises(UsageError, match="unfinished"):
        next(iter(loader))


def test_the_graph_of_an_earlier_batch_is_refused() -> None:
    module, optimizer, loader, _ = private(batch=N)
    batches = iter(loader)
    x, y = next(batches)
    earlier = cross_entropy(module(x), y)
    cross_entropy(module(x), y).backward()
    optimizer.step()
    with pytest.raises(UsageError, match="earlier private batch"):
        earlier.backward()


def test_parameters_of_ones_own_are_refused_at_any_time() -> None:
    own = nn.Parameter(torch.ones(()))
    module, optimizer, loader, _ = private()
    with pytest.raises(UsageError, match="cannot be added"):
        optimizer.original.add_param_group({"params": [own]})
    optimizer.param_groups[0]["params"].append(own)
    x, y = next(iter(loader))
    cross_entropy(module(x) * own, y).backward()
    with pytest.raises(UsageError, match="not the private module's"):
        optimizer.step()
    assert float(own.detach()) == 1.0


class Scaled(nn.Module):
    def __init__(self, power: int) -> None:
        super().__init__()
        self.body, self.power = net(), power

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * (x.shape[0] / 100) ** self.power)  # type: ignore[no-any-return]


@pytest.mark.parametrize("power", [1, -1, 8])
def test_a_forward_pass_that_depends_on_the_number_of_records(power: int) -> None:
    with pytest.raises(UsageError, match="mixes records"):
        private(Scaled(power))


class MixesInEvaluation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if self.training else x - x.mean(0))  # type: ignore[no-any-return]


def test_mixing_in_evaluation_mode_only() -> None:
    with pytest.raises(UsageError, match="mixes records"):
        private(MixesInEvaluation())


def test_a_module_changed_after_it_was_probed() -> None:
    module, _, loader, _ = private()
    x, _ = next(iter(loader))
    module.module[1] = nn.Sequential(nn.BatchNorm1d(8), nn.Tanh())
    with pytest.raises(UsageError, match="changed after make_private"):
        module(x)


def test_two_engines_on_one_module() -> None:
    module, *_ = private()
    with pytest.raises(UsageError, match="private already"):
        PrivacyEngine().make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=40),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )


class BatchMaximum(ProjectingRule):
    name = "batch-maximum"

    def feedback(self, lifted: Tensor, points: Sequence[Point], device: ProjectionBackend) -> list[Tensor]:
        return [(lifted / lifted.abs().max()).sum(1, keepdim=True).expand(-1, p.width) for p in points]


class NoSum(BatchMaximum):
    refused = Refusal.NO_SUM


class MaximumState(FeedbackState):
    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        return [(error / error.abs().max()).sum(1, keepdim=True).expand(-1, p.width) for p in self.points]


class OwnState(Rule):
    name = "own-state"

    def state(self, placed: Placement) -> FeedbackState:
        return MaximumState(placed.points)


@pytest.mark.parametrize(
    ("rule", "words"),
    [(BatchMaximum(), "mixes records"), (NoSum(), "not a sum"), (OwnState(), "rule own-state .*records")],
)
def test_a_rule_whose_update_is_not_a_sum_over_records(rule: Rule, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        private(rule=rule)


def test_a_declared_size_far_below_the_records() -> None:
    with pytest.raises(UsageError, match="public size"):
        private(public_size=100)
    private(public_size=115)  # a few records more than declared change nothing


def test_freezing_after_make_private() -> None:
    module, optimizer, loader, _ = private()
    x, y = next(iter(loader))
    cross_entropy(module(x), y).backward()
    next(iter(module.parameters())).requires_grad_(False)
    with pytest.raises(UsageError, match="frozen after"):
        optimizer.step()


def test_the_optimizer_takes_hooks_and_is_not_copied() -> None:
    module, optimizer, loader, _ = private()
    called = []
    optimizer.register_step_post_hook(lambda *args: called.append(1))
    one_step(module, optimizer, *next(iter(loader)))
    assert called == [1]
    with pytest.raises(UsageError, match="cannot be copied"):
        copy.deepcopy(optimizer)


def test_an_optimizer_that_evaluates_the_loss_again() -> None:
    aligned = align(net(), show=None)
    with pytest.raises(UsageError, match="LBFGS"):
        PrivacyEngine().make_private(
            module=aligned,
            optimizer=torch.optim.LBFGS(aligned.parameters()),
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=40),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )


class Prototype(nn.Module):
    """Keeps a running mean of what it saw in a frozen parameter, as codebooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.seen = nn.Parameter(torch.zeros(D), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.data.mul_(0.9).add_(0.1 * x.mean(0))
        return self.body(x)  # type: ignore[no-any-return]


def test_a_parameter_written_by_the_forward_pass() -> None:
    with pytest.raises(UsageError, match="seen changes in a forward pass"):
        private(Prototype())


def test_a_batch_that_no_backward_pass_reached() -> None:
    """`if torch.isfinite(loss): loss.backward()` makes the release depend on one record."""
    module, optimizer, loader, engine = private(batch=N)
    x, _ = next(iter(loader))
    module(x)
    with pytest.raises(UsageError, match="no backward pass"):
        optimizer.step()
    assert engine.ledger is not None
    assert engine.ledger.count() == 0


@pytest.mark.parametrize("change", ["hook", "forward", "outer"])
def test_hooks_put_on_after_it_was_probed(change: str) -> None:
    module, _, loader, _ = private()
    x, _ = next(iter(loader))
    if change == "hook":
        module.module[0].register_forward_pre_hook(lambda part, args: args[0] - args[0].mean(0))
    elif change == "forward":
        inner = module.module[1].forward
        module.module[1].forward = lambda h: inner(h - h.mean(0))
    else:
        module.register_forward_pre_hook(lambda part, args: args[0] - args[0].mean(0))
    with pytest.raises(UsageError, match=r"changed after make_private|no hooks around"):
        module(x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": "1"},
        {"public_size": 60.5},
        {"max_physical_batch_size": 2.5},
        {"target_epsilon": "3", "target_delta": 1e-5},
        {"noise_multiplier": True},
    ],
)
def test_numbers_of_another_type(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="it must be a") as error:
        private(**wrong)
    assert "\n" not in str(error.value)


def test_a_module_converted_after_make_private() -> None:
    module, optimizer, loader, engine = private()
    x, y = next(iter(loader))
    cross_entropy(module(x), y).backward()
    module.double()
    with pytest.raises(UsageError, match="convert the module before"):
        optimizer.step()
    assert engine.ledger is not None
    assert engine.ledger.count() == 0


def test_a_rule_that_draws_its_feedback_anew_in_every_pass() -> None:
    """One record more moved the sum of a batch in parts by 1.3 clipping norms, and later passes to other matrices."""

    class Fresh(LayerwiseFeedback):
        name = "fresh"
        draws = "every pass"

        def matrix(self, weight: Tensor, drawn: Tensor | None, size: float) -> Tensor:
            assert drawn is not None
            return drawn * size

    for rule in ("brsf", Fresh()):
        with pytest.raises(UsageError, match=r"rule (brsf|fresh) .* not a sum over records") as error:
            private(rule=rule)
        assert "\n" not in str(error.value)
    private(rule="frsf")


class Statistics(nn.Module):
    """Subtracts a mean of earlier batches, kept where no state dictionary shows it."""

    def __init__(self, place: str, size: int) -> None:
        super().__init__()
        self.mean = torch.zeros(D)
        self.box: dict[str, Any] = {"object": SimpleNamespace(mean=torch.zeros(D)), "list": [torch.zeros(D)]}
        self.place, self.size = place, size

    def forward(self, x: Tensor) -> Tensor:
        held, keeps = x.detach(), len(x) >= self.size
        if self.place == "object":  # no look at the attributes shows a change
            before = self.box["object"].mean
            if keeps:
                self.box["object"].mean = 0.9 * before + 0.1 * held.mean(0)
        elif self.place == "list":
            before = self.box["list"][0].clone()
            if keeps:
                self.box["list"][0].mul_(0.9).add_(0.1 * held.mean(0))
        else:
            before = self.mean
            if keeps:
                self.mean = 0.9 * before + 0.1 * held.mean(0)
        return x - before


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("place", ["attribute", "list", "object"])
def test_statistics_that_no_buffer_holds(place: str, size: int) -> None:
    with pytest.raises(UsageError, match=r"changes in a forward pass|mixes records|there before the pass"):
        private(nn.Sequential(Statistics(place, size), *net()))


class HardExamples(nn.Module):
    """Keeps the half of a batch that is large; of a small batch, everything."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(dim=1, keepdim=True)
        return x if len(x) < 50 else x * (size >= size.median())


def test_a_forward_pass_that_mixes_large_batches_only() -> None:
    with pytest.raises(UsageError, match="mixes records"):
        private(nn.Sequential(HardExamples(), *net()))


class _MixedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad + grad.sum(0)


class BackwardMixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _MixedBackward.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def test_a_backward_pass_that_mixes_records() -> None:
    with pytest.raises(UsageError, match=r"mix records in the backward pass"):
        private(net(BackwardMixes()), rule="bp")
    private(net(BackwardMixes()))  # above the last cut nothing goes back through it
    with pytest.raises(UsageError, match=r"mix records in the backward pass"):
        private(nn.Sequential(nn.Linear(D, 8), BackwardMixes(), nn.Tanh(), nn.Linear(8, 3)))
