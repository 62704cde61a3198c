"""The audit reads every file, row and field of a run folder: what does not fit is found, what it leaves is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from noise_models.errors import UsageError
from optical_dfa.cli import main
from privacy.auditing import beyond
from privacy.auditing.audit import AuditReport, audit
from privacy.auditing.markdown import markdown
from privacy.auditing.statement import statement
from privacy.ledger import Ledger

TRAIN = [
    *("train", "--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--json"),
    *("--noise-multiplier", "2", "--delta", "1e-4"),
]
DIGITAL = ("--release", "digital", "--backend", "digital", "--epochs", "2")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    assert main([*TRAIN, *DIGITAL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def said(run: Path, capsys: pytest.CaptureFixture[str], *others: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["audit", str(run), *others, "--json"])
    return code, json.loads(capsys.readouterr().out)


Change = Callable[[Path], object]


def in_metrics(line: int, **values: Any) -> Change:
    def change(run: Path) -> None:
        rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
        rows[line] |= values
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def line_of_metrics(line: int, text: str | bytes) -> Change:
    def change(run: Path) -> None:
        rows = (run / "metrics.jsonl").read_bytes().split(b"\n")
        rows[line : line + (line == len(rows) - 1)] = [text if isinstance(text, bytes) else text.encode()]
        (run / "metrics.jsonl").write_bytes(b"\n".join(rows))

    return change


def in_summary(place: str | None = None, **values: Any) -> Change:
    def change(run: Path) -> None:
        document = json.loads((run / "summary.json").read_text())
        (document if place is None else document[place]).update(values)
        (run / "summary.json").write_text(json.dumps(document))

    return change


def replaced(name: str, before: str, after: str) -> Change:
    def change(run: Path) -> None:
        text = (run / name).read_text()
        assert before in text
        (run / name).write_text(text.replace(before, after, 1))

    return change


def in_checkpoint(**metadata: str) -> Change:
    def change(run: Path) -> None:
        path = run / "checkpoint.safetensors"
        with safe_open(path, framework="np") as stored:
            kept = dict(stored.metadata())
        save_file(load_file(path), path, kept | metadata)

    return change


def wrote(name: str, text: str) -> Change:
    return lambda run: (run / name).write_text(text)


DEEP = "[" * 100_000 + "]" * 100_000
FORGED: list[tuple[Change, str]] = [
    # rows of the metrics
    (line_of_metrics(0, '{"training_loss": 0.3'), "metrics.jsonl line 1 is damaged"),
    (line_of_metrics(1, "loss 0.3"), "metrics.jsonl line 2 is damaged"),
    (line_of_metrics(1, ""), "metrics.jsonl line 2 is damaged"),
    (line_of_metrics(1, b"\xff\xfe0.3"), "metrics.jsonl line 2 is damaged"),
    (line_of_metrics(1, "[0.3]"), "line 2 is no row of metrics"),
    (line_of_metrics(1, '{"training_loss": 0.3}'), "line 2 is no row of metrics"),
    (line_of_metrics(1, '{"step": "6", "test_accuracy": 0.3}'), "line 2 is no row of metrics"),
    (line_of_metrics(1, DEEP), "line 2 is damaged (it nests too deep)"),
    (line_of_metrics(1, '{"step": 1' + "0" * 5000 + "}"), "line 2 is damaged"),
    (line_of_metrics(1, '{"step": 6, "test_accuracy": 0.3}'), "line 2 is of step 6, after one of step 6"),
    (line_of_metrics(1, '{"step": 3, "test_accuracy": 0.3}'), "line 2 is of step 3, after one of step 6"),
    (line_of_metrics(1, '{"step": 7, "test_accuracy": 0.3}'), "has a row of step 7, and the ledger names no weights"),
    (line_of_metrics(1, '{"step": 7, "test_loss": 0.3, "test_loss": 0.2}'), "test_loss given more than once"),
    (line_of_metrics(2, '{"step": 18, "training_lo'), "is cut off and no beginning of a row"),
    (line_of_metrics(2, '{"step": 18, "training_loss": 0.3'), "is cut off and no beginning of a row"),
    (line_of_metrics(2, "0.3"), "is no row of metrics"),
    (in_metrics(0, test_accuracy=1.5), "line 1 has test_accuracy = 1.5"),
    (in_metrics(0, test_accuracy="0.5 (training loss 0.3)"), "line 1 has test_accuracy = '0.5"),
    (in_metrics(0, test_loss=[0.3]), "shows test_loss"),
    (in_metrics(0, test_loss=-0.3), "line 1 has test_loss = -0.3"),
    (in_metrics(0, epoch=0.3), "has epoch 0.3 at step 6, which is epoch 1"),
    (in_metrics(0, epoch=True), "line 1 has epoch = True"),
    (in_metrics(0, epsilon=3.0), "it never falls"),
    (in_metrics(1, test_accuracy=0.99), "reports test_accuracy"),
    # the summary
    (in_summary(test_accuracy=0.99), "summary.json reports test_accuracy 0.99, metrics.jsonl"),
    (in_summary(test_loss=0.01), "summary.json reports test_loss 0.01, metrics.jsonl"),
    (in_summary(test_auc=2), "summary.json has test_auc = 2"),
    (in_summary(steps=6.0), "summary.json is unreadable"),
    (in_summary(steps=-1), "summary.json has steps = -1"),
    (in_summary(steps=10**30), "summary.json has steps = a number of many digits"),
    (in_summary(steps=11), "the ledger names no weights of that step"),
    (in_summary(releases="12"), "summary.json has releases = '12'"),
    (in_summary(releases=13), "summary.json reports 13 releases, the ledger has 12"),
    (in_summary(epochs=3), "the summary reports epochs 3, the ledger 2"),
    (in_summary(epochs=True), "summary.json has epochs = True"),
    (in_summary(seed=7), "the summary reports seed 7, the ledger 0"),
    (in_summary(model="mlp:512"), "the summary reports model 'mlp:512'"),
    (in_summary(parameters=10**9), "1000000000 parameters, the weights have"),
    (in_summary(parameters="many"), "summary.json has parameters = 'many'"),
    (in_summary(seconds=-1), "summary.json has seconds = -1"),
    (in_summary(seconds_per_step=123.0), "reports seconds_per_step 123, checkpoint.safetensors"),
    (in_summary(data_frames=0.3), "summary.json has data_frames = 0.3"),
    (in_summary(hardware_seconds="0.3"), "summary.json has hardware_seconds = '0.3'"),
    (in_summary(dataset="digits\nloss 0.3"), "summary.json has dataset"),
    (in_summary("versions", torch="2.0, and the training loss is 0.3"), "summary.json, versions, has torch"),
    (in_summary("versions", python=3), "summary.json, versions, has python = 3"),
    (in_summary(versions=[1]), "summary.json has versions that is no table"),
    (in_summary("guarantee", accountant="certified: see training loss"), "has accountant"),
    (in_summary("guarantee", accountant="pldx"), "summary.json reports accountant pldx, the ledger pld"),
    (in_summary("guarantee", nominal_epsilon=0.1), "summary.json reports nominal_epsilon 0.1, the ledger None"),
    (in_summary("guarantee", nominal_kind="record-dp"), "reports nominal_kind record-dp, the ledger None"),
    (in_summary(releases=11), "reports 11 releases at step 12, the ledger then had 12"),
    (in_summary(target_epsilon=1.0), "summary.json reports target_epsilon 1.0, the ledger None"),
    (in_summary("guarantee", epsilon="0.9"), "has epsilon = '0.9'"),
    (replaced("summary.json", '"steps"', '"training_loss": 0.3, "training_loss": 0, "steps"'), "loss given more"),
    (replaced("summary.json", '"seconds": ', '"seconds": NaN, "x": '), "NaN is not a finite number"),
    (replaced("summary.json", '"seconds": ', '"seconds": 1e999, "x": '), "1e999 is not a finite number"),
    (wrote("summary.json", DEEP), "it nests too deep"),
    (wrote("summary.json", '{"guarantee": "\\ud800"}'), "summary.json is unreadable"),
    # the settings
    (replaced("config.toml", "lr = ", "lr = 9"), "config.toml has lr = 9"),
    (replaced("config.toml", "weight_decay = 0.0", "weight_decay = 0.1"), "config.toml has weight_decay = 0.1"),
    (replaced("config.toml", "momentum = ", "momentum = 0.123 #"), "config.toml has momentum = 0.123"),
    (replaced("config.toml", "epochs = 2", "epochs = 3"), "config.toml has epochs = 3, the ledger 2"),
    (replaced("config.toml", 'optimizer = "sgd"', 'optimizer = "adam"'), "config.toml has optimizer = 'adam'"),
    (replaced("config.toml", 'dataset = "digits"', 'dataset = "mnist"'), "config.toml has dataset = 'mnist'"),
    (replaced("config.toml", 'model = "mlp:8"', 'model = "mlp:9"'), "config.toml has model = 'mlp:9'"),
    (replaced("config.toml", "seed = 0", "seed = 1"), "config.toml has seed = 1, the ledger 0"),
    (replaced("config.toml", "seed = 0\n", ""), "config.toml has seed = None, the ledger 0"),
    (replaced("config.toml", "seed = 0", 'seed = 0\nlr_schedule = "cosine"'), "config.toml has lr_schedule = 'cosine'"),
    (replaced("config.toml", "seed = 0", "seed = 0\ntraining_loss = 0.3"), "config.toml has training_loss = 0.3"),
    (wrote("config.toml", "a = " + "[" * 5000), "config.toml is unreadable"),
    (replaced("config.toml", "seed = 0", "seed = 0 # training loss 0.3"), "config.toml holds comments or another form"),
    (replaced("config.toml", "seed = 0", "\n#0.3\nseed = 0"), "config.toml holds comments or another form"),
    (replaced("config.toml", "seed = 0", "seed = false"), "config.toml has seed = False, the ledger 0"),
    (replaced("config.toml", "reproducible = false", "reproducible = 0"), "config.toml has reproducible = 0"),
    (replaced("config.toml", 'device = "cpu"', 'device = "loss 0.3"'), "config.toml has device = 'loss 0.3'"),
    (replaced("config.toml", 'device = "cpu"', "device = true"), "config.toml has device = True"),
    (replaced("config.toml", 'device = "cpu"', 'device = "cpu"\ndata_dir = 3'), "config.toml has data_dir = 3"),
    (lambda run: (run / "config.toml").unlink(), "summary.json without config.toml"),
    # the weights' file
    (in_checkpoint(training_loss="0.3"), "checkpoint.safetensors shows training_loss"),
    (in_checkpoint(seconds="nan"), "checkpoint.safetensors has seconds = 'nan'"),
    (in_checkpoint(noise_position="0.3"), "checkpoint.safetensors has noise_position"),
    # files that no such run has
    (wrote("certificate.json", "{}"), "certificate.json belongs to release per-record"),
    (wrote("calibration.json", "{}"), "calibration.json belongs to release dark-frame"),
    (lambda run: (run / "tensorboard").mkdir(), "tensorboard holds figures of training records"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "finding"), FORGED, ids=[case[1][:60] for case in FORGED])
def test_what_this_program_does_not_write_is_a_finding(
    change: Change, finding: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    report = audit(run)
    assert any(finding in line for line in report.findings), report.findings
    assert all("\n" not in line and len(line) < 1100 for line in report.findings)
    code, document = said(run, capsys)
    assert (code, document["consistent"]) == (1, False)
    assert document["statement"]["verdict"].startswith("DOES NOT HOLD")
    json.dumps(document, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "summary.json", "config.toml", "report.html", "checkpoint.safetensors"]
)
def test_what_never_ends_is_not_read(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    code, answer = said(run, capsys)
    assert code == 2
    assert answer["error"].startswith(f"'{name}' is a pipe, a socket or a device; put")


def test_the_table_above_starts_from_a_run_that_holds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = said(run, capsys)
    assert (code, document["findings"], document["notes"], document["unchecked"]) == (0, [], [], [])


# ---- fields that were taken out


@pytest.fixture(scope="module", params=["digital", "dark-frame", "label", "per-record", "seeded", "none"])
def any_release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    sizes = [
        "train",
        "--dataset",
        "digits",
        "--model",
        "mlp:8",
        "--batch-size",
        "256",
        "--epochs",
        "2",
        "--json",
    ]
    flags = {"none": ["--release", "none"], "seeded": ["--release", "digital", "--reproducible"]}
    flags = {name: given if name == "none" else [*given, "--epsilon", "3"] for name, given in flags.items()}
    more = flags.get(request.param, ["--release", request.param, "--epsilon", "3", "--delta", "1e-4"])
    assert main([*sizes, *more, "--out", str(folder)]) == 0
    assert audit(folder).findings == ()
    return folder


MAY_LACK = {"nominal_kind"}  # as guarantees of before there was one
SHOWN = {
    "training_loss",
    "mean_batch_size",
}  # of a run without release: not known to be public, and not checked


def forged_fields(document: dict[str, Any], table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The document as JSON, without each field of one of its tables, and with null in each that has a value."""
    for name, value in list(table.items()):
        del table[name]
        if name not in MAY_LACK | SHOWN:
            yield f"no {name}", json.dumps(document)
        table[name] = None
        if value is not None and name not in SHOWN | {"test_loss"}:  # a loss that is not finite is null
            yield f"null {name}", json.dumps(document)
        table[name] = value


def missed(run: Path, name: str, forged: Iterator[tuple[str, str]]) -> list[str]:
    """Which of these contents of a file the audit takes for what this program writes."""
    kept = (run / name).read_text()
    left = []
    for what, text in forged:
        (run / name).write_text(text)
        left += [what] if audit(run).consistent else []
    (run / name).write_text(kept)
    return left


def test_every_field_is_missed(any_release: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(any_release, tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    for table in (summary, summary["guarantee"], summary["versions"]):
        assert missed(run, "summary.json", forged_fields(summary, table)) == []
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, others in ((rows[0], rows[1:]), (rows[-1], rows[:-1])):
        before, after = ([], others) if row is rows[0] else (others, [])
        whole = ("".join(json.dumps(x) + "\n" for x in part) for part in (before, after))
        head, tail = whole
        texts = ((what, head + text + "\n" + tail) for what, text in forged_fields(row, row))
        assert missed(run, "metrics.jsonl", texts) == []
    settings = tomllib.loads((run / "config.toml").read_text())
    texts = (
        (name, tomli_w.dumps({key: value for key, value in settings.items() if key != name}))
        for name in settings
        if not isinstance(settings[name], dict)
    )
    assert missed(run, "config.toml", texts) == []


@pytest.mark.parametrize("any_release", ["dark-frame", "per-record"], indirect=True)
def test_a_file_that_a_release_writes_is_missed_and_the_page_is_not_blamed(
    any_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(any_release, tmp_path / "run"))
    name = "certificate.json" if (run / "certificate.json").exists() else "calibration.json"
    assert f"{name} (its figures)" in audit(run).unchecked
    (run / name).unlink()
    code, document = said(run, capsys)
    assert code == 1
    assert document["findings"] == [
        f"summary.json without {name}, which is written first: it was taken away, and what the ledger has cannot be "
        "compared with it"
    ]


def test_a_run_without_release_states_no_epsilon(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = (
        "train",
        "--dataset",
        "digits",
        "--model",
        "mlp:8",
        "--batch-size",
        "256",
        "--epochs",
        "1",
        "--json",
    )
    assert main([*sizes, "--release", "none", "--out", str(run)]) == 0
    in_metrics(0, epsilon=0.5)(run)
    assert any("a run without release has no epsilon" in line for line in audit(run).findings)
    in_summary(noise_multiplier=3.0, releases=6)(run)
    found = audit(run).findings
    assert any("reports noise_multiplier 3.0, the ledger None" in line for line in found)
    assert any("reports releases 6, the ledger is of release none" in line for line in found)


# ---- the report page


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(0.9", "(0.1"),
        ("</main>", "<p>training loss 0.3</p></main>"),
        ("<title>", "<!-- training loss 0.3 --><title>"),
        ("Test accuracy", "Audited accuracy"),
    ],
)
def test_a_page_that_its_files_do_not_make(
    before: str, after: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "report.html").read_text()
    before = before if before in text else "1."
    assert before in text
    (run / "report.html").write_text(text.replace(before, after, 1))
    code, document = said(run, capsys)
    assert code == 1
    assert any("report.html is not the page" in line for line in document["findings"])


def test_what_of_a_page_is_not_compared_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(run).unchecked == ("report.html",)  # the library alone does not make pages
    text = (run / "report.html").read_text()
    (run / "report.html").write_text(text.replace("</svg>", "<!-- 0.3 --></svg>", 1))
    code, document = said(run, capsys)
    assert (code, document["unchecked"]) == (0, ["name and drawings of report.html"])
    assert "name and drawings of report.html" in document["statement"]["verdict"]
    moved = run.rename(run.with_name("moved"))
    (moved / "report.html").write_text(text)
    code, document = said(moved, capsys)
    assert (code, document["unchecked"]) == (0, ["the name on report.html"])
    (moved / "report.html").write_bytes(b"\xff\xfe")
    assert said(moved, capsys)[0] == 1


# ---- what is not checked


def test_what_was_not_checked_is_said_in_the_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "notes.txt").write_text("training loss 0.3")
    (run / "losses").mkdir()
    (run / "summary.json.partial").write_text("{")
    (run / "evil\n**HOLDS**").write_text("")
    code, document = said(run, capsys)
    assert code == 0
    verdict = document["statement"]["verdict"]
    assert verdict.startswith("HOLDS under the assumptions below")
    for text in (
        "NOT CHECKED",
        "test accuracy",
        "times",
        "the data set",
        "notes.txt",
        "losses/",
        "summary.json.partial",
    ):
        assert text in verdict, text
    assert document["statement"]["not_checked"] == verdict.split("NOT CHECKED: ")[1].rstrip(".").split("; ")
    assert all("\n" not in text for text in document["unchecked"])
    assert main(["audit", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "not checked: the test accuracy" in shown
    assert "## Not checked" in shown


def test_links_are_followed_and_named(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").rename(tmp_path / "elsewhere")
    (run / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    report = audit(run)
    assert report.findings == ()
    assert any("metrics.jsonl is a link to" in note for note in report.notes)


def denied(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As another account meets these files; the account that runs the tests may be the administrator's."""
    opened, read = Path.open, Path.read_bytes

    def refuse(path: Path) -> None:
        if path.name in names:
            raise PermissionError(13, "Permission denied", str(path))

    def then_open(self: Path, *args: Any, **kwargs: Any) -> Any:
        refuse(self)
        return opened(self, *args, **kwargs)

    def then_read(self: Path) -> bytes:
        refuse(self)
        return read(self)

    monkeypatch.setattr(Path, "open", then_open)
    monkeypatch.setattr(Path, "read_bytes", then_read)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.jsonl", "summary.json", "config.toml"])
def test_what_cannot_be_read_is_neither_confirmed_nor_contradicted(
    name: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    denied(monkeypatch, name)
    report = audit(run)
    assert (report.findings, report.unreadable) == ((), (f"{name} (Permission denied)",))
    assert report.guarantee.kind.value == "record-dp"
    code, document = said(run, capsys)
    assert code == 2
    verdict = document["statement"]["verdict"]
    assert verdict.startswith("NOT FULLY AUDITED")
    assert f"what could not be read: {name} (Permission denied)" in verdict
    assert "DOES NOT HOLD" not in verdict
    assert document["statement"]["holds"] is False


def test_a_contradiction_counts_whatever_cannot_be_read(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_summary(test_auc=2)(run)
    denied(monkeypatch, "checkpoint.safetensors")
    assert said(run, capsys)[0] == 1


def test_a_folder_that_cannot_be_entered_is_not_audited(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    capsys.readouterr()
    assert main(["audit", str(run)]) == 2
    error = capsys.readouterr().err
    assert "nothing was checked" in error
    assert error.count("\n") == 1


def test_a_ledger_that_was_taken_away_does_not_hold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = tmp_path / "filed.json"
    assert main(["audit", str(run), "--statement", str(paper)]) == 0
    (run / "ledger.sqlite").unlink()
    code, document = said(run, capsys)
    assert code == 1
    assert "there is no ledger.sqlite, and checkpoint.safetensors" in document["findings"][0]
    assert document["statement"]["verdict"].startswith("DOES NOT HOLD")
    assert document["kind"] == "none"
    assert main(["audit", str(run), "--filed", str(paper)]) == 1
    assert "the ledger of the filed statement is not there" in capsys.readouterr().out
    assert main(["audit", str(run), str(run)]) == 1
    for file in run.iterdir():
        if file.name != "config.toml":
            file.unlink()
    assert main(["audit", str(run)]) == 2  # a run that did not begin claims nothing
    assert "does not exist" in capsys.readouterr().err


# ---- whatever the files hold, an audit answers


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Cut, changed, doubled or filled with what no reader expects."""
    place = dice.randrange(len(content) + 1)
    pieces = (
        b"\xff",
        b"\x00",
        b"NaN",
        b"1e999",
        b"-1",
        b'"',
        b"{",
        b"}",
        b"null",
        b"\xed\xa0\x80",
        b"9" * 5000,
        b"[" * 3000,
    )
    return dice.choice(
        [
            content[:place],
            content[place:],
            content[:place] + dice.choice(pieces) + content[place:],
            content[:place] + dice.choice(pieces) + content[place + 8 :],
            content + content,
            content[:place] + bytes([dice.randrange(256)]) + content[place + 1 :],
        ]
    )


def refused(call: Callable[[], object]) -> bool:
    """Whether it was, in one line."""
    try:
        call()
    except UsageError as error:
        return "\n" not in str(error) or pytest.fail(str(error))
    return False


def tried(run: Path) -> AuditReport | None:
    if refused(lambda: audit(run)):
        return None
    report = audit(run)
    assert all("\n" not in text for text in (*report.findings, *report.notes, *report.unchecked))
    markdown(statement(report, "run", "No device.")).encode()
    json.dumps(report.to_dict(), allow_nan=False).encode()
    return report


def fuzz(run: Path, name: str, trials: int, seed: int) -> None:
    dice, kept = random.Random(f"{name} {seed}"), (run / name).read_bytes()
    found = 0
    for _ in range(trials):
        (run / name).write_bytes(damaged(kept, dice))
        report = tried(run)
        found += report is None or not report.consistent
        refused(lambda: beyond.refuse_beyond(run))
    assert found > trials // 2


FILES = ("metrics.jsonl", "summary.json", "config.toml", "checkpoint.safetensors", "ledger.sqlite")


@pytest.mark.parametrize("name", FILES)
def test_an_audit_of_damaged_files_answers(name: str, run: Path) -> None:
    fuzz(run, name, 12, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_an_audit_of_many_damaged_files_answers(name: str, run: Path) -> None:
    fuzz(run, name, 300, 1)


VALUES = (None, True, -1, 10**400, 0.5, "", "x" * 10_000, "\n", [], [[]], {}, {"a": []})


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_field_of_any_other_type_is_answered(name: str, run: Path) -> None:
    kept = (run / name).read_text()
    first = kept.splitlines()[0] if name == "metrics.jsonl" else kept
    dice = random.Random(3)
    for _ in range(15):
        document = json.loads(first)
        table = document["guarantee"] if name == "summary.json" and dice.random() < 0.4 else document
        key, value = dice.choice(sorted(table)), dice.choice(VALUES)
        before, table[key] = table[key], value
        (run / name).write_text(json.dumps(document) + kept[len(first) :])
        report = tried(run)
        assert report is None or not report.consistent or before == value or value is None or value == 0.5, (
            key,
            value,
        )


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe", b"{", b"3", b'{"a": ' + b"[" * 50_000, b'{"a":1,"a":2}', None, 3, b"\x00", '{"a":NaN}', '{ "a":1}'
    ],
    ids=["no text", "cut", "number", "deep", "twice", "nothing", "whole number", "zero", "NaN", "spaced"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["key", "checkpoint", "release"])
def test_a_row_of_any_other_content_is_answered(kind: str, body: Any, run: Path) -> None:
    connection = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
    connection.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete;")
    text = "CAST(? AS TEXT)" if isinstance(body, bytes) else "?"
    connection.execute("PRAGMA ignore_check_constraints=1")
    try:
        connection.execute(f"UPDATE entries SET body = {text} WHERE kind = ?", (body, kind))
    except sqlite3.IntegrityError:
        return  # SQLite itself has no such row
    finally:
        connection.close()
    report = tried(run)
    assert report is None or not report.consistent
    with pytest.raises(UsageError):
        Ledger.open(run / "ledger.sqlite")


def test_a_checkpoint_of_other_tensors_is_answered(run: Path) -> None:
    from safetensors.torch import save_file as save

    path = run / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as stored:
        kept = dict(stored.metadata())
    for tensors in (
        {},
        {"module.x": torch.zeros(0)},
        {"module.x": torch.zeros((), dtype=torch.bfloat16)},
        {"module.x": torch.zeros(3, dtype=torch.bool), "y": torch.zeros(2, dtype=torch.complex64)},
    ):
        save(tensors, path, kept)
        report = tried(run)
        assert report is not None
        assert any("does not hold the weights" in line for line in report.findings)
    assert os.stat(path).st_size > 0
