"""A statement that was filed earlier against the run as it is now: the one record that a forger cannot reach."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.auditing.audit import AuditReport, ledger_of
from privacy.auditing.statement import stated_epsilon
from privacy.auditing.wording import one_line
from privacy.guarantee import rounded_up
from privacy.ledger import Ledger


def read_filed(path: Path) -> dict[str, Any]:
    """A statement that `audit --statement FILE.json` wrote.

    Raises:
        UsageError: it is none.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stated["evidence"]["ledger_head"], str):
            raise TypeError("no ledger head")
        if missing := {"epsilon", "delta", "kind"} - stated["guarantee"].keys():
            raise TypeError(f"no {', '.join(sorted(missing))}")
    except OSError as error:
        raise UsageError(
            f"statement {path}: {error.strerror}; give a file of --statement FILE.json"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no privacy statement ({error!r}); give a file of --statement FILE.json"
        ) from None
    return dict(stated)


def check_filed(filed: dict[str, Any], run: Path, report: AuditReport, notes: list[str]) -> list[str]:
    """Findings about a run that is not, or is no longer, the one that the statement spoke of.

    The filed head stands for every row below it. Above it anybody may have appended rows, so what the run is compared
    by is the number of its releases and its weights, whatever else was added.

    Args:
        filed: as `read_filed` returns it.
        run: run folder or ledger.
        report: of its audit now.
        notes: receives what is worth knowing.
    """
    head, said = filed["evidence"]["ledger_head"], filed["guarantee"]
    if not ledger_of(run).exists():
        return ["the ledger of the filed statement is not there"]
    with Ledger.open(ledger_of(run), read_only=True) as ledger:
        known = ledger.count_at(head)
    if known is None:
        return [
            f"the filed statement names ledger head {one_line(head)[:16]}…, which this ledger never had: it was "
            "rewritten, or is another run's"
        ]
    if report.releases > known:
        now = report.guarantee
        then = one_line(f"epsilon {said['epsilon']} at delta {said['delta']}, kind {said['kind']}")
        return [
            f"this is no longer the filed run: {report.releases - known} more releases were made since. Filed was "
            f"{then}; it is now epsilon {rounded_up(stated_epsilon(report))} at delta {now.delta:g}, kind "
            f"{now.kind.value}: file a statement of it"
        ]
    if head != report.ledger_head:
        notes.append("the ledger has more rows than when the statement was filed, none of them a release")
    return _other_weights(filed["evidence"], run, report, notes)


def _other_weights(filed: Mapping[str, Any], run: Path, report: AuditReport, notes: list[str]) -> list[str]:
    """Findings about weights that are not the filed ones.

    A run that is resumed without a further step writes its checkpoint anew, with the same tensors.
    """
    names = ("tensors_sha256", "checkpoint_sha256")  # a statement of an earlier version has the second only
    then = next((filed[name] for name in names if filed.get(name) is not None), None)
    tensors = filed.get("tensors_sha256") is not None
    now = report.tensors_digest if tensors else report.checkpoint_digest
    if then is None:
        notes.append("the filed statement speaks of no weights: they were not compared")
        return []
    if now is None and not run.is_dir():
        notes.append("a ledger by itself: the weights of the filed statement were not compared")
        return []
    if now is None:
        return ["the weights of the filed statement are not there, or cannot be read"]
    return (
        [] if now == then else ["the weights are not those of the filed statement, though its releases are"]
    )
