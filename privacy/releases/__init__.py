"""The ways of releasing a step, by name. A new one is one new file and one line here.

The file of release `some-name` is `some_name.py` and has a function `make(parts: Parts) -> StepRelease`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from noise_models.errors import UsageError
from privacy.kind import Kind
from privacy.notions import Adjacency


@dataclass(frozen=True)
class Terms:
    """What a release promises, known before anything is loaded.

    Attributes:
        summary: where its noise comes from.
        kind, adjacency: of its guarantee.
        mechanism: by which its rows are accounted for, a name of `privacy.mechanisms.MECHANISMS`.
        public_batches: batches are a public shuffle, every record once an epoch, instead of Poisson samples.
        clips: a record's update is clipped to `max_grad_norm`.
        options: names of the release's own settings.
    """

    summary: str
    kind: Kind = Kind.RECORD_DP
    adjacency: Adjacency = Adjacency.ADD_REMOVE
    mechanism: str = "gaussian"
    public_batches: bool = False
    clips: bool = True
    options: tuple[str, ...] = ()


RELEASES: dict[str, Terms] = {
    "digital": Terms("noise from a cryptographic generator"),
    "dark-frame": Terms("noise from the device's dark frames, with a digital dither"),
    "device-entropy": Terms("noise from a cryptographic generator that the device's dark frames key"),
    "skellam": Terms(
        "exact integer noise from a cryptographic generator", mechanism="skellam", options=("grid_steps",)
    ),
    "label": Terms(
        "noise inside each record's projection, every layer's: protects labels, with public inputs",
        kind=Kind.LABEL_DP,
        adjacency=Adjacency.LABEL,
        mechanism="label-gaussian",
        public_batches=True,
        clips=False,
        options=("leverage",),
    ),
    "per-record": Terms(
        "noise inside each record's projection, as published: conditional, NOT a worst-case guarantee",
        kind=Kind.CONDITIONAL,
        mechanism="published",
        options=("activation_floor", "derivative_floor"),
    ),
    "aggregate": Terms("noise from a cryptographic generator, on the sum that the device then projects"),
}


def refuse_unknown_options(release: str, options: Mapping[str, Any]) -> None:
    """
    Raises:
        UsageError: the release has no option of that name.
    """
    if not isinstance(options, Mapping):
        raise UsageError(
            f"release_options is a {type(options).__name__}; it must be a dict of options by name"
        )
    known = terms(release).options
    for name in options:
        if name not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{name!r} is no option of release {release}; {allowed}")


def terms(release: str) -> Terms:
    """Of a registered release.

    Raises:
        UsageError: there is no release of that name.
    """
    if not isinstance(release, str) or release not in RELEASES:
        raise UsageError(f"unknown release {release!r}; choose one of {', '.join(RELEASES)}")
    return RELEASES[release]
