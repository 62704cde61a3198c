"""`optical-dfa audit`: recompute a run's privacy budget from its ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, show


def audit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder written by `optical-dfa train --out`.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Recompute the privacy budget of a run from its ledger, and compare it with what the run claims.

    Exit code 1 when they do not agree, or when the ledger was tampered with.

    Example: optical-dfa audit runs/first --json
    """
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; give the folder named with `optical-dfa train --out`")
    from privacy.auditing import audit as audit_run

    with notes_to_stderr(as_json):
        result = audit_run(run)
    if as_json:
        print_json(result)
    else:
        findings = result["findings"]
        print_facts({name: show(value) for name, value in result.items() if name != "findings"})
        print("\n".join(f"finding: {finding}" for finding in findings) if findings else "no findings")
    if not result["consistent"]:
        raise typer.Exit(1)
