"""A private pass is followed operation by operation: what mixes records is refused on any data, the rest passes."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align, unalign
from optical_dfa.capture.records import Capture
from optical_dfa.feedback.points import ForwardPass
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.networks.building import build

WIDTH, LENGTH = 8, 4
FLAT, SEQUENCE = torch.zeros(2, WIDTH), torch.zeros(2, LENGTH, WIDTH)


def start(net: nn.Module, *example: Tensor) -> Capture:
    return align(net, rule="bp", example=example, show=None).start_capture()


class Between(nn.Module):
    """Linear layer, something on its output, linear layer."""

    def __init__(self, what: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.one, self.two, self.what = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), what
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.what(self, self.one(x)))


def loud(x: Tensor) -> Tensor:
    """1 unless a value is above 20, which no probe's is."""
    return (x.abs() / 20).clamp_min(1)


def first_loud(self: Any, h: Tensor) -> Tensor:
    return h * (1.0 if bool(h.abs().max() < 100) else 2.0)


def from_numpy(self: Any, h: Tensor) -> Tensor:
    return h / max(1.0, float(h.detach().numpy().max()) / 100)


def from_list(self: Any, h: Tensor) -> Tensor:
    return h / max(1.0, max(max(row) for row in h.detach().tolist()) / 100)


def through_a_parameter(self: Any, h: Tensor) -> Tensor:
    return h / loud(nn.Parameter(h.detach())).max()


def through_data(self: Any, h: Tensor) -> Tensor:
    return h / loud(h.data).max()


def into_a_buffer_of_rows(self: Any, h: Tensor) -> Tensor:
    kept = torch.zeros(WIDTH)
    kept[:] = h.detach()[0]
    return h + 0 * kept


def by_the_number(self: Any, h: Tensor) -> Tensor:
    return h * (1.0 if len(h) < 3000 else 2.0)


def divided_by_the_number(self: Any, h: Tensor) -> Tensor:
    return h / len(h)


def tensor_of_the_number(self: Any, h: Tensor) -> Tensor:
    return h / torch.tensor(float(len(h)))


def ones_added_up(self: Any, h: Tensor) -> Tensor:
    return h / torch.ones(len(h)).sum()


def size_of_a_slice(self: Any, h: Tensor) -> Tensor:
    return h * self.table[: len(h)].sum()


def counted(self: Any, h: Tensor) -> Tensor:
    return h + torch.arange(len(h)).unsqueeze(1)


def loop_over_records(self: Any, h: Tensor) -> Tensor:
    return torch.stack([h[i] / loud(h).max() for i in range(len(h))])


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad / loud(grad * 1e6).max()


def hooked(self: Any, h: Tensor) -> Tensor:
    h.register_hook(lambda grad: grad / loud(grad * 1e6).max())
    return h


def by_failure(self: Any, h: Tensor) -> Tensor:
    try:
        return h + 0 * F.embedding(
            (h.abs().amax(1) / 1e4).long(), self.table[:1].unsqueeze(0).expand(1, WIDTH)
        )
    except IndexError:
        return (
            h
            + 0 * F.embedding((h.abs().amax(1) * 0).long(), self.table[:1].unsqueeze(0).expand(1, WIDTH))
            + 1
        )


def in_another_thread(self: Any, h: Tensor) -> Tensor:
    found: list[Tensor] = []
    thread = Thread(target=lambda: found.append((h.detach() - 20).relu().mean(0)))
    thread.start()
    thread.join()
    return h + found[0] + h.detach().mean(1, keepdim=True) * 0


def through_dlpack(self: Any, h: Tensor) -> Tensor:
    other = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach()))
    return h / loud(other).max()


def many(h: Tensor) -> bool:
    """In a batch of one size alone, which no probe has."""
    return len(h) == 4096


def assigned(self: Any, h: Tensor) -> Tensor:
    other = torch.zeros(1)
    other.data = h.detach()
    return h / loud(other).max()


def written_through_expand(self: Any, h: Tensor) -> Tensor:
    shared = torch.zeros(1, WIDTH)
    shared.expand(len(h), WIDTH).masked_fill_(h.detach().abs() > 20, 1.0)
    return h * (1 - shared.max())


def drawn_elsewhere(self: Any, h: Tensor) -> Tensor:
    drawn = torch.zeros(2, len(h), WIDTH // 2).view(2 * len(h), WIDTH // 2)
    drawn.bernoulli_((h.detach().abs() > 20).float().view(-1, WIDTH // 2))
    return h * (1 - drawn.view(2, len(h), -1).amax((0, 2)).unsqueeze(1))


def resized(self: Any, h: Tensor) -> Tensor:
    made = torch.zeros(len(h), WIDTH)
    torch.mul(h.detach(), 1.0, out=made)
    return h + made


def read_by_a_callback(self: Any, h: Tensor) -> Tensor:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).norm(dim=1) + float(a.detach().numpy().max() > 100)

    return (
        h
        + F.triplet_margin_with_distance_loss(h, h + 1, h + 2, distance_function=distance, reduction="none")[
            :, None
        ]
    )


def read_by_apply(self: Any, h: Tensor) -> Tensor:
    top = [0.0]
    h.detach().clone().apply_(lambda value: top.append(value) or value)
    return h * (2.0 if max(top) > 100 else 1.0)


def own_leaf(self: Any, h: Tensor) -> Tensor:
    return h * torch.ones(WIDTH).requires_grad_(torch.is_grad_enabled())


def own_leaf_with_a_hook(self: Any, h: Tensor) -> Tensor:
    scale = torch.ones(WIDTH).requires_grad_(torch.is_grad_enabled())
    if scale.requires_grad:
        scale.register_hook(lambda grad: self.table.data[:WIDTH].add_(grad))
    return h * scale


MIXING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "assignment": assigned,
    "written through expand": written_through_expand,
    "drawn elsewhere": drawn_elsewhere,
    "out=": resized,
    "a callback": read_by_a_callback,
    "apply_": read_by_apply,
    "a leaf of its own": own_leaf,
    "a leaf of its own with a hook": own_leaf_with_a_hook,
    "a scatter of one row": lambda self, h: h.scatter(1, torch.arange(6).view(1, 6), 0.0),
    "another operand at one size": lambda self, h: h * (self.table[:1] if many(h) else self.table[1:2]),
    "another order at one size": lambda self, h: h - 2 * h.relu() if many(h) else 2 * h.relu() - h,
    "another layout at one size": lambda self, h: (
        h * (torch.arange(4.0).view(2, 2).t() if many(h) else torch.arange(4.0).view(2, 2).clone())[0, 1]
    ),
    "another view at one size": lambda self, h: (
        h * torch.arange(6.0).view(-1, 2 if many(h) else 3)[1, 0]
    ),
    "another factor at one size": lambda self, h: torch.addmm(h, h, torch.eye(WIDTH), alpha=2.0 if many(h) else 1.0),
    "another type at one size": lambda self, h: h.to(torch.float64 if many(h) else torch.float32).float(),
    "another type of a constant": lambda self, h: (
        h * torch.full((1,), 1.5, dtype=torch.int32 if many(h) else torch.float32)
    ),
    "loudest": lambda self, h: h / (h.abs().max() / 20).clamp_min(1),
    "loudest along the batch": lambda self, h: h / loud(h).amax(0),
    "mean": lambda self, h: h - h.mean(0),
    "mean of what is above 20": lambda self, h: h - (h * (h > 20)).mean(0, keepdim=True),
    "variance": lambda self, h: h / h.var(0, correction=0).clamp_min(100).sqrt(),
    "softmax over the batch": lambda self, h: h * (1 + (h - 1e4).relu().softmax(0) - 1 / h.softmax(0).detach() * 0),
    "cumulated": lambda self, h: h + (h - 20).relu().cumsum(0),
    "sorted": lambda self, h: h + (h.sort(0).values - h) * 0.0,
    "largest of the batch": lambda self, h: h + 0 * h.topk(1, 0).values,
    "flipped": lambda self, h: h + (h - 20).relu().flip(0),
    "rolled": lambda self, h: h + (h - 20).relu().roll(1, 0),
    "neighbours": lambda self, h: h + (h - 20).relu()[list(range(1, 3)) * 0 + [0]] * 0,
    "first record": lambda self, h: h + (h[:1] - 20).relu(),
    "all but the last": lambda self, h: torch.cat([h[:-1], h[-1:]]) + (h[-1] - 20).relu(),
    "gram": lambda self, h: ((h - 20).relu() @ (h - 20).relu().T) @ h + h,
    "transposed product": lambda self, h: h @ torch.eye(WIDTH).add((h - 20).relu().T @ (h - 20).relu()),
    "einsum": lambda self, h: h + torch.einsum("bi,ci->bi", h, (h - 20).relu()),
    "attention over the batch": lambda self, h: h + 0 * F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "convolution over the batch": lambda self, h: h + 0 * F.avg_pool1d(h.T[None], 3, 1, 1)[0].T,
    "folded": lambda self, h: F.layer_norm(h.reshape(1, -1), (h.numel(),)).reshape(h.shape),
    "groups of records": lambda self, h: F.group_norm(h.T[None], 1)[0].T,
    "batch norm by hand": lambda self, h: F.batch_norm(h, None, None, training=True),
    "instance norm over records": lambda self, h: F.instance_norm(h.T[None])[0].T,
    "distances": lambda self, h: h + 0 * torch.cdist(h, h).sum(1, keepdim=True),
    "control flow": first_loud,
    "numpy": from_numpy,
    "list": from_list,
    "parameter of a result": through_a_parameter,
    "data": through_data,
    "another thread": in_another_thread,
    "dlpack": through_dlpack,
    "boolean index": lambda self, h: h + 0 * h[h > 20].sum(),
    "where": lambda self, h: h + 0 * torch.where(h > 20)[0].sum(),
    "unique": lambda self, h: h + 0 * torch.unique(h).sum(),
    "quantile": lambda self, h: h / torch.quantile(h.detach(), 0.5, dim=0).abs().clamp_min(100),
    "written to a constant": into_a_buffer_of_rows,
    "number of records": by_the_number,
    "divided by their number": divided_by_the_number,
    "a tensor of their number": tensor_of_the_number,
    "ones added up": ones_added_up,
    "a slice as long": size_of_a_slice,
    "expanded to their number": lambda self, h: h + (h - 20).relu().unsqueeze(1).expand(-1, len(h), -1).sum(1),
    "expanded to their number squared": lambda self, h: (
        h + (h - 20).relu().unsqueeze(1).expand(len(h), len(h), WIDTH).sum(1)
    ),
    "repeated as often as there are": lambda self, h: h + (h - 20).relu().unsqueeze(1).repeat(1, len(h), 1).sum(1),
    "interleaved as often": lambda self, h: (
        h + (h - 20).relu().unsqueeze(1).repeat_interleave(len(h), 1).sum(1)
    ),
    "their places": counted,
    "their places, turned": lambda self, h: h + (h - 20).relu()[-1 - torch.arange(len(h))],
    "their places, backwards": lambda self, h: h + (h - 20).relu()[torch.arange(len(h) - 1, -1, -1)],
    "their places, as a view": lambda self, h: h + (h - 20).relu() * torch.arange(len(h)).view(-1, 1),
    "their places, overwritten": lambda self, h: h + (h - 20).relu()[torch.arange(len(h)).fill_(0)],
    "their places, twice": lambda self, h: (
        h + (h - 20).relu().unsqueeze(1).expand(-1, 9999, -1)[torch.arange(len(h)), torch.arange(len(h))]
    ),
    "their places, beside steps in two axes": lambda self, h: (
        h + (h - 20).relu().view(-1, 2, 4)[torch.arange(len(h)), (h[:, :1] > 9).long()].sum(1).repeat(1, 2)
    ),
    "their places, in a table": lambda self, h: h + 0 * self.table[torch.arange(len(h))].unsqueeze(1),
    "their places, doubled": lambda self, h: h + (h - 20).relu()[torch.arange(0, 2 * len(h), 2) // 2],
    "bags of half a record": lambda self, h: h + F.embedding_bag(
        (h > 20).long().view(-1), torch.ones(2, WIDTH), torch.arange(0, h.numel(), WIDTH // 2)
    ).view(-1, 2, WIDTH).sum(1),
    "one long bag after short ones": lambda self, h: h + F.embedding_bag(
        (h > 20).long().view(-1), torch.linspace(0, 1, 2).expand(WIDTH, 2).T.contiguous(), torch.arange(len(h))
    ),
    "bags that records bound": lambda self, h: h + F.embedding_bag(
        (h > 20).long().view(-1), torch.arange(2.0).unsqueeze(1).expand(2, WIDTH), (h[:, 0] * 0).long()
    ),
    "bags of records": lambda self, h: h + 0 * F.embedding_bag((h > 20).long(), (h - 20).relu()),
    "a system of records": lambda self, h: torch.linalg.solve_ex(
        torch.eye(WIDTH) + (h - 20).relu().unsqueeze(0).transpose(1, 2) @ (h - 20).relu(), h.unsqueeze(2)
    )[0][:, :, 0],
    "triangle of the batch": lambda self, h: h + 0 * torch.linalg.qr((h - 20).relu().T, mode="r")[1].sum(),
    "searched in the batch": lambda self, h: h + torch.searchsorted((h.detach()[:, 0] - 20).relu(), h.detach()) * 0,
    "a bilinear form of the batch": lambda self, h: (
        h + torch._trilinear((h - 20).relu(), h, h, [], [], [], [0], 1).unsqueeze(0)
    ),
    "a grid as wide as the batch": lambda self, h: (
        h + (h - 20).relu() * F.affine_grid(torch.eye(2, 3)[None], [1, 1, 2, len(h)], align_corners=False).sum((0, 1, 3)
        ).amax(0)
    ),
    "distances in a batch of one": lambda self, h: (
        h + 0 * torch.cdist((h - 20).relu()[None], h[None])[0].sum(1, keepdim=True)
    ),
    "a diagonal of the batch": lambda self, h: h + torch.diag_embed((h - 20).relu().T).sum((0, 2)).unsqueeze(1),
    "a record written over": lambda self, h: h + torch.select_scatter((h - 20).relu(), torch.ones(WIDTH), 0, 0),
    "the first record written over": lambda self, h: (
        h + torch.slice_scatter((h - 20).relu(), torch.ones(1, WIDTH), 0, 0, 1)
    ),
    "each with the others": lambda self, h: h + torch._foreach_mul(
        [(h - 20).relu().unsqueeze(1)], [(h - 20).relu().unsqueeze(0)]
    )[0].amax(1),
    "a loss of all": lambda self, h: h + F.mse_loss((h - 20).relu(), torch.zeros_like(h)),
    "channels that are records": lambda self, h: (
        h + F.channel_shuffle((h - 20).relu().repeat_interleave(2, 0).unsqueeze(0), 2)[0, ::2]
    ),
    "norms of lists": lambda self, h: h / torch._foreach_norm([(h - 20).relu()])[0].clamp_min(1),
    "a mask of records": lambda self, h: h + (h - 20).relu()[torch.ones(len(h), dtype=torch.bool)],
    "a spread by their number": lambda self, h: h + torch.normal(0.0, float(len(h)), (len(h), WIDTH)),
    "a loop over them": loop_over_records,
    "a function of its own": lambda self, h: Doubling.apply(h),
    "a gradient hook": hooked,
    "norm of everything": lambda self, h: h / h.norm().clamp_min(1e4),
    "scatter over records": lambda self, h: h.scatter(0, torch.zeros(1, WIDTH, dtype=torch.int64), h[:1]),
    "weight from records": lambda self, h: F.linear(h, (h - 20).relu()[:1].expand(WIDTH, -1)),
    "embedding of records": lambda self, h: h + F.embedding(torch.zeros(1, dtype=torch.int64), (h - 20).relu()),
}  # fmt: skip


@pytest.mark.parametrize("how", MIXING)
def test_what_mixes_records_is_refused(how: str) -> None:
    """Most act on values above 20 only, or in batches above 3000, so that no random probe shows them."""
    net = Between(MIXING[how], table=nn.Parameter(torch.ones(5000), requires_grad=False))
    with pytest.raises(UsageError) as error:
        private(net)(torch.zeros(4096, WIDTH))
    assert "\n" not in str(error.value)


def private(net: nn.Module, *example: Tensor, records: int = 4096) -> Any:
    aligned = align(net, rule="bp", example=example or (FLAT,), show=None)
    aligned.start_capture().expected_records = lambda: records
    return aligned


class OneAlone(nn.Module):
    """The usual guard for a batch of one, which turns what a record contributes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.drop, self.two = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            raise RuntimeError("nothing to reshape")
        h = self.one(x.view(len(x), -1))
        return self.two(self.drop(h if len(h) > 1 else -h))


@pytest.mark.parametrize("records", [0, 1, 2])
def test_a_module_never_sees_fewer_than_two_records(records: int) -> None:
    """So it cannot tell by the batch's size who is there, nor fail on an empty one."""
    aligned = private(OneAlone(), records=records)
    sums = []
    for size in (records, records + 1):
        aligned._capture.expected_records = lambda size=size: size
        aligned._capture.masks = NoiseGenerator.seeded(5, "masks")
        output = aligned(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))[:size])
        assert output.shape == (size, 4)
        output.square().sum().backward()
        norms = aligned._capture.norms()
        assert norms.shape == (size,)
        sums.append(torch.zeros(aligned._capture.dimension))
        aligned._capture.add_clipped((1 / norms).clamp(max=1), sums[-1])
        aligned._capture.clear()
    assert float((sums[1] - sums[0]).norm()) <= 1 + 1e-5


def test_what_a_private_run_rests_on_is_not_written_to() -> None:
    aligned = private(nn.Sequential(nn.Linear(WIDTH, 4)))
    aligned._capture.fix()
    for name, value in {
        "masks": NoiseGenerator.seeded(0, "m"),
        "expected_records": lambda: 3,
        "parameters": {},
    }.items():
        with pytest.raises(UsageError, match=f"attribute {name} "):
            setattr(aligned._capture, name, value)


def test_inputs_and_errors_changed_after_a_pass_change_nothing() -> None:
    """Buffers that a loop uses again."""
    sums = []
    for spoil in (False, True):
        torch.manual_seed(0)
        aligned = private(nn.Sequential(nn.Linear(WIDTH, 4)), records=3)
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
        output = aligned(x)
        error = torch.ones_like(output)
        output.backward(error)
        if spoil:
            x.zero_()
            error.zero_()
        sums.append(torch.zeros(aligned._capture.dimension))
        aligned._capture.norms()
        aligned._capture.add_clipped(torch.ones(3, dtype=torch.float64), sums[-1])
    assert sums[0].any()
    assert torch.equal(sums[0], sums[1])


def test_a_failure_that_a_module_catches_is_not_forgotten() -> None:
    """Whether an operation fails may depend on a single record."""
    aligned = private(Between(by_failure, table=nn.Parameter(torch.ones(1), requires_grad=False)), records=8)
    aligned(torch.zeros(8, WIDTH)).sum().backward()
    aligned._capture.clear()
    loudest = torch.zeros(8, WIDTH)
    loudest[3] = 1e8
    with pytest.raises((IndexError, UsageError)):
        aligned(loudest)


def test_the_refusal_names_module_operation_and_remedy() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), Between(MIXING["loudest"]))
    with pytest.raises(UsageError, match=r"^1 mixes records: max over the axis of the records; .*features"):
        start(net, FLAT)


class Either(nn.Module):
    """Returns one of two outputs, which it computes both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        total = one + two, two + one
        return total[len(x) == 39]


def test_a_module_that_returns_by_the_number_of_records_is_refused() -> None:
    aligned = private(Either(), records=40)
    aligned(torch.zeros(40, WIDTH))
    aligned.capture.expected_records = lambda: 39
    with pytest.raises(UsageError, match=r"not always the same \(what it returns\)"):
        aligned(torch.zeros(39, WIDTH))


# ---- rules, too


class Loudest(DirectFeedbackAlignment):
    """Scales the errors by the largest of the batch, where one is above 20."""

    name = "loudest"

    def __init__(self, where: str = "lift") -> None:
        super().__init__()
        self.where = where

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        return error / loud(error).max() if self.where == "lift" else error

    def feedback(self, error: Tensor, points: Any, backend: Any) -> list[Tensor | None]:
        signals = super().feedback(error, points, backend)
        if self.where == "signals":
            return [None if s is None else s - (s - 20).relu().mean(0) for s in signals]
        if self.where == "order":
            return [None if s is None else s + 0 * s.sort(0).values for s in signals]
        return signals


@pytest.mark.parametrize("where", ["lift", "signals", "order"])
def test_a_rule_that_mixes_records_is_refused(where: str) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 4))
    aligned = align(net, rule=Loudest(where), example=FLAT, show=None)
    with pytest.raises(UsageError, match="rule loudest mixes records"):
        aligned.start_capture()


class Counting(DirectFeedbackAlignment):
    """Teaches otherwise in a batch of 39, by what is no operation on a tensor."""

    name = "counting"

    def __init__(self, where: str = "signals") -> None:
        super().__init__()
        self.where = where
        self.seen = 0

    def _sign(self, x: Tensor, where: str) -> int:
        return -1 if self.where == where and len(x) == 39 else 1

    def context(self, passed: ForwardPass) -> Tensor | None:
        output = passed.output
        self.seen += len(output)
        return output.detach() * self._sign(output, "context")

    def lift(self, error: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        if self.where == "steps":
            return error * self.seen
        if self.where == "names" and len(error) == 39:
            error, context = context, error
        return (error + 0 * context) * self._sign(error, "lift")

    def feedback(self, error: Tensor, points: Any, backend: Any) -> list[Tensor | None]:
        signals = super().feedback(error, points, backend)
        if self.where == "nothing" and len(error) == 39:
            return [None for _ in signals]
        if self.where == "exchanged" and len(error) == 39:
            return signals[::-1]
        return [None if s is None else s * self._sign(s, "signals") for s in signals]


@pytest.mark.parametrize("where", ["lift", "signals", "context", "names", "nothing", "steps", "exchanged"])
def test_a_rule_that_goes_by_the_number_of_records_is_refused(where: str) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    aligned = align(net, rule=Counting(where), example=FLAT, show=None)

    def train() -> None:
        capture = aligned.start_capture()
        for records in (40, 39):
            capture.expected_records = lambda records=records: records
            aligned(torch.zeros(records, WIDTH)).sum().backward()
            capture.clear()

    with pytest.raises(UsageError, match="the operations of rule counting are not always the same"):
        train()


# ---- what is separate passes


class Heads(nn.Module):
    """Self-attention of torch, with a mask of padded positions."""

    def __init__(self, batch_first: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.into, self.out, self.first = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), batch_first
        self.heads = nn.MultiheadAttention(WIDTH, 2, dropout, batch_first=batch_first).requires_grad_(False)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        h = self.into(x)
        h = h if self.first else h.transpose(0, 1)
        h = self.heads(h, h, h, key_padding_mask=padded)[0]
        h = h if self.first else h.transpose(0, 1)
        return self.out(
            h.masked_fill(padded.unsqueeze(2), 0.0).sum(1) / (~padded).sum(1, keepdim=True).clamp_min(1)
        )


class Fused(nn.Module):
    """A frozen recurrent layer of torch below a trained one."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, batch_first=True).requires_grad_(False)
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


class Token(nn.Module):
    """A class token and places, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH), requires_grad=False)
        self.place, self.out = nn.Embedding(LENGTH + 1, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        places = torch.arange(h.shape[1]).expand(len(x), -1)
        return self.out((h + self.place(places))[:, 0])


class Filled(nn.Module):
    """Positions are written one by one into a tensor that was made for them, masked ones set to 0 in place."""

    def __init__(self) -> None:
        super().__init__()
        self.over, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        states = x.new_zeros(len(x), LENGTH, WIDTH)
        h = torch.zeros(x.shape[0], WIDTH)
        for t in range(LENGTH):
            h = torch.tanh(self.over(h) + x[:, t])
            states[:, t] = h
        mask = torch.arange(LENGTH).unsqueeze(0) >= lengths.unsqueeze(1)
        states[mask] = 0.0
        return self.out(states.sum(1))


class Pieces(nn.Module):
    """Operations that users write, none of which leaves its record."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
            nn.Linear(WIDTH, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        a, b = h.chunk(2, 1)
        h = torch.cat([b, a, F.normalize(h, dim=1)], 1).flip(1)
        h = self.two(h) * F.softmax(h[:, :WIDTH], dim=1).cumsum(1)
        h = (
            h
            - h.mean(1, keepdim=True)
            + h.topk(1, 1).values
            + h.sort(1).values[:, [0, 2]].sum(1, keepdim=True)
        )
        h = torch.einsum("bi,bj->bij", h, h).diagonal(dim1=1, dim2=2) + h.unsqueeze(1).expand(-1, 2, -1).mean(
            1
        )
        h = h + torch.randn_like(h) + torch.rand(len(h), 1) + torch.rand(1) + h.gather(1, h.argsort(1))
        h = torch.where(h > 0, h, h.exp() - 1).clamp(-3, 3) / math.sqrt(h.shape[1])
        return self.out(F.rrelu(F.dropout(h, 0.5, self.training), training=self.training))


class Frozen(nn.Module):
    """A feature extractor whose batch normalisation is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.features.requires_grad_(False).eval()
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).flatten(1))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.GroupNorm(2, 8)
        self.instance, self.drop = nn.InstanceNorm2d(8), nn.Dropout2d(0.3)
        self.out = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.instance(F.gelu(self.norm(self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))))))
        h = F.interpolate(h[:, :, 1:-1, 1:-1], scale_factor=0.5, mode="bilinear")
        return self.out(F.adaptive_avg_pool2d(h.repeat(1, 1, 2, 1), 2).flatten(1))


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        kept = h.new_empty((len(h), 1)).bernoulli_(0.7) if self.training else 1.0
        return self.out(h + kept * self.inner(h))


IMAGE = torch.zeros(2, 3, 8, 8)
PADDED = torch.zeros(2, LENGTH, dtype=torch.bool)
TOKENS = torch.zeros(2, LENGTH, dtype=torch.int64)
SEPARATE: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "mlp": (lambda: build("mlp:6,7", (WIDTH,), 4, 0), (FLAT,)),
    "mlp/relu": (lambda: build("mlp:6/relu", (WIDTH,), 4, 0), (FLAT,)),
    "cnn": (lambda: build("cnn:4,3+5", (3, 8, 8), 4, 0), (IMAGE,)),
    "resmlp": (lambda: build("resmlp:6,6", (WIDTH,), 4, 0), (FLAT,)),
    "embed": (lambda: build("embed:3,5", (4,), 4, 0, cardinalities=(0, 3, 0, 2)), (torch.zeros(2, 4),)),
    "gru": (lambda: build("gru:5", (LENGTH,), 4, 0, text=True), (TOKENS,)),
    "lstm": (lambda: build("lstm:5,4", (LENGTH,), 4, 0, text=True), (TOKENS,)),
    "rnn": (lambda: build("rnn:5", (LENGTH,), 4, 0, text=True), (TOKENS,)),
    "transformer": (lambda: build("transformer:8,1", (LENGTH,), 4, 0, text=True), (TOKENS,)),
    "torch's attention, masked": (Heads, (SEQUENCE, PADDED)),
    "attention inside, time first": (lambda: Heads(False), (SEQUENCE, PADDED)),
    "attention without dropout": (lambda: Heads(dropout=0.0), (SEQUENCE, PADDED)),
    "torch's encoder layer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True).requires_grad_(False), nn.Linear(WIDTH, 4)
        ), (SEQUENCE,),
    ),
    "torch's lstm": (lambda: Fused(nn.LSTM), (SEQUENCE,)),
    "torch's gru": (lambda: Fused(nn.GRU), (SEQUENCE,)),
    "class token": (Token, (SEQUENCE,)),
    "filled": (Filled, (SEQUENCE, torch.zeros(2, dtype=torch.int64))),
    "pieces": (Pieces, (FLAT,)),
    "frozen batch norm": (Frozen, (IMAGE,)),
    "images": (Images, (IMAGE,)),
    "stochastic depth": (StochasticDepth, (FLAT,)),
    "table": (
        lambda: nn.Sequential(
            Between(lambda self, h: h + self.table[(h > 0).sum(1)], table=nn.Parameter(torch.ones(9, WIDTH), False))
        ), (FLAT,),
    ),
    "one-hot": (
        lambda: nn.Sequential(Between(lambda self, h: h + F.one_hot((h > 0).sum(1) % WIDTH, WIDTH))), (FLAT,),
    ),
}  # fmt: skip


C = nn.Parameter(torch.eye(WIDTH) + 0.1, requires_grad=False)  # every module below has its own, as `c`


def matrices(h: Tensor) -> Tensor:
    """Positive definite, one a record."""
    return torch.eye(WIDTH) + 0.1 * h.unsqueeze(2) * h.unsqueeze(1)


def columns(h: Tensor) -> Tensor:
    return h.unsqueeze(2)


def positive(h: Tensor) -> Tensor:
    return (h[:, 0] > 0).long()


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


DRAWN: dict[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module | None]] = {
    "normal numbers": (lambda self, h: h + torch.normal(0.0, 1.0, (len(h), WIDTH)), None),
    "normal of a record's spread": (lambda self, h: h + torch.normal(0.0, h.detach().abs()), None),
    "random slopes": (lambda self, h: self.own(h), nn.RReLU()),
    "a distribution unchecked": (
        lambda self, h: torch.distributions.Normal(h, 1.0, validate_args=False).rsample(), None,
    ),
}  # fmt: skip
# What is done between two layers, with a frozen layer where it has one as `own`.
BETWEEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module | None]] = {
    "solve": (lambda self, h: torch.linalg.solve_ex(matrices(h), h)[0], None),
    "solve by a constant": (lambda self, h: torch.linalg.solve(self.c, columns(h))[:, :, 0], None),
    "solve in columns": (lambda self, h: torch.linalg.solve(self.c, h.T).T, None),
    "solve in rows": (lambda self, h: torch.linalg.solve(self.c, h, left=False), None),
    "inverse": (lambda self, h: torch.linalg.inv_ex(matrices(h))[0][:, 0], None),
    "inverse of a constant": (lambda self, h: h @ torch.linalg.inv(self.c), None),
    "triangle": (lambda self, h: torch.linalg.qr(matrices(h))[1][:, 0], None),
    "root": (lambda self, h: torch.linalg.cholesky_ex(matrices(h))[0][:, -1], None),
    "solve by a root": (
        lambda self, h: torch.cholesky_solve(columns(h), torch.linalg.cholesky_ex(matrices(h))[0])[:, :, 0], None,
    ),
    "solve by a triangle": (
        lambda self, h: torch.linalg.solve_triangular(matrices(h).tril(), columns(h), upper=False)[:, :, 0], None,
    ),
    "factors": (lambda self, h: torch.linalg.lu_factor_ex(matrices(h))[0][:, 0], None),
    "determinants": (
        lambda self, h: h + (torch.linalg.det(matrices(h)) + torch.logdet(matrices(h))).unsqueeze(1), None,
    ),
    "norms of matrices": (
        lambda self, h: h / torch.linalg.matrix_norm(matrices(h)).unsqueeze(1) / torch.linalg.norm(h, dim=1)[:, None],
        None,
    ),
    "decomposed constants": (
        lambda self, h: h @ torch.linalg.svd(self.c)[0] @ torch.linalg.eigh(self.c)[1] @ torch.linalg.qr(self.c)[0]
        / torch.linalg.matrix_norm(self.c, 2) * torch.linalg.det(self.c) @ torch.linalg.cholesky(self.c), None,
    ),
    "cross products": (lambda self, h: torch.cat([torch.linalg.cross(h[:, :3], h[:, 3:6]), h[:, :5]], 1), None),
    "searched": (lambda self, h: h + torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), h.detach()), None),
    "searched in its own": (
        lambda self, h: h + torch.searchsorted(h.detach().sort(1).values, h.detach() / 2), None,
    ),
    "bilinear": (lambda self, h: self.own(h, 2 * h), frozen(nn.Bilinear(WIDTH, WIDTH, WIDTH))),
    "bilinear at steps": (
        lambda self, h: self.own(h.view(-1, 2, 4), h.view(-1, 2, 4)).sum(1), frozen(nn.Bilinear(4, 4, WIDTH)),
    ),
    "mean bags": (lambda self, h: h + self.own((h > 0).long()), frozen(nn.EmbeddingBag(2, WIDTH))),
    "largest of bags": (
        lambda self, h: h + self.own((h > 0).long()), frozen(nn.EmbeddingBag(2, WIDTH, mode="max", padding_idx=0)),
    ),
    "weighted bags": (
        lambda self, h: self.own((h > 0).long(), per_sample_weights=h), frozen(nn.EmbeddingBag(2, WIDTH, mode="sum")),
    ),
    "grid": (
        lambda self, h: h + F.grid_sample(
            h.view(-1, 1, 2, 4), F.affine_grid(h[:, :6].view(-1, 2, 3), (len(h), 1, 2, 4), align_corners=False),
            align_corners=False,
        ).flatten(1), None,
    ),
    "constant grid": (
        lambda self, h: h + F.grid_sample(
            h.view(-1, 1, 2, 4),
            F.affine_grid(self.c[:2, :3].expand(len(h), 2, 3), (len(h), 1, 2, 4), align_corners=True),
            align_corners=True,
        ).flatten(1), None,
    ),
    "centres": (lambda self, h: torch.cdist(h, self.c), None),
    "many centres": (lambda self, h: torch.cdist(h, self.c.repeat(4, 1))[:, :WIDTH], None),
    "centres of steps": (lambda self, h: torch.cdist(h.view(-1, 2, 4), self.c[:, :4]).sum(1), None),
    "diagonals": (lambda self, h: torch.diag_embed(h, 1, 0, 2)[1:].sum(0)[:, :WIDTH] + h, None),
    "written": (
        lambda self, h: torch.diagonal_scatter(
            matrices(h), torch.select_scatter(torch.slice_scatter(h, 3 * h[:, :2], 1, 2, 4), h[:, 1], 1, 7), 0, 1, 2
        )[:, 2], None,
    ),
    "written to zeros": (
        lambda self, h: torch.select_scatter(torch.zeros(len(h), 2, WIDTH), h, 1, 0).sum(1), None,
    ),
    "lists": (lambda self, h: torch._foreach_mul(torch._foreach_add([self.c[0], h], 2.0), [self.c[1], h])[1], None),
    "own step": (
        lambda self, h: h + h.view(-1, 2, 4)[torch.arange(len(h)), positive(h)].repeat(1, 2), None,
    ),
    "own step, time first": (
        lambda self, h: h + h.view(-1, 2, 4).transpose(0, 1)[positive(h), torch.arange(h.shape[0])].repeat(1, 2), None,
    ),
    "own channel": (
        lambda self, h: h + h.view(-1, 2, 4)[torch.arange(0, len(h), 1), :, positive(h)].repeat(1, 4), None,
    ),
    "last step of all": (lambda self, h: h + h.view(-1, 2, 4)[torch.arange(len(h)), -1].repeat(1, 2), None),
    "losses": (
        lambda self, h: F.mse_loss(h, self.c[0].expand_as(h), reduction="none") + F.smooth_l1_loss(
            h, 2 * h, reduction="none"
        ) + F.binary_cross_entropy_with_logits(h, h.sigmoid().detach(), reduction="none"), None,
    ),
    "channels shuffled": (lambda self, h: F.channel_shuffle(h.view(-1, 4, 2), 2).flatten(1), None),
    "squeezed": (lambda self, h: h.view(-1, 1, WIDTH, 1).squeeze(), None),
    "constant mask": (lambda self, h: h[:, torch.tensor([True, False] * 4)].repeat(1, 2), None),
    "constant mask of two axes": (
        lambda self, h: h[:, :6] .view(-1, 2, 3)[:, self.c[:2, :3] > 0.5].repeat(1, 4), None,
    ),
}  # fmt: skip


def between(name: str) -> nn.Module:
    what, own = (BETWEEN | DRAWN)[name]
    return Between(what, c=copy.deepcopy(C), **{"own": own} if own else {})


SEPARATE |= {name: (partial(between, name), (FLAT,)) for name in BETWEEN | DRAWN}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_is_followed_sums_like_a_loop_over_the_records(name: str) -> None:
    torch.manual_seed(0)
    net = between(name)
    aligned, plain = private(net, records=30), copy.deepcopy(net)
    x = torch.randn(30, WIDTH)
    (aligned(x).square().sum() / 30).backward()  # of which the loss is taken to be the mean
    capture = aligned._capture
    capture.norms()
    found = torch.zeros(capture.dimension)
    capture.add_clipped(torch.ones(30, dtype=torch.float64), found)
    for record in x:
        plain(record.unsqueeze(0)).square().sum().backward()
    named = dict(plain.named_parameters())
    wanted = torch.cat([named[name.removeprefix("module.")].grad.reshape(-1) for name in capture.parameters])
    torch.testing.assert_close(
        capture.unpack(found), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
    )


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        (lambda self, h: torch.linalg.solve(matrices(h), h), "solve_ex"),
        (lambda self, h: torch.linalg.inv(matrices(h))[:, 0], "inv_ex"),
        (lambda self, h: torch.linalg.cholesky(matrices(h))[:, 0], "cholesky_ex"),
        (
            lambda self, h: torch.linalg.solve_ex(matrices(h), h, check_errors=True)[0],
            "leave check_errors out",
        ),
        (lambda self, h: torch.linalg.svdvals(matrices(h)), "cholesky_ex"),
        (lambda self, h: torch.linalg.eigh(matrices(h))[0], "cholesky_ex"),
        (lambda self, h: torch.distributions.Normal(h, 1.0).rsample(), "validate_args=False"),
        (lambda self, h: torch._foreach_mul_([h + 1], 2.0)[0], "without _"),
        (lambda self, h: h[torch.arange(len(h)).unsqueeze(1), h.argsort(1)], "gather"),
    ],
)
def test_what_is_refused_for_its_form_says_what_to_use(
    what: Callable[[Any, Tensor], Tensor], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch.compile, in another test, leaves it off
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    with pytest.raises(UsageError, match=remedy) as error:
        private(Between(what), records=3)(torch.zeros(3, WIDTH))
    assert "\n" not in str(error.value)


def test_an_encoder_nests_no_tensors_while_it_is_private() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
            self.inside, self.out = frozen(nn.TransformerEncoder(layer, 1)), nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            return self.out(self.inside(x, src_key_padding_mask=padded)[:, 0])

    aligned = private(Encoder(), SEQUENCE, PADDED, records=3).eval()
    padded = torch.tensor([False, False, True, True]).expand(3, -1)
    assert aligned(torch.randn(3, LENGTH, WIDTH), padded).shape == (3, 4)
    assert not aligned.module.inside.use_nested_tensor
    assert unalign(aligned).inside.use_nested_tensor


@pytest.mark.parametrize("name", SEPARATE)
def test_what_keeps_records_apart_passes(name: str) -> None:
    made, example = SEPARATE[name]
    torch.manual_seed(0)
    aligned = private(made(), *example, records=6)
    for records in (6, 1, 0, 2):
        aligned._capture.expected_records = lambda records=records: records
        inputs = [x[:1].expand(records, *x.shape[1:]).clone() for x in example]
        output = aligned(*inputs)
        assert len(output) == records
        output.square().sum().backward()
        aligned._capture.norms()
        aligned._capture.clear()


# ---- what stays after a pass is left alone


class Writing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.how = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), how
        self.register_buffer("seen", torch.zeros(WIDTH))
        self.code = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)
        self.array = np.zeros(WIDTH)
        self.queue: deque[Any] = deque(maxlen=2)
        self.table = {"mean": [0.0]}

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        value = h.detach()
        if self.how == "data":
            self.seen.data.copy_(value.mean(0))
        elif self.how == "numpy view":
            self.seen.numpy()[:] = value.mean(0).numpy()
        elif self.how == "frozen parameter":
            self.code.data.mul_(0.9).add_(value.mean(0), alpha=0.1)
        elif self.how == "row of a frozen parameter":
            self.code.data[:] = value[0]
        elif self.how == "array":
            self.array[:] = value.mean(0).numpy()
        elif self.how == "deque":
            self.queue.append(value)
        elif self.how == "nested":
            self.table["mean"][0] = float(value.mean())
        elif self.how == "grad":
            self.code.grad = value.mean(0)
        return self.two(h)


@pytest.mark.parametrize(
    "how", ["data", "numpy view", "frozen parameter", "row of a frozen parameter", "array", "deque", "nested"]
)
def test_nothing_is_written_that_stays(how: str) -> None:
    net = Writing(how)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    with pytest.raises(UsageError):
        private(net)(torch.ones(4096, WIDTH))
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert not net.queue


def test_a_frozen_embedding_is_not_renormalised_by_records() -> None:
    table = nn.Embedding(5, WIDTH, max_norm=2.0).requires_grad_(False)
    with torch.no_grad():
        table.weight.copy_(torch.full((5, WIDTH), 3.0))
    before = table.weight.clone()
    with pytest.raises(UsageError, match=r"0 |weight"):
        private(nn.Sequential(table, nn.Linear(WIDTH, 4)), torch.zeros(2, 3, dtype=torch.int64))
    assert torch.equal(table.weight, before)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"anything": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_state_of_its_own_in_checkpoints_is_refused() -> None:
    with pytest.raises(UsageError, match="get_extra_state"):
        start(nn.Sequential(Extra(WIDTH, WIDTH).requires_grad_(False), nn.Linear(WIDTH, 4)), FLAT)


class Sealed:
    """Can be copied, but not looked into."""

    def __init__(self) -> None:
        pass

    def __deepcopy__(self, memo: Any) -> Sealed:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("sealed")


def test_an_attribute_that_cannot_be_looked_into_is_refused() -> None:
    net = Between(lambda self, h: h, kept=Sealed())
    with pytest.raises(UsageError, match="kept is a"):
        start(net, FLAT)


class Rotary(nn.Module):
    """Its table is made in the first pass, and for longer sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out, self.table = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or len(self.table) < x.shape[1]:
            self.table = torch.arange(float(x.shape[1])).unsqueeze(1).cos()
        return self.out((self.one(x) * self.table[: x.shape[1]]).sum(1))


def test_a_table_that_is_made_once_is_made_by_a_call_before() -> None:
    with pytest.raises(UsageError, match=r"table changes in a forward pass.* by a call on zeros"):
        private(Rotary(), SEQUENCE)
    net = Rotary()
    net(SEQUENCE)
    aligned = private(net, SEQUENCE, records=3)
    for length in (LENGTH, LENGTH - 1):
        aligned(torch.randn(3, length, WIDTH)).sum().backward()
        aligned._capture.clear()


def test_what_an_earlier_pass_kept_is_refused() -> None:
    kept: list[Tensor] = []

    def delayed(self: Any, h: Tensor) -> Tensor:
        kept.append(h.detach())
        return h + (kept[-2][:1] if len(kept) > 1 and len(kept[-2]) == len(h) else 0)

    def twice() -> None:
        aligned = private(Between(delayed))
        aligned(torch.ones(4096, WIDTH))
        aligned(torch.ones(4096, WIDTH))

    with pytest.raises(UsageError):
        twice()


def test_frozen_batch_normalisation_is_held_constant() -> None:
    net = Frozen()
    aligned = private(net, IMAGE, records=4)
    statistics = net.features[1].running_mean.clone()
    aligned.train()
    net.train()  # even by the module inside
    aligned(torch.randn(4, 3, 8, 8)).sum().backward()
    with torch.no_grad():
        net.train()
        aligned(torch.randn(4, 3, 8, 8))
    assert torch.equal(net.features[1].running_mean, statistics)
