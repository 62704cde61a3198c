"""All that a run computes is computed on its device: on a stand-in for an accelerator, with the CPU's own results.

`other_device` refuses what torch would refuse on an accelerator. It has the CPU's kernels, so that comparisons are
to the bit, but for products of int8, which only the CPU takes: they are left out on both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from other_device import OTHER, Elsewhere, WrongDeviceError, other_device
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from noise_models import places
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.bench.networks import DEFAULT, NETWORKS
from optical_dfa.cli import main
from optical_dfa.config import TrainConfig
from optical_dfa.feedback import RULES
from optical_dfa.training import trainer
from optical_dfa.training.layers import LayerParallel
from privacy.auditing.audit import audit
from privacy.contributions import integers
from privacy.engine import PrivacyEngine
from privacy.releases import RELEASES

RECORDS, BATCH, CLASSES = 48, 8, 4


@pytest.fixture(autouse=True)
def _products_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers, "multiplies_int8", lambda *_: False)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def numbers(*shape: int) -> Tensor:
    return torch.randn(RECORDS, *shape, generator=torch.Generator().manual_seed(2))


def trained(
    elsewhere: bool,
    *,
    network: Callable[[], nn.Module] = mlp,
    records: tuple[Tensor, Tensor] | None = None,
    rule: str = "dfa",
    backend: str = "digital",
    backend_options: dict[str, Any] | None = None,
    release: str | None = "digital",
    steps: int = 2,
    **release_options: Any,
) -> Tensor:
    """All weights after some steps, private unless `release` is None."""
    x, y = (numbers(12), torch.arange(RECORDS) % CLASSES) if records is None else records
    torch.manual_seed(0)
    net = network()
    with other_device() if elsewhere else nullcontext(places.CPU) as place:
        module = align(
            net.to(place),
            rule=rule,
            backend=backend,
            backend_options=backend_options or {},
            example=x[:1],
            loss_reduction="sum",
            noise=NoiseGenerator.seeded(1, "device"),
            seed=3,
            show=None,
        )
        optimizer: Any = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        loader: Any = DataLoader(TensorDataset(x, y), batch_size=BATCH)
        engine = PrivacyEngine(reproducible_seed=1)
        if release is not None:
            module, optimizer, loader = engine.make_private(
                module=module,
                optimizer=optimizer,
                data_loader=loader,
                noise_multiplier=1.0,
                max_grad_norm=1.0 if RELEASES[release].clips else None,
                release=release,
                release_options=release_options,
            )
        for _, (inputs, targets) in zip(range(steps), loader, strict=False):
            optimizer.zero_grad()
            logits = module(inputs.to(place))
            loss = cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.to(place).flatten(), reduction="sum"
            )
            loss.backward()
            optimizer.step()
        for p in module.parameters():
            assert isinstance(p, Elsewhere) == elsewhere
        weights = torch.cat([p.detach().cpu().flatten() for p in module.parameters()])
        engine.close()
    assert bool(weights.isfinite().all())
    return weights


def alike(**given: Any) -> None:
    assert torch.equal(trained(True, **given), trained(False, **given))


# ---- the stand-in itself


def test_the_stand_in_refuses_what_an_accelerator_would() -> None:
    here = torch.ones(3)
    with other_device() as place:
        there = here.to(place)
        assert there.device == place
        assert (there + 1).cpu().tolist() == [2.0] * 3
        number = torch.tensor(2.0)  # may be anywhere in what is done element by element
        assert (there * number).tolist() == (number * there).tolist() == [2.0] * 3
        assert torch.where(there > 0, number, there).tolist() == [2.0] * 3
        assert torch._foreach_mul([there], number)[0].tolist() == [2.0] * 3
        assert there[torch.tensor([0, 1])].device == there[[0, 1]].device == place
        assert torch.tensor([1.0], device=place).device == torch.zeros_like(there).device == place
        refused: list[Callable[[], object]] = [
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: torch.stack([number, there.sum()]),
            lambda: torch.cat([number[None], there]),
            lambda: torch.gather(there, 0, torch.tensor(0)),
            lambda: torch.index_select(there, 0, torch.tensor(0)),
            lambda: number.add_(there.sum()),
            lambda: torch.randn(3, generator=torch.Generator(), device=place),
            lambda: nn.Linear(3, 2)(there),
        ]
        for call in refused:
            with pytest.raises(WrongDeviceError):
                call()
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param("privacy.releases.source.add_drawn", marks=pytest.mark.slow),
        "optical_dfa.feedback.aligned.place_of",
    ],
)
def test_a_planted_mistake_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is added where it was drawn; random records that are made on the CPU."""
    wrong: dict[str, Callable[..., Any]] = {
        "add_drawn": lambda total, draw: total.add_(torch.zeros(total.shape, dtype=total.dtype)),
        "place_of": lambda module: places.CPU,
    }
    monkeypatch.setattr(plant, wrong[plant.rpartition(".")[2]])
    with pytest.raises((WrongDeviceError, UsageError), match="on the CPU"):
        trained(True, steps=1)


# ---- the seam

# What only one file may ask of torch, and where the same text means something else.
DEVICES = re.compile(
    r"torch\.cuda|torch\.accelerator|\.cuda\(|\.cpu\(\)|pin_memory|torch\.autocast|Generator\(device"
    r"|[\"'](cuda|mps|xpu)[\"']|synchronize"
)
ELSEWHERE = {
    "noise_models/places.py",
    "privacy/loader_workers.py",  # a DataLoader's settings by name
    "optical_dfa/capture/state.py",  # tensors without numbers (meta)
    "optical_dfa/capture/program.py",
}


def test_what_depends_on_a_device_stands_in_one_file() -> None:
    root = Path(places.__file__).parents[1]
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for room in ("noise_models", "privacy", "optical_dfa")
        for path in sorted((root / room).rglob("*.py"))
        if str(path.relative_to(root)) not in ELSEWHERE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if DEVICES.search(line.partition("#")[0])
    ]
    assert found == []


@pytest.mark.parametrize("count", [0, 1, 5, (8 << 15) + 3])
def test_blocks_of_draws_are_those_of_the_whole(count: int) -> None:
    def drawn(total: Tensor) -> Tensor:
        generator = NoiseGenerator.seeded(0, "noise")
        places.add_drawn(total, lambda block: generator.add_normal_(block, 2.0))
        return total.cpu()

    with other_device() as place:
        assert torch.equal(drawn(torch.zeros(count, device=place)), drawn(torch.zeros(count)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "device 'cuda' cannot be used here"),
        # What names no device at all is refused with what does, before torch is asked.
        ("nonsense", "device is 'nonsense'; it must be cpu, cuda, cuda:N or mps"),
        ("meta:x", "device is 'meta:x'; it must be cpu, cuda, cuda:N or mps"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["train", "--dataset", "digits", "--device", name]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


# ---- the private step


def test_a_private_step_is_the_cpus() -> None:
    alike()


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"release": "skellam"},
        {"release": "per-record"},
        {"release": "label", "rule": "shallow"},
        {"release": "aggregate", "rule": "gated-dfa"},
        {"release": "dark-frame", "backend": "simulated-opu"},
        {"release": "dark-frame", "backend": "simulated-opu", "digits": 10},
        {"release": "device-entropy", "backend": "simulated-opu"},
        {
            "release": "photon",
            "rule": "gated-dfa",
            "backend": "simulated-opu",
            "backend_options": {"method": "homodyne"},
        },
        {"backend": "simulated-opu"},
        {"backend": "streamed"},
        {"backend": "structured"},
        {"backend": "digital", "backend_options": {"distribution": "sparse"}},
        {"rule": "bp"},
    ],
    ids=lambda given: "-".join(str(value) for value in given.values()),
)
def test_every_release_and_backend_is_the_cpus(given: dict[str, Any]) -> None:
    alike(**given)


def test_every_release_is_looked_at() -> None:
    mark = next(m for m in test_every_release_and_backend_is_the_cpus.pytestmark if m.name == "parametrize")
    assert {given.get("release", "digital") for given in mark.args[1]} == set(RELEASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULT)
def test_the_networks_of_the_bench_are_the_cpus(name: str) -> None:
    network = NETWORKS[name]
    records = network.records(RECORDS, torch.Generator().manual_seed(0))
    alike(network=network.build, records=records, rule=network.rule)


CONVOLUTIONAL = {"cdfa", "dilated", "grouped", "hybrid", "modular"}
RECURRENT = {"sparse-recurrent", "recurrent-hybrid"}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from optical_dfa.networks.recurrent import GRU

        self.layer, self.read_out = GRU(3, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.read_out(self.layer(x)[:, -1])
        return found


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, CLASSES),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_teaches_as_on_the_cpu(rule: str) -> None:
    make, x = mlp, numbers(12)
    if rule in CONVOLUTIONAL:
        make, x = small_cnn, numbers(2, 4, 4)
    if rule in RECURRENT:
        make, x = Recurrent, numbers(3, 3)
    alike(network=make, records=(x, torch.arange(RECORDS) % CLASSES), rule=rule, release=None)


def test_layers_of_one_process_each_are_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process alone, with all layers; also what it would receive the error of another into."""
    unknown, found = LayerParallel._unknown_error, []

    def noted(self: LayerParallel, targets: Tensor) -> Tensor:
        error = unknown(self, targets)
        assert error.device == targets.device
        return error

    monkeypatch.setattr(LayerParallel, "_unknown_error", noted)
    x, y = numbers(12), torch.arange(RECORDS) % CLASSES
    for elsewhere in (False, True):
        torch.manual_seed(0)
        net = mlp()
        with other_device() if elsewhere else nullcontext(places.CPU) as place:
            module = align(net.to(place), rule="dfa", backend="digital", example=x[:1], seed=3, show=None)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
            layers = LayerParallel(module, optimizer, cross_entropy, parts=2)
            for _ in range(3):
                loss, _ = layers.step(x.to(place), y.to(place), [1])
            assert loss is not None
            weights = [p.detach().cpu().flatten() for p in module.parameters()]
            found.append(torch.cat([loss.detach().cpu()[None], *weights]))
    assert torch.equal(*found)


# ---- the program


def run(folder: Path, place: str, **how: Any) -> dict[str, Any]:
    config = TrainConfig(
        dataset="digits",
        model="mlp:16",
        noise_multiplier=1.0,
        epochs=how.pop("epochs", 1),
        batch_size=512,
        seed=3,
        reproducible=True,
        device=place,
    )
    return trainer.train(config, folder, **how)


@pytest.mark.slow
def test_the_program_trains_keeps_and_resumes_as_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation, checkpoint, ledger and audit; each folder goes on on the other device."""
    monkeypatch.setattr(trainer, "usable", lambda name: places.CPU if name == "cpu" else OTHER)
    here = run(tmp_path / "here", "cpu")
    with other_device():
        there = run(tmp_path / "there", "cuda")
        assert there["test_accuracy"] == here["test_accuracy"]
        assert math.isclose(there["test_loss"], here["test_loss"], rel_tol=1e-6)
        there = run(tmp_path / "here", "cuda", epochs=2, resume=True)
    here = run(tmp_path / "there", "cpu", epochs=2, resume=True)
    assert there["test_accuracy"] == here["test_accuracy"]
    for name in ("here", "there"):
        assert audit(tmp_path / name).consistent
        assert json.loads((tmp_path / name / "summary.json").read_text())["releases"] == here["releases"]


def two_classes(folder: Path) -> str:
    drawn = np.random.default_rng(5)
    x = drawn.standard_normal((3 * RECORDS, 6)).astype(np.float32)
    y = (x[:, 0] + drawn.standard_normal(len(x)) > 0).astype(np.int64)
    arrays = {"x_train": x[RECORDS:], "y_train": y[RECORDS:], "x_test": x[:RECORDS], "y_test": y[:RECORDS]}
    np.savez(folder / "two.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "two.npz")


@pytest.mark.parametrize(
    "how",
    [pytest.param({"diagnose": True}, marks=pytest.mark.slow), {}],
    ids=lambda how: "".join(how) or "plain",
)
def test_two_classes_and_their_diagnosis_are_the_cpus(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The area under the curve, mean losses, and what the diagnosis looks at."""
    monkeypatch.setattr(trainer, "usable", lambda name: places.CPU if name == "cpu" else OTHER)
    data, found = two_classes(tmp_path), []
    for place in ("cpu", "cuda"):
        config = TrainConfig(
            dataset=data, model="mlp:8", rule="dfa", release="none", backend="digital", epochs=2, batch_size=32,
            lr=0.1, seed=3, device=place, **how,
        )  # fmt: skip
        with other_device() if place == "cuda" else nullcontext():
            summary = trainer.train(config, tmp_path / place)
        lines = (tmp_path / place / "metrics.jsonl").read_text().splitlines()
        found.append((summary["test_auc"], summary["test_accuracy"], [json.loads(line) for line in lines]))
    assert found[0] == found[1]
    assert 0.5 < found[0][0] < 1
    assert ("estimator_bias" in found[0][2][-1]) == ("diagnose" in how)
