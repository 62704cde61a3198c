"""Run folders of the training program, honest and tampered with, through the audit command.

A forger here can do more than edit: `rechained` writes the whole hash chain anew, so that only what stands outside
the ledger contradicts it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from noise_models.calibration.document import Calibration
from optical_dfa.cli import main
from privacy.accounting import epsilon
from privacy.auditing.audit import audit
from privacy.auditing.statement import statement
from privacy.guarantee import rounded_up
from privacy.ledger import Ledger
from privacy.weights import ANNOUNCED, name_weights, tensors_digest

Row = tuple[int, str, dict[str, Any], str]  # number, kind, payload, nonce
Change = Callable[[Path], None]

TRAIN = [
    *("train", "--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--epochs", "1", "--json"),
    *("--noise-multiplier", "2", "--delta", "1e-4"),
]
STEPS = 6


def train(out: Path, *more: str) -> Path:
    assert main([*TRAIN, "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("honest") / "run", "--release", "digital", "--backend", "digital")


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def findings(run: Path, capsys: pytest.CaptureFixture[str], *others: Path) -> list[str]:
    """What `optical-dfa audit` finds; its exit code says whether there is anything."""
    capsys.readouterr()
    code = main(["audit", str(run), *map(str, others), "--json"])
    said = json.loads(capsys.readouterr().out)
    found = list(said["findings"])
    for document in said.get("runs", {}).values():
        found += document["findings"]
    assert code == (1 if found else 0)
    assert all("\n" not in line for line in found)
    return found


# ---- what a forger does


def rows_of(run: Path) -> list[Row]:
    with sqlite3.connect(run / "ledger.sqlite") as connection:
        table = connection.execute("SELECT seq, kind, body, nonce FROM entries ORDER BY seq").fetchall()
    connection.close()
    return [(seq, kind, json.loads(body), nonce) for seq, kind, body, nonce in table]


def rechained(run: Path, rows: list[Row]) -> None:
    """Put these rows in place of the ledger's, numbered and hashed as an honest ledger numbers and hashes them."""
    (run / "ledger.sqlite-wal").unlink(missing_ok=True)
    connection = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
    connection.executescript(
        "DROP TRIGGER IF EXISTS no_update; DROP TRIGGER IF EXISTS no_delete; DELETE FROM entries;"
    )
    previous = hashlib.sha256(b"optical-dfa ledger, version 1").hexdigest()
    for seq, (_, kind, payload, nonce) in enumerate(rows):
        body = json.dumps(payload, sort_keys=True, separators=(",", ":"))
        text = f"{previous}\n{seq}\n{json.dumps([kind, nonce])}\n{body}"
        previous = hashlib.sha256(text.encode()).hexdigest()
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (seq, kind, body, nonce, previous))
    connection.close()


def edited(run: Path, kinds: tuple[str, ...], **values: Any) -> None:
    """Change fields of all rows of these kinds and write the chain anew."""
    rechained(
        run,
        [
            (seq, kind, payload | values if kind in kinds else payload, nonce)
            for seq, kind, payload, nonce in rows_of(run)
        ],
    )


def raw(statement: str) -> Change:
    def change(run: Path) -> None:
        connection = sqlite3.connect(run / "ledger.sqlite")
        connection.executescript(
            f"DROP TRIGGER IF EXISTS no_update; DROP TRIGGER IF EXISTS no_delete; {statement}"
        )
        connection.close()

    return change


def without(run: Path, drop: Callable[[list[Row]], list[Row]]) -> None:
    rechained(run, drop(rows_of(run)))


def fit_checkpoint(run: Path) -> None:
    """Make the checkpoint name the ledger's head."""
    path = run / "checkpoint.safetensors"
    with safe_open(path, framework="np") as stored:
        metadata = dict(stored.metadata())
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        metadata |= {"ledger_head": ledger.head(), "releases": str(ledger.count())}
    save_file(load_file(path), path, metadata)


def fit_settings(run: Path) -> None:
    path = run / "config.toml"
    path.write_text(path.read_text().replace("noise_multiplier = 2.0", "noise_multiplier = 4.0"))


def fit_summary(run: Path) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_multiplier": 4.0}))


# ---- findings


def test_an_honest_run_is_consistent(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(run, capsys) == []
    report = audit(run)
    assert (report.consistent, report.reserved, report.releases) == (True, False, STEPS)
    assert report.notes == ()
    assert report.unchecked == ("report.html",)


def test_the_forgers_chain_is_the_ledgers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows written anew without a change give the very same hashes: what follows is found elsewhere."""
    before = audit(run).ledger_head
    rechained(run, rows_of(run))
    assert audit(run).ledger_head == before
    assert findings(run, capsys) == []


MIDDLE, LAST = (
    "(SELECT seq FROM entries WHERE kind = 'release' LIMIT 1 OFFSET 2)",
    "(SELECT MAX(seq) FROM entries)",
)
SIGMA = """SET body = replace(body, '"noise_multiplier":2.0', '"noise_multiplier":4.0') WHERE kind IN"""
TAMPERING: list[tuple[str, Change, str]] = [
    ("a row deleted", raw(f"DELETE FROM entries WHERE seq = {MIDDLE}"), "are missing"),
    (
        "a row deleted, chain anew",
        lambda run: without(run, lambda rows: rows[:-3] + rows[-2:]),
        "newer than the",
    ),
    ("the last row deleted", raw(f"DELETE FROM entries WHERE seq = {LAST}"), "newer than the ledger"),
    (
        "the tail cut and grown again",
        lambda run: without(run, lambda rows: rows[:-3] + [rows[-3]] * 3),
        "newer than",
    ),
    ("sigma of the rows", raw(f"UPDATE entries {SIGMA} ('release')"), "does not fit the chain"),
    ("sigma of the header", raw(f"UPDATE entries {SIGMA} ('header')"), "does not fit the chain"),
    (
        "sigma of the rows, chain anew",
        lambda run: edited(run, ("release",), noise_multiplier=4.0),
        "the header 2",
    ),
    (
        "sigma of both, chain anew",
        lambda run: edited(run, ("header", "release"), noise_multiplier=4.0),
        "newer than",
    ),
    (
        "the header's clipping",
        lambda run: edited(run, ("header",), max_grad_norm=0.5),
        "has max_grad_norm = 1.0",
    ),
    ("the rows' extra loss", lambda run: edited(run, ("release",), mass=0.0, log_ratio=0.0), "newer than"),
]


@pytest.mark.parametrize(
    ("change", "finding"), [case[1:] for case in TAMPERING], ids=[case[0] for case in TAMPERING]
)
def test_a_tampered_ledger_is_found(
    change: Change, finding: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    found = findings(run, capsys)
    assert any(finding in line for line in found), found


def fit_metrics(run: Path) -> None:
    in_metrics(run, epsilon=audit(run).epsilon)


def in_metrics(run: Path, **values: Any) -> None:
    rows = [json.loads(line) | values for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_summary(run: Path, place: str | None = None, **values: Any) -> None:
    said = json.loads((run / "summary.json").read_text())
    (said if place is None else said[place]).update(values)
    (run / "summary.json").write_text(json.dumps(said))


def in_settings(run: Path, before: str, after: str) -> None:
    text = (run / "config.toml").read_text()
    assert before in text
    (run / "config.toml").write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (lambda run: in_summary(run, "guarantee", delta=1e-9, epsilon=0.1), "reports delta = 1e-09, the ledger fixes"),
        (lambda run: in_summary(run, "guarantee", delta=1e-9, epsilon=0.1), "reports epsilon 0.1 at delta = 1e-09"),
        (lambda run: in_summary(run, "guarantee", delta=0.0), "there is no epsilon"),
        (lambda run: in_summary(run, "guarantee", device_share=0.9), "reports device_share 0.9"),
        (lambda run: in_summary(run, "guarantee", claim="certified"), "summary.json shows guarantee.claim"),
        (lambda run: in_summary(run, training_loss=0.3), "summary.json shows training_loss"),
        (lambda run: in_summary(run, "versions", losses=[1.0]), "summary.json shows versions.losses"),
        (lambda run: in_summary(run, seconds={"loss": 1}), "summary.json shows seconds"),
        (lambda run: in_summary(run, rule="bp"), "the summary reports rule 'bp', the ledger 'dfa'"),
        (lambda run: in_summary(run, backend="lightonml"), "the summary reports backend 'lightonml'"),
        (lambda run: in_summary(run, dataset="mnist"), "the summary reports dataset 'mnist', the ledger 'digits'"),
        (lambda run: in_settings(run, 'rule = "dfa"', 'rule = "bp"'), "config.toml has rule = 'bp'"),
        (lambda run: in_settings(run, '"digital"\nrelease', '"lightonml"\nrelease'), "config.toml has backend"),
        (lambda run: in_metrics(run, gradient_norm=2.0), "metrics.jsonl shows gradient_norm"),
        (lambda run: in_metrics(run, epsilon=0.01), "metrics.jsonl reports epsilon 0.01 at step 6"),
        (lambda run: in_metrics(run, epsilon=9.0), "releases are missing in it"),
        (lambda run: in_metrics(run, step=STEPS + 1), "metrics.jsonl reports step 7"),
        (lambda run: (run / "checkpoint.safetensors").unlink(), "without checkpoint.safetensors"),
        (lambda run: (run / "metrics.jsonl").unlink(), "summary.json without a row of metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "summary.json without a row of metrics.jsonl"),
    ],
)  # fmt: skip
def test_what_the_other_files_say_is_what_the_ledger_bears_out(
    run: Path, change: Change, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run)
    found = findings(run, capsys)
    assert any(sign in line for line in found), found
    assert audit(run, delta=1e-6).consistent is False  # whatever delta is asked for


def test_an_invented_assumption_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((run / "summary.json").read_text())["guarantee"]["assumptions"]
    in_summary(run, "guarantee", assumptions=[*said, "an independent body certified this"])
    assert any("assumptions that the ledger does not have" in line for line in findings(run, capsys))


def test_a_cut_ledger_without_weights_does_not_hold(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights and summary gone, the tail cut off: the metrics tell. With them gone too, the verdict has a reserve."""
    without(run, lambda rows: rows[:-4])  # three releases and the row that names the weights
    for name in ("checkpoint.safetensors", "summary.json"):
        (run / name).unlink()
    found = findings(run, capsys)
    assert any("metrics.jsonl reports step 6, the ledger has 3 releases" in line for line in found), found
    (run / "metrics.jsonl").unlink()
    assert main(["audit", str(run), "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)["statement"]
    assert stated["verdict"].startswith("HOLDS FOR THIS LEDGER ONLY")
    assert stated["holds"] is False


def test_a_delta_that_nothing_resolves_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(run), "--delta", "1e-300"]) == 2
    assert "give a larger --delta" in capsys.readouterr().err
    assert main(["audit", str(run), "--statement", str(tmp_path / "nowhere" / "x.md")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_conditional_figure_has_no_tolerance_and_stays_conditional_under_reserve(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = train(tmp_path / "one", "--release", "per-record", "--backend", "digital", "--unsafe-diagnostics")
    report = audit(one)
    assert report.consistent, report.findings
    for text in (report.guarantee.headline(), report.guarantee.words()):
        assert "conditional" in text
        assert "without the diagnostics" in text.lower()
        assert "secret" not in text
    nominal = json.loads((one / "summary.json").read_text())["guarantee"]["nominal_epsilon"]
    in_summary(one, "guarantee", nominal_epsilon=0.999 * nominal)
    assert any("reports nominal_epsilon" in line for line in audit(one).findings)
    assert "converge" not in capfd.readouterr().err


def test_no_statement_reads_as_a_broken_budget(tmp_path: Path) -> None:
    """Of two upper bounds that agree the smaller holds too: skellam's budget was kept by the looser order of them."""
    flags = ("--release", "skellam", "--backend", "digital", "--epsilon", "3", "--delta", "1e-4")
    sizes = ("--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--epochs", "1", "--json")
    assert main(["train", *sizes, *flags, "--out", str(tmp_path / "one")]) == 0
    report = audit(tmp_path / "one")
    assert report.consistent, report.findings
    stated = statement(report, "one", "No device.")
    reported = json.loads((tmp_path / "one" / "summary.json").read_text())["guarantee"]["epsilon"]
    assert reported <= float(stated["guarantee"]["epsilon"]) <= 3.0
    lower = {"epsilon": 0.995 * report.epsilon}
    in_summary(tmp_path / "one", "guarantee", **lower)  # within the tolerance, and not what is stated
    again = statement(audit(tmp_path / "one"), "one", "No device.")
    assert float(again["guarantee"]["epsilon"]) >= min(reported, report.epsilon)


def test_how_far_a_forger_has_to_go(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File by file: what contradicts the halved epsilon until every file was rewritten, and what remains then."""
    filed, paper = audit(run), str(tmp_path / "filed.json")
    assert main(["audit", str(run), "--statement", paper]) == 0
    assert main(["audit", str(run), "--filed", paper]) == 0
    edited(run, ("header", "release"), noise_multiplier=4.0)
    for fit, sign in (
        (fit_checkpoint, "which this ledger never had"),
        (fit_settings, "config.toml has noise_multiplier = 2.0"),
        (fit_summary, "summary.json reports noise_multiplier 2.0"),
        (fit_metrics, "metrics.jsonl reports epsilon"),
    ):
        found = findings(run, capsys)
        assert any(sign in line for line in found), found
        fit(run)
    # Nothing in the folder contradicts the rest now. A statement filed before does: it names head and weights.
    forged = audit(run)
    assert forged.consistent
    assert forged.epsilon < 0.6 * filed.epsilon
    assert forged.ledger_head != filed.ledger_head
    assert forged.checkpoint_digest != filed.checkpoint_digest
    capsys.readouterr()
    assert main(["audit", str(run), "--filed", paper]) == 1
    assert "the filed statement names ledger head" in capsys.readouterr().out


def test_a_filed_statement_knows_its_run_later(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = str(tmp_path / "filed.json")
    assert main(["audit", str(run), "--statement", paper]) == 0
    weights = (run / "checkpoint.safetensors").read_bytes()
    train(run, "--release", "digital", "--backend", "digital", "--resume", "--epochs", "2")
    code, said = against(paper, run, capsys)
    assert code == 1
    assert f"no longer the filed run: {STEPS} more releases were made since. Filed was epsilon " in said
    then, now = json.loads(Path(paper).read_text())["guarantee"]["epsilon"], rounded_up(audit(run).epsilon)
    assert float(then) < float(now)
    assert f"{then} at delta 0.0001, kind record-dp; it is now epsilon {now} at delta 0.0001" in said
    assert main(["audit", str(run), "--statement", paper]) == 0
    (run / "checkpoint.safetensors").write_bytes(weights)  # an earlier step's: honest, and not what was filed
    assert audit(run).consistent
    code, said = against(paper, run, capsys)
    assert (code, "the weights are not those of the filed statement" in said) == (1, True)


def against(paper: str | Path, run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and words of the audit against a filed statement."""
    capsys.readouterr()
    code = main(["audit", str(run), "--filed", str(paper)])
    return code, capsys.readouterr().out


def other_weights(run: Path, **metadata: str) -> None:
    """Other tensors in the checkpoint's place, and what is changed in its metadata."""
    path = run / "checkpoint.safetensors"
    with safe_open(path, framework="np") as stored:
        kept = dict(stored.metadata())
    tensors = {name: value + (value.dtype.kind == "f") for name, value in load_file(path).items()}
    save_file(tensors, path, kept | metadata)


def named_anew(run: Path) -> None:
    """Append the row that names the weights as they lie there, and make the checkpoint name that head."""
    path = run / "checkpoint.safetensors"
    with (
        safe_open(path, framework="pt") as stored,
        Ledger.open(run / "ledger.sqlite") as ledger,
    ):
        digest = tensors_digest(stored.keys(), stored.get_tensor)
        name_weights(ledger, digest, int(stored.metadata()["step"]))
    fit_checkpoint(run)


@pytest.mark.parametrize("older", [False, True], ids=["", "statement of an earlier version"])
def test_a_filed_statement_is_of_its_weights_whatever_rows_were_added(
    older: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = tmp_path / "filed.json"
    assert main(["audit", str(run), "--statement", str(paper)]) == 0
    if older:
        stated = json.loads(paper.read_text())
        del stated["evidence"]["tensors_sha256"]
        paper.write_text(json.dumps(stated))
    with Ledger.open(run / "ledger.sqlite") as ledger:
        ledger.append_event("note", {"text": "nothing"})
        head = ledger.head()
    code, said = against(paper, run, capsys)
    assert (code, "more rows than when the statement was filed" in said) == (0, True)
    other_weights(run, ledger_head=head)
    code, said = against(paper, run, capsys)
    assert (code, "the weights are not those of the filed statement" in said) == (1, True)
    named_anew(run)  # now the folder by itself does not contradict them
    assert audit(run).consistent
    code, said = against(paper, run, capsys)
    assert (code, "the weights are not those of the filed statement" in said) == (1, True)


def test_a_run_resumed_without_a_step_is_the_filed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file is another, its tensors are the same; the simulated device's and the optimizer's are among them."""
    more = ("--release", "digital", "--backend", "simulated-opu", "--momentum", "0.5")
    run, paper = train(tmp_path / "run", *more), tmp_path / "filed.json"
    assert main(["audit", str(run), "--statement", str(paper)]) == 0
    filed = audit(run)
    train(run, *more, "--resume")
    now = audit(run)
    assert now.checkpoint_digest != filed.checkpoint_digest
    assert now.tensors_digest == filed.tensors_digest
    code, said = against(paper, run, capsys)
    assert (code, "none of them a release" in said) == (0, True)


def test_filed_weights_that_are_not_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper, bare = tmp_path / "filed.json", tmp_path / "bare.json"
    assert main(["audit", str(run), "--statement", str(paper)]) == 0
    assert main(["audit", str(run / "ledger.sqlite"), "--statement", str(bare)]) == 0
    code, said = against(bare, run, capsys)
    assert (code, "speaks of no weights" in said) == (0, True)
    code, said = against(paper, run / "ledger.sqlite", capsys)
    assert (code, "the weights of the filed statement were not compared" in said) == (0, True)
    for name in ("checkpoint.safetensors", "summary.json", "metrics.jsonl"):
        (run / name).unlink()
    assert audit(run).consistent
    code, said = against(paper, run, capsys)
    assert (code, "the weights of the filed statement are not there" in said) == (1, True)


# ---- weights are bound to the ledger


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("--release", "digital", "--backend", "digital", "--epochs", "2")
    return train(tmp_path_factory.mktemp("twice") / "run", *more)


@pytest.mark.parametrize("left", [8, 2], ids=["later than a checkpoint", "before the first checkpoint"])
def test_weights_that_saw_more_than_a_cut_ledger_are_found(
    left: int, twice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tail is cut, chain and head fit, the summary claims what is left: the weights are not those of that head."""
    run, paper = Path(shutil.copytree(twice, tmp_path / "run")), tmp_path / "filed.json"
    assert findings(run, capsys) == []
    assert main(["audit", str(run), "--statement", str(paper)]) == 0
    spent, rows = audit(run).epsilon, rows_of(run)
    last = [number for number, row in enumerate(rows) if row[1] == "release"][left - 1]
    raw(f"DELETE FROM entries WHERE seq > {last}")(run)
    fit_checkpoint(run)
    path = run / "checkpoint.safetensors"
    with safe_open(path, framework="np") as stored:
        metadata = dict(stored.metadata()) | {"step": str(left)}
    save_file(load_file(path), path, metadata)
    with Ledger.open(run / "ledger.sqlite", read_only=True) as ledger:
        assert (ledger.verify(), ledger.count()) == ([], left)
        cost = epsilon(ledger.releases(), 1e-4)
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(rows[0])
    in_metrics(run, step=left, epoch=left / STEPS, epsilon=cost)
    took, kept = float(metadata["seconds"]) / left, json.loads(rows[0])
    in_summary(run, steps=left, releases=left, seconds_per_step=took)
    in_summary(run, **{name: kept[name] for name in ("test_accuracy", "test_loss")})
    in_summary(run, "guarantee", epsilon=cost)
    found = findings(run, capsys)
    assert any("does not hold the weights that the ledger names at that head" in line for line in found), (
        found
    )
    assert audit(run).guarantee.kind.value == "none"
    # The chain is not signed: with a row of the forger's own nothing contradicts, but a statement filed before.
    named_anew(run)
    assert audit(run).consistent
    assert audit(run).epsilon < 0.9 * spent
    code, said = against(paper, run, capsys)
    assert (code, "which this ledger never had" in said) == (1, True)


def test_no_run_goes_on_from_weights_that_its_ledger_does_not_name(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the program itself would name them."""
    rows = rows_of(run)
    other_weights(run)
    assert any("does not hold the weights" in line for line in findings(run, capsys))
    again = [
        *TRAIN,
        "--release",
        "digital",
        "--backend",
        "digital",
        "--out",
        str(run),
        "--resume",
        "--epochs",
        "2",
    ]
    assert main(again) == 2
    assert "does not hold the weights that its ledger names" in capsys.readouterr().err
    assert rows_of(run) == rows


def test_weights_of_a_run_without_release_are_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--dataset", "digits", "--model", "mlp:8", "--batch-size", "256", "--epochs", "1", "--json")
    run = tmp_path / "run"
    assert main(["train", *sizes, "--release", "none", "--backend", "digital", "--out", str(run)]) == 0
    assert findings(run, capsys) == []
    other_weights(run)
    assert any("does not hold the weights" in line for line in findings(run, capsys))


def test_a_ledger_of_before_weights_were_named_holds_with_a_reserve(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def earlier(rows: list[Row]) -> list[Row]:
        header = {name: value for name, value in rows[0][2].items() if name != ANNOUNCED}
        return [(0, "header", header, rows[0][3]), *(row for row in rows[1:] if row[1] != "checkpoint")]

    without(run, lambda rows: [row for row in rows if row[1] != "checkpoint"])
    fit_checkpoint(run)
    assert any("does not hold the weights" in line for line in findings(run, capsys))  # it announces rows
    without(run, earlier)
    fit_checkpoint(run)
    assert findings(run, capsys) == []
    report = audit(run)
    assert any("of a version that named no weights" in note for note in report.notes)
    assert statement(report, "run", "No device.")["verdict"].startswith("HOLDS FOR THIS LEDGER ONLY")
    train(run, "--release", "digital", "--backend", "digital", "--resume", "--epochs", "2")
    assert findings(run, capsys) == []
    assert audit(run).reserved is False  # it goes on, and its newest weights are named


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "[]", '{"evidence": {}}', '{"evidence": {"ledger_head": 3}}'),
        '{"evidence": {"ledger_head": "3"}, "guarantee": []}',
        '{"evidence": {"ledger_head": "3"}, "guarantee": {"epsilon": "1"}}',
    ],
)
def test_what_is_no_filed_statement(
    content: str | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = tmp_path / "filed.json"
    if content is not None:
        paper.write_text(content)
    assert main(["audit", str(run), "--filed", str(paper)]) == 2
    assert "--statement FILE.json" in capsys.readouterr().err
    assert main(["audit", str(run), str(run), "--filed", str(paper)]) == 2


def test_a_checkpoint_newer_than_the_ledger(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "ledger.sqlite", run.parent / "older.sqlite")
    train(run, "--release", "digital", "--backend", "digital", "--resume", "--epochs", "2")
    assert findings(run, capsys) == []
    shutil.copy(run.parent / "older.sqlite", run / "ledger.sqlite")
    found = findings(run, capsys)
    assert any("newer than the ledger" in line for line in found), found
    assert any("reports 12 steps, the ledger has 6 releases" in line for line in found), found


@pytest.mark.parametrize(
    ("setting", "other", "finding"),
    [
        ("batch_size = 256", "batch_size = 128", "batch_size = 128, the ledger batch_size = 256"),
        ("public_size = 1437", "public_size = 14370", "public_size = 14370, the ledger nominal_size = 1437"),
        ("max_grad_norm = 1.0", "max_grad_norm = 0.5", "max_grad_norm = 0.5"),
        ('release = "digital"', 'release = "dark-frame"', "release = 'dark-frame'"),
        ("delta = 0.0001", "delta = 1e-6", "delta = 1e-06"),
        ("noise_multiplier = 2.0", "epsilon = 1.0", "epsilon = 1.0, the ledger target_epsilon = None"),
        ("reproducible = false", "reproducible = true", "reproducible = True"),
        ("batch_size", "batch_size = = ", "config.toml is unreadable"),
    ],
)
def test_settings_that_the_ledger_contradicts(
    setting: str, other: str, finding: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "config.toml"
    assert setting in path.read_text()
    path.write_text(path.read_text().replace(setting, other))
    found = findings(run, capsys)
    assert any(finding in line for line in found), found


def test_figures_of_private_records_in_the_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "training_loss": 0.3}) + "\n")
    assert any("shows training_loss" in line for line in findings(run, capsys))


# ---- what the ledger says of itself


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"mechanism": "published"}, "says mechanism published, release digital has gaussian"),
        ({"adjacency": "label"}, "says adjacency label, release digital has add-or-remove-one"),
        ({"adjacency": "replace-one"}, "says adjacency replace-one"),
        ({"release": "label"}, "releases come from digital, the header says label"),
        ({"version": None}, "does not say which version"),
        ({"version": "next"}, "does not say which version"),
        ({"version": "99.1"}, "newer than this one"),
        ({"dimension": 3}, "has dimension"),
        ({"sensitivity": 0.5}, "has sensitivity"),
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_or_its_rows(
    values: dict[str, Any], finding: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(run, ("header",), **values)
    fit_checkpoint(run)  # the chain and its head are no help here
    found = findings(run, capsys)
    assert any(finding in line for line in found), found


def test_an_older_version_is_a_note(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(run, ("header",), version="0.0.1")
    fit_checkpoint(run)
    assert findings(run, capsys) == []
    assert any("0.0.1" in note for note in audit(run).notes)


def test_rows_of_several_mechanisms_support_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(run)
    seq, kind, payload, nonce = rows[-2]  # the last release; the row after it names the weights
    rechained(run, [*rows[:-2], (seq, kind, payload | {"mechanism": "published"}, nonce), rows[-1]])
    fit_checkpoint(run)
    found = findings(run, capsys)
    assert any("several mechanisms" in line for line in found), found
    assert audit(run).guarantee.kind.value == "none"


# ---- keys: drawn once, in this run and in every other


def test_a_key_used_twice_in_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(run)
    key = next(row for row in rows if row[1] == "key")
    rechained(run, [*rows, key])
    fit_checkpoint(run)
    assert any("is used again" in line for line in findings(run, capsys))


def test_a_key_of_another_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = train(tmp_path / "other", "--release", "digital", "--backend", "digital")
    assert findings(run, capsys, other) == []
    key = next(
        payload for _, kind, payload, _ in rows_of(run) if kind == "key" and payload["name"] == "noise"
    )
    rows = [
        (seq, kind, key if payload.get("name") == "noise" else payload, nonce)
        for seq, kind, payload, nonce in rows_of(other)
    ]
    rechained(other, rows)
    fit_checkpoint(other)
    assert findings(other, capsys) == []  # by itself nothing shows
    found = findings(run, capsys, other)
    assert any("used the same key for noise" in line for line in found), found


def test_a_copy_is_the_same_run_and_a_branch_is_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = Path(shutil.copytree(run, tmp_path / "branch"))
    assert findings(run, capsys, branch) == []
    more = ("--release", "digital", "--backend", "digital", "--resume", "--epochs", "2")
    train(branch, *more)
    assert findings(run, capsys, branch) == []  # a later state of it
    capsys.readouterr()
    assert main(["audit", str(run), str(branch)]) == 0
    assert "between runs: " in capsys.readouterr().out
    train(run, *more)
    assert any("branched off" in line for line in findings(run, capsys, branch))


def test_a_seeded_run_that_hides_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeded = ("--release", "digital", "--backend", "digital", "--reproducible", "--seed", "7")
    one, other = (train(tmp_path / name, *seeded) for name in ("one", "other"))
    assert findings(one, capsys, other) == []  # they share all keys, and promise nothing
    assert audit(one).guarantee.kind.value == "none"
    edited(one, ("header",), reproducible=False)
    fit_checkpoint(one)
    (one / "config.toml").write_text(
        (one / "config.toml").read_text().replace("reproducible = true", "reproducible = false")
    )
    found = findings(one, capsys)
    assert any("follows from seed 7" in line for line in found), found
    assert any("used the same key" in line for line in findings(one, capsys, other))


# ---- the device: its calibration and its health


@pytest.fixture(scope="module")
def calibrated(calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    calibration.save(folder / "cal.json")
    return train(folder / "run", "--release", "dark-frame", "--calibration", str(folder / "cal.json"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    return train(folder, "--release", "dark-frame", "--release-option", "digits=10")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"weights": [1, 3, 9, 27, 81, 243, 729, 2187, 6561, 1]}, "digits give noise of"),
        ({"weights": [1, 9, 3, 27, 81, 243, 729, 2187, 6561, 20000]}, "digits cost"),
        ({"weights": [1, 3, 9, 27, 81, 243, 729, 2187, 60000]}, "does not say which digits"),
        ({"weights": "1"}, "does not say which digits"),
        ({"weights": [1.0] * 10}, "does not say which digits"),
        ({"theorem": "T4"}, "does not say which digits"),
        ({"gaussian_std_steps": None}, "does not say which digits"),
        ({"gaussian_std_steps": 1e-3}, "digits give noise of"),
    ],
)
def test_digits_that_give_less_noise_than_the_ledger_says(
    digits: Path, values: dict[str, Any], said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(digits, tmp_path / "run"))
    header = rows_of(run)[0][2]
    edited(run, ("header",), credit=header["credit"] | values)
    found = findings(run, capsys)
    assert found == [] if said is None else any(said in line for line in found), found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose noise is the light's."""
    out = tmp_path_factory.mktemp("light") / "run"
    options = ["--release", "photon", "--rule", "gated-dfa", "--model", "mlp:16", "--epochs", "1"]
    assert main(["train", "--dataset", "digits", *options, "--epsilon", "8", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"photo_electrons_a_mirror": 1.0}, "the light level gives a noise multiplier of"),
        ({"norm": None}, "does not say at which light level"),
        ({"norm": 1e9}, "the light level gives a noise multiplier of"),
        ({"largest_change_of_an_amplitude": 0.5}, "a record changes an amplitude by 0.5"),
        ({"largest_field_over_reference": 9.0}, "no light level of a run"),
        ({"count_mass": 1e-3}, "counts cost a mass of"),
    ],
)
def test_light_that_is_more_than_the_ledger_says(
    light: Path, values: dict[str, Any], said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(light, tmp_path / "run"))
    header = rows_of(run)[0][2]
    edited(run, ("header",), credit=header["credit"] | values)
    found = findings(run, capsys)
    assert found == [] if said is None else any(said in line for line in found), found


@pytest.fixture
def credited(calibrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(calibrated, tmp_path / "credited"))


def test_an_honest_calibrated_run(
    credited: Path, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert findings(credited, capsys) == []
    assert any(calibration.digest in note for note in audit(credited).notes)


def test_a_calibration_that_is_not_the_one_relied_on(
    credited: Path, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    path = credited / "camera-calibration.json"
    path.write_text(path.read_text().replace('"frames": 100', '"frames": 101'))
    assert any("has digest" in line for line in findings(credited, capsys))
    other = replace(calibration, credit_lower_dn=0.99 * calibration.credit_dn)
    other.save(path)  # consistent in itself
    assert any("has digest" in line for line in findings(credited, capsys))
    path.unlink()
    assert any("that is not there" in line for line in findings(credited, capsys))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{", '{"training_loss": 0.3, '),
        ("{", '{"frames": 0.3, '),  # a key given twice: the reader sees the last
        ('"frames": 100', '"frames": 100, "curves ": {"loss": [0.3]}'),
    ],
)
def test_a_calibration_that_carries_something(
    before: str, after: str, credited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fields that make its digest are as they were."""
    path = credited / "camera-calibration.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    found = findings(credited, capsys)
    assert any(line.startswith("camera-calibration.json ") for line in found), found


def test_a_calibration_swapped_in_the_ledger_too(
    credited: Path, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    """The header names the other one by its digest, and chain and checkpoint fit: it is worth something else."""
    other = replace(calibration, credit_lower_dn=0.99 * calibration.credit_dn, beta=1e-9)
    other.save(credited / "camera-calibration.json")
    named = rows_of(credited)[0][2]["calibration"] | {"digest": other.digest}
    edited(credited, ("header",), calibration=named)
    fit_checkpoint(credited)
    found = findings(credited, capsys)
    assert any("failure probability 1e-06, the calibration it names 1e-09" in line for line in found), found
    assert any("noise credit in converter steps" in line for line in found), found
    edited(credited, ("header",), calibration=None)
    fit_checkpoint(credited)
    assert any("names no calibration" in line for line in findings(credited, capsys))


def test_releases_without_a_tested_device(credited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(credited, lambda rows: [row for row in rows if row[1] != "health"])
    fit_checkpoint(credited)
    assert any("without a passed start-up test" in line for line in findings(credited, capsys))


def test_dark_frames_of_another_run(
    credited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train(tmp_path / "other", "--release", "dark-frame")
    assert findings(credited, capsys, other) == []
    seen = next(payload["digests"] for _, kind, payload, _ in rows_of(credited) if kind == "health")
    edited(other, ("health",), digests=seen)
    fit_checkpoint(other)
    assert any("dark frames: the device replayed them" in line for line in findings(credited, capsys, other))


# ---- the other mechanisms

MECHANISMS = [
    ("label", "label-dp", ("--rule", "dfa")),
    ("per-record", "conditional", ("--rule", "dfa")),
    ("aggregate", "record-dp", ("--rule", "gated-dfa")),
    ("skellam", "record-dp", ("--rule", "dfa")),
]


@pytest.mark.parametrize(("release", "kind", "more"), MECHANISMS, ids=[case[0] for case in MECHANISMS])
def test_every_release_is_recomputed_by_another_accountant(
    release: str, kind: str, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "--release", release, "--backend", "digital", *more)
    summary = json.loads((run / "summary.json").read_text())["guarantee"]
    assert findings(run, capsys) == []
    report = audit(run)
    assert report.guarantee.kind.value == kind == summary["kind"]
    assert report.guarantee.accountant != summary["accountant"]
    if kind != "conditional":  # two formulas for the same published reading, neither a bound
        assert report.epsilon == pytest.approx(summary["epsilon"], rel=0.01)


def test_label_rows_whose_epochs_go_back_or_repeat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", "--release", "label", "--backend", "digital", "--epochs", "2")
    more = ("--release", "label", "--backend", "digital", "--resume", "--epochs", "3")
    shutil.copytree(run, tmp_path / "resumed")
    assert findings(train(tmp_path / "resumed", *more), capsys) == []
    rows = rows_of(run)
    assert [payload["epoch"] for _, kind, payload, _ in rows if kind == "release"] == [0] * 6 + [1] * 6
    seq, kind, payload, nonce = rows[-2]  # the last release; the row after it names the weights
    rechained(run, [*rows[:-2], (seq, kind, payload | {"epoch": 0}, nonce), rows[-1]])
    fit_checkpoint(run)
    found = findings(run, capsys)
    assert any("epochs never go back" in line for line in found), found
    assert any("a record took part twice" in line for line in found), found
    edited(run, ("release",), epoch=0)  # everything in parallel: one epoch's price for two
    fit_checkpoint(run)
    assert any("epoch 0 has 12 releases" in line for line in findings(run, capsys))
