"""The card of a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from noise_models.cards import Card
from privacy.notions import Adjacency, Kind


@dataclass(frozen=True, kw_only=True)
class ReleaseCard(Card):
    """What a release promises, known before anything is loaded.

    Attributes:
        summary: where its noise comes from.
        statement: how it makes a step private, in sentences; {coins}, {drawn}, {size}, {each} and {only} are those of
            `privacy.auditing.wording`, {rate}, {clip}, {noise}, {sensitivity}, {dimension} and {shift} its numbers.
        kind, adjacency: of its guarantee.
        mechanism: by which its rows are accounted for, a name of `privacy.mechanisms.MECHANISMS`.
        public_batches: batches are a public shuffle, every record once an epoch, instead of Poisson samples.
        clips: a record's update is clipped to `max_grad_norm`.
        dark_frames: its noise needs the device's dark frames, so that the device is tested.
        calibration: what a calibration of its device is, a `Document` as "module:name"; None: it relies on none.
        light: its noise is that of light which carries the sum, and is read back from it.
        isotropic: its noise is N(0, std² I) in the very coordinates that are released.
        noise_by_records: its noise depends on which records there are.
        workers: several processes may train: what each takes in is a sum of whole numbers, and these are added up.
        sum_projected: by the device, as it is released, under this rule, and no record's errors.
        rule, backend: of a run that names none; None leaves it to the program.
        backend_options: of a run that names none of these options, for that backend.
        options: names of the release's own settings.
    """

    statement: str
    kind: Kind = Kind.RECORD_DP
    adjacency: Adjacency = Adjacency.ADD_REMOVE
    mechanism: str = "gaussian"
    public_batches: bool = False
    clips: bool = True
    dark_frames: bool = False
    calibration: str | None = None
    light: bool = False
    isotropic: bool = False
    noise_by_records: bool = False
    workers: bool = False
    sum_projected: str | None = None
    rule: str | None = None
    backend: str | None = None
    backend_options: tuple[tuple[str, Any], ...] = ()
    options: tuple[str, ...] = ()
