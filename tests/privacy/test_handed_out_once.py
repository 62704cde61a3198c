"""Every record goes into a step's sum once, within the bound, whatever the blocks and the parts of a batch are.

The production path, capture to whole-number sum, against every record's own gradient in float64 by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.capture import factors
from optical_dfa.capture.records import Capture
from privacy import PrivacyEngine
from privacy.contributions.integers import WholeSum
from privacy.releases.clipped import ClippedRelease

BOUND, CLIP, CLASSES = 1 << 15, 0.5, 3
CLOSE = 0.06  # of the bound: what rounding, and the room for it, move a record by


def connected() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, CLASSES))


def reading() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *shape)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "connected": (connected, numbers(5)),
    "convolutional": (convolutional, numbers(1, 6, 6)),
    "reading": (reading, lambda count: torch.randint(9, (count, 4))),
}


def loss(output: Tensor) -> Tensor:
    return (output - 1).square().sum()


def taught(output: Tensor) -> None:
    loss(output).backward()  # type: ignore[no-untyped-call]


def clipped(module: nn.Module, x: Tensor) -> Tensor:
    """Every record's clipped gradient in units of the bound, shape (m, dimension), float64."""
    exact = deepcopy(module).double()
    found = []
    for record in x:
        given = record.unsqueeze(0)
        grads = torch.autograd.grad(
            loss(exact(given.double() if given.is_floating_point() else given)), list(exact.parameters())
        )
        flat = torch.cat([g.flatten() for g in grads])
        found.append(flat * min(1.0, CLIP / float(flat.norm())) / CLIP)
    return torch.stack(found) if found else torch.zeros(0, sum(p.numel() for p in exact.parameters()))


@given(st.sampled_from(list(NETWORKS)), st.integers(2, 24), st.integers(1, 50), st.integers(4, 14))
@settings(max_examples=8, deadline=None)
def test_a_record_is_bounded_and_counted_once_in_blocks_of_any_size(
    name: str, rows: int, records: int, run: int
) -> None:
    """Each record's own whole numbers are seen by a sum that holds it alone."""
    build, make = NETWORKS[name]
    torch.manual_seed(records)
    aligned = align(build(), rule="bp", example=make(2), loss_reduction="sum", show=None)
    x = make(records)
    own = clipped(aligned.module, x)
    capture = cast(Capture, aligned.start_capture("records", rows))
    capture.expected_records = lambda: len(x)
    taught(aligned(x))

    def summed(seed: int) -> WholeSum:
        coins = NoiseGenerator.seeded(seed, "coins")
        return WholeSum(capture.dimension, "cpu", grid=BOUND / CLIP, bound=BOUND, coins=coins)

    each: list[Tensor] = []
    total = summed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "_ELEMENTS", 1 << run)
        for stack in capture.factors(total.keeps_factors):
            for record in range(len(stack[0].rows)):
                alone = summed(len(each))
                alone.add([part.part(slice(record, record + 1)) for part in stack])
                each.append(alone.total.to(torch.int64))
            total.add(stack)
            assert not stack
    assert len(each) == records
    assert not capture.taught
    alone_all = torch.stack(each)
    assert int(alone_all.square().sum(1).max()) <= BOUND**2
    assert float((alone_all / BOUND - own).norm(dim=1).max()) <= CLOSE
    assert float((total.total / BOUND - own.sum(0)).norm()) <= CLOSE * records


class Sums:
    """What steps take in, in units of the bound, before noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        noise = ClippedRelease._add_noise

        def add_noise(release: ClippedRelease, noise_multiplier: float) -> None:
            self.seen.append(release._sum.total.double() / release.steps)
            noise(release, noise_multiplier)

        monkeypatch.setattr(ClippedRelease, "_add_noise", add_noise)


def private(
    physical: int | None,
) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x = torch.randn(90, 5)
    aligned = align(connected(), rule="bp", example=x[:2], loss_reduction="sum", show=None)
    module, optimizer, loader = PrivacyEngine(reproducible_seed=3).make_private(
        module=aligned,
        optimizer=torch.optim.SGD(aligned.parameters(), lr=0.05),
        data_loader=DataLoader(TensorDataset(x, torch.zeros(90)), batch_size=30),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        max_physical_batch_size=physical,
    )
    return module, optimizer, iter(loader)


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("physical", [None, 7])
@pytest.mark.parametrize("failing", [False, True])
def test_parts_and_passes_tried_again_count_each_record_once(
    physical: int | None, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = Sums(monkeypatch)
    module, optimizer, batches = private(physical)
    plain = connected()
    expected, before = torch.zeros(sum(p.numel() for p in plain.parameters())).double(), weights(module)
    records = steps = parts = 0
    for x, _ in batches:
        optimizer.zero_grad()
        if failing and len(x):  # the loop fell over after a backward pass, and begins the batch again
            taught(module(x))
            optimizer.zero_grad()
        for p, held in zip(plain.parameters(), before, strict=True):
            p.data.copy_(held)
        taught(module(x))
        expected, records, parts = expected + clipped(plain, x).sum(0), records + len(x), parts + 1
        optimizer.step()
        if len(sums.seen) > steps:
            assert float((sums.seen[-1] - expected).norm()) <= CLOSE * records
            assert float(expected.norm()) > 3 * CLOSE * records  # so that one twice would show in no rounding
            expected, before = torch.zeros_like(expected), weights(module)
            records, steps = 0, steps + 1
    assert steps == 3
    assert (parts > steps) == (physical is not None)


def test_a_step_that_fails_between_its_runs_releases_nothing_then_or_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = Sums(monkeypatch)
    module, optimizer, batches = private(None)
    before, calls = weights(module), 0
    add = WholeSum.add

    def fails(self: WholeSum, stack: list[object]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        add(self, stack)  # type: ignore[arg-type]

    monkeypatch.setattr(factors, "_ELEMENTS", 1 << 6)
    monkeypatch.setattr(WholeSum, "add", fails)
    x, _ = next(batches)
    taught(module(x))
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert calls == 2
    with pytest.raises(UsageError, match="failed half-way"):
        optimizer.step()
    assert not sums.seen
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(module), strict=True))
