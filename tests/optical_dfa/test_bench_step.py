"""Training steps compared: everybody trains every network, ratios are of neighbouring steps, refusals are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from noise_models.errors import UsageError
from optical_dfa.bench import contestants, memory, step
from optical_dfa.bench.busy import SPIN, busy
from optical_dfa.bench.contestants import CONTESTANTS, CannotTrainError, contestant, records_of
from optical_dfa.bench.findings import PICTURE, RESULTS, TABLE, cell, document, draw, keep, table
from optical_dfa.bench.networks import CLASSES, DEFAULT, INPUTS, NETWORKS, UNITS, Network, Recurrent
from optical_dfa.cli import main


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "transformer" else n for n in DEFAULT]
)
def test_everybody_trains_every_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "WARM_UP", 0)
    found = step.run([name], [4], rounds=1)
    [each] = found["cells"]
    assert each["cannot"] == {}
    assert each["rounds"] == dict.fromkeys(CONTESTANTS, 1)
    assert set(each["private_over"]) == set(CONTESTANTS) - {"private"}
    assert min(each["median"].values()) > 0
    assert (each["network"], each["batch_size"], found["busy"]) == (name, 4, 0)


def test_opacus_own_layers_make_the_same_network() -> None:
    """As many weights, on the same records; its cells have the same equations (their documentation)."""
    for network in NETWORKS.values():
        if network.ghost is not None:
            own, theirs = network.build(), network.ghost()
            assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in theirs.parameters())
            x = records_of(network, 1).tensors[0]
            assert own(x).shape == theirs(x).shape


def test_a_refusal_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Network(
        "nn.GRU", lambda: Recurrent(nn.GRU(INPUTS, UNITS, batch_first=True)), NETWORKS["gru"].records
    )
    monkeypatch.setitem(NETWORKS, "refused", refused)
    found = step.run(["refused"], [4], rounds=1, contestants=("backprop", "opacus_hooks", "opacus_ghost"))
    [each] = found["cells"]
    assert set(each["median"]) == {"backprop"}
    assert set(each["cannot"]) == {"opacus_hooks", "opacus_ghost"}
    assert "UnsupportedModuleError" in each["cannot"]["opacus_hooks"]
    text = table(found, "the command")
    assert "| refused | 4 | – | " in text
    assert "| cannot | cannot |" in text
    assert "Opacus hooks cannot train refused at 4: UnsupportedModuleError" in text


def test_a_refusal_in_the_middle_of_a_step_is_told() -> None:
    """Ghost clipping refuses a layer that is called at every time when it is called again."""
    network = Network("unrolled", NETWORKS["gru"].build, NETWORKS["gru"].records)
    taken = contestant("opacus_ghost", network, records_of(network, 4), 4)
    with pytest.raises(CannotTrainError, match="Parameter tying is not supported"):
        taken()


def test_private_trainings_refusal_is_told() -> None:
    batch_norm = Network(
        "mixes records",
        lambda: nn.Sequential(nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, CLASSES)),
        NETWORKS["mlp"].records,
    )
    with pytest.raises(CannotTrainError, match="BatchNorm1d") as told:
        contestant("private", batch_norm, records_of(batch_norm, 4), 4)()
    assert "\n" not in str(told.value)


def test_a_defect_of_plain_training_is_no_refusal() -> None:
    broken = Network("too narrow", lambda: nn.Linear(3, CLASSES), NETWORKS["mlp"].records)
    taken = contestant("backprop", broken, records_of(broken, 4), 4)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        taken()


def test_a_gradient_of_every_record_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["mlp"]
    weights = sum(p.numel() for p in network.build().parameters())
    data = records_of(network, 4)
    monkeypatch.setattr(contestants, "_free_bytes", lambda: 2 * 4 * 4 * weights - 1)
    with pytest.raises(CannotTrainError, match="are free; use a smaller batch"):
        contestant("opacus_hooks", network, data, 4)
    monkeypatch.setattr(contestants, "_free_bytes", lambda: 2 * 4 * 4 * weights)
    assert contestant("opacus_hooks", network, data, 4)() > 0


def test_contestants_take_turns_and_ratios_are_of_neighbours() -> None:
    """The machine gets slower from step to step; the ratio within every round stays."""
    order: list[str] = []

    def taking(name: str, seconds: float) -> Any:
        def taken() -> float:
            order.append(name)
            return seconds * (1 + (len(order) - 1) // 2)

        return taken

    times = step._turns({"private": taking("private", 0.03), "backprop": taking("backprop", 0.01)}, 5)
    assert order == ["private", "backprop"] * 5
    found = cell("mlp", 8, times, {})
    assert found["private_over"] == {"backprop": 3.0}
    assert found["median"] == {"private": 90.0, "backprop": 30.0}  # the third round's
    assert found["rounds"] == {"private": 5, "backprop": 5}


def test_the_slow_leave_early_and_are_compared_in_the_rounds_of_both() -> None:
    slow = iter([1.0, 2.0, 4.0])
    quick = iter([1.0, 1.0, 1.0, *[100.0] * 4])
    assert step.SECONDS == 8
    times = step._turns(
        {"opacus_hooks": lambda: 3 * next(slow), "private": lambda: next(quick), "backprop": lambda: 0.5}, 4
    )
    assert {name: len(values) for name, values in times.items()} == {
        "opacus_hooks": step.LEAST, "private": 4, "backprop": 4
    }  # fmt: skip
    found = cell("mlp", 8, times, {})
    assert found["private_over"]["opacus_hooks"] == round(1 / 6, 3)  # of 1/3, 1/6 and 1/12
    assert found["private_over"]["backprop"] == 2.0


@pytest.mark.parametrize(
    ("network", "batch", "words"),
    [(["mpl"], [4], "'mpl'"), (["mlp"], [0], "batch is 0; it must be at least 1")],
)
def test_what_is_not_there_is_refused_before_anything_runs(
    network: list[str], batch: list[int], words: str
) -> None:
    for run in (step.run, memory.run):
        with pytest.raises(UsageError, match=words):
            run(network, batch)


# ---- what is kept


def _document() -> dict[str, Any]:
    times = {"private": [250.0, 260.0, 255.0], "backprop": [100.0, 100.0, 100.0], "opacus_ghost": [500.0] * 3}
    alone = cell("cnn", 256, {"backprop": [10.0]}, {"private": "no"})
    return document("step", [cell("mlp", 2048, times, {"opacus_hooks": "too large"}), alone], busy=2)


def test_the_table_says_what_was_found() -> None:
    text = table(_document(), "optical-dfa bench step --busy 2")
    assert "| mlp | 2048 | 255 ms | 100 ms, × 2.55 | cannot | 500 ms, × 0.51 |" in text
    assert "| cnn | 256 | cannot | 10 ms | – | – |" in text
    assert "Opacus hooks cannot train mlp at 2048: too large." in text
    assert "1–3 rounds" in text
    assert "beside 2 busy processes" in text
    assert "by rule dfa." in text
    assert text.endswith("Made by `optical-dfa bench step --busy 2`.\n")


def test_a_folder_gets_the_results_a_table_and_a_picture(tmp_path: Path) -> None:
    found = _document()
    keep(found, tmp_path, "the command")
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, TABLE, PICTURE}
    assert (tmp_path / TABLE).read_text(encoding="utf-8") == table(found, "the command")
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_bar_for_whoever_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Heights relative to plain backpropagation, of the paired ratios; none for whoever could not train."""
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plain = Axes.bar

    def bar(self: Axes, places: Any, heights: Any, *rest: Any, label: str, **given: Any) -> Any:
        drawn[label] = list(heights)
        return plain(self, places, heights, *rest, label=label, **given)

    monkeypatch.setattr(Axes, "bar", bar)
    draw(_document(), tmp_path / "a.png")
    assert drawn == {"Private": [2.55], "Opacus hooks": [], "Opacus ghost": [pytest.approx(5.0)]}


# ---- the command


def test_the_command_measures_what_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def run(**given: Any) -> dict[str, Any]:
        asked.append(given)
        return _document()

    monkeypatch.setattr(step, "run", run)
    monkeypatch.setattr(memory, "run", run)
    out = tmp_path / "new" / "folder"
    options = ["--network", "mlp,cnn", "--batch", "8,64", "--rounds", "2"]
    assert main(["bench", "step", *options, "--busy", "2", "--out", str(out)]) == 0
    assert asked == [{"network": ["mlp", "cnn"], "batch": [8, 64], "rounds": 2, "busy": 2}]
    text = (out / TABLE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    command = "optical-dfa bench step --network mlp,cnn --batch 8,64 --rounds 2 --busy 2"
    assert text.endswith(f"Made by `{command}`.\n")
    assert main(["bench", "memory", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == _document() == json.loads((out / RESULTS).read_text())
    assert asked[1:] == [{}]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["noise", "--network", "mlp"], "bench noise takes no --network; it takes: --rounds"),
        (["memory", "--busy", "2"], "bench memory takes no --busy"),
        (["projection", "--out", "a"], "bench projection takes no --out"),
        (["step", "--batch", "8,many"], "batch is '8,many'; it must be whole numbers"),
        (["step", "--network", "mlp,"], "there is no network ''; choose of: mlp, cnn"),
    ],
)
def test_what_a_bench_does_not_take_is_one_line(
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "run", lambda: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    assert main(["bench", "step", "--out", str(tmp_path / "file")]) == 3


# ---- busy processes


def test_busy_processes_spin_and_end_whatever_happens() -> None:
    spinning: list[subprocess.Popen[bytes]] = []

    def interrupted() -> None:
        with busy(2) as processes:
            spinning.extend(processes)
            time.sleep(0.3)
            assert [process.poll() for process in processes] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.returncode for process in spinning] == [-signal.SIGKILL] * 2


def test_a_busy_process_ends_with_its_parent() -> None:
    """As one does whose parent was killed: it has another then."""
    orphan = subprocess.run([sys.executable, "-I", "-c", SPIN, str(os.getpid() + 1)], timeout=20, check=False)
    assert orphan.returncode == 0


def test_the_run_is_beside_the_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    events: list[Any] = []

    @contextmanager
    def counted(count: int) -> Any:
        events.append(("busy", count))
        yield
        events.append("over")

    monkeypatch.setattr(step, "busy_processes", counted)
    monkeypatch.setattr(step, "_cell", lambda name, *_: events.append(name) or cell(name, 4, {}, {}))
    assert step.run(["mlp", "cnn"], [4], busy=3)["busy"] == 3
    assert events == [("busy", 3), "mlp", "cnn", "over"]


# ---- memory

linux = pytest.mark.skipif(not memory._RESET.exists(), reason="needs Linux")

HOLDING = """
import json, torch
from optical_dfa.bench.memory import peak
def hold(mebibytes):
    torch.ones(mebibytes, 1 << 18)
    torch.ones(mebibytes, 1 << 18)
held = torch.ones(96, 1 << 18)
print(json.dumps([peak(lambda: hold(64)), peak(lambda: hold(24))]))
"""


@linux
def test_a_peak_is_what_was_held_at_once() -> None:
    """Not what stood before, nor what an earlier part of the process held."""
    told = subprocess.run(
        [sys.executable, "-c", HOLDING],
        env={**os.environ, **memory._GIVEN_BACK},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(told.stdout) == [pytest.approx(64, abs=4), pytest.approx(24, abs=4)]


def test_memory_is_compared_over_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[float | str]] = {
        "private": [30.0, 90.0, 32.0], "backprop": [20.0, 20.0, 20.0], "opacus_hooks": ["too large"],
        "opacus_ghost": [40.0, 41.0, 42.0],
    }  # fmt: skip
    monkeypatch.setattr(memory, "_fresh_process", lambda network, batch, name: told[name].pop(0))
    monkeypatch.setattr(memory, "_RESET", Path(__file__))
    found = memory.run(["mlp"], [2048])
    [each] = found["cells"]
    assert each["median"] == {"private": 32.0, "backprop": 20.0, "opacus_ghost": 41.0}
    assert each["private_over"]["backprop"] == 1.6
    assert each["cannot"] == {"opacus_hooks": "too large"}
    assert "| mlp | 2048 | 32 MiB | 20 MiB, × 1.60 | cannot | 41 MiB, × 0.76 |" in table(found, "the command")


@linux
def test_plain_training_holds_its_gradients() -> None:
    """With the products of one record they are all that a step of one record takes."""
    weights = sum(p.numel() for p in NETWORKS["mlp"].build().parameters())
    taken = memory._fresh_process("mlp", 1, "backprop")
    assert taken == pytest.approx(4 * weights / 2**20, rel=0.2)


@linux
@pytest.mark.slow
def test_memory_end_to_end() -> None:
    [each] = memory.run(["gru"], [64], rounds=1)["cells"]
    assert each["cannot"] == {}
    assert min(each["median"].values()) > 0
