"""Random programs of operations: what is followed is separate, and the records are where the rules say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.capture.following import Following
from optical_dfa.capture.program import LARGER, SMALL
from optical_dfa.capture.rows import Rows, reshaped
from optical_dfa.capture.trying import agreed

RECORDS = 4
Operation = Callable[[Tensor], Tensor]

# Of tensors with any number of axes; most sizes below are even, so that halves exist.
OPERATIONS: dict[str, Operation] = {
    "relu": lambda x: x.relu(),
    "exp": lambda x: x.clamp(max=3).exp(),
    "add": lambda x: x + 1.5,
    "own constant": lambda x: x * torch.linspace(0, 1, x.shape[-1]).to(x),
    "softmax last": lambda x: x.softmax(-1),
    "softmax first": lambda x: x.softmax(0),
    "sum last": lambda x: x.sum(-1) if x.ndim > 1 else x,
    "sum first": lambda x: x.sum(0, keepdim=True),
    "mean last, kept": lambda x: x - x.mean(-1, keepdim=True),
    "maximum": lambda x: x / x.abs().amax().clamp_min(1e3),
    "maximum last": lambda x: x / x.abs().amax(-1, keepdim=True).clamp_min(1),
    "norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-3),
    "flip last": lambda x: x.flip(-1),
    "flip first": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, -1),
    "sort last": lambda x: x.sort(-1).values,
    "cumulated first": lambda x: x.cumsum(0),
    "cumulated last": lambda x: x.cumsum(-1),
    "top": lambda x: x.topk(1, -1).values,
    "select": lambda x: x.select(-1, 0) if x.ndim > 1 else x,
    "select first": lambda x: x[0],
    "slice": lambda x: x[..., ::2],
    "slice first": lambda x: x[1:],
    "half": lambda x: x.chunk(2, -1)[0],
    "unsqueeze first": lambda x: x.unsqueeze(0),
    "unsqueeze last": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(),
    "swap": lambda x: x.transpose(0, -1),
    "swap inner": lambda x: x.transpose(-1, -2) if x.ndim > 1 else x,
    "permute": lambda x: x.permute(*range(1, x.ndim), 0),
    "flatten": lambda x: x.flatten(),
    "flatten first two": lambda x: x.flatten(0, 1) if x.ndim > 1 else x,
    "flatten last two": lambda x: x.flatten(-2) if x.ndim > 1 else x,
    "split last": lambda x: x.unflatten(-1, (2, -1)) if x.shape[-1] % 2 == 0 else x,
    "split first": lambda x: x.unflatten(0, (-1, 2)),
    "concatenate last": lambda x: torch.cat([x, 2 * x], -1),
    "concatenate first": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack([x, -x], 1),
    "stack first": lambda x: torch.stack([x, x]),
    "repeat last": lambda x: x.repeat(*[1] * (x.ndim - 1), 2),
    "expand": lambda x: x.unsqueeze(1).expand(x.shape[0], 2, *x.shape[1:]),
    "linear": lambda x: F.linear(x, torch.linspace(-1, 1, 2 * x.shape[-1]).to(x).view(2, -1)),
    "gram": lambda x: x @ x.transpose(-1, -2) if x.ndim > 1 else x,
    "gram of the first": lambda x: x.T @ x if x.ndim == 2 else x,
    "outer": lambda x: torch.einsum("...i,...j->...ij", x, x),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad first": lambda x: F.pad(x, (*[0] * (2 * x.ndim - 2), 1, 0)),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "gather": lambda x: x.gather(-1, x.argsort(-1)),
    "index": lambda x: x[..., [0]],
    "index first": lambda x: x[[0]],
    "diagonal": lambda x: x.diagonal(dim1=0, dim2=-1) if x.ndim > 1 else x,
    "write last": lambda x: x.clone().index_fill_(-1, torch.tensor([0]), 3.0),
    "write": lambda x: torch.zeros_like(x).copy_(x).mul_(2),
    "average": lambda x: F.avg_pool1d(x, 2, 1, 1) if x.ndim == 3 else x,
    "fourier": lambda x: torch.fft.rfft(x, dim=-1).abs(),
    "inverse": lambda x: torch.linalg.inv_ex(square(x))[0],
    "determinant": lambda x: torch.linalg.det(square(x)),
    "logarithm of a determinant": lambda x: torch.linalg.slogdet(square(x))[1],
    "root": lambda x: torch.linalg.cholesky_ex(square(x))[0],
    "factors": lambda x: torch.linalg.lu_factor_ex(square(x))[0],
    "triangle": lambda x: torch.linalg.qr(x)[1] if x.ndim > 1 else x,
    "triangle of the first": lambda x: torch.linalg.qr(x.transpose(0, -1).contiguous(), mode="r")[1],
    "solved": lambda x: torch.linalg.solve_ex(square(x), x)[0],
    "solved by a constant": lambda x: torch.linalg.solve(constant(x), x.unsqueeze(-1)),
    "solved as columns": lambda x: torch.linalg.solve(constant(x.transpose(0, -1), -2), x.transpose(0, -1)),
    "solved as rows": lambda x: torch.linalg.solve(constant(x), x, left=False),
    "solved by a triangle": lambda x: torch.linalg.solve_triangular(square(x).tril(), x.unsqueeze(-1), upper=False),
    "solved by a constant root": lambda x: torch.cholesky_solve(x.unsqueeze(-1), constant(x).tril()),
    "solved by a root": lambda x: torch.cholesky_solve(x.unsqueeze(-1), square(x).tril()),
    "cross product": lambda x: torch.linalg.cross(x[..., :3], x[..., 1:4]),
    "searched": lambda x: torch.searchsorted(x.sort(-1).values, x.contiguous()).to(x),
    "searched among the first": lambda x: (
        torch.searchsorted(x.transpose(0, -1).contiguous(), x.transpose(0, -1).contiguous()).to(x)
    ),
    "searched in a constant": lambda x: torch.searchsorted(torch.linspace(-2, 2, 5).to(x), x.contiguous()).to(x),
    "bilinear": lambda x: F.bilinear(x, x + 1, torch.linspace(-1, 1, 2 * x.shape[-1] ** 2).to(x).view(
        2, x.shape[-1], x.shape[-1])),
    "bags": lambda x: F.embedding_bag((x > 0).long(), torch.ones(2, 3).to(x), mode="sum") if x.ndim == 2 else x,
    "weighted bags": lambda x: (
        F.embedding_bag((x > 0).long(), torch.ones(2, 3).to(x), mode="sum", per_sample_weights=x)
        if x.ndim == 2 else x
    ),
    "grid": lambda x: F.grid_sample(
        x, F.affine_grid(x[:, 0, :2, :3].contiguous(), list(x.shape), align_corners=False), align_corners=False
    ) if x.ndim == 4 and min(x.shape[2:]) > 2 else x,
    "distances": lambda x: torch.cdist(x, torch.linspace(-1, 1, 2 * x.shape[-1]).to(x).view(2, -1)),
    "distances within": lambda x: torch.cdist(x, x + 1),
    "diagonals": lambda x: torch.diag_embed(x, 1, 0, -1),
    "diagonals of the first": lambda x: torch.diag_embed(x.transpose(0, -1)),
    "select written": lambda x: torch.select_scatter(x, x.select(-1, 0) + 1, -1, 1) if x.ndim > 1 else x,
    "select of the first written": lambda x: torch.select_scatter(x, torch.zeros_like(x[0]), 0, 1),
    "slice written": lambda x: torch.slice_scatter(x, 2 * x[..., :1], -1, 1, 2),
    "written to a constant": lambda x: (
        torch.select_scatter(torch.zeros(x.shape[0], 2, *x.shape[1:]).to(x), x, 1, 0)
    ),
    "diagonal written": lambda x: (
        torch.diagonal_scatter(x, 2 * x.diagonal(0, -2, -1), 0, -2, -1) if x.ndim > 2 else x
    ),
    "diagonal with the first written": lambda x: (
        torch.diagonal_scatter(x, x.diagonal(0, 0, -1) + 1, 0, 0, -1) if x.ndim > 1 else x
    ),
    "loss": lambda x: F.mse_loss(x, torch.zeros_like(x), reduction="none"),
    "loss of all": lambda x: x - F.mse_loss(x, torch.zeros_like(x)),
    "channels": lambda x: F.channel_shuffle(x, 2) if x.ndim > 2 and x.shape[1] % 2 == 0 else x,
    "each": lambda x: torch._foreach_mul([x, x + 1], [x, x])[1],
    "each with the others": lambda x: torch._foreach_add([x.unsqueeze(1)], [x.unsqueeze(0)])[0],
    "own step": lambda x: x[torch.arange(len(x)), (x.flatten(1)[:, 0] > 0).long()] if x.ndim > 1 else x,
    "some step": lambda x: x[torch.arange(len(x)), torch.tensor(0)] if x.ndim > 1 else x,
    "own step of the last": lambda x: (
        x.transpose(0, 1)[(x.flatten(1)[:, 0] > 0).long(), torch.arange(len(x))] if x.ndim > 1 else x
    ),
    "constant mask": lambda x: x[..., torch.tensor([True, False]).repeat(x.shape[-1])[:x.shape[-1]]],
    "constant mask of two": lambda x: x[:, torch.ones(x.shape[1:3]).tril().bool()] if x.ndim > 2 else x,
    "mask of the first": lambda x: x[torch.ones(len(x)).bool()],
    "expanded to the number": lambda x: x.unsqueeze(1).expand(x.shape[0], x.shape[0], *x.shape[1:]),
    "repeated to the number": lambda x: x.repeat(*[1] * (x.ndim - 1), len(x)),
}  # fmt: skip


def square(x: Tensor) -> Tensor:
    """A positive definite matrix for each vector along the last axis."""
    x = x / x.abs().amax(-1, keepdim=True).clamp_min(1)
    return x.unsqueeze(-1) * x.unsqueeze(-2) + torch.eye(x.shape[-1]).to(x)


def constant(x: Tensor, axis: int = -1) -> Tensor:
    return torch.full((x.shape[axis], x.shape[axis]), 0.3).to(x) + torch.eye(x.shape[axis]).to(x)


class Nothing(nn.Module):
    """What is followed is no module here."""


def followed(operation: Operation, x: Tensor) -> tuple[Tensor, Rows]:
    """The result of a pass that was compared and followed, and where it keeps the records."""
    masks = NoiseGenerator.seeded(0, "masks")
    passes = []
    for records in (SMALL, LARGER):
        noted = Following(Nothing(), records, masks, None)
        example = torch.randn(records, *x.shape[1:], dtype=x.dtype)
        with noted.on([example]):
            operation(example)
        passes.append(noted)
    following = Following(Nothing(), len(x), masks, agreed(*passes))
    with following.on([x]):
        out = operation(x)
    rows = following.rows(out)
    assert rows is not None
    return out, rows


def of_record(out: Tensor, rows: Rows, record: int) -> Tensor:
    """Mask of the elements that belong to a record."""
    mine = (torch.arange(out.shape[rows.axis]) // rows.inner) % RECORDS == record
    return mine.view(-1, *[1] * (out.ndim - 1 - rows.axis)).expand(out.shape)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=5),
    st.sampled_from([(6,), (4, 6), (2, 4, 6), (2, 3, 4), (4, 4), (4,), (1, 4)]),
    st.integers(0, RECORDS - 1),
)
def test_what_is_followed_is_separate(names: list[str], shape: tuple[int, ...], record: int) -> None:
    """A record is made 1e3 times as large: nothing but its own elements may move."""

    def operation(x: Tensor) -> Tensor:
        for name in names:
            x = OPERATIONS[name](x)
        return x

    generator = torch.Generator().manual_seed(len(names))
    x = torch.randn(RECORDS, *shape, generator=generator, dtype=torch.float64)
    changed = x.clone()
    changed[record] *= 1e3
    try:
        out, rows = followed(operation, x)
        moved, again = followed(operation, changed)
    except (UsageError, RuntimeError, IndexError):
        return  # refused, or shapes that the operations do not take; that separate ones pass has tests of its own
    assert rows == again
    others = ~of_record(out, rows, record)
    torch.testing.assert_close(out[others], moved[others], rtol=1e-12, atol=1e-12)


def test_each_operation_is_accepted_or_refused_as_its_name_says() -> None:
    refused = set()
    for name, operation in OPERATIONS.items():
        try:
            followed(operation, torch.randn(RECORDS, 4, 6, dtype=torch.float64))
        except (UsageError, RuntimeError):  # pairs of records cannot be formed of 3
            refused.add(name)
    assert refused == {
        "softmax first", "sum first", "maximum", "flip first", "cumulated first", "select first", "slice first",
        "concatenate first", "pad first", "index first", "diagonal", "split first",
        "triangle of the first", "searched among the first", "diagonals of the first",
        "select of the first written", "diagonal with the first written", "mask of the first",
        "each with the others", "loss of all", "expanded to the number", "repeated to the number",
    }  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_reshapes_keep_the_account(data: st.DataObject) -> None:
    """Against labels: where a reshape is said to keep a record, its label stands, and else it stands nowhere whole."""
    before = data.draw(st.lists(st.integers(1, 4), max_size=2))
    after = data.draw(st.lists(st.integers(1, 4), max_size=2))
    records = data.draw(st.integers(2, 5))
    shape = [*before, records, *after]
    labels = np.broadcast_to(np.arange(records).reshape(-1, *[1] * len(after)), shape).reshape(-1)
    new: list[int] = []
    left = labels.size
    while left > 1 and len(new) < 4:
        new.append(data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= new[-1]
    new.append(left)
    found = reshaped(shape, Rows(len(before)), new, records)
    here = labels.reshape(new)
    if found is not None:
        assert new[found.axis] == found.outer * records * found.inner
        assert np.array_equal(here, labelled(new, found.axis, found.inner, records))
        return
    for axis, size in enumerate(new):
        for inner in (d for d in range(1, size + 1) if size % (d * records) == 0):
            assert not np.array_equal(here, labelled(new, axis, inner, records))


def labelled(shape: list[int], axis: int, inner: int, records: int) -> Any:
    own = (np.arange(shape[axis]) // inner) % records
    return np.broadcast_to(own.reshape(-1, *[1] * (len(shape) - 1 - axis)), shape)
