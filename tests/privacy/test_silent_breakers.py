"""The things that silently break a guarantee (docs/threat-model.md), each seen refused, caught, or made harmless.

| Item | What would break it | Test here |
|---|---|---|
| 1 | layers that mix records | `test_a_layer_that_mixes_records` |
| 1 | a loss normalised over the batch axis | `test_a_loss_normalised_over_the_batch` |
| 1 | division by the realised batch size, by the release or by the loss | `test_the_realised_batch_size` |
| 1 | N itself in q·N | `test_the_size_of_the_data_set` |
| 1 | skipped empty batches | `test_an_empty_batch_cannot_be_skipped` |
| 1 | capped Poisson batches | `test_a_batch_cannot_be_capped` |
| 2 | shuffled fixed-size batches accounted as Poisson sampling | `test_shuffled_batches` |
| 3 | output layer, biases or gains without noise | `test_every_trained_parameter_is_noised` |
| 3 | parameters outside the stack | `test_a_parameter_outside_the_stack` |
| 3 | a learned feedback matrix | `test_learned_feedback` |
| 4 | feature statistics of private records | `test_feature_statistics` |
| 4 | private metrics, printed or logged | `test_what_a_private_run_shows` |
| 4 | early stopping and model selection | `test_training_is_as_long_as_planned` |
| 5 | seeds that are logged or known | `test_nothing_written_down_repeats_the_noise` |
| 5 | seeds reused after a resume | `test_a_resumed_run_takes_new_keys` |
| 5 | seeds equal across workers | `test_workers_do_not_share_a_stream` |
| 5 | a generator that is not secret in a run that claims a guarantee | `test_a_generator_that_is_not_secret` |
| 6 | a checkpoint older than the ledger, or newer | `test_checkpoint_and_ledger_of_different_age` |
| 6 | a crash between a release and its record | `test_a_crash_beside_the_record` |
| 7 | a device whose noise has changed | `test_a_device_that_changed` |
| 7 | quantised noise without dither | `test_quantised_noise_without_dither` |
| 7 | a frame count or timing that depends on the data | `test_frames_do_not_depend_on_the_data` |
| 8 | contributions that are not finite | `test_a_record_that_is_not_finite` |
| 8 | floating-point tails | `test_the_tail_of_the_noise_is_in_delta` |
"""

from __future__ import annotations

import json
import math
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import CLASSES, D, N, network, records
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS, RoundedGaussianSampler
from optical_dfa.aligning import align
from optical_dfa.backends import create
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from optical_dfa.config import TrainConfig
from optical_dfa.feedback.card import Refusal
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from optical_dfa.training.trainer import train
from privacy import accounting
from privacy.engine import PrivacyEngine
from privacy.errors import BudgetExhaustedError
from privacy.ledger import Ledger
from privacy.releases import dark_frame
from privacy.validation import validate

C = 0.5
SILENT = 1e-7  # a noise multiplier at which the clipped sum shows


class Made:
    """A private set-up that sees every record at every step, unless told otherwise."""

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        data: tuple[Tensor, Tensor] | None = None,
        batch_size: int = N,
        seed: int | None = 7,
        loader: DataLoader[Any] | None = None,
        align_options: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        extra: tuple[nn.Parameter, ...] = (),
        **options: Any,
    ) -> None:
        given = {"noise_multiplier": SILENT, "max_grad_norm": C, **options}
        self.engine = PrivacyEngine(reproducible_seed=seed, **(engine or {}))
        self.aligned = align(module or network(), show=None, **{"rule": "dfa", **(align_options or {})})
        source = loader or DataLoader(TensorDataset(*(data or records())), batch_size=batch_size)
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=self.aligned,
            optimizer=torch.optim.SGD([*self.aligned.parameters(), *extra], lr=1.0),
            data_loader=source,
            **given,
        )

    def backward(self) -> None:
        x, y = next(iter(self.loader))
        cross_entropy(self.module(x), y).backward()

    def step(self) -> Tensor:
        """The released average, flat."""
        before = self.weights()
        self.backward()
        self.optimizer.step()
        return before - self.weights()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.module.parameters()])

    @property
    def ledger(self) -> Ledger:
        assert self.engine.ledger is not None
        return self.engine.ledger


def camera(**options: Any) -> ProjectionBackend:
    return create(
        "simulated-opu",
        in_features=CLASSES,
        out_features=8,
        seed=0,
        noise=NoiseGenerator.seeded(3, "device"),
        options={"dark_pixels": 4096, **options},
    )


def small_run(out: Path | None = None, *, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """The program on its embedded data set."""
    chosen: dict[str, Any] = {
        "dataset": "digits",
        "model": "mlp:4",
        "backend": "digital",
        "release": "digital",
        "epochs": 2,
        "batch_size": 512,
        **settings,
    }
    return train(TrainConfig(**chosen), out, resume=resume)


def test_the_table_above_lists_every_test() -> None:
    listed = set(re.findall(r"`(test_\w+)`", __doc__))
    assert listed == {name for name in globals() if name.startswith("test_")} - {
        "test_the_table_above_lists_every_test"
    }


# ---- 1. records that mix, and sizes that leak


class Centred(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), Centred()], ids=["known", "own"])
def test_a_layer_that_mixes_records(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match="mixes records"):
        Made(network(layer))


def test_a_loss_normalised_over_the_batch() -> None:
    """The engine cannot see into a loss; the self-check can."""
    module = align(network(), show=None)
    centred = PrivacyEngine().validate(module, lambda z, y: cross_entropy(z - z.mean(0), y))
    assert any("changing one record's input" in line for line in centred.findings)
    assert validate(module, cross_entropy).findings == ()


def test_the_realised_batch_size() -> None:
    # The release divides by the expected size: one record less is one record's share less.
    full, fewer = (Made(data=records(count), public_size=N).step() for count in (N, N - 1))
    assert 0 < (full - fewer).norm() <= C / N * (1 + 1e-3)
    # A loss that divides by the realised size, where a sum was declared.
    module = align(network(), loss_reduction="sum", show=None)
    found = validate(module, lambda z, y: cross_entropy(z, y, reduction="sum") / max(1, len(z)))
    assert any("leaving one record out" in line for line in found.findings)


def test_the_size_of_the_data_set() -> None:
    made = [Made(data=records(count), batch_size=4, public_size=N) for count in (N, N + 1)]
    assert made[0].ledger.header() == made[1].ledger.header()
    with pytest.raises(UsageError, match="far below"):
        Made(data=records(2 * N), batch_size=4, public_size=N)


def test_an_empty_batch_cannot_be_skipped() -> None:
    made = Made(data=records(1), batch_size=1, public_size=1000, noise_multiplier=1.0)
    batches = iter(made.loader)
    x, _ = next(batches)
    assert len(x) == 0  # one record at rate 1/1000: seed 7 draws none
    with pytest.raises(UsageError, match="empty ones included"):
        next(batches)
    released = Made(data=records(1), batch_size=1, public_size=1000, noise_multiplier=1.0).step()
    # standard deviation C over the expected batch size 1 (5 standard errors: 6e-7)
    assert float(released.std()) == pytest.approx(C, rel=5 / math.sqrt(2 * len(released)))


def test_a_batch_cannot_be_capped() -> None:
    made = Made()
    x, y = next(iter(made.loader))
    with pytest.raises(UsageError, match="not the one that the private loader handed out"):
        cross_entropy(made.module(x[:19]), y[:19])
    # What does not fit at once is taken in parts, none of which may be left out.
    parts = Made(max_physical_batch_size=8)
    for number, (x, y) in enumerate(parts.loader):
        cross_entropy(parts.module(x), y).backward()
        parts.optimizer.step()
        if number == 0:
            break
    with pytest.raises(UsageError, match="unfinished"):
        next(iter(parts.loader))
    assert parts.ledger.count() == 0


# ---- 2. shuffled batches


def test_shuffled_batches() -> None:
    with pytest.raises(UsageError, match="no subsampling guarantee"):
        Made(poisson_sampling=False)
    data = TensorDataset(*records())
    own = DataLoader(data, batch_size=5, sampler=WeightedRandomSampler([1.0] * N, N))
    with pytest.raises(UsageError, match="sampler of its own"):
        Made(loader=own)
    made = Made(loader=DataLoader(data, batch_size=5, shuffle=True), seed=3)
    sizes = set()
    for _ in range(10):
        for x, y in made.loader:
            sizes.add(len(x))
            cross_entropy(made.module(x), y).backward()
            made.optimizer.step()
    assert len(sizes) > 2  # redrawn by independent coins


# ---- 3. what is released without noise


def test_every_trained_parameter_is_noised() -> None:
    """No record, so all that moves is noise: weights, biases, gains and the output layer alike."""
    made = Made(
        network(nn.LayerNorm(8)), data=records(1), batch_size=1, public_size=1000, noise_multiplier=1.0
    )
    before = {name: p.detach().clone() for name, p in made.module.named_parameters()}
    made.step()
    assert made.loader.current is not None
    assert made.loader.current.records == 0
    assert {name.rsplit(".", 1)[0] for name in before} == {"module.0", "module.1", "module.3"}
    for name, p in made.module.named_parameters():
        assert bool((p != before[name]).all()), name


def test_a_parameter_outside_the_stack() -> None:
    with pytest.raises(UsageError, match="not the private module's"):
        Made(extra=(nn.Parameter(torch.zeros(3)),))
    made = Made()
    made.backward()
    next(iter(made.module.parameters())).grad = torch.ones(8, D)
    with pytest.raises(UsageError, match="outside the release"):
        made.optimizer.step()


class Learning(DirectFeedbackAlignment):
    """Its scale follows the errors: a learned feedback matrix in its simplest form."""

    name = "learning"
    refused = Refusal.LEARNS

    def feedback(self, error: Tensor, points: Any, backend: ProjectionBackend | None) -> list[Tensor | None]:
        self.scale += 0.1 * float(error.square().mean())
        return super().feedback(error, points, backend)


class Undeclared(Learning):
    name = "undeclared"
    refused = None


@pytest.mark.parametrize(
    ("rule", "words"), [(Learning, "learns its feedback"), (Undeclared, "after it was used")]
)
def test_learned_feedback(rule: type[DirectFeedbackAlignment], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Made(align_options={"rule": rule()})
    aligned = align(network(), rule=rule(), show=None)  # without privacy it may learn
    x, y = records()
    cross_entropy(aligned(x), y).backward()
    assert all(p.grad is not None for p in aligned.parameters())


# ---- 4. figures, stopping and selection from private data


@pytest.mark.parametrize("release", ["digital", "dark-frame", "device-entropy", "skellam"])
def test_feature_statistics(release: str) -> None:
    """Principal components of private inputs would be a release without noise."""
    with pytest.raises(ValueError, match=f"that release {release} keeps private"):
        small_run(release=release, features="pca:4")


PUBLIC_METRICS = {"step", "epoch", "test_accuracy", "test_loss", "epsilon"}
FIGURES_OF_RECORDS = {
    "training_loss",
    "mean_batch_size",
    "clip_fraction",
    "gradient_norm",
    "training_accuracy",
}


def test_what_a_private_run_shows(tmp_path: Path) -> None:
    summary = small_run(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        assert set(json.loads(line)) == PUBLIC_METRICS
    assert not FIGURES_OF_RECORDS & set(summary)
    assert summary["guarantee"]["kind"] == "record-dp"
    shown = small_run(tmp_path / "unsafe", unsafe_diagnostics=True)
    last = json.loads((tmp_path / "unsafe" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert set(last) & FIGURES_OF_RECORDS
    assert shown["guarantee"]["kind"] == "none"
    assert shown["guarantee"]["epsilon"] == "inf"


def test_training_is_as_long_as_planned(tmp_path: Path) -> None:
    """The number of releases follows from public numbers, also where the loss diverges."""
    steps = {small_run(lr=lr)["releases"] for lr in (0.1, 1e6)}
    assert steps == {2 * round(1437 / 512)}


# ---- 5. seeds and generators


def test_nothing_written_down_repeats_the_noise(tmp_path: Path) -> None:
    """Two runs of one configuration, its seed included, differ; no key is in the folder, only digests of it."""
    folders = [tmp_path / name for name in "ab"]
    accuracies = [small_run(folder, seed=1) for folder in folders]
    assert all(run["guarantee"]["kind"] == "record-dp" for run in accuracies)
    first, second = ((folder / "checkpoint.safetensors").read_bytes() for folder in folders)
    assert first != second
    fingerprints = []
    for folder in folders:
        with Ledger.open(folder / "ledger.sqlite", read_only=True) as ledger:
            rows = ledger.events("key")
            assert [set(row) for row in rows] == [{"at", "fingerprint", "name"}] * len(rows)
            fingerprints += [row["fingerprint"] for row in rows]
    assert len(set(fingerprints)) == len(fingerprints) >= 6
    generator = NoiseGenerator.secure("noise")
    assert generator._key.hex() != generator.fingerprint()


def test_a_resumed_run_takes_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Made(seed=None, engine={"ledger": path}, noise_multiplier=1.0).engine.close()
    made = Made(seed=None, engine={"ledger": path, "resume": True}, noise_multiplier=1.0)
    keys = [row["fingerprint"] for row in made.ledger.events("key")]
    assert len(set(keys)) == len(keys) == 8  # noise, rounding, sampling and masks, twice
    with pytest.raises(UsageError, match="used before"):
        made.ledger.register_key(keys[0], "noise")


def _draw(generator: NoiseGenerator, answer: Any) -> None:
    answer.put(generator.uint64(4).tolist())


def test_workers_do_not_share_a_stream() -> None:
    context = multiprocessing.get_context("fork")
    generator, answer = NoiseGenerator.secure("noise"), context.Queue()
    worker = context.Process(target=_draw, args=(generator, answer))
    worker.start()
    theirs = answer.get(timeout=60)
    worker.join()
    assert theirs != generator.uint64(4).tolist()


@pytest.mark.parametrize("seeded", ["run", "device"])
def test_a_generator_that_is_not_secret(seeded: str) -> None:
    """A known seed anywhere in the noise: no guarantee is claimed."""
    net = network()
    device = create(
        "simulated-opu",
        in_features=CLASSES,
        out_features=8,
        seed=0,
        noise=NoiseGenerator.seeded(0, "device") if seeded == "device" else NoiseGenerator.secure("device"),
        options={"dark_pixels": 4096},
    )
    made = Made(
        net,
        seed=1 if seeded == "run" else None,
        release="dark-frame",
        noise_multiplier=1.0,
        align_options={"backend": device},
    )
    made.step()
    guarantee = made.engine.get_guarantee(1e-5)
    assert guarantee.kind.value == "none"
    assert math.isinf(guarantee.epsilon)


# ---- 6. crashes and resuming


def test_checkpoint_and_ledger_of_different_age(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small_run(run, epochs=1)
    old = (run / "checkpoint.safetensors").read_bytes()
    path = run / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        row = ledger.releases()[-1]
        ledger.append_release(row)  # a step whose weights were lost
        spent = ledger.count()
    assert (run / "checkpoint.safetensors").read_bytes() == old
    summary = small_run(run, epochs=1, resume=True)
    assert summary["releases"] == spent  # it counts: nothing is taken again
    with Ledger.open(path, read_only=True) as ledger:
        epsilon = accounting.epsilon(ledger.tally(), summary["guarantee"]["delta"])
    assert summary["guarantee"]["epsilon"] == pytest.approx(epsilon)
    # A ledger older than the checkpoint: releases are missing.
    other = tmp_path / "other"
    small_run(other, epochs=1)
    path.write_bytes((other / "ledger.sqlite").read_bytes())
    with pytest.raises(UsageError, match="newer than its ledger"):
        small_run(run, epochs=1, resume=True)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_crash_beside_the_record(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the row is written nothing is released; after it the step counts, released or not."""
    made = Made(noise_multiplier=1.0)
    before = made.weights()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "before":
        monkeypatch.setattr(made.ledger, "append_release", crash)
    else:
        assert made.engine.step is not None
        monkeypatch.setattr(type(made.engine.step), "release", crash)
    with pytest.raises(KeyboardInterrupt):
        made.step()
    assert torch.equal(made.weights(), before)
    assert made.ledger.count() == (0 if where == "before" else 1)
    with pytest.raises(UsageError):  # and nothing more comes out of it
        made.optimizer.step()


# ---- 7. the device


def test_a_device_that_changed() -> None:
    """Its gain drops after two steps of 4 frames and a start-up of 10."""
    device = camera(dark_pixels=1 << 17, fault="gain-drop", fault_after=18)
    made = Made(release="dark-frame", noise_multiplier=1.0, align_options={"backend": device})
    made.step()
    made.step()
    before = made.weights()
    with pytest.raises(DeviceError, match="health test"):
        made.step()
    assert torch.equal(made.weights(), before)
    assert made.ledger.count() == 2


def test_quantised_noise_without_dither(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dither is no option. A third of it is accounted for as what it is: the lattice costs all of the budget."""
    options: dict[str, Any] = {"release": "dark-frame", "noise_multiplier": 20.0}
    budget = {"target_epsilon": 1.0, "target_delta": 1e-5}
    made = Made(align_options={"backend": camera()}, **options, **budget)
    made.step()
    assert made.ledger.releases()[0].log_ratio < 1e-13
    monkeypatch.setattr(dark_frame, "TAU", 0.5)
    weak = Made(align_options={"backend": camera()}, **options, **budget)
    before = weak.weights()
    with pytest.raises(BudgetExhaustedError):
        weak.step()
    assert torch.equal(weak.weights(), before)


def test_frames_do_not_depend_on_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many frames for any error of any size, and as many dark ones for any batch."""
    device = camera()
    assert isinstance(device, SimulatedOpuBackend)
    for error in (torch.zeros(5, CLASSES), torch.randn(5, CLASSES), torch.full((5, CLASSES), 1e6)):
        planes = device.encoding.encode(error).planes
        assert len(planes) * device.optics.interferometer.frames == device.frames_per_record
    asked: dict[int, list[int]] = {}
    for count in (1, N):
        device = camera()
        made = Made(
            data=records(count),
            public_size=N,
            release="dark-frame",
            noise_multiplier=1.0,
            align_options={"backend": device},
        )
        seen = asked.setdefault(count, [])
        expose = device.expose

        def counted(frames: int, *, expose: Any = expose, seen: list[int] = seen, **settings: Any) -> Tensor:
            seen.append(frames)
            taken: Tensor = expose(frames, **settings)
            return taken

        monkeypatch.setattr(device, "expose", counted)
        made.step()
    assert asked[1] == asked[N] != []


# ---- 8. what is not finite, and tails


@pytest.mark.parametrize("release", ["digital", "skellam"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_record_that_is_not_finite(value: float, release: str) -> None:
    x, y = records()
    x[4] = value
    kept = [i for i in range(N) if i != 4]
    with_it, without = (
        Made(data=data, public_size=N, release=release).step() for data in ((x, y), (x[kept], y[kept]))
    )
    assert bool(with_it.isfinite().all())
    # The others are rounded by other coins: a grid's spread (a twentieth of C² a record at most).
    assert (with_it - without).norm() <= 2 * C * math.sqrt(0.05 / N) * 3


def test_the_tail_of_the_noise_is_in_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(noise_multiplier=1.0)
    made.step()
    (row,) = made.ledger.releases()
    assert row.mass >= row.dimension * TAIL_MASS
    assert RoundedGaussianSampler(8192.0).largest >= 14 * 8192
    # Releases of real numbers: all-zero bits are the end of the tail, 9.4 sigma, where 32 bits would stop at 6.66.
    generator = NoiseGenerator.seeded(1, "extreme")

    def zeros(buffer: Any, count: int) -> None:
        buffer.view(np.uint8)[: count * buffer.itemsize] = 0

    monkeypatch.setattr(generator, "_fill", zeros)
    assert float(generator.normal_(torch.empty(2)).abs().max()) > 9.4
    assert NORMAL_TAIL_MASS * row.dimension < 1e-15
