"""Which weights a ledger speaks of: a row names every checkpoint's tensors, and is on disk before the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from privacy.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor

ROW = "checkpoint"  # kind of the row
# In the header of a ledger that names the weights beside it: without such a row they are not its own.
ANNOUNCED = "names_weights"


def tensors_digest(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """SHA-256 of named tensors in the order of their names, in hexadecimal digits.

    Covered are every tensor's name, type, shape and bytes (row-major, little-endian), and nothing else that a file has.

    Args:
        names: of the tensors, in any order.
        tensor: gives the one of a name; one at a time is held.
    """
    import torch

    from noise_models.places import on_cpu

    digest = hashlib.sha256()
    for name in sorted(names):
        value = tensor(name)
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode() + b"\n")
        digest.update(on_cpu(value).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def name_weights(ledger: Ledger, digest: str, step: int) -> str:
    """Commit the row that names a checkpoint's tensors; the head that its file has to name.

    Only then may the file be put in its place. A crash between the two leaves the checkpoint before, which names the
    head of its own row.
    """
    ledger.append_event(ROW, {"sha256": digest, "step": step})
    return ledger.head()


def names_weights(ledger: Ledger, head: str, digest: str, step: int) -> bool | None:
    """Whether the newest row when `head` was the head names these tensors.

    None where there is no such row and the ledger announces none: it is of a version that named no weights.
    """
    row = ledger.newest_at(head, ROW)
    if row is None and not ledger.header().get(ANNOUNCED):
        return None
    return bool(row == {"sha256": digest, "step": step})


def named_steps(ledger: Ledger) -> dict[int, set[int]]:
    """The steps at which the ledger names weights, each with the numbers of releases that it then had.

    Raises:
        UsageError: a row is no JSON object (a damaged ledger).
    """
    steps: dict[int, set[int]] = {}
    releases = 0
    for kind, row in ledger.history():
        releases += kind == "release"
        step = row.get("step")
        if kind == ROW and isinstance(step, int) and not isinstance(step, bool):
            steps.setdefault(step, set()).add(releases)
    return steps
