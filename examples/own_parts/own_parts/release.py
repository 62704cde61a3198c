"""A release of a known mechanism: the clipped sum with normal noise."""

from __future__ import annotations

from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.digital import DigitalNoise
from privacy.releases.source import Parts


class PlainNoise(DigitalNoise):
    """Normal noise from a cryptographic generator."""

    name = "plain-noise"


@ReleaseCard(
    summary="plain noise",
    statement="{drawn}. To the sum, plain normal noise {size}{each}{only}",
    isotropic=True,
)
def make(parts: Parts) -> ClippedRelease:
    """This release."""
    return ClippedRelease.of(parts, PlainNoise(parts.generator("noise")))
