"""A package outside the tree registers a rule, a device, a release and a data set, each in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from noise_models.cards import Registry
from noise_models.errors import DeviceError, UsageError
from optical_dfa.cli import main
from optical_dfa.feedback.card import RuleCard

NAMES = ("half-dfa", "mirrored", "plain-noise", "stripes")


def test_the_program_serves_what_another_package_registers(
    own_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(own_parts))
    monkeypatch.setenv("COLUMNS", "200")

    def program(*arguments: str) -> str:
        assert main([*arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    folder = tmp_path / "run"
    program(
        "train", "--rule", "half-dfa", "--backend", "mirrored", "--release", "plain-noise",
        "--dataset", "stripes", "--out", str(folder),
    )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rule"], summary["backend"], summary["release"]) == NAMES[:3]
    assert 3.0 < summary["guarantee"]["epsilon"] <= 4.0
    audited = json.loads(program("audit", str(folder), "--json"))
    assert audited["guarantee"]["kind"] == "record-dp"
    statement = tmp_path / "statement.md"
    program("audit", str(folder), "--statement", str(statement))
    told = statement.read_text(encoding="utf-8")
    assert "plain normal noise of standard deviation" in told
    assert "A mirror took part, in software." in told
    page = tmp_path / "report.html"
    program("report", str(folder), "--out", str(page))
    html = page.read_text(encoding="utf-8")
    assert "half of Direct Feedback Alignment" in html
    assert "with privacy plain noise" in html
    assert "a matrix product seen in a mirror" in program("backends")


def test_the_help_of_a_program_that_starts_knows_them(own_parts: Path) -> None:
    path = os.pathsep.join(filter(None, [str(own_parts), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "optical_dfa", "train", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )
    shown = "".join(done.stdout.split())  # lines end after a hyphen, too
    assert all(name in shown for name in NAMES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@RuleCard(projects=True)\nclass Rule: ...", r"missing 1 required keyword-only argument: 'summary'"),
        ("@RuleCard(summary='s')\nclass Rule: ...", r"missing .*'projects'"),
        ("@RuleCard(summary='s', projects=True, colour=1)\nclass Rule: ...", r"unexpected .*'colour'"),
        ("@RuleCard(summary=str(1), projects=True)\nclass Rule: ...", r"str\(1\) is no literal"),
        ("class Rule: ...", r"has no card; put @RuleCard"),
        ("@RuleCard(summary=3, projects=True)\nclass Rule: ...", r"summary is 3; it must be of type str"),
        (
            "@RuleCard(summary='s', projects='yes')\nclass Rule: ...",
            r"projects is 'yes'; it must be of type bool",
        ),
    ],
)
def test_a_card_that_lacks_a_field_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "uncarded.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = Registry("rule", RuleCard, {"mine": "uncarded:Rule"}, group="no.such.group")
    for asked in (rules.__getitem__, rules.load):
        with pytest.raises(UsageError, match=words) as error:
            asked("mine")
        assert "\n" not in str(error.value)
        assert "rule mine" in str(error.value)


@pytest.mark.parametrize(
    "made",
    [
        b"def broken(:", b"\x00", b"# -*- coding: utf-8 -*-\n\xff", b"(" * 5000, None,
        b"raise SystemExit(0)\n@RuleCard(summary='s', projects=True)\nclass Rule: ...",
        b"undefined\n@RuleCard(summary='s', projects=True)\nclass Rule: ...",
    ],
    ids=["syntax", "null", "encoding", "nested", "no module", "leaves", "fails"],
)  # fmt: skip
def test_another_packages_broken_file_is_told_of_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bytes | None
) -> None:
    folder = tmp_path / "breaking"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit(0)  # is not run to read a card", encoding="utf-8")
    if made is not None:
        (folder / "part.py").write_bytes(made)
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = Registry("rule", RuleCard, {"mine": "breaking.part:Rule"}, group="no.such.group")
    with pytest.raises(
        DeviceError, match=r"^rule mine cannot be (read|loaded) from breaking\.part:Rule"
    ) as error:
        rules.load("mine")
    assert "\n" not in str(error.value)
