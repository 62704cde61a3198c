"""docs/theory.md: what it names exists, and its table is what the experiments find."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from experiments.theory.study import FOLDER, THEOREMS, demonstrations, main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
PROSE = TEXT[: TEXT.index("<!-- table")]
TABLE = (FOLDER / "table.md").read_text(encoding="utf-8")


def code(*folders: str, pattern: str = "*.py") -> str:
    return "".join(p.read_text(encoding="utf-8") for f in folders for p in sorted((ROOT / f).rglob(pattern)))


def test_every_test_that_it_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PROSE))
    tests = code("tests", pattern="test_*.py") + code("optical_dfa/testing")
    assert len(named) > 80
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_every_name_of_the_code_that_it_uses_exists() -> None:
    product = code("noise_models", "privacy", "optical_dfa")
    quoted = set(re.findall(r"`([A-Za-z_][\w.]*)(?:\(\w+=\))?`", PROSE))
    names = {n for n in quoted if "_" in n or re.search(r"[a-z][A-Z]", n) or "." in n}
    names -= {
        n for n in names if n.startswith("test_") or n.endswith(".md") or re.fullmatch(r"[A-Za-z]_\w", n)
    }
    assert len(names) > 20
    for name in names:
        for part in name.removeprefix("experiments.theory").split("."):
            assert re.search(rf"\b{part}\b", product), name


def test_every_file_that_it_names_exists() -> None:
    paths = set(re.findall(r"`((?:noise_models|privacy|optical_dfa|experiments|tests)/[\w/.]+)`", PROSE))
    assert len(paths) > 6
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_attack_that_it_names_is_registered() -> None:
    named = set(re.findall(r"`optical-dfa attack ([\w-]+)`", PROSE))
    assert named
    assert named <= set(import_module("optical_dfa.attacks").ATTACKS)


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_theorem_has_its_chapter_and_its_tests(theorem: str) -> None:
    chapter = re.search(rf"^## {theorem}\. .*?(?=^## )", PROSE, re.DOTALL | re.MULTILINE)
    assert chapter is not None
    for part in ("**Statement.**", "**Proof", "| Condition" if theorem != "T1" else "| Assumption"):
        assert part in chapter[0]
    assert f"`python -m experiments theory {theorem}`" in chapter[0]
    assert (ROOT / "tests" / "theory" / f"test_theory_{theorem.lower()}.py").exists()


@pytest.mark.parametrize("theorem", THEOREMS)
def test_claims_hold_with_their_conditions_and_break_without(theorem: str) -> None:
    found = demonstrations(theorem)
    assert [d.case for d in found if not d.as_it_should_be] == []
    rows = [line for line in TABLE.splitlines() if line.startswith(f"| {theorem} |")]
    assert len(rows) == len(found), "run: python -m experiments theory && python -m experiments tables"
    for row, demonstration in zip(rows, found, strict=True):
        assert demonstration.figure.replace("|", "&#124;") in row
        assert demonstration.dropped in row


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(THEOREMS)
    assert main(["T0"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no theorem T0")
    assert main(["t8"]) == 0
    assert "| T8 |" in capsys.readouterr().out
