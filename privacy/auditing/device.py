"""The device's part of an audit: was it tested before every release, and which calibration is it credited by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from noise_models.errors import UsageError
from privacy.auditing.files import CALIBRATION_FILE, content
from privacy.auditing.strict import parsed
from privacy.ledger import SETTINGS, Ledger, ReleaseEvent
from privacy.releases import RELEASES, calibrations

if TYPE_CHECKING:
    from noise_models.calibration.light import LightCalibration


def check_device(
    ledger: Ledger, header: Mapping[str, Any], folder: Path | None, notes: list[str], unreadable: list[str]
) -> list[str]:
    """Findings about the device of a run; notes say what was relied on.

    Args:
        ledger: readable throughout.
        header: its header.
        folder: the run folder, None where only the ledger is audited.
        notes: receives what is worth knowing.
        unreadable: receives why the calibration cannot be read, where it is there.
    Raises:
        UsageError: a row is no JSON.
    """
    card = RELEASES.get(header["release"])
    if card is None or not card.dark_frames:
        return []
    if "calibration" not in header:
        return [f"the header of a {header['release']} run does not say what the device is credited by"]
    history = ledger.history()
    health = [row for kind, row in history if kind == "health"]
    for row in health:
        if row.get("passed") is not True:
            notes.append(f"the device was refused: {row.get('message', 'for a reason that is not given')}")
    passed = sum(row.get("passed") is True for row in health)
    notes.append(f"start-up tests that the device passed: {passed}")
    releases_made = list(ledger.releases())
    findings = _untested(history) + _check_digits(header, releases_made) + _check_light(header, releases_made)
    calibration = header["calibration"]
    if isinstance(calibration, dict):
        if not _finite(header.get("calibration_beta")):
            findings.append(
                "the header names a calibration, and does not say with which probability its limits may be wrong"
            )
        findings += _check_validity(calibration, health, notes)
        findings += _check_document(calibration, header, ledger.count(), folder, notes, unreadable)
        return findings
    if beta := header.get("calibration_beta"):
        findings.append(
            f"the header counts a calibration's failure probability {beta!r:.30}, but names no calibration"
        )
    if any("(measured: calibration" in str(text) for text in header.get("assumptions") or ()):
        findings.append("the header's assumptions speak of a calibration, and it names none")
    if folder is not None and (folder / CALIBRATION_FILE).exists():
        findings.append(f"{CALIBRATION_FILE} lies in the folder, and the header names no calibration")
    return findings


def _finite(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _untested(history: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Releases that no start-up test of their part of the run stands behind, or that follow a failure."""
    healthy, number, off = False, 0, []
    for kind, row in history:
        if kind == "key" and row.get("name") == "sampling":  # a part of the run begins
            healthy = False
        elif kind == "health":
            healthy = row.get("passed") is True
        elif kind == "release":
            number += 1
            if not healthy:
                off.append(number)
    if not off:
        return []
    return [
        f"release {off[0]} was made without a passed start-up test, or after the device had failed "
        f"({len(off)} such releases)"
    ]


def _check_digits(header: Mapping[str, Any], releases: Sequence[ReleaseEvent]) -> list[str]:
    """Where noise of several pixels a coordinate (THEORY T12) is less, or costs more, than the ledger says."""
    credit, settings = header.get("credit"), header.get(SETTINGS)
    options = settings.get("release_options") if isinstance(settings, Mapping) else None
    digits = options.get("digits") if isinstance(options, Mapping) else None
    if not isinstance(credit, Mapping) or (credit.get("theorem") != "T12" and digits is None):
        return []
    weights = credit.get("weights")
    sigma, steps = (
        float(value) if isinstance(value := credit.get(name), int | float) and 0 < value < math.inf else 0.0
        for name in ("gaussian_std_steps", "clipping norm in grid steps")
    )
    if (
        credit.get("theorem") != "T12"
        or not isinstance(weights, list)
        or not all(type(weight) is int and 0 < weight < 2**53 for weight in weights)
        or not (sigma and steps)
        or (digits is not None and len(weights) != digits)
    ):
        return ["the header's credit does not say which digits the device's noise has, as its settings ask"]
    from noise_models.calibration.converter import dither_ripple, epsilon_of_ripple

    findings = []
    asked, given = header["noise_multiplier"] * steps, sigma * math.hypot(*weights)
    if given < asked * (1 - 1e-9):
        findings.append(
            f"the device's digits give noise of {given:.6g} grid steps, the header says {asked:.6g}"
        )
    for release in releases[:1]:  # the others have the same costs
        cost = sum(
            epsilon_of_ripple(
                dither_ripple(sigma, sigma * math.hypot(*weights[:j]) / weights[j]), release.dimension
            )
            for j in range(1, len(weights))
        )
        if release.log_ratio < cost * (1 - 1e-9):
            findings.append(
                f"the digits cost {cost:.3g} a release, the ledger counts {release.log_ratio:.3g}"
            )
    return findings


def _check_light(header: Mapping[str, Any], releases: Sequence[ReleaseEvent]) -> list[str]:
    """Where the light level of the header (THEORY T10) is more than its noise, or its rows, say."""
    if not RELEASES[header["release"]].light:
        return []
    given = _light_level(header.get("credit"))
    if given is None:
        return ["the header's credit does not say at which light level the device was used"]
    electrons, norm, bound, change, ratio, clamp, columns, counts, count_mass, setting = given.values()
    findings = []
    if header.get("calibration") is None and setting > math.sqrt(electrons) * (1 + 1e-9):
        findings.append(
            f"the attenuator stood at {setting:.6g}, and the light level is {math.sqrt(electrons):.6g}"
        )
    if header["noise_multiplier"] * 2 * math.sqrt(electrons) * norm * bound > 1 + 1e-6:
        findings.append(
            f"the light level gives a noise multiplier of {1 / (2 * math.sqrt(electrons) * norm * bound):.6g}, the "
            f"header says {header['noise_multiplier']:.6g}"
        )
    if not 0 < ratio <= 1 or clamp < bound:
        findings.append(
            f"fields reach {ratio:.3g} of the reference and entries {clamp:g}: no light level of a run"
        )
    for release in releases[:1]:  # the others are compared with the first, and with the header
        if release.sensitivity < change * (1 - 1e-9):
            findings.append(
                f"a record changes an amplitude by {change:.3g} of itself, the ledger counts {release.sensitivity:.3g}"
            )
        if release.mass < columns * counts * count_mass:
            findings.append(
                f"counts cost a mass of {columns * counts * count_mass:.3g}, the ledger has {release.mass:.3g}"
            )
    return findings


def _light_level(credit: object) -> dict[str, float] | None:
    """What a header says of the light; None where a number is missing."""
    names = (
        "photo_electrons_a_mirror", "norm", "clipping norm in grid steps", "largest_change_of_an_amplitude",
        "largest_field_over_reference", "clamp", "columns_a_step", "counts_a_column", "count_mass", "attenuator",
    )  # fmt: skip
    given = {
        name: float(value)
        for name in names
        if isinstance(credit, Mapping) and _finite(value := credit.get(name)) and value >= 0
    }
    return given if len(given) == len(names) else None


def _check_validity(named: Mapping[str, Any], health: list[dict[str, Any]], notes: list[str]) -> list[str]:
    taken, expires = named.get("taken_at"), named.get("expires_at")
    notes.append(
        f"the device is credited by calibration {named.get('digest')}, taken {taken}, valid until {expires}"
    )
    findings = []
    for row in health:
        try:
            began = datetime.fromisoformat(str(row["at"]))
            valid = datetime.fromisoformat(str(taken)) <= began < datetime.fromisoformat(str(expires))
        except (KeyError, ValueError, TypeError):
            valid = False
        if row.get("passed") is True and not valid:
            findings.append(
                f"a part of the run began at {row.get('at')}, when its calibration had expired or was to come"
            )
    return findings


def _check_document(
    named: Mapping[str, Any],
    header: Mapping[str, Any],
    releases: int,
    folder: Path | None,
    notes: list[str],
    unreadable: list[str],
) -> list[str]:
    """The calibration itself: the one that the header names, and worth what the header credits."""
    if folder is None:
        notes.append("a ledger by itself: the calibration that it relies on was not read")
        return []
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        missing = f"no {path.name}: what the device is credited with rests on a calibration that is not there"
        if releases:
            return [f"{missing}; put the calibration of that digest beside the ledger"]
        notes.append(missing)
        return []
    from noise_models.calibration.document import Calibration  # imports torch
    from noise_models.calibration.light import LightCalibration

    if (held := content(path, unreadable)) is None:
        return []
    try:
        said, found = parsed(held), calibrations(header["release"]).load(path)
    except (UsageError, ValueError, RecursionError) as error:
        return [f"{path.name} is unreadable ({error})"]
    if said != json.loads(json.dumps(found.to_dict())):
        return [f"{path.name} holds more than a calibration does, or in another form"]
    digest = str(named.get("digest"))
    if found.digest != digest:
        return [
            f"{path.name} has digest {found.digest[:16]}…, the ledger relies on calibration {digest[:16]}…"
        ]
    findings = [
        f"the header gives the calibration's {name} as {named.get(name)!r}, {path.name} as {value!r}"
        for name, value in found.identity().items()
        if named.get(name) != value
    ]
    credit = header.get("credit")
    held_to = [("failure probability", header.get("calibration_beta"), found.beta)]
    if isinstance(found, Calibration):
        worth = found.credit()
        credited = credit.get("gaussian_std_steps") if isinstance(credit, Mapping) else None
        held_to.append(("noise credit in converter steps", credited, worth.std / worth.step))
    for what, said, measured in held_to:
        if said is not None and not (_finite(said) and math.isclose(said, measured, rel_tol=1e-9)):
            findings.append(f"the header has {what} {said!r}, the calibration it names {measured:.6g}")
    if isinstance(found, LightCalibration):
        findings += _check_limits(found, credit)
    return findings


def _check_limits(calibration: LightCalibration, credit: object) -> list[str]:
    """Where the light level is not within what the calibration allows."""
    from privacy.accounting.photon import LARGEST_CHANGE
    from privacy.releases.photon import measured_limits

    given = _light_level(credit)
    if given is None:
        return []  # said elsewhere
    path = credit.get("light_path") if isinstance(credit, Mapping) else None
    used = path if isinstance(path, Mapping) else {}
    limits, light = measured_limits(calibration), math.sqrt(given["photo_electrons_a_mirror"])
    ratio = given["largest_field_over_reference"]
    setting = calibration.setting(light)
    room = max(1 - ratio, 1e-300)
    change = light * given["clipping norm in grid steps"] * limits.row / (room * limits.least)
    slack = 1 + 1e-9
    return [
        f"the header has {what}, by the calibration it names {allowed}"
        for holds, what, allowed in (
            (
                given["counts_a_column"] <= 2 * calibration.rows,
                f"{given['counts_a_column']:g} counts a column",
                f"there are {2 * calibration.rows}",
            ),
            (
                (used.get("macro_pixels"), used.get("mirrors_each"))
                == (2 * calibration.inputs, calibration.most),
                f"{used.get('macro_pixels')!r} macro-pixels of {used.get('mirrors_each')!r} mirrors",
                f"there are {2 * calibration.inputs} of {calibration.most}",
            ),
            (
                setting is not None and given["attenuator"] <= setting * slack,
                f"the attenuator at {given['attenuator']:.6g}",
                f"light {light:.6g} allows {setting or 0:.6g}",
            ),
            (
                given["norm"] * slack >= limits.norm,
                f"norm {given['norm']:.6g}",
                f"it is up to {limits.norm:.6g}",
            ),
            (
                light * limits.reach * given["clamp"] <= ratio * limits.reference * slack and ratio < 1,
                f"fields of {ratio:.6g} of the reference",
                f"they are up to {light * limits.reach * given['clamp'] / limits.reference:.6g}",
            ),
            (
                given["largest_change_of_an_amplitude"] * slack >= min(change, LARGEST_CHANGE),
                f"a change of an amplitude of {given['largest_change_of_an_amplitude']:.6g}",
                f"it is up to {change:.6g}",
            ),
        )
        if not holds
    ]
