"""The weights of a run folder against its ledger: of which state of it they are, and whether it names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError
from privacy.ledger import Ledger
from privacy.weights import names_weights, tensors_digest

CHECKPOINT_FILE = "checkpoint.safetensors"


class Weights(NamedTuple):
    """What an audit read of the checkpoint.

    Attributes:
        findings: where it contradicts the ledger.
        file: SHA-256 of the file, None without one.
        tensors: SHA-256 of its tensors, None where they cannot be read.
        named: whether the ledger names these tensors.
    """

    findings: list[str]
    file: str | None = None
    tensors: str | None = None
    named: bool = False


def read_weights(path: Path, ledger: Ledger, header: Mapping[str, Any], notes: list[str]) -> Weights:
    """Whether the weights are those that this ledger names, and no newer than it.

    A cut-off tail leaves a valid chain, and so does a chain that was written anew: both lack the head that the
    checkpoint names. Where the checkpoint was made to name an earlier head, the newest row below that head names other
    tensors.
    """
    if not path.exists():
        notes.append(f"no {path.name}: a cut-off ledger tail would not show")
        return Weights([])
    from safetensors import SafetensorError, safe_open

    file, tensors = None, None
    try:
        with path.open("rb") as opened:
            file = hashlib.file_digest(opened, "sha256").hexdigest()
        with safe_open(path, framework="pt") as checkpoint:
            metadata = checkpoint.metadata() or {}
            tensors = tensors_digest(checkpoint.keys(), checkpoint.get_tensor)
        head, step = metadata["ledger_head"], int(metadata["step"])
        said = int(metadata.get("releases", step))
    except (OSError, SafetensorError) as error:
        return Weights([f"{path.name} is unreadable ({error})"], file)
    except (KeyError, ValueError) as error:
        return Weights([f"{path.name} does not name its ledger head and step ({error!r})"], file, tensors)
    recorded = ledger.count_at(head)
    if recorded is None:
        finding = (
            f"{path.name} names ledger head {head[:16]}…, which this ledger never had: "
            "it is newer than the ledger, whose tail was cut off, or the ledger was rewritten"
        )
        return Weights([finding], file, tensors)
    findings = []
    if header["release"] != "none":
        if recorded < step:
            findings.append(
                f"{path.name} is of step {step}, but the ledger had {recorded} releases at its head"
            )
        elif "releases" in metadata and said != recorded:
            findings.append(f"{path.name} counts {said} releases, the ledger had {recorded} at its head")
    try:
        named = names_weights(ledger, head, tensors, step)
    except UsageError as error:
        return Weights([*findings, str(error)], file, tensors)
    if named is False:
        findings.append(
            f"{path.name} does not hold the weights that the ledger names at that head and step {step}: they are of "
            "another step or run, and may have seen releases that this ledger does not have"
        )
    elif named is None and header["release"] != "none":
        notes.append(
            f"the ledger is of a version that named no weights: whether {path.name} holds those of its head, or "
            "newer ones, cannot be told"
        )
    return Weights(findings, file, tensors, named=bool(named))
