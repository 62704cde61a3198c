"""The statement as the program prints and files it, and the page that explains it to who files it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from optical_dfa.cli import main
from privacy.auditing import wording
from privacy.auditing.audit import audit

DOCUMENT = (Path(__file__).parents[1] / "docs" / "privacy-statement.md").read_text(encoding="utf-8")
EXPLANATION, EXAMPLE = DOCUMENT.split("<!-- example -->")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("statement") / "first"
    sizes = ["--model", "mlp:8", "--batch-size", "256", "--epochs", "1"]
    assert main(["train", "--dataset", "digits", *sizes, "--epsilon", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "first"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["audit", *arguments])
    return code, capsys.readouterr().out


def undated(stated: dict[str, Any]) -> dict[str, Any]:
    return stated | {"issued": ""}


def test_the_statement_is_printed_filed_and_the_same_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = said(capsys, str(run), "--json")
    stated = json.loads(answer)["statement"]
    assert (code, stated["holds"]) == (0, True)
    code, text = said(capsys, str(run))
    assert (code, stated["verdict"] in text) == (0, True)
    assert text.index("finding: none") < text.index("# Privacy statement")
    markdown, document = tmp_path / "s.md", tmp_path / "s.json"
    code, text = said(capsys, str(run), "--statement", str(markdown))
    assert (code, "# Privacy statement" in text, f"statement: {markdown}" in text) == (0, False, True)
    assert stated["verdict"] in markdown.read_text(encoding="utf-8")
    code, answer = said(capsys, str(run), "--statement", str(document), "--json")
    assert undated(json.loads(document.read_text(encoding="utf-8"))) == undated(stated)
    assert undated(json.loads(answer)["statement"]) == undated(stated)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["guarantee"]["epsilon"] <= float(stated["guarantee"]["epsilon"]) <= 3.0
    assert stated["subject"]["data_set"] == "digits"
    assert "SIMULATED" in stated["device"]["in_words"]
    assert stated["evidence"]["ledger_head"] == audit(run).ledger_head


def test_a_statement_of_a_run_that_does_not_hold_is_filed_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["guarantee"]["epsilon"] /= 2
    (run / "summary.json").write_text(json.dumps(summary))
    code, _ = said(capsys, str(run), "--statement", str(tmp_path / "s.md"))
    assert code == 1
    assert "**DOES NOT HOLD" in (tmp_path / "s.md").read_text(encoding="utf-8")


def test_several_runs_are_reported_one_by_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    code, answer = said(capsys, str(run), str(copy), "--json")
    documents = json.loads(answer)
    assert code == 0
    assert documents["runs"].keys() == {str(run), str(copy)}
    assert all(document["statement"]["holds"] for document in documents["runs"].values())
    assert any("copies of one run" in note for note in documents["notes"])
    shutil.rmtree(copy)
    assert said(capsys, str(run), str(copy))[0] == 2


@pytest.mark.parametrize("name", ["s.txt", "s", "s.md.gz"])
def test_a_statement_is_markdown_or_json(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(run), "--statement", str(tmp_path / name)]) == 2
    assert "ending in .md or .json" in capsys.readouterr().err
    assert main(["audit", str(run), str(run), "--statement", str(tmp_path / "s.md")]) == 2
    assert "one run" in capsys.readouterr().err
    assert list(tmp_path.glob("s*")) == []


# ---- the page that explains it


def structure(document: str) -> list[str]:
    """Headings and the labels of the tables' rows, in order."""
    found = re.findall(r"^#+ (.+)$|^\| ([^|]+) \|.*\|$", document, re.MULTILINE)
    return [heading or label.strip() for heading, label in found if (heading or label).strip()]


def test_the_pages_example_is_what_the_program_makes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, str(run), "--statement", str(tmp_path / "s.md"))
    fresh = (tmp_path / "s.md").read_text(encoding="utf-8")
    assert structure(EXAMPLE) == structure(fresh)
    assert len(structure(fresh)) > 35
    _, answer = said(capsys, str(run), "--json")
    stated = json.loads(answer)["statement"]
    for text in (
        *stated["not_covered"],
        stated["released"],
        stated["adversary"],
        stated["device"]["in_words"],
    ):
        assert text in EXAMPLE


def test_the_page_explains_every_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, str(run), "--statement", str(tmp_path / "s.md"))
    fresh = (tmp_path / "s.md").read_text(encoding="utf-8")
    flat = " ".join(EXPLANATION.split())
    labels = re.findall(r"^\| ([A-Z][^|]+) \|", fresh, re.MULTILINE)
    assert len(labels) > 25
    assert [label for label in labels if f"**{label}**" not in flat] == []


def test_the_page_lists_every_verdict() -> None:
    listed = re.findall(r"^\| ([A-Z]{2}[A-Z ]+?)(?: under .*)? \|", EXPLANATION, re.MULTILINE)
    source = Path(wording.__file__).read_text(encoding="utf-8")
    assert len(listed) == 7
    for verdict in listed:
        assert f'"{verdict}' in source
