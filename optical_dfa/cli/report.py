"""`optical-dfa report`: write the report page of a run, or one comparing several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from noise_models.errors import UsageError
from optical_dfa.cli.output import JsonOption, print_json


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of `optical-dfa train --out`.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page to write; RUN/report.html for a single run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report page of a run, or one page comparing several.

    The page is one self-contained HTML file made from the run folders' files alone.

    Example: optical-dfa report runs/dfa runs/bp --out comparison.html
    """
    if out is None and len(runs) > 1:
        raise UsageError(f"{len(runs)} runs make one comparison page; name its file with --out FILE")
    from optical_dfa.report.page import write_report
    from optical_dfa.runs.folder import REPORT

    page = out or runs[0] / REPORT
    write_report(runs, page)
    if as_json:
        print_json({"report": str(page), "runs": [str(run) for run in runs]})
    else:
        print(f"report: {page}")
