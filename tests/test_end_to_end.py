"""Whole runs of the program on the digits: what is written, what is said, and that both are true."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from noise_models.errors import UsageError
from optical_dfa.cli import main
from optical_dfa.config import TrainConfig
from optical_dfa.runs.folder import RunFolder
from optical_dfa.training.trainer import train
from privacy import accounting
from privacy.auditing.audit import audit
from privacy.ledger import Ledger

RECORDS = 1437  # training records of the digits
SHORT = [
    "train",
    "--dataset",
    "digits",
    "--model",
    "mlp:32",
    "--epochs",
    "2",
    "--batch-size",
    "256",
    "--json",
]
STEPS_AN_EPOCH = round(RECORDS / 256)

LIGHTON = pytest.mark.skipif(find_spec("lightonml") is None, reason="lightonml is not installed")

FIELDS = {
    *(
        "dataset",
        "model",
        "rule",
        "backend",
        "release",
        "epochs",
        "steps",
        "batch_size",
        "sample_rate",
        "seed",
    ),
    *("test_accuracy", "guarantee", "noise_multiplier", "max_grad_norm", "seconds", "seconds_per_step"),
    "versions",
}
GUARANTEE_FIELDS = {"epsilon", "delta", "kind", "adjacency", "accountant", "assumptions"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The program's JSON, which must be all of its standard output."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    said = capsys.readouterr()
    answer: dict[str, Any] = json.loads(said.out)
    return answer


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Page(HTMLParser):
    """The text of an HTML page, and what it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset") or tag == "link"]


@pytest.mark.parametrize(
    ("release", "backend"),
    [
        ("digital", "digital"),
        ("digital", "simulated-opu"),
        ("dark-frame", "simulated-opu"),
        pytest.param("digital", "lightonml-simulated", marks=LIGHTON),
    ],
)
def test_a_private_run(
    release: str, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--release", release, "--backend", backend, "--epsilon", "4", "--delta", "1e-4", "--lr", "1"]
    summary = run(capsys, *SHORT, *more, "--epochs", "6", "--out", str(out))

    assert summary == json.loads((out / "summary.json").read_text())
    assert summary.keys() >= FIELDS
    stated = summary["guarantee"]
    assert stated.keys() >= GUARANTEE_FIELDS
    assert (summary["backend"], summary["release"], summary["rule"]) == (backend, release, "dfa")
    assert summary["steps"] == summary["releases"] == 6 * STEPS_AN_EPOCH
    assert summary["sample_rate"] == 256 / RECORDS
    assert (stated["kind"], stated["delta"], stated["adjacency"]) == ("record-dp", 1e-4, "add-or-remove-one")
    assert 0.98 * 4 < stated["epsilon"] <= 4  # the budget is used, and kept
    assert (stated["device_share"] or 0) > 0.5 if release == "dark-frame" else not stated["device_share"]
    assert (
        summary["test_accuracy"] > 0.8
    )  # over 20 runs each: 0.915 to 0.931, standard deviation 0.013 or less

    rows = metrics(out)
    assert [row["step"] for row in rows] == [epoch * STEPS_AN_EPOCH for epoch in range(1, 7)]
    assert rows[0]["epsilon"] < rows[4]["epsilon"] < rows[5]["epsilon"] == stated["epsilon"]
    # Nothing computed from private records outside the release is written down.
    assert rows[0].keys() <= {"step", "epoch", "test_accuracy", "test_loss", "epsilon"}
    assert (out / "calibration.json").exists() == (release == "dark-frame")

    page = Page(out / "report.html")
    text = " ".join(page.words)
    assert release in text
    assert f"{stated['epsilon']:.3g}"[:3] in text
    assert all(value.startswith("data:") for value in page.loaded)  # one file, nothing fetched

    report = audit(out)
    assert (report.consistent, report.findings, report.releases) == (True, (), summary["releases"])
    assert report.guarantee.accountant != stated["accountant"]  # recomputed by other code
    assert report.epsilon == pytest.approx(stated["epsilon"], rel=1e-3)
    assert run(capsys, "audit", str(out), "--json")["epsilon"] == report.epsilon


def test_a_run_whose_noise_is_the_devices_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits of dark pixels (THEORY T12): the share is 100 %, no dither is drawn, and the audit agrees."""
    out = tmp_path / "run"
    more = ["--release", "dark-frame", "--release-option", "digits=10", "--epsilon", "4", "--delta", "1e-4"]
    summary = run(capsys, *SHORT, *more, "--lr", "1", "--epochs", "6", "--out", str(out))
    stated = summary["guarantee"]
    assert (stated["kind"], stated["device_share"]) == ("record-dp", 1.0)
    assert 0.98 * 4 < stated["epsilon"] <= 4
    assert summary["test_accuracy"] > 0.8
    assert (out / "calibration.json").exists()
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        credit = ledger.header()["credit"]
        names = {payload["name"] for kind, payload in ledger.history() if kind == "key"}
        assert {release.device_share for release in ledger.releases()} == {1.0}
    assert names == {"device", "rounding", "sampling", "masks"}
    assert (credit["theorem"], len(credit["weights"])) == ("T12", 10)
    assert main(["audit", str(out)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The device supplied 100.0 % of the noise variance" in text
    assert "no digital noise stands in for the converter" in text
    other = audit(out)
    assert (other.consistent, other.findings) == (True, ())


def test_the_ledger_alone_gives_the_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    more = ["--release", "digital", "--backend", "digital", "--noise-multiplier", "1.5", "--delta", "1e-4"]
    summary = run(capsys, *SHORT, *more, "--out", str(out))
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        releases = ledger.releases()
        names = sorted(event["name"] for event in ledger.events("key"))
    assert names == ["masks", "noise", "rounding", "sampling"]
    # The account command, given what an auditor reads off the summary, agrees (to the generator's tail mass).
    told = run(
        capsys,
        *("account", "--sample-rate", repr(summary["sample_rate"]), "--delta", "1e-4"),
        *("--noise-multiplier", "1.5", "--steps", str(summary["steps"]), "--json"),
    )
    for accountant in ("pld", "rdp"):
        value = accounting.epsilon(releases, 1e-4, accountant=accountant)
        assert value >= summary["guarantee"]["epsilon"] * (1 - 1e-9)
    assert told["epsilon"] == pytest.approx(summary["guarantee"]["epsilon"], rel=1e-6)


def test_reproducible_runs_are_equal_and_promise_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--epsilon", "4", "--delta", "1e-4", "--release", "dark-frame", "--backend", "simulated-opu"]
    outs = [tmp_path / "one", tmp_path / "two"]
    first, second = (run(capsys, *SHORT, *more, "--reproducible", "--out", str(out)) for out in outs)
    assert first["test_accuracy"] == second["test_accuracy"]
    weights = [load_file(out / "checkpoint.safetensors") for out in outs]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    for summary in (first, second):
        stated = summary["guarantee"]
        assert (stated["kind"], stated["epsilon"]) == ("none", "inf")
        assert 0.98 * 4 < stated["nominal_epsilon"] <= 4
    assert "epsilon" not in metrics(outs[0])[0]
    assert "nominal_epsilon" in metrics(outs[0])[0]
    assert audit(outs[0]).guarantee.kind.value == "none"
    assert audit(outs[0]).consistent


def test_secret_runs_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seed is that of weights and feedback; noise and coins are not the seed's."""
    more = ["--release", "digital", "--backend", "digital", "--noise-multiplier", "1", "--seed", "3"]
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        run(capsys, *SHORT, *more, "--out", str(out))
    weights = [load_file(out / "checkpoint.safetensors") for out in outs]
    floating = [name for name, value in weights[0].items() if value.dtype == np.float32]
    assert not any(np.array_equal(weights[0][name], weights[1][name]) for name in floating)


@pytest.mark.parametrize("rule", ["dfa", "bp", "shallow"])
def test_a_run_without_privacy(rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    summary = run(capsys, *SHORT, "--release", "none", "--rule", rule, "--lr", "0.2", "--out", str(out))
    assert summary["guarantee"]["kind"] == "none"
    assert summary["guarantee"]["epsilon"] == "inf"
    assert summary["guarantee"]["nominal_epsilon"] is None
    for name in ("releases", "sample_rate", "noise_multiplier", "max_grad_norm", "target_epsilon"):
        assert summary[name] is None
    assert summary["steps"] == 2 * math.ceil(RECORDS / 256)
    assert summary["test_accuracy"] > 0.6
    assert (out / "report.html").is_file()
    assert audit(out).consistent
    assert audit(out).guarantee.kind.value == "none"


def test_diagnostics_void_the_guarantee(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--release", "digital", "--backend", "digital", "--noise-multiplier", "2", "--unsafe-diagnostics"]
    summary = run(capsys, *SHORT, *more, "--out", str(tmp_path / "run"))
    assert summary["guarantee"]["kind"] == "none"
    assert any("--unsafe-diagnostics" in text for text in summary["guarantee"]["assumptions"])


def test_physical_batches_change_neither_steps_nor_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--release", "digital", "--backend", "digital", "--noise-multiplier", "2", "--reproducible"]
    whole = run(capsys, *SHORT, *more, "--out", str(tmp_path / "whole"))
    cut = run(capsys, *SHORT, *more, "--max-physical-batch-size", "50", "--out", str(tmp_path / "cut"))
    assert cut["steps"] == whole["steps"]
    assert cut["guarantee"] == whole["guarantee"]
    one, other = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    for name, value in one.items():
        if value.dtype == np.float32:
            # The same but for the coins of the rounding, which a record takes in the order of the parts.
            assert np.linalg.norm(value - other[name]) < 0.05 * np.linalg.norm(value)


def test_a_run_keeps_no_folder_that_was_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = run(capsys, *SHORT, "--release", "digital", "--backend", "digital", "--noise-multiplier", "2")
    assert summary["guarantee"]["kind"] == "record-dp"
    assert list(tmp_path.iterdir()) == []


def test_the_text_answer_states_the_guarantee_and_where_things_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    text = [argument for argument in SHORT if argument != "--json"]
    more = ["--release", "digital", "--backend", "digital", "--epsilon", "4", "--delta", "1e-4"]
    assert main([*text, *more, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "test accuracy" in said.out
    assert "0.0001), record-dp, adjacency add-or-remove-one" in said.out
    assert f"optical-dfa audit {out}" in said.out
    assert main(["audit", str(out)]) == 0
    assert "finding: none" in capsys.readouterr().out


def test_noise_too_weak_for_a_finite_epsilon_is_said_and_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--release", "digital", "--backend", "digital", "--noise-multiplier", "0.3", "--delta", "1e-4"]
    summary = run(capsys, *SHORT, *more, "--epochs", "6", "--out", str(out))
    assert summary["guarantee"]["epsilon"] == "inf"
    assert [row["epsilon"] for row in metrics(out)][-1] == "inf"
    assert (out / "report.html").is_file()
    assert audit(out).consistent


def test_a_claim_that_the_ledger_does_not_bear_out_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--release", "digital", "--backend", "digital", "--epsilon", "4", "--delta", "1e-4"]
    summary = run(capsys, *SHORT, *more, "--out", str(out))
    summary["guarantee"]["epsilon"] /= 2
    (out / "summary.json").write_text(json.dumps(summary))
    assert main(["audit", str(out)]) == 1
    assert "summary.json reports epsilon" in capsys.readouterr().out


def test_a_class_count_read_off_the_labels_is_a_printed_assumption(tmp_path: Path) -> None:
    """One record of a class of its own would change the network's size, so the count must be declared public."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = TrainConfig(dataset=str(tmp_path / "own.npz"), model="mlp:4", epochs=1, batch_size=30)
    assumptions = train(config)["guarantee"]["assumptions"]
    assert any("classes" in text and "public" in text for text in assumptions)


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = TrainConfig(model="mlp:4", epochs=1)
    folder.begin(config, resume=False, overwrite=False)
    for resume in (False, True):
        with pytest.raises(UsageError, match="another process trains"):
            RunFolder(tmp_path / "run").begin(config, resume=resume, overwrite=True)
    folder.close()
    with pytest.raises(UsageError, match="already holds a run"):
        RunFolder(tmp_path / "run").begin(config, resume=False, overwrite=False)
