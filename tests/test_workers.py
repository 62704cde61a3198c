"""Several workers train as one: the same released sums, the same guarantee, one ledger; what parts them is refused.

Two workers (gloo, in processes of their own) go through all scenes in one group, one worker through those that are
compared. A scene is a function of this file; what it returns, or the line it raised, is what the tests look at.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from processes import together
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import PrivacyEngine, align
from optical_dfa.cli import main
from privacy import accounting
from privacy.auditing.audit import audit
from privacy.contributions.rounding import _Lane
from privacy.errors import WorkerLostError
from privacy.ledger import Ledger
from privacy.releases import RELEASES
from privacy.releases.step import StepRelease
from privacy.sampling import PoissonLoader
from privacy.workers import Workers, joined

RECORDS, INPUTS, CLASSES, BATCH, SEED, DELTA = 37, 12, 3, 8, 5, 1e-3
WORKERS = 2


def rank() -> int:
    return Workers.here().rank


class Made:
    """A private run over all workers; `data` and `seed` may be another worker's own."""

    def __init__(
        self,
        release: str = "digital",
        *,
        records: int = RECORDS,
        data: TensorDataset | None = None,
        seed: int = 0,
        engine: PrivacyEngine | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        **given: Any,
    ) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(records, INPUTS), torch.randint(0, CLASSES, (records,))
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        rule = "gated-dfa" if release == "aggregate" else "dfa"
        aligned = align(net, rule=rule, backend="digital", loss_reduction="sum", show=None)
        self.engine = PrivacyEngine(reproducible_seed=SEED) if engine is None else engine
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=wrap(aligned),
            optimizer=torch.optim.SGD(aligned.parameters(), lr=0.1, momentum=0.9),
            data_loader=DataLoader(
                TensorDataset(x, y) if data is None else data, batch_size=min(BATCH, records)
            ),
            release=release,
            **{"noise_multiplier": 1.0, "max_grad_norm": 0.5, **given},
        )
        self.sizes: list[int] = []

    def steps(self, before: Callable[[int], None] = lambda step: None) -> Iterator[Tensor]:
        """What is released, step by step."""
        ledger = self.engine.ledger
        assert ledger is not None
        while True:
            for x, y in self.loader:
                before(count := ledger.count())
                self.optimizer.zero_grad()
                cross_entropy(self.module(x), y, reduction="sum").backward()
                self.optimizer.step()
                self.sizes.append(len(x))
                if ledger.count() > count:
                    yield torch.cat(
                        [p.grad.flatten() for p in self.module.parameters() if p.grad is not None]
                    )

    def take(self, count: int) -> list[np.ndarray]:
        return [grad.numpy().copy() for grad, _ in zip(self.steps(), range(count), strict=False)]

    def weights(self) -> bytes:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()]).numpy().tobytes()


# ---- scenes that one worker plays, too


def released(release: str, coin: int, **given: Any) -> Any:
    """Five releases, how many records were in every part of a batch, the weights at the end, and the guarantee.

    Every rounding's coin is alike: a record's whole numbers are then the same, whatever else its worker rounds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Lane, "_drawn", lambda self, count: torch.full((count, 1), float(coin)))
        made = Made(release, **given)
        found = made.take(5)
        assert made.engine.ledger is not None
        return (
            found,
            made.sizes,
            made.weights(),
            None if given else made.engine.get_guarantee(DELTA).to_dict(),
        )


COMPARED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "digital": (released, ("digital", 4660)),
    "digital in parts": (partial(released, max_physical_batch_size=3), ("digital", -20_000)),
    "empty share": (partial(released, records=1, public_size=2), ("digital", 4660)),
}
OTHERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "skellam": (released, ("skellam", 20_000)),
    "aggregate": (released, ("aggregate", -4660)),
}


# ---- scenes of several workers


def told_apart(**given: Any) -> Any:
    """What is said when the last worker is given something else."""
    return Made(**(given if rank() else {}))


def other_records() -> Any:
    torch.manual_seed(9)
    order = torch.randperm(RECORDS)
    torch.manual_seed(0)
    x, y = torch.randn(RECORDS, INPUTS), torch.randint(0, CLASSES, (RECORDS,))
    return told_apart(data=TensorDataset(x[order], y[order]))


def other_weights() -> Any:
    """The first step is refused before anything is released."""
    made = told_apart(seed=rank())
    before = made.weights()
    try:
        made.take(1)
    except UsageError as error:
        return str(error), made.engine.ledger.count(), made.weights() == before
    return None


def averaged() -> Any:
    return Made(wrap=lambda module: nn.parallel.DistributedDataParallel(module))


def not_summed(release: str) -> Any:
    return Made(release, **({} if RELEASES[release].clips else {"max_grad_norm": None}))


def a_worker_fails(folder: Path) -> Any:
    """The last worker's third batch has no backward pass that reaches it."""
    made = Made(engine=PrivacyEngine(ledger=folder / "fails.sqlite"))

    def before(step: int) -> None:
        if step == 2 and rank():
            made.engine.step._factored.factors = None  # type: ignore[union-attr]

    return stopped(made, before)


def a_worker_is_killed(folder: Path) -> Any:
    made = Made(engine=PrivacyEngine(ledger=folder / "killed.sqlite"))

    def before(step: int) -> None:
        if step == 2 and rank():
            os.kill(os.getpid(), signal.SIGKILL)

    return stopped(made, before)


def stopped(made: Made, before: Callable[[int], None]) -> Any:
    """The line that ends a run, rows of its ledger, whether the weights moved since, and a further step's line."""
    weights = made.weights()
    try:
        for _ in made.steps(before):
            weights = made.weights()
    except Exception as error:
        line = f"{type(error).__name__}: {error}"
    ledger = made.engine.ledger
    assert ledger is not None
    moved = made.weights() != weights
    try:
        made.optimizer.step()
    except UsageError as error:
        return line, ledger.count(), moved, str(error)
    return None


def command(folder: Path, *arguments: str) -> Any:
    """Exit code, output and errors of the program."""
    out, errors = io.StringIO(), io.StringIO()
    workers = Workers.here()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.chdir(folder)
        patch.setenv("WORLD_SIZE", str(workers.count))
        code = main(list(arguments))
    return code, out.getvalue(), errors.getvalue()


SIZES = ("--model", "mlp:8", "--batch-size", "300", "--delta", "1e-4", "--backend", "digital")
BEGIN = ("train", "--dataset", "digits", *SIZES, "--noise-multiplier", "2", "--epochs", "1", "--out", "run")
GO_ON = ("train", "--resume", "--out", "run", "--epochs")
APART: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "other norm": (lambda: told_apart(max_grad_norm=0.25), ()),
    "fewer records": (lambda: told_apart(records=RECORDS - 1, public_size=RECORDS), ()),
    "other records": (other_records, ()),
    "other weights": (other_weights, ()),
    "averaged": (averaged, ()),
    "label": (not_summed, ("label",)),
    "per-record": (not_summed, ("per-record",)),
}


def play(scenes: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, (scene, given) in scenes.items():
        try:
            found[name] = scene(*given)
        except UsageError as error:
            found[name] = str(error)
    return found


def all_scenes(folder: Path) -> Any:
    """The last one kills a worker, so that what was seen before is kept in a file."""
    found = play({**COMPARED, **APART})
    found["goes on"] = command(folder, *GO_ON, "2")
    found["none"] = command(folder, "train", "--dataset", "digits", "--release", "none")
    found["fails"] = a_worker_fails(folder)
    there = PrivacyEngine(ledger=folder / "fails.sqlite")
    found |= play({"ledger there": (lambda: Made(engine=there), ())})
    (folder / f"scenes {rank()}").write_bytes(pickle.dumps(found))
    return a_worker_is_killed(folder)


# ---- what is seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the scenes' files, with a run that one worker began."""
    folder = tmp_path_factory.mktemp("scenes")
    code, _, errors = command(folder, *BEGIN)
    assert code == 0, errors
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """What one worker saw."""
    (found,) = together(play, 1, folder / "alone", COMPARED)
    return dict(found)


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    """What each of two workers saw; "killed" is the scene that only the first lived through."""
    (killed, gone) = together(all_scenes, WORKERS, folder / "together", folder)
    assert gone is None
    found = [pickle.loads((folder / f"scenes {number}").read_bytes()) for number in range(WORKERS)]
    found[0]["killed"] = killed
    return found


@pytest.mark.parametrize("scene", list(COMPARED))
def test_several_workers_release_what_one_does(
    scene: str, alone: dict[str, Any], seen: list[dict[str, Any]]
) -> None:
    """To the bit, for the same coins and noise, and so do the weights; the guarantee is the same."""
    releases, sizes, *stated = alone[scene]
    assert len(releases) == 5
    for found in seen:
        assert all(map(np.array_equal, found[scene][0], releases))
        assert list(found[scene][2:]) == stated
    if scene == "empty share":  # one record, which the last worker has
        assert set(sizes) == {0, 1}
        assert [found[scene][1] for found in seen] == [[0] * len(sizes), sizes]
    elif scene == "digital":
        assert [sum(parts) for parts in zip(*(found[scene][1] for found in seen), strict=True)] == sizes
        assert all(0 < sum(found[scene][1]) < sum(sizes) for found in seen)
    else:
        assert len({tuple(found[scene][1]) for found in seen}) == WORKERS


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("other norm", "worker 1 was given another max_grad_norm than worker 0"),
        ("fewer records", "worker 1 has another number of records than worker 0"),
        ("other records", "worker 1 has another sample of the records than worker 0"),
        (
            "averaged",
            "DistributedDataParallel, which would average gradients that were neither clipped nor noised",
        ),
        ("label", "release label on 2 workers is not served"),
        ("per-record", "release per-record on 2 workers is not served"),
    ],
)
def test_what_parts_workers_is_refused_by_all(scene: str, words: str, seen: list[dict[str, Any]]) -> None:
    for found in seen:
        assert words in found[scene]


def test_what_the_first_worker_alone_refuses_ends_the_others_too(seen: list[dict[str, Any]]) -> None:
    assert "fails.sqlite exists: continue that run" in seen[0]["ledger there"]
    assert seen[1]["ledger there"] == (
        "worker 0 stopped and says why in a line of its own; nothing more is released"
    )


def test_other_weights_on_one_worker_are_refused_before_a_release(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        line, releases, kept = found["other weights"]
        assert "worker 1 has other weights than worker 0; nothing is released" in line
        assert releases == 0
        assert kept


def test_a_worker_that_stops_stops_the_step_before_its_release(
    folder: Path, seen: list[dict[str, Any]]
) -> None:
    """By an error of its own, or killed: no row, no release, and the others say so in one line."""
    assert seen[0]["fails"][0] == (
        "WorkerLostError: worker 1 stopped and says why in a line of its own; nothing more is released"
    )
    assert seen[1]["fails"][0].startswith("TypeError")
    assert seen[0]["killed"][0].startswith("WorkerLostError: another worker is gone or hangs (")
    assert "\n" not in seen[0]["killed"][0]
    for scene, found in (("fails", seen[0]), ("fails", seen[1]), ("killed", seen[0])):
        _, releases, moved, again = found[scene]
        assert releases == 2
        assert not moved
        assert "no further one is released" in again
    for name in ("fails", "killed"):
        with Ledger.open(folder / f"{name}.sqlite") as ledger:
            assert ledger.count() == 2


def test_a_run_moves_between_one_worker_and_several(folder: Path, seen: list[dict[str, Any]]) -> None:
    """Begun by one, taken on by two and then by one: one ledger, one budget, no key twice; one worker speaks."""
    assert [found["goes on"][0] for found in seen] == [0, 0]
    assert "guarantee: (ε, δ)" in seen[0]["goes on"][1]
    assert seen[1]["goes on"][1:] == ("", "")
    code, _, errors = command(folder, *GO_ON, "3")
    assert code == 0, errors
    report = audit(folder / "run")
    assert report.findings == ()
    with Ledger.open(folder / "run" / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.count() == 3 * 5
        names = [row["name"] for row in ledger.events("key")]
        assert {name: names.count(name) for name in names} == {
            **dict.fromkeys(("noise", "rounding", "sampling", "masks"), 3),
            **dict.fromkeys(
                (f"{name} of worker 1" for name in ("noise", "rounding", "sampling", "masks")), 1
            ),
        }
        stated = json.loads((folder / "run" / "summary.json").read_text())["guarantee"]
        assert stated["epsilon"] == report.reported_epsilon == accounting.epsilon(ledger.tally(), 1e-4)


def test_training_without_privacy_is_refused_in_one_line(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        code, out, errors = found["none"]
        assert (code, out) == (2, "")
        assert errors.startswith("error: release none on 2 workers is not served")
        assert errors.count("\n") == 1


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0"}])
def test_a_launchers_incomplete_variables_are_one_line(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="start them with torchrun"), joined():
        pass


def test_a_release_that_adds_up_nothing_is_made_by_one_process() -> None:
    with pytest.raises(UsageError, match="release own on 2 workers is not served"):
        StepRelease.add_up(SimpleNamespace(source=SimpleNamespace(name="own")), Workers(0, 2))  # type: ignore[arg-type]


def talks() -> list[Any]:
    """A collective of the script's own, begun before a talk on one worker and after it on the other; then one hangs."""
    workers = Workers.here()
    workers.gather(0)  # as make_private does
    sum_, begun = torch.tensor([10.0**workers.rank]), None
    if workers.first:
        begun = torch.distributed.all_reduce(sum_, async_op=True)
    said: list[Any] = workers.gather(f"worker {workers.rank}")
    if begun is None:
        torch.distributed.all_reduce(sum_)
    else:
        begun.wait()
    said.append(float(sum_))
    if not workers.first:
        time.sleep(4)
        return said
    try:
        workers.meet(0)
    except WorkerLostError as error:
        said.append(str(error))
    return said


def test_workers_talk_in_a_group_of_their_own_with_a_time_limit(tmp_path: Path) -> None:
    [first, other] = together(talks, 2, tmp_path / "group", seconds=2)
    assert other == ["worker 0", "worker 1", 11.0]
    assert first[:3] == other
    assert first[3].startswith("another worker is gone or hangs (Timed out waiting 2000ms")
    assert "\n" not in first[3]


def test_a_worker_that_never_joins_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.workers.JOINING", timedelta(seconds=1))
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="one that stopped before says why") as error, joined():
        pass
    assert "\n" not in str(error.value)


def test_a_group_that_comes_after_make_private_is_refused() -> None:
    """Each process would go on by itself, with a ledger of its own."""
    made = Made()
    x, y = next(iter(made.loader))
    cross_entropy(made.module(x), y, reduction="sum").backward()
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        with pytest.raises(
            UsageError, match="this is process 1 of 2, and was 0 of 1 when it made the module private"
        ):
            made.optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    made.optimizer.step()


# ---- longer: four workers, devices, torchrun, Ctrl-C


@pytest.mark.slow
def test_four_workers_release_what_one_does(tmp_path: Path) -> None:
    scenes = {**COMPARED, **OTHERS}
    (alone,) = together(play, 1, tmp_path / "alone", scenes)
    for found in together(play, 4, tmp_path / "together", scenes):
        for scene in scenes:
            assert all(map(np.array_equal, found[scene][0], alone[scene][0]))
            assert found[scene][2:] == alone[scene][2:]


def trained(folder: Path, *arguments: str) -> Any:
    return command(
        folder, "train", "--dataset", "digits", "--model", "mlp:16", "--batch-size", "300", *arguments
    )


@pytest.mark.slow
@pytest.mark.parametrize("release", [name for name in RELEASES.built_in if RELEASES[name].workers])
def test_every_release_of_a_sum_is_served(release: str, tmp_path: Path) -> None:
    """A device's noise is the first worker's device's."""
    given = ("--epochs", "1", "--release", release, "--epsilon", "8", "--delta", "1e-4", "--out", "run")
    outcomes = together(trained, 2, tmp_path / "group", tmp_path, *given)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    report = audit(tmp_path / "run")
    assert report.findings == ()
    assert report.releases == 5


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["resumed", "overwritten"])
def test_torchrun_starts_workers_again_and_they_resume(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Worker 1 is killed once, by itself, after eight releases of its first life."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\nfrom privacy.ledger import Ledger\nfrom optical_dfa.cli import main\n"
        "follow, seen = Ledger.follow, []\n"
        "def counted(ledger, rows):\n"
        "    follow(ledger, rows)\n"
        "    seen.append(ledger.count())\n"
        "    if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and ledger.count() == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger.follow = counted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "--max-restarts=1",
    ]
    done = subprocess.run(
        [*launcher, str(script), *BEGIN, "--epochs", "3", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if flags:
        assert done.returncode != 0
        assert "--overwrite would delete the ledger of the run that they began in run" in done.stderr
        with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
            assert ledger.count() >= 8
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guarantee: (ε, δ)") == 1
    report = audit(tmp_path / "run")
    assert report.findings == ()
    assert report.releases == 3 * 5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] < summary["releases"]  # what was lost was paid for


def interrupted(folder: Path) -> Any:
    """Ctrl-C reaches all workers at once, in their seventh batch."""
    absorb, seen = StepRelease.absorb, []

    def counted(release: StepRelease, *, first: bool) -> None:
        seen.append(first)
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        absorb(release, first=first)

    StepRelease.absorb = counted  # type: ignore[method-assign]
    return command(folder, *BEGIN, "--epochs", "40")


@pytest.mark.slow
def test_ctrl_c_of_all_workers_keeps_the_last_step(tmp_path: Path) -> None:
    outcomes = together(interrupted, 2, tmp_path / "group", tmp_path)
    assert [code for code, _, _ in outcomes] == [130, 130], outcomes
    assert "--resume" in outcomes[0][2]
    assert outcomes[1][2] == ""
    report = audit(tmp_path / "run")
    assert report.findings == ()
    code, _, errors = command(tmp_path, *GO_ON, "2")
    assert code == 0, errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == summary["releases"] == 2 * 5


@pytest.mark.parametrize(
    ("started", "of", "documents"),
    [("0", "2", 1), ("1", "2", 0), ("1", None, 1)],
    ids=["first", "other", "alone"],
)
def test_a_mistake_of_all_workers_is_one_document(
    started: str,
    of: str | None,
    documents: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A launcher's variable that was left behind makes nobody another worker."""
    monkeypatch.setenv("RANK", started)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if of is not None:
        monkeypatch.setattr(
            "privacy.workers.joined", lambda: contextlib.nullcontext(Workers(int(started), 1))
        )
        monkeypatch.setenv("WORLD_SIZE", of)
    assert main(["train", "--release", "nonsense", "--json"]) == 2
    out, errors = capsys.readouterr()
    assert out.count('"exit_code": 2') == documents
    assert errors.count("\n") == 1


# ---- shares and coins


@pytest.mark.parametrize("size", [0, 1, 5, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_record_is_in_one_share(size: int, count: int) -> None:
    shares = [range(*Workers(number, count).share(size)) for number in range(count)]
    assert [record for share in shares for record in share] == list(range(size))


def drawn(size: int, rate: float, steps: int, names: list[str]) -> np.ndarray:
    """Which records were in which step, shape (steps, size), by workers whose coins have these names."""
    loader = DataLoader(TensorDataset(torch.arange(size)), batch_size=1)
    found = np.zeros((steps, size), dtype=np.int64)
    for number, name in enumerate(names):
        coins = NoiseGenerator.seeded(SEED, name)
        mine = PoissonLoader(loader, rate, steps, coins, workers=Workers(number, len(names)))
        for step, (records,) in enumerate(mine):
            found[step, records.numpy()] += 1
            mine._note_step()
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_seed_draws_the_same_records_for_any_number_of_workers(count: int) -> None:
    assert np.array_equal(drawn(41, 0.3, 20, ["coins"] * count), drawn(41, 0.3, 20, ["coins"]))


def test_shares_are_drawn_independently_with_the_same_rate() -> None:
    """Keys of their own, shares of 3 and 4: the law of all 2^7 batches is Bernoulli's (false alarm 1e-6)."""
    rate, steps, size = 0.4, 2500, 7
    found = drawn(size, rate, steps, ["sampling", "sampling of worker 1"])
    assert found.max() == 1
    seen = np.bincount(found @ (1 << np.arange(size)), minlength=1 << size)
    sizes = np.array([number.bit_count() for number in range(1 << size)])
    expected = steps * rate**sizes * (1 - rate) ** (size - sizes)
    assert expected.min() > 4
    assert stats.chisquare(seen, expected).pvalue > 1e-6
    shared = drawn(
        size, rate, steps, ["sampling", "sampling"]
    )  # one key, but each record has a coin of its own
    assert (
        stats.chisquare(np.bincount(shared @ (1 << np.arange(size)), minlength=1 << size), expected).pvalue
        > 1e-6
    )
