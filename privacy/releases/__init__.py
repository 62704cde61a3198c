"""The ways of releasing a step, by name.

A new one is one new file and one line here, or an entry point of another package. Registered is
a function `make(parts: Parts) -> StepRelease` with a `ReleaseCard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from noise_models.cards import Registry
from noise_models.errors import UsageError
from privacy.releases.card import ReleaseCard

if TYPE_CHECKING:
    from noise_models.calibration.document import Document

RELEASES: Registry[ReleaseCard] = Registry(
    "release",
    ReleaseCard,
    {
        "digital": "privacy.releases.digital:make",
        "dark-frame": "privacy.releases.dark_frame:make",
        "device-entropy": "privacy.releases.device_entropy:make",
        "skellam": "privacy.releases.skellam:make",
        "label": "privacy.releases.label:make",
        "per-record": "privacy.releases.per_record:make",
        "aggregate": "privacy.releases.aggregate:make",
        "photon": "privacy.releases.photon:make",
    },
    group="optical_dfa.releases",
)


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


def calibrations(release: str) -> type[Document]:
    """The class of the calibrations that a release relies on.

    Raises:
        UsageError: it relies on none.
    """
    named = terms(release).calibration
    if named is None:
        others = " or ".join(name for name, card in RELEASES.items() if card.calibration is not None)
        raise UsageError(
            f"release {release} credits nothing that is measured of a device; drop the calibration, or use release "
            f"{others}"
        )
    module, _, name = named.partition(":")
    found: type[Document] = getattr(import_module(module), name)
    return found


def terms(release: str) -> ReleaseCard:
    """Of a registered release.

    Raises:
        UsageError: there is no release of that name.
    """
    if not isinstance(release, str) or release not in RELEASES:
        raise UsageError(f"unknown release {release!r}; choose one of {', '.join(RELEASES)}")
    return RELEASES[release]
