"""What CONTRIBUTING.md, SECURITY.md and the decision records name is there, and the hooks run what `make lint` runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DECISIONS]


def heading(text: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"`([\w.]+/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
        target = document.parent / link
        assert target.exists(), link
        if anchor:
            found = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {heading(title) for title in found}, anchor
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", text)):
        assert f"def {name}(" in tests, name


@pytest.mark.parametrize("document", DECISIONS, ids=lambda path: path.name)
def test_a_decision_has_its_three_parts(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(document.name[:2])}. ")
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.M) == ["Context", "Decision", "Consequences"]


def test_hooks_and_targets_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = dict(re.findall(r"^(\w+):.*\n((?:\t.*\n)*)", makefile, re.M))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^    make (\w+)", contributing, re.M))
    assert named == {"demo", "test", "lint", "slow"}
    assert named <= set(targets)
    hooks = re.findall(r"entry: (.+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    linted = re.findall(r"\$\(BIN\)/(.+)", targets["lint"])
    assert hooks == [f".venv/bin/{re.sub(r' (--check|[.])', '', command)}" for command in linted]
