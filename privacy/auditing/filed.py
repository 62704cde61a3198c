"""A statement that was filed earlier against the run as it is now: the one record that a forger cannot reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from privacy.auditing.audit import AuditReport, ledger_of
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
    except OSError as error:
        raise UsageError(
            f"statement {path}: {error.strerror}; give a file of --statement FILE.json"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no privacy statement ({error!r}); give a file of --statement FILE.json"
        ) from None
    return dict(stated)


def check_filed(filed: dict[str, Any], run: Path, report: AuditReport, notes: list[str]) -> list[str]:
    """Findings about a run that is no longer the one that the statement spoke of.

    A run that went on has the filed head in its chain; its weights and its epsilon are then others.

    Args:
        filed: as `read_filed` returns it.
        run: run folder or ledger.
        report: of its audit now.
        notes: receives what is worth knowing.
    """
    head, weights = filed["evidence"]["ledger_head"], filed["evidence"].get("checkpoint_sha256")
    if head != report.ledger_head:
        with Ledger.open(ledger_of(run), read_only=True) as ledger:
            known = ledger.count_at(head)
        if known is None:
            return [
                f"the filed statement names ledger head {head[:16]}…, which this ledger never had: it was rewritten, "
                "or is another run's"
            ]
        notes.append(
            f"the run went on since the statement was filed: {report.releases - known} more releases"
        )
        return []
    if weights is not None and report.checkpoint_digest is not None and weights != report.checkpoint_digest:
        return ["the weights are not those of the filed statement, though the ledger is"]
    return []
