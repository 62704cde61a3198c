"""The rows of a ledger against its header: every step as announced, and every generator's key used once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from noise_models.errors import UsageError
from privacy.ledger import ReleaseEvent
from privacy.mechanisms import MECHANISMS
from privacy.releases import RELEASES

# Of one run's releases these are equal: the engine fixes them before the first.
_CONSTANT = ("sensitivity", "dimension", "log_ratio", "log_inflation", "mass")


def check_rows(header: Mapping[str, Any], releases: Sequence[ReleaseEvent]) -> list[str]:
    """Findings about releases that the header does not announce.

    Args:
        header: as `read_header` returns it.
        releases: every release, in order.
    """
    if header["release"] == "none":
        return [f"release is none, but the ledger has {len(releases)} releases"] if releases else []
    terms = RELEASES[header["release"]]
    epochs = terms.mechanism in MECHANISMS and MECHANISMS[terms.mechanism].epochs
    findings = _check_rate(header, whole=epochs)
    for name in ("sample_rate", "noise_multiplier"):
        findings += _differing(releases, name, header[name], "the header")
    for name in _CONSTANT:
        announced = header.get(name)
        if announced is not None:
            findings += _differing(releases, name, announced, "the header")
        elif releases:
            findings += _differing(releases, name, getattr(releases[0], name), "release 1")
    mechanisms = {release.mechanism for release in releases}
    if mechanisms - {terms.mechanism}:
        findings.append(
            f"releases are of mechanism {', '.join(sorted(mechanisms))}, release {header['release']} is of "
            f"{terms.mechanism}"
        )
    sources = {release.source for release in releases} - {header["release"]}
    if sources:
        findings.append(
            f"releases come from {', '.join(sorted(sources))}, the header says {header['release']}"
        )
    shares = [release.device_share for release in releases]
    if shares and (header.get("device_share") or 0.0) > min(shares) + 1e-9:
        findings.append(
            f"the header says the device supplied {header['device_share']:.1%} of the noise variance, "
            f"its releases {min(shares):.1%}"
        )
    return findings + (_check_epochs(header, releases) if epochs else _no_epochs(releases))


def refuse_unreadable(releases: Sequence[ReleaseEvent]) -> None:
    """Rows that no ledger writes: their numbers are checked as they are read, the other types are not.

    Raises:
        UsageError: naming the first.
    """
    off = _where(releases, lambda release: isinstance(release.source, str) and isinstance(release.epoch, int))
    if off:
        row = releases[off[0] - 1]
        raise UsageError(
            f"release {off[0]} has source {row.source!r} and epoch {row.epoch!r}: the ledger was damaged"
        )


def check_keys(
    header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], releases: int, seeds: Collection[int]
) -> list[str]:
    """Findings about the registered generators; one registered twice is the chain's own finding.

    Args:
        header: as `read_header` returns it.
        keys: payloads of the rows of kind "key".
        releases: how many there are.
        seeds: that anybody would try.
    """
    if header["release"] == "none" or header["reproducible"]:
        return []
    if releases and not keys:
        return ["releases without a registered generator key: its re-use could not be found"]
    findings = []
    for seed in sorted(seeds):
        known = [str(row.get("name")) for row in keys if _is_seeded(row, seed)]
        if known:
            findings.append(
                f"the key of generator {', '.join(sorted(set(known)))} follows from seed {seed}: the run was seeded, "
                "but its header does not say so"
            )
    return findings


def _is_seeded(row: Mapping[str, Any], seed: int) -> bool:
    """Whether a registered key is what a reproducible run with this seed would use."""
    from noise_models.randomness.generator import NoiseGenerator  # imports torch

    return NoiseGenerator.seeded(seed, str(row.get("name"))).fingerprint() == row.get("fingerprint")


def _check_rate(header: Mapping[str, Any], *, whole: bool) -> list[str]:
    """Poisson sampling takes each record with probability batch size / N; public batches take all in an epoch."""
    rate = header["batch_size"] / header["nominal_size"] if header["nominal_size"] else math.inf
    if whole:
        wrong = header["sample_rate"] != 1
        return [f"sample rate {header['sample_rate']:.6g} of public batches: it must be 1"] if wrong else []
    if math.isclose(header["sample_rate"], rate, rel_tol=1e-9):
        return []
    return [
        f"sample rate {header['sample_rate']:.6g} is not batch size / nominal size = "
        f"{header['batch_size']} / {header['nominal_size']} = {rate:.6g}"
    ]


def _differing(releases: Sequence[ReleaseEvent], name: str, announced: float, by: str) -> list[str]:
    off = _where(releases, lambda release: math.isclose(getattr(release, name), announced, rel_tol=1e-9))
    if not off:
        return []
    value = getattr(releases[off[0] - 1], name)
    return [f"release {off[0]} has {name} {value:.6g}, {by} {announced:.6g} ({len(off)} differ)"]


def _check_epochs(header: Mapping[str, Any], releases: Sequence[ReleaseEvent]) -> list[str]:
    """A record takes part once an epoch, so an epoch's steps are counted once: no more of them than there are."""
    size, batch = header["nominal_size"], header["batch_size"]
    steps = max(1, round(size / batch)) if batch else 0
    findings = []
    epochs = [release.epoch for release in releases]
    back = next((n for n in range(1, len(epochs)) if epochs[n] < epochs[n - 1]), None)
    if back is not None:
        findings.append(
            f"release {back + 1} is of epoch {epochs[back]}, after one of epoch {epochs[back - 1]}: epochs never go "
            "back"
        )
    crowded = [epoch for epoch, count in sorted(Counter(epochs).items()) if count > steps]
    if crowded:
        findings.append(
            f"epoch {crowded[0]} has {Counter(epochs)[crowded[0]]} releases, its data set {steps} batches: a record "
            "took part twice"
        )
    return findings


def _no_epochs(releases: Sequence[ReleaseEvent]) -> list[str]:
    off = _where(releases, lambda release: release.epoch == 0)
    return [f"release {off[0]} names an epoch, which its mechanism does not have"] if off else []


def _where(releases: Sequence[ReleaseEvent], holds: Callable[[ReleaseEvent], bool]) -> list[int]:
    """Numbers, from 1, of the releases of which something does not hold."""
    return [number for number, release in enumerate(releases, 1) if not holds(release)]
