"""Rules that another package might bring: what a private run takes of them, and what `align` does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from noise_models.errors import UsageError
from optical_dfa import AlignedModule, align
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.feedback.card import RuleCard
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rule import ProjectingRule, Rule
from optical_dfa.feedback.rules.gated import GatedFeedbackAlignment
from optical_dfa.feedback.rules.modular import ModularFeedbackAlignment
from optical_dfa.feedback.state import FeedbackState, Placement, StateHook

RECORDS = 8
X = torch.randn(RECORDS, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(RECORDS) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


class Copying(FeedbackState):
    """Teaches the same number everywhere: the sum of a record's errors, weighted."""

    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        weights = torch.arange(1.0, error.shape[1] + 1)
        return [(error @ weights).unsqueeze(1).expand(-1, point.width) for point in self.points]


class Own(Rule):
    """A rule of its own state."""

    name = "own"

    def __init__(self, kind: type[FeedbackState]) -> None:
        self.kind = kind

    def state(self, placed: Placement) -> FeedbackState:
        return self.kind(placed.points)

    def describe(self, points: Sequence[Any]) -> dict[str, Any]:
        return {}


def running(rule: Rule, kind: str = "records") -> AlignedModule:
    aligned = align(network(), rule=rule, example=X, show=None)
    capture: Any = aligned.start_capture(kind)
    capture.expected_records = lambda: RECORDS
    capture.fix()
    return aligned


def step(aligned: AlignedModule) -> None:
    cross_entropy(aligned(X), Y).backward()
    aligned.capture.norms()  # type: ignore[attr-defined]
    aligned.capture.clear()


def test_one_that_observes_and_teaches_is_taken() -> None:
    aligned = running(Own(Copying))
    for _ in range(3):
        step(aligned)
    aligned.state_dict()


class Widened(Copying):
    def pupils(self, passed: ForwardPass) -> list[tuple[int, Tensor]]:
        return [(i, h * (X.abs().max() / 20).clamp_min(1)) for i, h in passed.kept]


class Ending(Copying):
    def end(self) -> None:
        self.points = self.points


class Hooking(Copying):
    def install(self, module: nn.Module) -> None:
        module[0].register_forward_hook(_Hook(self))  # type: ignore[operator]


class _Hook(StateHook):
    def __call__(self, part: nn.Module, args: Any, output: Tensor) -> None:
        return None


class Saying(Copying):
    def get_extra_state(self) -> Tensor:
        return torch.zeros(1)


class Given(Copying):
    def __init__(self, points: Any) -> None:
        super().__init__(points)
        self.end = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("state", [Widened, Ending, Hooking, Saying, Given])
def test_a_state_that_does_more_is_refused(state: type[FeedbackState]) -> None:
    with pytest.raises(
        UsageError, match=r"rule own has a (pupils|end|install|get_extra_state) of its own"
    ) as error:
        running(Own(state))
    assert "\n" not in str(error.value)
    align(network(), rule=Own(state), example=X, show=None)  # without privacy it may


class KeepingTensor(Copying):
    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        self.last = error.detach()
        return super().teach(error, noted, device)


class KeepingList(Copying):
    def __init__(self, points: Any) -> None:
        super().__init__(points)
        self.seen: list[Any] = []

    def observe(self, passed: ForwardPass) -> None:
        self.seen.append(passed.output.detach())


class KeepingBuffer(Copying):
    def __init__(self, points: Any) -> None:
        super().__init__(points)
        self.register_buffer("largest", torch.zeros(3))

    def teach(self, error: Tensor, noted: Any, device: ProjectionBackend | None) -> Sequence[Tensor | None]:
        self.get_buffer("largest").data = error.detach().amax(0)
        return super().teach(error, noted, device)


@pytest.mark.parametrize("state", [KeepingTensor, KeepingList, KeepingBuffer])
def test_a_state_that_keeps_what_it_saw_is_refused_before_anything_is_saved(
    state: type[FeedbackState],
) -> None:
    def save() -> None:
        aligned = running(Own(state))
        step(aligned)
        aligned.state_dict()

    with pytest.raises(UsageError, match=r"rule own") as error:
        save()
    assert "\n" not in str(error.value)


def test_feedback_that_is_changed_between_passes_is_refused() -> None:
    aligned = running(ModularFeedbackAlignment())
    step(aligned)
    next(b for name, b in aligned.state.named_buffers() if name != "seed").mul_(float(X.max()))
    with pytest.raises(UsageError, match=r"feedback of rule modular: .* may hold records"):
        aligned(X)


class Spreading(ModularFeedbackAlignment):
    name = "spreading"

    def spread(self, error: Tensor, kernel: Tensor, source: Any, target: Any) -> Tensor:
        return super().spread(error + error[:1], kernel, source, target)


class Late(GatedFeedbackAlignment):
    name = "late"


def test_what_changes_a_rule_of_this_library_where_nobody_follows_is_refused() -> None:
    with pytest.raises(UsageError, match="backward passes of its hooks"):
        running(Spreading())
    with pytest.raises(UsageError, match="rule late does not project a sum"):
        running(Late(), "aggregate")


def test_what_teaches_every_point_must_be_said() -> None:
    with pytest.raises(UsageError, match="says nothing of what teaches its feedback point 1"):
        align(network(), rule=Own(lambda points: FeedbackState(points[1:])), example=X, show=None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must return a FeedbackState from state"):
        align(network(), rule=Own(lambda points: None), example=X, show=None)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (Rule,), {"name": "nothing"})()


def test_points_may_share_the_memory_of_their_signals() -> None:
    """The mean over the records is put back once for each."""
    found = []
    for reduction in ("mean", "sum"):
        aligned = align(network(), rule=Own(Copying), example=X, loss_reduction=reduction, show=None)  # type: ignore[arg-type]
        cross_entropy(aligned(X), Y, reduction=reduction).backward()
        grad = aligned.module[0].weight.grad  # type: ignore[index, union-attr]
        found.append(grad * (RECORDS if reduction == "mean" else 1))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("base", "projects"), [(ProjectingRule, False), (Rule, True)])
def test_a_card_says_truly_whether_the_rule_projects(base: type[Rule], projects: bool) -> None:
    with pytest.raises(TypeError, match=f"must say projects={not projects}"):
        RuleCard(summary="wrong", projects=projects)(type("Wrong", (base,), {"name": "wrong"}))
