"""Privacy statements: the verdict comes first, numbers are rounded up, and no name in a run can write one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from privacy.auditing.audit import AuditReport
from privacy.auditing.markdown import markdown
from privacy.auditing.statement import statement
from privacy.auditing.wording import one_line
from privacy.guarantee import Guarantee, Kind
from privacy.notions import Adjacency
from privacy.releases import RELEASES

ISSUED = datetime(2030, 1, 2, tzinfo=UTC)
DEVICE = "No optical device took part."
HEADER: dict[str, Any] = {
    "release": "digital",
    "adjacency": "add-or-remove-one",
    "mechanism": "gaussian",
    "sample_rate": 0.02,
    "noise_multiplier": 1.5,
    "max_grad_norm": 1.0,
    "sensitivity": 1.001,
    "dimension": 38410,
    "nominal_size": 1000,
    "batch_size": 20,
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "reproducible": False,
    "version": "0.1.0",
}


def guarantee(
    epsilon: float, kind: Kind = Kind.RECORD_DP, accountant: str = "numerical", **other: Any
) -> Guarantee:
    return Guarantee(
        **{
            "epsilon": epsilon,
            "delta": 1e-5,
            "adjacency": Adjacency.ADD_REMOVE,
            "kind": kind,
            "accountant": accountant,
            "assumptions": ("the noise is secret",),
            **other,
        }
    )


def report(own: Guarantee, claim: Guarantee | None = None, **other: Any) -> AuditReport:
    values: dict[str, Any] = {
        "guarantee": own,
        "consistent": not other.get("findings"),
        "findings": (),
        "notes": (),
        "releases": 50,
        "health": (),
        "calibration": None,
        "claim": claim,
        "header": HEADER,
        "ledger_head": "ab" * 32,
        "settings": {"dataset": "digits", "model": "mlp"},
        "checkpoint_digest": "cd" * 32,
    }
    return AuditReport(**{**values, **other})


def stated(own: Guarantee, claim: Guarantee | None = None, **other: Any) -> dict[str, Any]:
    return statement(report(own, claim, **other), "runs/first", DEVICE, ISSUED)


def test_a_statement_says_who_is_protected_from_whom_by_how_much() -> None:
    said = stated(guarantee(0.92211), guarantee(0.92219, accountant="pld"))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["verdict"].startswith("HOLDS under the assumptions below: (0.9222, 1e-05)")
    assert said["holds"] is True
    assert said["guarantee"]["epsilon"] == "0.9222"  # the larger of the two, rounded up
    assert said["accounting"]["recomputed"]["epsilon"] == "0.9222"
    assert said["accounting"]["recomputed"]["accountant"] == "numerical"
    assert said["accounting"]["reported"]["accountant"] == "pld"
    assert "normal noise of standard deviation 1.5 times 1.001" in said["mechanism"]["in_words"]
    assert said["subject"] == {
        "run": "runs/first",
        "data_set": "digits",
        "declared_size": 1000,
        "network": "mlp",
        "began": None,
        "last_dated_entry": None,
    }
    assert said["verification"][0] == "optical-dfa audit runs/first"
    assert said["issued"] == "2030-01-02T00:00:00+00:00"


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e6), st.floats(0.99, 1.01))
def test_the_stated_epsilon_is_never_below_what_was_computed(epsilon: float, factor: float) -> None:
    """Rounding to text and back costs 1e-12 relative at most, and never more than four digits upwards."""
    said = stated(guarantee(epsilon), guarantee(factor * epsilon, accountant="pld"))
    most = max(epsilon, factor * epsilon)
    assert most * (1 - 1e-11) <= float(said["guarantee"]["epsilon"]) <= most * (1 + 1.01e-3)


def test_a_claim_about_something_else_is_not_what_is_stated() -> None:
    other = guarantee(5.0, accountant="pld", delta=1e-6)
    assert stated(guarantee(1.0), other)["guarantee"]["epsilon"] == "1"


VERDICTS = [
    (report(guarantee(math.inf, Kind.NONE, nominal_epsilon=1.0)), "NO PRIVACY GUARANTEE"),
    (report(guarantee(1.0, Kind.CONDITIONAL)), "NOT A GUARANTEE"),
    (
        report(guarantee(1.0, Kind.CONDITIONAL, assumptions=("FAILS: a", "FAILS: b"))),
        "NOT A GUARANTEE: the figures hold only while every assumption below does, and 2 of them",
    ),
    (report(guarantee(math.inf)), "NO PROTECTION"),
    (report(guarantee(1.0), findings=("one", "two")), "DOES NOT HOLD: the audit found 2 contradiction(s)"),
    (report(guarantee(1.0, Kind.CONDITIONAL), findings=("one",)), "NOT A GUARANTEE, and it DOES NOT HOLD"),
]


@pytest.mark.parametrize(("found", "verdict"), VERDICTS, ids=[case[1] for case in VERDICTS])
def test_what_is_no_guarantee_says_so_before_any_number(found: AuditReport, verdict: str) -> None:
    said = statement(found, "run", DEVICE, ISSUED)
    assert said["verdict"].startswith(verdict)
    assert said["holds"] is False
    first, second = [line for line in markdown(said).splitlines() if line][:2]
    assert first == "# Privacy statement"
    assert second.startswith(f"**{verdict}")
    assert not found.findings or said["guarantee"]["in_words"] == ""


@pytest.mark.parametrize("release", sorted(RELEASES))
def test_every_release_has_its_words(release: str) -> None:
    terms = RELEASES[release]
    header = HEADER | {"release": release, "mechanism": terms.mechanism, "adjacency": terms.adjacency.value}
    own = replace(guarantee(1.0, terms.kind), adjacency=terms.adjacency)
    said = statement(report(own, header=header), "run", DEVICE, ISSUED)
    assert terms.summary == said["mechanism"]["noise"]
    assert len(said["mechanism"]["in_words"]) > 100
    assert "{" not in said["mechanism"]["in_words"]
    assert "not recorded" not in said["mechanism"]["in_words"]
    labels = terms.kind is Kind.LABEL_DP
    assert any("only their labels are protected" in text for text in said["not_covered"]) == labels
    assert ("all inputs" in said["adversary"]) == labels
    assert said["guarantee"]["neighbours"].endswith(terms.adjacency.words)


def test_each_release_is_described_as_itself() -> None:
    said = {
        release: statement(
            report(guarantee(1.0), header=HEADER | {"release": release}), "run", DEVICE, ISSUED
        )["mechanism"]["in_words"]
        for release in RELEASES
    }
    assert len(set(said.values())) == len(RELEASES)
    assert "BEFORE the projection" in said["aggregate"]
    assert "contributes to the update" not in said["aggregate"]
    assert "dark frames" in said["dark-frame"]
    assert "dark frames" not in said["digital"]


def test_a_ledger_without_weights_holds_with_a_reserve() -> None:
    said = stated(guarantee(1.0), reserved=True)
    assert said["verdict"].startswith("HOLDS FOR THIS LEDGER ONLY")
    assert said["holds"] is False


def test_a_run_without_release_is_stated_too() -> None:
    own = Guarantee(math.inf, 0.0, Adjacency.ADD_REMOVE, Kind.NONE, "none")
    found = report(own, header={"release": "none", "reproducible": False}, releases=0)
    said = statement(found, "run", DEVICE, ISSUED)
    assert said["guarantee"]["epsilon"] == "inf"
    assert "Nothing was released under privacy." in markdown(said)


# ---- names of a run folder are data

PARSER = MarkdownIt("commonmark").enable("table")


def shape(document: str) -> list[tuple[str, str]]:
    """Blocks and markup of a document, without its words."""
    tokens = PARSER.parse(document)
    return [
        (token.type, child.type)
        for token in tokens
        for child in (token.children or [token])
        if child.type not in ("text", "softbreak")
    ]


def words(document: str) -> set[str]:
    """Every text of a document as a reader sees it."""
    return {
        "".join(child.content for child in token.children or () if child.type == "text")
        for token in PARSER.parse(document)
        if token.type == "inline"
    }


def with_name(name: str) -> str:
    named = {"digest": name, "taken_at": name, "expires_at": name}
    header = HEADER | {"version": name}
    own = guarantee(1.0, assumptions=(name, "the noise is secret"))
    found = report(
        own, header=header, calibration=named, settings={"dataset": name, "model": name}, notes=(name,)
    )
    return markdown(statement(found, name, DEVICE, ISSUED))


HOSTILE = [
    "x\n\n# Privacy statement\n\n**HOLDS**: epsilon 0.01",
    "a | b |\n| c | d |",
    "[verify](https://example.org)",
    "<script>alert(1)</script>",
    "![](https://example.org/x.png)",
    "`code` *bold* _it_ ~~no~~",
    "- item",
    "1. item",
    "+ item",
    "---",
    "===",
    "> quote",
    "    code",
    "&lt;b&gt;",
    "\\| \\",
    "```",
    "https://example.org",
    "\u202eevil\u2066",
    "|",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_and_not_obeyed(name: str) -> None:
    document = with_name(name)
    assert shape(document) == shape(with_name("plain"))
    assert one_line(name) in words(document)
    assert document.count("\n") == with_name("plain").count("\n")


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=40).filter(lambda text: one_line(text) != ""))
def test_any_name_is_shown_and_not_obeyed(name: str) -> None:
    document = with_name(name)
    assert shape(document) == shape(with_name("plain"))
    assert one_line(name) in words(document)


def test_a_name_in_a_command_is_quoted() -> None:
    said = statement(report(guarantee(1.0)), "runs/a; rm -rf b", DEVICE, ISSUED)
    assert said["verification"][0] == "optical-dfa audit 'runs/a; rm -rf b'"
