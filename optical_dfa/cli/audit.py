"""`optical-dfa audit`: recompute a run's privacy budget from its ledger alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, show


def audit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder of `optical-dfa train --out`, or a ledger file.")
    ],
    delta: Annotated[float | None, typer.Option(help="Recompute at this delta, not the run's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a run's privacy budget from its ledger, and compare it with what the run claims.

    Exit code 1 when they do not agree, or when the ledger is damaged.

    Example: optical-dfa audit runs/first --json
    """
    from privacy.auditing.audit import audit as audited

    with notes_to_stderr(as_json):
        result = audited(run, delta)
    if as_json:
        print_json(result.to_dict())
    else:
        print_facts(
            {
                "consistent": show(result.consistent),
                "releases": f"{result.releases:,}",
                "epsilon the run claims": show(result.reported_epsilon),
            }
        )
        print(f"\nfrom the ledger alone: {result.guarantee}")
        print("\n".join(["", *(f"finding: {text}" for text in result.findings or ("none",))]))
        print("\n".join(f"note: {text}" for text in result.notes))
    if not result.consistent:
        raise typer.Exit(1)
