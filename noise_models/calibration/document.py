"""A camera's calibration as a document: what was measured, with confidence limits, and how long it holds.

`photon_transfer` makes one; a private run relies on its LOWER noise limit (THEORY, Noise credit; T8).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from noise_models.base import Credit
from noise_models.errors import DeviceError, UsageError

FORMAT: Final = 1

# What a calibrated camera's noise may lose, relatively, before a health test sees it: taken off the credit.
DRIFT_ALLOWANCE: Final = 0.05
BETA_RANGE: Final = (1e-15, 0.01)


@dataclass(frozen=True)
class Interval:
    """An estimate between its confidence limits; all limits of one calibration hold together.

    Attributes:
        value: point estimate.
        lower, upper: confidence limits.
    """

    value: float
    lower: float
    upper: float


class Document(ABC):
    """A calibration that is kept in a file; its subclasses are frozen dataclasses.

    Attributes:
        of: what it is a calibration of, in a word.
        again: what to do with another one.
        taken_at, expires_at: UTC, ISO 8601.
        beta: probability that what it says is wrong; enters delta (THEORY T8).
        assumptions: what has to hold besides.
    """

    of: ClassVar[str]
    again: ClassVar[str]
    taken_at: str
    expires_at: str
    beta: float
    assumptions: tuple[str, ...]

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of what was calibrated."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(cast(Any, self))

    @property
    def digest(self) -> str:
        """SHA-256 of the document: what the ledger names."""
        text = json.dumps(self.to_dict(), sort_keys=True, allow_nan=False, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, str]:
        """By which a ledger's header names it."""
        return {
            "digest": self.digest,
            f"{self.of.replace(' ', '_')}_fingerprint": self.fingerprint,
            "taken_at": self.taken_at,
            "expires_at": self.expires_at,
        }

    def refuse_other(self, fingerprint: str, now: datetime | None = None) -> None:
        """Raise unless this is a calibration of that device and still holds.

        Raises:
            DeviceError: another one's, expired, or of a time to come.
        """
        if fingerprint != self.fingerprint:
            raise DeviceError(
                f"calibration {self.digest[:16]} is of {self.of} {self.fingerprint}, not of this one "
                f"({fingerprint}); {self.again}"
            )
        now = now or datetime.now(UTC)
        if now < datetime.fromisoformat(self.taken_at):
            raise DeviceError(
                f"calibration {self.digest[:16]} was taken at {self.taken_at}, and it is {now.isoformat()}; set the "
                "clock, or take a new one: optical-dfa calibrate"
            )
        if now >= datetime.fromisoformat(self.expires_at):
            raise DeviceError(
                f"calibration {self.digest[:16]} expired at {self.expires_at}; take a new one: "
                "optical-dfa calibrate"
            )

    def save(self, path: Path) -> None:
        """Write the document."""
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a document.

        Raises:
            UsageError: no file, or not a calibration.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(
                f"calibration {path} cannot be read ({reason}); give --out of calibrate"
            ) from error
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = " ".join(f"{where} {first['msg']}".split())
            raise UsageError(
                f"{path} is no calibration ({reason}); give the file that calibrate wrote"
            ) from error


@dataclass(frozen=True)
class Calibration(Document):
    """What photon-transfer frames of one camera showed. All of it is public: no frame carried data.

    Attributes:
        camera: name of the backend that was calibrated.
        camera_fingerprint: identity of the camera; a calibration serves no other one.
        taken_at, expires_at: UTC, ISO 8601.
        frames: number of frames that were taken.
        confidence: probability with which all limits of `parameters` hold together.
        beta: probability that the credit is wrong, all pixels together; enters delta (THEORY T8).
        parameters: measured quantities by name with unit, such as `gain_dn_per_electron`.
        credit_dn: Gaussian part of a dark pixel's noise, in DN, as estimated.
        credit_lower_dn: the same at its lower limit, simultaneously over pixels; 0 where nothing is credited.
        step_dn: distance between two codes, in DN.
        clipped_mass: upper limit of the probability that a dark pixel is clipped.
        dark_level_dn: mean code of dark frames.
        light_level_dn: mean code of data-setting frames at nominal light, for the lamp's health test.
        saturation_dn: largest code.
        passed: whether every check passed; a calibration that did not earns no credit.
        findings: one line for every check that failed.
        assumptions: what has to hold besides; printed with every guarantee that uses the credit.
        curves: arrays for the plots (photon-transfer points, residuals); not needed for the credit.
        format: of the document.

    Raises:
        ValueError: values that contradict themselves or lie out of range.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    of: ClassVar[str] = "camera"
    again: ClassVar[str] = "calibrate this device: optical-dfa calibrate"

    camera: str
    camera_fingerprint: str
    taken_at: str
    expires_at: str
    frames: int
    confidence: float
    beta: float
    parameters: dict[str, Interval]
    credit_dn: float
    credit_lower_dn: float
    step_dn: float
    clipped_mass: float
    dark_level_dn: float
    light_level_dn: float
    saturation_dn: float
    passed: bool
    findings: tuple[str, ...]
    assumptions: tuple[str, ...]
    curves: dict[str, list[float]]
    format: Literal[1] = FORMAT

    def __post_init__(self) -> None:
        for holds, what in (
            (0 < self.confidence < 1, "confidence lies between 0 and 1"),
            (
                BETA_RANGE[0] <= self.beta <= BETA_RANGE[1],
                f"beta lies in {BETA_RANGE[0]:g} … {BETA_RANGE[1]:g}",
            ),
            (0 <= self.credit_lower_dn <= self.credit_dn, "0 <= credit_lower_dn <= credit_dn"),
            (self.step_dn > 0 and self.saturation_dn > 0, "step_dn and saturation_dn are positive"),
            (0 <= self.clipped_mass <= 1, "clipped_mass is a probability"),
            (0 <= self.dark_level_dn <= self.saturation_dn, "the dark level is a code"),
            (0 <= self.light_level_dn <= self.saturation_dn, "the light level is a code"),
            (self.passed == (not self.findings), "it passed where there are no findings, and only there"),
            (bool(self.assumptions) or not self.passed, "what passed has assumptions"),
            (moment(self.taken_at) < moment(self.expires_at), "it expires after it was taken"),
        ):
            if not holds:
                raise ValueError(f"contradiction: {what}")

    @property
    def fingerprint(self) -> str:
        return self.camera_fingerprint

    def credit(self) -> Credit:
        """The credit of a dark frame's pixel: the lower limit, less what may drift away unseen (THEORY T8)."""
        earned = (1 - DRIFT_ALLOWANCE) * self.credit_lower_dn if self.passed else 0.0
        argument = (
            f"photon-transfer calibration {self.digest[:16]} of {self.taken_at}: the Gaussian read noise of every "
            f"pixel is at least {earned:.4g} DN, drift of {100 * DRIFT_ALLOWANCE:g} % allowed for, except with "
            f"probability {self.beta:g}"
            if self.passed
            else f"the calibration of {self.taken_at} did not pass ({'; '.join(self.findings)})"
        )
        return Credit(
            std=earned,
            step=self.step_dn,
            clipped_mass=self.clipped_mass,
            beta=self.beta,
            level=self.dark_level_dn,
            argument=argument,
            assumptions=self.assumptions,
        )


def moment(text: str) -> datetime:
    """An ISO 8601 time with its zone; ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text} has no zone")
    return moment
