"""The report page of a run folder against the files that it was made from."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from noise_models.errors import UsageError
from optical_dfa.report.page import single_page
from optical_dfa.runs.folder import REPORT
from optical_dfa.runs.reading import Run, number
from privacy.auditing.audit import AuditReport

_DRAWING = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
_NAME = re.compile(r"<h1>(.*?)</h1>", re.DOTALL)
_VERSION = "optical-dfa"


def check_page(run: Path, report: AuditReport) -> AuditReport:
    """The audit's report, with a finding where the page says what its folder does not.

    The page is made anew from the files that were audited and compared with the one that lies there. Drawings can
    differ between versions of the library that makes them: where only they do, they count as not checked. So does a
    page beside files that contradict each other: there is nothing to make it from.

    Args:
        run: run folder, or a ledger by itself.
        report: of its audit.
    """
    if REPORT not in report.unchecked or not report.consistent:
        return report
    try:
        there = (run / REPORT).read_text(encoding="utf-8")
        source = Run.read(run)
    except OSError as error:
        closed = f"{REPORT} ({error.strerror or error})"
        return replace(_checked(report), unreadable=(*report.unreadable, closed))
    except UnicodeDecodeError:
        return _checked(report).with_remarks([f"{REPORT} is no text"], [])
    except UsageError:  # nothing to make a page from: the run did not finish
        return report
    if not _is_own(source):
        return report
    named = _NAME.search(there)
    last = number(source.summary.get("steps")) or 0.0
    rows = [
        row for row in source.metrics if (number(row.get("step")) or 0.0) <= last
    ]  # of when it was written
    name = source.name if named is None else unescape(named[1])
    fresh = single_page(replace(source, name=name, metrics=rows))
    if there == fresh:
        return _checked(report) if name == source.name else _as(report, f"the name on {REPORT}")
    if _DRAWING.sub("", there) == _DRAWING.sub("", fresh):
        return _as(report, f"name and drawings of {REPORT}")
    finding = (
        f"{REPORT} is not the page that the files of its folder make: it or one of them was changed; where the files "
        "are right, write it anew with `optical-dfa report`"
    )
    return _checked(report).with_remarks([finding], [])


def _as(report: AuditReport, text: str) -> AuditReport:
    """The report with this in place of the page."""
    return replace(report, unchecked=tuple(text if each == REPORT else each for each in report.unchecked))


def _checked(report: AuditReport) -> AuditReport:
    return replace(report, unchecked=tuple(each for each in report.unchecked if each != REPORT))


def _is_own(run: Run) -> bool:
    """Whether this version of the program wrote the page; another one has other words."""
    versions = run.summary.get("versions")
    try:
        return isinstance(versions, dict) and versions.get(_VERSION) == version(_VERSION)
    except PackageNotFoundError:
        return False
