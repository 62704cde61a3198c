"""No attribute of a private run steers it behind the ledger's back, and none is ignored: each write is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.measure.alignment import alignment
from privacy.engine import PrivacyEngine
from privacy.releases import RELEASES

N, BATCH = 48, 12
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))


class Run:
    """A private run of one small network."""

    def __init__(self, release: str = "digital", seed: int | None = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.engine = PrivacyEngine(reproducible_seed=seed)
        card = RELEASES[release]
        backend = "simulated-opu" if card.dark_frames else "digital"
        options = {"dark_pixels": 1 << 14} | dict(card.backend_options) if card.dark_frames else {}
        aligned = align(
            self.net,
            rule="gated-dfa" if release == "aggregate" else "dfa",
            backend=backend,
            backend_options=options,
            noise=None if seed is None else NoiseGenerator.seeded(seed, "device"),
            show=None,
        )
        clips = {"max_grad_norm": 0.5} if RELEASES[release].clips else {}
        arguments: dict[str, Any] = {"noise_multiplier": 1.0, **clips, **settings}
        self.model, self.optimizer, self.loader = self.engine.make_private(
            module=aligned, optimizer=torch.optim.SGD(self.net.parameters(), lr=0.1), release=release,
            data_loader=DataLoader(TensorDataset(X, Y), batch_size=BATCH), **arguments,
        )  # fmt: skip

    def part(self, name: str) -> Any:
        parts = {
            "loader": self.loader, "optimizer": self.optimizer, "engine": self.engine, "step": self.engine.step,
            "source": self.engine.source, "module": self.model,
        }  # fmt: skip
        return parts[name]

    def backward(self, x: Tensor, y: Tensor) -> None:
        cross_entropy(self.model(x), y).backward()


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.fixture(scope="module")
def untouched() -> Run:
    """A run whose parts refuse what is tried, so that one will do for all."""
    return Run()


WRITES = [
    ("loader", "sample_rate", 0.15), ("loader", "steps", 1), ("loader", "dataset", TensorDataset(X[:4], Y[:4])),
    ("loader", "collate_fn", list), ("loader", "current", None), ("loader", "max_physical_batch_size", 3),
    ("loader", "_generator", NoiseGenerator.seeded(0, "coins")), ("loader", "_records", []),
    ("optimizer", "noise_multiplier", 2.0), ("optimizer", "max_grad_norm", 9.0), ("optimizer", "original", None),
    ("optimizer", "expected_batch_size", 1), ("optimizer", "step", print), ("optimizer", "state", {}),
    ("optimizer", "param_groups", []), ("optimizer", "_take", print),
    ("engine", "ledger", None), ("engine", "step", None), ("engine", "source", None), ("engine", "_limit", None),
    ("engine", "_rate", 1e-6), ("engine", "_seed", 0),
    ("step", "max_grad_norm", 100.0), ("step", "sensitivity", 1e-9), ("step", "expected_batch_size", 1.0),
    ("step", "contributions", None), ("step", "source", None), ("step", "_cap", 10**9), ("step", "add_noise", print),
    ("source", "add_noise", print), ("source", "_generator", NoiseGenerator.seeded(0, "noise")),
    ("source", "device_share", 1.0), ("module", "loss_reduction", "sum"), ("module", "backend", None),
    ("module", "rule", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "name", "value"), WRITES, ids=[f"{part}.{name}" for part, name, _ in WRITES]
)
def test_an_attribute_that_steers_is_read_only(untouched: Run, part: str, name: str, value: Any) -> None:
    before = getattr(untouched.part(part), name)
    refused(lambda: setattr(untouched.part(part), name, value), name)
    assert getattr(untouched.part(part), name) is before or getattr(untouched.part(part), name) == before


UNKNOWN = [
    ("loader", "_limit"), ("loader", "batch_size"), ("loader", "num_workers"), ("optimizer", "accountant"),
    ("optimizer", "max_grad_norms"), ("engine", "accountants"), ("engine", "secure_mode"), ("step", "clip_norm"),
    ("source", "std"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name"), UNKNOWN)
def test_an_attribute_that_does_nothing_is_refused(untouched: Run, part: str, name: str) -> None:
    refused(lambda: setattr(untouched.part(part), name, 3), name, "no effect")


def test_an_engine_takes_no_attributes_before_it_serves_a_module_either() -> None:
    engine = PrivacyEngine()
    for name in ("ledger", "step", "accountant", "secure_mode"):
        refused(lambda name=name: setattr(engine, name, True), name)


def test_attributes_are_not_deleted(untouched: Run) -> None:
    refused(lambda: delattr(untouched.loader, "sample_rate"), "sample_rate")
    refused(lambda: delattr(untouched.engine.step, "sensitivity"), "sensitivity")


def test_the_batch_handed_out_cannot_be_marked_as_taken() -> None:
    run = Run()
    batches = iter(run.loader)
    next(batches)
    batch = run.loader.current
    assert batch is not None
    for name in ("records", "first", "final", "epoch", "stepped"):
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(batch, name, True)
    with pytest.raises(UsageError, match="not followed by optimizer"):
        next(batches)


@pytest.mark.parametrize("release", list(RELEASES))
def test_every_release_trains_and_is_fixed(release: str) -> None:
    """What a release changes of itself, it may; everything else stays as it was accounted for."""
    settings = {"max_physical_batch_size": 7} if release != "label" else {}
    run = Run(release, seed=1, **settings)
    for _ in range(2):
        for x, y in run.loader:
            run.optimizer.zero_grad()
            run.backward(x, y)
            run.optimizer.step()
    assert run.engine.ledger is not None
    assert run.engine.ledger.count() == 8
    for part in (run.engine.step, run.engine.source):
        names = [name for name in vars(part) if not name.startswith("_") or name not in type(part)._changing]
        for name in set(names) - {"_fixed"}:
            refused(lambda part=part, name=name: setattr(part, name, None), name)


def test_a_schedule_as_opacus_writes_it_is_refused_in_words() -> None:
    schedulers = pytest.importorskip("opacus.schedulers")
    run = Run()
    refused(
        lambda: schedulers.ExponentialNoise(run.optimizer, gamma=0.9).step(), "noise_multiplier", "is 1.0 to"
    )
    refused(
        lambda: schedulers.ExponentialGradClip(run.optimizer, gamma=0.9).step(), "max_grad_norm", "is 0.5 to"
    )


def test_learning_rate_schedules_work_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    run = Run()
    schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, gamma=0.5)
    for x, y in run.loader:
        run.optimizer.zero_grad()
        run.backward(x, y)
        run.optimizer.step()
        schedule.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4
    run.optimizer.param_groups[0]["lr"] = 0.3  # post-processing of what was released
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


@pytest.mark.parametrize("part", ["loader", "optimizer", "engine", "step", "source", "module"])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda part: torch.save(part, io.BytesIO())],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_no_part_of_a_run_is_copied_or_saved(
    untouched: Run, part: str, copied: Callable[[Any], object]
) -> None:
    refused(lambda: copied(untouched.part(part)), "cannot be copied", "save_checkpoint", "state_dict()")


def test_a_twin_of_a_private_module_is_measured_and_no_more() -> None:
    run = Run()
    twin = run.model.twin()
    assert twin.capture is not run.model.capture
    assert twin.module is not run.net
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), run.net.parameters(), strict=True))
    angles = alignment(run.model, X[:4], lambda z: cross_entropy(z, Y[:4]))
    assert angles.points
    copy.deepcopy(twin)  # not private itself


def test_a_data_set_that_grows_is_noticed() -> None:
    class Growing(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
        size = N

        def __len__(self) -> int:
            return self.size

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return X[index % N], Y[index % N]

    data = Growing()
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    _, _, loader = PrivacyEngine().make_private(
        module=align(net, rule="dfa", show=None), optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=BATCH), noise_multiplier=1.0, max_grad_norm=0.5,
    )  # fmt: skip
    data.size = 10 * N
    refused(lambda: next(iter(loader)), "changed its length")


# ---- zero_grad


def released(
    passes: Callable[[Run, Tensor, Tensor], None], release: str = "digital", **settings: Any
) -> list[Tensor]:
    """The gradients of one epoch without noise to speak of, where each batch gets these passes."""
    run, found = Run(release, seed=3, noise_multiplier=1e-6, **settings), []
    for x, y in run.loader:
        passes(run, x, y)
        run.optimizer.step()
        found += [p.grad.clone() for p in run.net.parameters() if p.grad is not None]
    return found


def once(run: Run, x: Tensor, y: Tensor) -> None:
    run.optimizer.zero_grad()
    run.backward(x, y)


def dropped_then_again(run: Run, x: Tensor, y: Tensor) -> None:
    run.backward(3 * x, y)
    run.optimizer.zero_grad()
    run.backward(x, y)


def dropped_twice(run: Run, x: Tensor, y: Tensor) -> None:
    run.backward(x + 1, y)
    run.backward(x - 1, y)
    run.optimizer.zero_grad(set_to_none=False)
    run.backward(2 * x, y)
    run.optimizer.zero_grad()
    run.backward(x, y)


def between_forward_and_backward(run: Run, x: Tensor, y: Tensor) -> None:
    loss = cross_entropy(run.model(x), y)
    run.optimizer.zero_grad()
    loss.backward()


@pytest.mark.parametrize("release", ["digital", "skellam", "aggregate"])
@pytest.mark.parametrize("parts", [{}, {"max_physical_batch_size": 5}], ids=["whole", "parts"])
def test_zero_grad_drops_the_passes_before_it(parts: dict[str, Any], release: str) -> None:
    wanted = released(once, release, **parts)
    for passes in (dropped_then_again, dropped_twice, between_forward_and_backward):
        if release == "aggregate" and passes is dropped_twice:
            continue  # this release takes one pass at a time
        found = released(passes, release, **parts)
        assert len(wanted) == len(found)
        for a, b in zip(wanted, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert max(float(part.abs().max()) for part in wanted) > 1e-2


def test_a_batch_whose_passes_were_all_dropped_is_not_stepped_on() -> None:
    run = Run()
    for x, y in run.loader:
        run.backward(x, y)
        run.optimizer.zero_grad()
        if len(x):
            refused(run.optimizer.step, "no backward pass", "zero_grad")
            break
