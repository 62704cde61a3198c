"""The weights of a run folder against its ledger: of which state of it they are, and whether it names them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from noise_models.errors import UsageError, apart
from privacy.auditing import fields
from privacy.auditing.claim import Claim
from privacy.auditing.files import CHECKPOINT_FILE, SUMMARY_FILE
from privacy.ledger import Ledger
from privacy.weights import names_weights, tensors_digest

_MODULE = "module."


class Weights(NamedTuple):
    """What an audit read of the checkpoint.

    Attributes:
        findings: where it contradicts the ledger.
        file: SHA-256 of the file, None without one.
        tensors: SHA-256 of its tensors, None where they cannot be read.
        named: whether the ledger names these tensors.
        said: its metadata.
        numbers: how many numbers its modules' tensors hold, 0 where that is not known.
    """

    findings: list[str]
    file: str | None = None
    tensors: str | None = None
    named: bool = False
    said: Mapping[str, str] = {}
    numbers: int = 0


def read_weights(
    path: Path, ledger: Ledger, header: Mapping[str, Any], notes: list[str], unreadable: list[str]
) -> Weights:
    """Whether the weights are those that this ledger names, and no newer than it.

    A cut-off tail leaves a valid chain, and so does a chain that was written anew: both lack the head that the
    checkpoint names. Where the checkpoint was made to name an earlier head, the newest row below that head names other
    tensors.

    Args:
        path: of the checkpoint.
        ledger: open, damaged or not.
        header: of the ledger.
        notes: receives what is worth knowing.
        unreadable: receives why the file cannot be read, where it is there.
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
            said = checkpoint.metadata() or {}
            names = list(checkpoint.keys())
            tensors = tensors_digest(names, checkpoint.get_tensor)
            shapes = [checkpoint.get_slice(name).get_shape() for name in names if name.startswith(_MODULE)]
    except OSError as error:
        unreadable.append(f"{path.name} ({error.strerror or error})")
        return Weights([], file)
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        return Weights([f"{path.name} is unreadable ({error})"], file)
    try:
        head, step = said["ledger_head"], int(said["step"])
        releases = int(said.get("releases", step))
    except (KeyError, ValueError) as error:
        return Weights([f"{path.name} does not name its ledger head and step ({error!r})"], file, tensors)
    recorded = ledger.count_at(head)
    if recorded is None:
        finding = (
            f"{path.name} names ledger head {head[:16]}…, which this ledger never had: "
            "it is newer than the ledger, whose tail was cut off, or the ledger was rewritten"
        )
        return Weights([finding], file, tensors)
    findings = fields.off(said, fields.CHECKPOINT, path.name)
    strange = sorted(fields.unknown(said, fields.CHECKPOINT))
    if strange:
        findings.append(f"{path.name} shows {', '.join(strange)}, which this program does not write")
    if header["release"] != "none":
        if recorded < step:
            findings.append(
                f"{path.name} is of step {step}, but the ledger had {recorded} releases at its head"
            )
        elif "releases" in said and releases != recorded:
            findings.append(f"{path.name} counts {releases} releases, the ledger had {recorded} at its head")
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
    numbers = sum(math.prod(shape) for shape in shapes)
    return Weights(findings, file, tensors, named=bool(named), said=said, numbers=numbers)


def check_weights(weights: Weights, claim: Claim | None) -> list[str]:
    """Where the checkpoint's figures and the summary's of the same step are not the same."""
    if claim is None or not weights.said:
        return []
    findings, summary = list[str](), claim.summary
    parameters = summary.get("parameters")
    if isinstance(parameters, int) and 0 < weights.numbers < parameters:
        findings.append(
            f"{SUMMARY_FILE} reports {parameters} parameters, the weights have {weights.numbers} numbers"
        )
    if weights.said.get("step") != str(claim.steps):
        return findings
    took, said = summary.get("seconds_per_step"), weights.said.get("seconds", "")
    if isinstance(took, int | float) and fields.CHECKPOINT["seconds"].holds(said):
        right = float(said) / max(1, claim.steps)
        took = min(took, 1e300)
        # A run that was killed between the two files has a checkpoint of a later part: alike, not equal.
        if not right / 2 <= took <= 2 * right:
            said_it, stands = apart(took, right)
            findings.append(f"{SUMMARY_FILE} reports seconds_per_step {said_it}, {CHECKPOINT_FILE} {stands}")
    return findings
