"""What tests of rules and releases start from: two small networks, records for them, and gradients to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from optical_dfa import AlignedModule
from optical_dfa.feedback.points import ForwardPass

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, classes: int = 4) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(9))


M = 7
X, Y = normal(M, 5, seed=1), labels(M)  # records for `mlp`


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same weights every time; torch's own generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype)


def mlp(
    bias: bool = True, phi: Callable[[], nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """5 -> 6 -> 8 -> 4."""
    found = seeded(
        lambda: nn.Sequential(
            nn.Linear(5, 6, bias), phi(), nn.Linear(6, 8, bias), phi(), nn.Linear(8, 4, bias)
        ),
        dtype,
    )
    assert isinstance(found, nn.Sequential)
    return found


def gradients(
    model: nn.Module, x: Tensor = X, y: Tensor = Y, reduction: str | None = None
) -> dict[str, Tensor]:
    """Of the cross-entropy, reduced as an aligned module takes it to be, by the plain module's names."""
    aligned = isinstance(model, AlignedModule)
    model.zero_grad()
    cross_entropy(
        model(x), y, reduction=reduction or (model.loss_reduction if aligned else "mean")
    ).backward()
    inner = model.module if aligned else model
    return {name: p.grad.clone() for name, p in inner.named_parameters() if p.grad is not None}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], **(tolerance or EXACT), msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_all_same(found: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-12) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


# ---- for private set-ups

N, D, CLASSES = 20, 6, 3


def network(*hidden: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """6 -> 8, what is given, tanh, 8 -> 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), *hidden, nn.Tanh(), nn.Linear(8, CLASSES)).to(dtype)


def records(count: int = N) -> tuple[Tensor, Tensor]:
    """The first `count` of the same 60 records."""
    x = torch.randn(60, D, generator=torch.Generator().manual_seed(1))
    return x[:count].clone(), torch.arange(count) % CLASSES


def forward_pass(aligned: AlignedModule, *args: Tensor) -> ForwardPass:
    """A pass of the module inside, as a rule's state observes it."""
    tape = aligned._tape
    tape.kept = []
    output = aligned.module(*args)
    kept, tape.kept = tape.kept, None
    return ForwardPass(aligned.module, tape, args, {}, kept, output)
