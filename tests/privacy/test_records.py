"""Batches as the user's own loader would make them, empty ones included, or a refusal before anything is released."""

from __future__ import annotations

import warnings
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from privacy.empty_batch import emptied
from privacy.engine import PrivacyEngine
from privacy.records import _digest
from privacy.sampling import PoissonLoader

N = 20
X = torch.arange(5.0 * N).view(N, 5)
Y = torch.arange(N) % 4


def poisson(loader: DataLoader[Any], rate: float = 0.2) -> PoissonLoader:
    return PoissonLoader(loader, rate, 5, NoiseGenerator.seeded(0, "coins"))


def batch_of(loader: DataLoader[Any], records: list[int]) -> Any:
    return poisson(loader)._records.batch(torch.tensor(records, dtype=torch.long))


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ---- records are read as the user's data set gives them


class Doubled(TensorDataset):
    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return 2 * x, y


class Relabelled(TensorDataset):
    """Read many at once, as newer data sets are."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(self.tensors[0][i], 3 - self.tensors[1][i]) for i in indices]


class Untouched(TensorDataset):
    """A subclass that changes nothing."""


def test_a_subclass_of_a_tensor_data_set_gives_its_own_records() -> None:
    x, y = batch_of(DataLoader(Doubled(X, Y), batch_size=4), [3, 5])
    assert torch.equal(x, 2 * X[[3, 5]])
    assert torch.equal(y, Y[[3, 5]])
    x, y = batch_of(DataLoader(Relabelled(X, Y), batch_size=4), [3, 5])
    assert torch.equal(y, 3 - Y[[3, 5]])
    x, _ = batch_of(DataLoader(Subset(Doubled(X, Y), [7, 8, 9]), batch_size=1), [1])
    assert torch.equal(x, 2 * X[[8]])


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        Doubled(X, Y),
        Relabelled(X, Y),
        Untouched(X, Y),
        Subset(Doubled(X, Y), list(range(N))),
    ],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("records", [[], [4], [0, 19, 7]])
def test_a_batch_is_what_the_loader_itself_would_make(data: Dataset[Any], records: list[int]) -> None:
    """Torch's own loader, given the records in a batch sampler, is the reference; an empty batch has its types."""
    found = batch_of(DataLoader(data, batch_size=4), records)
    given = records or [0]
    [wanted] = list(DataLoader(data, batch_sampler=[given]))
    for part, reference in zip(found, wanted, strict=True):
        assert torch.equal(part, reference[: len(records)])
        assert part.dtype == reference.dtype


def test_a_collate_function_is_used_with_every_data_set() -> None:
    def negated(items: list[Any]) -> Any:
        x, y = default_collate(items)
        return -x, y

    x, _ = batch_of(DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=negated), [2])
    assert torch.equal(x, -X[[2]])
    x, _ = batch_of(DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=negated), [])
    assert x.shape == (0, 5)


# ---- empty batches


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Example:
    x: Tensor
    names: list[str]
    scale: float = 1.0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    x: Tensor

    def __post_init__(self) -> None:
        if not len(self.x):
            raise ValueError("no records")


Old = namedtuple("Old", ["x"])


def two(make: Callable[[int], Any]) -> Any:
    return emptied(make(1), make(2))


def rows(m: int) -> Tensor:
    return torch.ones(m, 3)


def test_named_tuples_dataclasses_and_mappings_keep_their_type() -> None:
    pair = two(lambda m: Pair(rows(m), torch.ones(m, dtype=torch.int64)))
    assert type(pair) is Pair
    assert pair.x.shape == (0, 3)
    assert pair.y.dtype == torch.int64
    assert type(two(lambda m: Old(rows(m)))) is Old
    example = two(lambda m: Example(rows(m), ["a.png"] * m, 2.0, {"mask": rows(m).bool()}))
    assert type(example) is Example
    assert (example.x.shape, example.names, example.scale) == ((0, 3), [], 2.0)
    assert example.more["mask"].shape == (0, 3)
    assert two(lambda m: Frozen(rows(m))).x.shape == (0, 3)
    for kind in (dict, OrderedDict, UserDict):
        mapping = two(lambda m, kind=kind: kind({"x": rows(m), "none": None}))
        assert type(mapping) is kind
        assert mapping["x"].shape == (0, 3)
        assert mapping["none"] is None
    default = two(lambda m: defaultdict(list, {"x": rows(m)}))
    assert default.default_factory is list
    assert two(lambda m: MappingProxyType({"x": rows(m)}))["x"].shape == (0, 3)


def test_arrays_names_and_constants() -> None:
    array = two(lambda m: np.ones((m, 2), np.float32))
    assert (array.shape, array.dtype) == ((0, 2), np.float32)
    assert two(lambda m: np.array(["a"] * m)).shape == (0,)
    assert two(lambda m: ["a.png", "b.png"][:m]) == []
    assert two(lambda m: ("a.png", "b.png")[:m]) == ()
    assert two(lambda m: (rows(m), "train", 7, None, True))[1:] == ("train", 7, None, True)
    assert torch.equal(two(lambda m: [rows(m), torch.ones(4)])[1], torch.ones(4))
    assert two(lambda m: [[rows(m)], {"y": (rows(2 * m),)}])[1]["y"][0].shape == (0, 3)  # two views a record


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: (rows(m), m), ["int", "as a whole"]),
        (lambda m: (rows(m), torch.tensor(m)), ["first dimension"]),
        (lambda m: rows(m).T, ["first dimension"]),
        (lambda m: {"x": rows(m), "mean": rows(m).sum(0)}, ["['mean']", "first dimension"]),
        (lambda m: {f"record {i}": rows(1) for i in range(m)}, ["keys"]),
        (lambda m: rows(3)[: 1 + m // 2] if m > 1 else None, ["None for one record"]),
        (lambda m: [rows(1)] * (m + 3), ["grow"]),
        (lambda m: {1, 2}, ["set"]),
        (lambda m: deque([rows(m)] * (5 - m)), ["grow"]),
        (lambda m: object(), ["object"]),
        (lambda m: pack_sequence([rows(2)] * m), ["packed", "pad"]),
        (lambda m: "ab"[:m], ["as a whole"]),
    ],
)
def test_what_cannot_be_emptied_is_named(make: Callable[[int], Any], words: list[str]) -> None:
    refused(lambda: two(make), "a batch", "collate_fn", *words)


class Named(Dataset[Any]):
    """Records with what a script keeps beside them."""

    def __init__(self, beside: Callable[[int], Any]) -> None:
        self.beside = beside

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return X[index] / 100, Y[index], self.beside(index)


def private(data: Dataset[Any], **loading: Any) -> tuple[PrivacyEngine, Any, Any, Any]:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    engine = PrivacyEngine(ledger=loading.pop("ledger", None))
    made = engine.make_private(
        module=align(net, rule="dfa", show=None), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(data, **{"batch_size": 1, **loading}), noise_multiplier=1.0, max_grad_norm=0.5,
    )  # fmt: skip
    return engine, *made


@pytest.mark.parametrize(
    "beside",
    [
        lambda i: f"{i}.png",
        lambda i: i,
        lambda i: np.float32(i),
        lambda i: {"path": f"{i}"},
        lambda i: Old(i),
    ],
    ids=["file name", "int", "array", "dict", "named tuple"],
)
def test_a_run_goes_on_over_empty_batches_with_anything_beside_the_records(
    beside: Callable[[int], Any],
) -> None:
    engine, module, optimizer, loader = private(Named(beside))
    empty = 0
    for _ in range(3):
        for x, y, _ in loader:
            empty += len(x) == 0
            optimizer.zero_grad()
            cross_entropy(module(x), y, reduction="sum" if not len(x) else "mean").backward()
            optimizer.step()
    assert engine.ledger is not None
    assert engine.ledger.count() == 3 * N
    assert empty > 3  # each step is empty with probability (1 - 1/20)^20 = 0.36


def with_sizes(items: list[Any]) -> Any:
    return (*default_collate(items), len(items))


def failing(items: list[Any]) -> Any:
    raise KeyError(f"{items[0][0]} of this very record")


@pytest.mark.parametrize(("collate", "words"), [(with_sizes, "as a whole"), (failing, "KeyError")])
def test_a_batch_that_cannot_be_made_is_refused_before_anything_is_written(
    collate: Any, words: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    refused(lambda: private(TensorDataset(X, Y), collate_fn=collate, ledger=ledger), words)
    assert not ledger.exists()
    refused(
        lambda: private(Named(lambda i: object()), collate_fn=lambda items: items[0][2], ledger=ledger),
        "object",
    )
    assert not ledger.exists()


def test_a_record_that_cannot_be_read_says_nothing_about_itself() -> None:
    class Broken(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            if index > 3:
                raise ValueError(f"record {index} is of patient 4711")
            return super().__getitem__(index)

    _, _, optimizer, loader = private(Broken(X, Y), batch_size=N)  # every record joins
    with pytest.raises(UsageError) as error:
        next(iter(loader))
    assert "ValueError" in str(error.value)
    assert "4711" not in str(error.value)
    assert error.value.__suppress_context__
    refused(lambda: next(iter(loader)), "not followed by optimizer.step")  # it cannot be passed over
    refused(optimizer.step, "no backward pass")


# ---- loaders


class Reversed(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return iter([0] * N)


class Prefetching(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DataLoader(TensorDataset(X, Y), batch_size=4, sampler=Reversed(X)), "sampler of its own"),
        (lambda: DataLoader(TensorDataset(X, Y), batch_size=4, sampler=range(4)), "sampler of its own"),
        (
            lambda: DataLoader(
                TensorDataset(X, Y), batch_size=4, sampler=WeightedRandomSampler([1.0] * N, N)
            ),
            "sampler of its own",
        ),
        (
            lambda: DataLoader(TensorDataset(X, Y), batch_size=4, sampler=SequentialSampler(range(7))),
            "another number",
        ),
        (
            lambda: DataLoader(TensorDataset(X, Y), batch_size=4, sampler=RandomSampler(X, num_samples=9)),
            "another number",
        ),
        (lambda: Prefetching(TensorDataset(X, Y), batch_size=4), "Prefetching"),
        (
            lambda: DataLoader(
                type("Bare", (), {"__getitem__": lambda s, i: X[i]})(), batch_size=4, shuffle=False
            ),
            "length",
        ),
        (lambda: [(X, Y)], "list"),
    ],
)
def test_a_way_of_drawing_that_would_be_passed_over_is_refused(make: Callable[[], Any], words: str) -> None:
    refused(lambda: poisson(make()), words)


@pytest.mark.parametrize(
    "setting", [{"drop_last": True}, {"generator": torch.Generator()}, {"num_workers": 1, "in_order": False}],
    ids=lambda setting: "+".join(setting),
)  # fmt: skip
def test_settings_that_do_nothing_are_told_in_one_line(setting: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="do nothing") as told:
        private(TensorDataset(X, Y), batch_size=4, **setting)
    [message] = [str(one.message) for one in told if "do nothing" in str(one.message)]
    assert "\n" not in message
    assert all(name in message for name in setting if name != "num_workers")
    assert "test_records" in told[0].filename  # it points at the caller


def test_a_plain_loader_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        private(TensorDataset(X, Y), batch_size=4, shuffle=True)


# ---- a sample, by which workers see that they hold the same records


class Jittered(Dataset[tuple[Tensor, int]]):
    """Reads differently each time."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, record: int) -> tuple[Tensor, int]:
        return X[record] + torch.rand(5), int(Y[record])


class Own(Jittered):
    """By a generator of its own, which nobody can seed."""

    generator = torch.Generator()

    def __getitem__(self, record: int) -> tuple[Tensor, int]:
        return X[record] + torch.rand(5, generator=self.generator), int(Y[record])


class Permuted(Jittered):
    """The same records in another order."""

    def __getitem__(self, record: int) -> tuple[Tensor, int]:
        return super().__getitem__((record + 3) % N)


def sample(data: Dataset[Any], collate: Callable[[Any], Any] | None = None) -> str | None:
    return poisson(DataLoader(data, batch_size=4, collate_fn=collate)).sample()[0]


def test_a_sample_tells_records_and_their_order_apart() -> None:
    alike = sample(TensorDataset(X, Y))
    assert alike == sample(TensorDataset(X.clone(), Y.clone()))
    assert alike == sample(Subset(TensorDataset(X, Y), range(N)))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    one_label = Y.clone()
    one_label[7] += 1
    others = [
        sample(TensorDataset(X[order], Y[order])),
        sample(TensorDataset(X, one_label)),
        sample(TensorDataset(X.double(), Y)),
        sample(Subset(TensorDataset(X, Y), range(N - 1, -1, -1))),
    ]
    assert len({alike, *others}) == 1 + len(others)


def test_augmented_records_are_compared_under_one_seed_or_not_at_all() -> None:
    """And the process' own generators go on where they were."""
    loader, same = (poisson(DataLoader(Jittered(), batch_size=4)) for _ in range(2))
    before = torch.get_rng_state()
    assert loader.sample() == same.sample()
    assert loader.sample()[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert sample(Jittered()) != sample(Permuted())
    assert sample(Own()) is None
    assert not poisson(DataLoader(TensorDataset(X, Y), batch_size=4)).sample()[1]


@dataclass
class Compared:
    x: Tensor
    y: Tensor | None


def test_what_cannot_be_compared_is_not_taken_for_alike() -> None:
    assert _digest([X, object()]) is None
    assert _digest([X, {3}]) is None
    assert _digest(Compared(X, None)) == _digest(Compared(X.clone(), None)) != _digest(Compared(X + 1, None))


def test_a_sample_of_very_many_records_names_none_beyond_them() -> None:
    class Counted(Jittered):
        def __len__(self) -> int:
            return 2**25 + 3

        def __getitem__(self, record: int) -> tuple[Tensor, int]:
            assert 0 <= record < len(self)
            return X[record % N], record

    assert sample(Counted()) is not None


def test_a_sample_looks_into_mappings_arrays_and_texts() -> None:
    def collated(names: list[str]) -> Callable[[Any], Any]:
        return lambda pairs: {
            "x": np.stack([x.numpy() for x, _ in pairs]),
            "name": [names[int(y)] for _, y in pairs],
        }

    one, same, other = (
        sample(TensorDataset(X, Y), collated(names)) for names in (list("abcd"), list("abcd"), list("abce"))
    )
    assert one == same != other
