"""`optical-dfa audit`: recompute a run's privacy budget from its ledger, and state it for the files of an office."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, show

if TYPE_CHECKING:
    from privacy.auditing.audit import AuditReport

_FORMATS = (".md", ".json")


def audit(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folder of `optical-dfa train --out`, or a ledger file. Several are compared.",
        ),
    ],
    delta: Annotated[float | None, typer.Option(help="Recompute at this delta, not the run's own.")] = None,
    statement: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the privacy statement to FILE.md or FILE.json; of one run."),
    ] = None,
    filed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compare with the statement FILE.json that was filed before; of one run."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a run's privacy budget from its ledger, compare it with what the run claims, and state it.

    Checked are the hash chain, every row, the checkpoint, the settings, the metrics, the summary, the report page, the
    calibration and health of the device, the generators' keys and the program's version. Of several runs, whether they
    share a generator. The verdict names what was not checked. Exit code 1 when anything does not hold, 2 when
    something could not be read.

    Example: optical-dfa audit runs/first --statement first.md
    """
    from optical_dfa.report.checked import check_page
    from privacy.auditing.audit import audit as audited
    from privacy.auditing.filed import check_filed, read_filed
    from privacy.auditing.runs import compare_runs

    if statement is not None and (statement.suffix not in _FORMATS or len(runs) > 1):
        raise UsageError(
            f"--statement is {statement} of {len(runs)} run(s); give one run, and a file ending in .md or .json"
        )
    if statement is not None and not statement.parent.is_dir():
        raise UsageError(
            f"--statement is {statement}, but there is no folder {statement.parent}; name one that is"
        )
    if filed is not None and len(runs) > 1:
        raise UsageError(f"--filed is {filed} of {len(runs)} runs; give the one run that it speaks of")
    before = None if filed is None else read_filed(filed)
    notes: list[str] = []
    with notes_to_stderr(as_json):
        results = {str(run): check_page(run, audited(run, delta)) for run in runs}
        shared = compare_runs(runs, notes)
    if before is not None:
        name, result = next(iter(results.items()))
        remarks: list[str] = []
        found = check_filed(before, runs[0], result, remarks)
        results[name] = result.with_remarks(found, remarks)
    consistent = not shared and all(result.consistent for result in results.values())
    if statement is not None:
        _write(statement, _stated(str(runs[0]), results[str(runs[0])]))
    if as_json:
        documents = {
            name: result.to_dict() | {"statement": _stated(name, result)} for name, result in results.items()
        }
        compared = {"consistent": consistent, "findings": shared, "notes": notes}
        print_json(next(iter(documents.values())) if len(runs) == 1 else {"runs": documents, **compared})
    else:
        for name, result in results.items():
            _show(name, result, alone=len(runs) == 1, stated=statement is None)
        print("".join(f"between runs: {text}\n" for text in (*shared, *notes)), end="")
    if statement is not None and not as_json:
        print(f"\nstatement: {statement}")
    if not consistent:
        raise typer.Exit(1)
    if any(result.unreadable for result in results.values()):
        raise typer.Exit(2)  # neither confirmed nor contradicted


def _show(name: str, result: AuditReport, *, alone: bool, stated: bool) -> None:
    """Findings and what was compared; then, of a run by itself, the statement."""
    from privacy.auditing.markdown import markdown
    from privacy.notions import Kind

    claimed = show(result.reported_epsilon)
    if result.guarantee.kind is Kind.CONDITIONAL:
        claimed += ", conditional: NOT a guarantee"
    facts = {
        "consistent": show(result.consistent),
        "releases": f"{result.releases:,}",
        "epsilon the run claims": claimed,
    }
    print_facts(facts if alone else {"run": name} | facts)
    print(f"\nfrom the ledger alone: {result.guarantee.headline()}")
    print("\n".join(["", *(f"finding: {text}" for text in result.findings or ("none",))]))
    print("\n".join([*(f"note: {text}" for text in result.notes), *_not_checked(result), ""]))
    if alone and stated:
        print(markdown(_stated(name, result)), end="")


def _not_checked(result: AuditReport) -> list[str]:
    from privacy.auditing.wording import not_checked

    return [f"not checked: {text}" for text in not_checked(result.unreadable, result.unchecked)]


def _stated(name: str, result: AuditReport) -> dict[str, Any]:
    from optical_dfa.report.statement import device_words
    from privacy.auditing.statement import statement

    return statement(result, name, device_words(result.header))


def _write(path: Path, stated: dict[str, Any]) -> None:
    from privacy.auditing.markdown import markdown

    text = (
        markdown(stated) if path.suffix == ".md" else json.dumps(stated, indent=2, ensure_ascii=False) + "\n"
    )
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"--statement {path} cannot be written ({error.strerror}); name another file"
        ) from None
