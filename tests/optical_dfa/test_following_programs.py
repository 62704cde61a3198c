"""Passes that go by the number of records, or by records that came another way, where no single operation mixes."""

from __future__ import annotations

import dataclasses
import threading
from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.capture.records import capture_of
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment

WIDTH, MANY = 8, 40
FEW = MANY - 1  # the number at which a pass does otherwise
ONES, MINUS = torch.ones(WIDTH), -torch.ones(WIDTH)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("p", torch.ones(WIDTH))
        self.register_buffer("q", -torch.ones(WIDTH))

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(self.between(x))))


def private(net: nn.Module, rule: Any = "bp") -> Any:
    aligned = align(net, rule=rule, example=torch.zeros(2, WIDTH), show=None)
    aligned.start_capture()
    return aligned


def step(aligned: Any, x: Tensor, *others: Any) -> Tensor:
    """The clipped sum of one batch, C = 1."""
    capture = capture_of(aligned)
    capture.expected_records = lambda: len(x)
    capture.masks = NoiseGenerator.seeded(0, "masks")
    F.cross_entropy(aligned(x, *others), torch.arange(len(x)) % 4).backward()
    total = torch.zeros(capture.dimension)
    capture.add_clipped((1 / capture.norms()).clamp_max(1.0), total)
    capture.clear()
    return total


def records(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


# ---- by the number of records


def detached(net: Base, x: Tensor) -> Tensor:
    h = net.one(x)
    return net.two(torch.tanh(h.detach() if len(x) == FEW else h))


def by_data(net: Base, x: Tensor) -> Tensor:
    h = net.one(x)
    return net.two(torch.tanh(h.data if len(x) == FEW else h))


def without_gradients(net: Base, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(len(x) != FEW):
        h = torch.tanh(net.one(x))
    return net.two(h)


def past_the_hook(net: Base, x: Tensor) -> Tensor:
    return net.two(torch.tanh(net.one.forward(x) if len(x) == FEW else net.one(x)))


def by_function(net: Base, x: Tensor) -> Tensor:
    h = F.linear(x, net.one.weight, net.one.bias) if len(x) == FEW else net.one(x)
    return net.two(torch.tanh(h))


def another_constant(net: Base, x: Tensor) -> Tensor:
    first, second = ONES + 0, MINUS + 0
    return net.two(net.one(x * (ONES if len(x) == FEW else MINUS) + 0 * (first + second)))


def true_for_one(net: Base, x: Tensor) -> Tensor:
    return net.two(net.one(x * ~torch.full((1,), True if len(x) == FEW else 1)))


def whole_or_not(net: Base, x: Tensor) -> Tensor:
    return net.two(net.one(x * (torch.arange(8 if len(x) == FEW else 8.0) + 2**31)))


def default_type(net: Base, x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64 if len(x) == FEW else torch.float32)
    third = torch.full((1,), 0.1)
    torch.set_default_dtype(torch.float32)
    return net.two(net.one(x * third.float()))


def swapped(net: Base, x: Tensor) -> Tensor:
    if len(x) != FEW:
        return net.two(net.one(x * net.p))
    torch.utils.swap_tensors(net.p, net.q)
    y = net.two(net.one(x * net.p))
    torch.utils.swap_tensors(net.p, net.q)
    return y


def by_assignment(net: Base, x: Tensor) -> Tensor:
    kept = net.p.data
    if len(x) == FEW:
        net.p.data = net.q.data
    y = net.two(net.one(x * net.p))
    net.p.data = kept
    return y


def of_nothing(net: Base, x: Tensor) -> Tensor:
    counted = x[:, :0].reshape(len(x), len(x), 0).sum(-1).add(1).sum(1, keepdim=True)
    return net.two(net.one(x * counted))


def with_strides(net: Base, x: Tensor) -> Tensor:
    first = torch.ops.aten._reshape_alias(x.detach().contiguous(), list(x.shape), [0, 1])
    return net.two(net.one(x + first))


COUNTING = (
    detached, by_data, without_gradients, past_the_hook, by_function, another_constant, true_for_one, whole_or_not,
    default_type, swapped, by_assignment, of_nothing, with_strides,
)  # fmt: skip


def either_power(net: Base, x: Tensor) -> Tensor:
    return net.two(net.one(x**3.0 if len(x) == FEW else 3.0**x))


def either_side(net: Base, x: Tensor) -> Tensor:
    scale = net.p * 2
    few = len(x) == FEW
    return net.two(F.layer_norm(net.one(x), (WIDTH,), scale if few else None, None if few else scale))


def in_another_shape(net: Base, x: Tensor) -> Tensor:
    pair = torch.tensor([[-1.0], [1.0]] if len(x) == FEW else [[-1.0, 1.0]])
    return net.two(net.one(x * (pair * torch.tensor([1.0, 2.0])).sum()))


def of_another_type(net: Base, x: Tensor) -> Tensor:
    one = torch.tensor(1.0) if len(x) == FEW else torch.tensor(1065353216, dtype=torch.int32)
    return net.two(net.one(x * one))


def default_type_of_a_line(net: Base, x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64 if len(x) == FEW else torch.float32)
    line = torch.linspace(0, 0.1, WIDTH)
    torch.set_default_dtype(torch.float32)
    return net.two(net.one(x * line.float()))


def cut_in_place(net: Base, x: Tensor) -> Tensor:
    first, second = net.one(x) * 1, net.one(x) * 2
    if len(x) == FEW:
        second.detach_()
    return net.two(torch.tanh(first + second))


def through_numpy(net: Base, x: Tensor) -> Tensor:
    sign = torch.ones(WIDTH)
    if len(x) == FEW:
        sign.numpy()[:] = -1
    return net.two(net.one(x * sign))


COUNTING = (
    *COUNTING, either_power, either_side, in_another_shape, of_another_type, default_type_of_a_line, cut_in_place,
    through_numpy,
)  # fmt: skip


@pytest.mark.parametrize("how", COUNTING, ids=lambda how: how.__name__)
def test_what_goes_by_the_number_of_records_is_refused(how: Callable[[Base, Tensor], Tensor]) -> None:
    def train() -> None:
        aligned = private(type("Net", (Base,), {"forward": how})())
        for count in (MANY, FEW):
            step(aligned, records(count))

    with pytest.raises(UsageError) as error:
        train()
    assert "\n" not in str(error.value)


# ---- by records that came another way


@dataclasses.dataclass
class Extra:
    age: Tensor


class Given(Base):
    def forward(self, x: Tensor, extra: Any = None) -> Tensor:
        while extra is not None and not isinstance(extra, Tensor):
            extra = (
                extra.age
                if isinstance(extra, Extra)
                else extra["age"]
                if isinstance(extra, UserDict)
                else extra[0]
            )
        return super().forward(x if extra is None else x / extra.abs().max().clamp_min(1))


@pytest.mark.parametrize(
    "wrapped", [Extra, lambda age: UserDict(age=age), lambda age: [[age]], lambda age: (0, {1: age})],
    ids=["dataclass", "UserDict", "nested list", "tuple of a dict"],
)  # fmt: skip
def test_records_in_an_argument_of_another_kind_are_refused(wrapped: Callable[[Tensor], Any]) -> None:
    aligned = private(Given())
    step(aligned, records(MANY), None)
    with pytest.raises(UsageError, match="takes tensors as arguments of their own"):
        step(aligned, records(MANY), wrapped(torch.randn(MANY)))


class Attribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lengths = torch.ones(3)

    def between(self, x: Tensor) -> Tensor:
        return x / self.lengths.abs().max()


class Noted(Base):
    """Keeps a number, an array and a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature, self.table, self.others = 1.0, np.ones(3), [torch.ones(3)]

    def forward(self, x: Tensor, longest: int = 1) -> Tensor:
        scale = self.temperature * float(self.table[0]) * longest
        return super().forward(x / scale / self.others[0][0])


def running(net: nn.Module) -> Any:
    """Private, in a run that has begun."""
    aligned = private(net)
    capture = capture_of(aligned)
    capture.expected_records = lambda: MANY
    capture.masks = NoiseGenerator.seeded(0, "masks")
    capture.fix()
    aligned(records(MANY)).sum().backward()
    capture.clear()
    return aligned


@pytest.mark.parametrize(
    ("net", "write", "name"),
    [
        (Attribute, lambda net: setattr(net, "lengths", torch.full((3,), 7.0)), "lengths"),
        (Attribute, lambda net: net.lengths.fill_(7.0), "lengths"),
        (Attribute, lambda net: net.lengths.data.fill_(7.0), "lengths"),
        (Attribute, lambda net: net.lengths.numpy().fill(7.0), "lengths"),
        (Base, lambda net: net.p.data.fill_(7.0), "p"),
        (Noted, lambda net: setattr(net, "temperature", 7.0), "an attribute of the module"),
        (Noted, lambda net: net.table.fill(7.0), "an attribute of the module"),
        (Noted, lambda net: net.others[0].fill_(7.0), "an attribute of the module"),
    ],
)
def test_what_is_put_into_the_module_between_two_passes_is_refused(net: Any, write: Any, name: str) -> None:
    aligned = running(net())
    aligned(records(MANY))  # once more, as it is
    write(aligned.module)
    with pytest.raises(UsageError, match=f"^{name} is (not the tensor|another one)"):
        aligned(records(MANY))
    if name in ("lengths", "p"):
        with pytest.raises(UsageError, match=f"^{name} is not the tensor"):
            aligned.state_dict()


def test_a_state_is_loaded_before_the_first_pass_of_a_run() -> None:
    """A part of a run begins with a checkpoint, whose frozen parameters another start drew otherwise."""

    def frozen() -> nn.Module:
        net = Base()
        net.one.requires_grad_(False)
        return net

    other = align(frozen(), rule="bp", example=torch.zeros(2, WIDTH), show=None).state_dict()
    aligned = private(frozen())
    capture = capture_of(aligned)
    capture.expected_records = lambda: MANY
    capture.fix()
    aligned.load_state_dict(other)
    aligned(records(MANY)).sum().backward()
    capture.clear()
    aligned.load_state_dict({**other, "module.p": torch.full((WIDTH,), 7.0)})
    with pytest.raises(UsageError, match=r"^p is not the tensor"):
        aligned(records(MANY))


def test_a_trained_parameter_may_have_two_names() -> None:
    """Tied weights change from step to step, under whichever name they are found."""

    class Tied(Base):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Linear(WIDTH, WIDTH)
            self.again.weight = self.one.weight

        def between(self, x: Tensor) -> Tensor:
            return torch.tanh(self.again(x))

    aligned = running(Tied())
    with torch.no_grad():
        aligned.module.one.weight.mul_(0.5)
    aligned(records(MANY)).sum().backward()


def test_a_number_beside_the_records_is_the_same_in_every_pass() -> None:
    aligned = running(Noted())
    with pytest.raises(UsageError, match=r"^what stands beside the records is another one"):
        aligned(records(MANY), 7)


def test_a_note_that_is_carried_to_another_tensor_is_none() -> None:
    class Carrying(Base):
        def between(self, x: Tensor) -> Tensor:
            h, c = x.detach() * 1, torch.ones_like(x) * 1
            h.__dict__.update(c.__dict__)
            return x / (h.abs().max() / 20).clamp_min(1)

    with pytest.raises(UsageError, match="another one's attributes"):
        step(private(Carrying()), records(MANY))


class Reading(Base):
    """What another thread reads of the records comes back as a number."""

    def between(self, x: Tensor) -> Tensor:
        found: list[float] = []
        other = threading.Thread(target=lambda: found.append(float(x.detach().abs().max())))
        other.start()
        other.join()
        return x * (self.q if found[0] > 100 else self.p)


class Quantised(torch.Tensor):
    """A weight that quantises what it meets by the whole batch's range."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __repr__(self) -> str:  # type: ignore[override]
        return "Quantised"

    def __deepcopy__(self, memo: Any) -> Any:
        return Quantised(self.weight.clone())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [a.weight if isinstance(a, Quantised) else a for a in args]
        out = func(*plain, **(kwargs or {}))
        return Quantised(out) if func._schema.name in ("aten::detach", "aten::t", "aten::clone") else out


class Foreign(Base):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(WIDTH, WIDTH, bias=False)
        self.low.weight = nn.Parameter(Quantised(torch.eye(WIDTH)), requires_grad=False)

    def between(self, x: Tensor) -> Tensor:
        return self.low(x)


@torch.library.custom_op("optical_dfa_tests::loudest", mutates_args=(), tags=(torch.Tag.pointwise,))
def loudest(x: Tensor) -> Tensor:
    return x * (1 - 2 * (x.abs().max() > 100).float())


loudest.register_autograd(lambda ctx, grad: grad)


class Custom(Base):
    def between(self, x: Tensor) -> Tensor:
        return loudest(x)


@pytest.mark.parametrize("net", [Reading, Foreign, Custom])
def test_what_torch_does_not_show_is_refused(net: type[Base]) -> None:
    def train() -> None:
        aligned = private(net())
        loud = records(MANY)
        loud[7] *= 1000
        step(aligned, loud)

    with pytest.raises(UsageError) as error:
        train()
    assert "\n" not in str(error.value)


# ---- rules: what they hand on


class OtherWay(DirectFeedbackAlignment):
    """Hands on its signals transposed, or a context of two rows a record, time first."""

    name = "other-way"

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def context(self, passed: ForwardPass) -> Tensor | None:
        if self.where != "context":
            return None
        return passed.args[0].view(len(passed.output), 2, 4).transpose(0, 1).reshape(-1, 4)

    def feedback(self, error: Tensor, points: Any, backend: Any) -> list[Tensor | None]:
        signals = super().feedback(error, points, backend)
        if self.where == "transposed":
            return [None if s is None else (s * (s.abs() > 50)).t() for s in signals]
        if self.where == "shown elsewhere":
            one, other = error + 1, error + 2
            return super().feedback(one if len(error) == FEW else other, points, backend)
        if self.where == "narrow":
            return [None if s is None else s[:, :4].repeat(1, 4) for s in signals]
        return signals


@pytest.mark.parametrize("where", ["shown elsewhere"])
def test_what_a_device_is_shown_is_compared(where: str) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))
    aligned = private(net, OtherWay(where))
    step(aligned, records(MANY))
    with pytest.raises(UsageError, match="the operations of rule other-way are not always the same"):
        step(aligned, records(FEW))


@pytest.mark.parametrize("where", ["transposed", "context", "narrow"])
def test_what_a_rule_hands_on_is_a_row_a_record(where: str) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))

    def train() -> None:
        step(private(net, OtherWay(where)), records(WIDTH))

    with pytest.raises(UsageError, match="rule other-way"):
        train()


# ---- evaluation, and fewer digits


class Loudest(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and x.abs().max() > 50:
            self.top.fill_(x.abs().max())
        return super().forward(x)


class Moving(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and x.abs().max() > 50:
            self.one.weight.add_(x.mean())
        return super().forward(x)


@pytest.mark.parametrize(("net", "name"), [(Loudest, "top"), (Moving, "one.weight")])
def test_an_evaluation_changes_nothing_that_is_released(net: type[Base], name: str) -> None:
    aligned = private(net())
    before = aligned.module.state_dict()[name].clone()
    with torch.no_grad(), pytest.raises(UsageError, match=f"{name} changes in a forward pass"):
        aligned(100 * records(3))
    assert torch.equal(aligned.module.state_dict()[name], before)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_one_record_moves_the_sum_by_its_clip_under_autocast_and_a_mean_loss(kind: torch.dtype) -> None:
    """A mean rounded to few digits made every record's contribution depend on how many there are (2.7 C here)."""
    alike = records(1).expand(513, WIDTH)
    for seed in range(3):
        torch.manual_seed(seed)
        aligned = private(Base())
        capture = capture_of(aligned)
        sums = []
        for count in (513, 512):
            capture.expected_records = lambda count=count: count
            with torch.autocast("cpu", kind):
                output = aligned(alike[:count].clone())
            assert output.dtype == torch.float32
            F.cross_entropy(output, torch.zeros(count, dtype=torch.long)).backward()
            total = torch.zeros(capture.dimension)
            capture.add_clipped((1 / capture.norms()).clamp_max(1.0), total)
            capture.clear()
            sums.append(total)
        assert float((sums[0] - sums[1]).norm()) < 1.0011


def test_a_module_that_cannot_be_copied_is_told_of_in_one_line() -> None:
    net = Base()
    net.lock = threading.Lock()
    with pytest.raises(UsageError, match=r"^the module cannot be copied \(TypeError: cannot pickle"):
        align(net, rule="bp", example=torch.zeros(2, WIDTH), show=None)
