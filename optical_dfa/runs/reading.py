"""Reads the files of a run folder. The report knows a run by these files alone."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from noise_models.errors import UsageError
from optical_dfa.runs.folder import CALIBRATION, CONFIG, METRICS, SUMMARY
from privacy.guarantee import Guarantee

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DarkHistogram:
    """Histogram of the dark frames a device was calibrated with; never of noise that was released.

    Attributes:
        codes: readout codes, DN, shape (k,), ascending.
        counts: readouts at each code, shape (k,).
        black_level, sigma, step: the credited law N(black_level, sigma²), rounded to `step`, in DN.
        frames, pixels: how many frames of how many pixels were taken.
        note: where the frames came from.
    """

    codes: FloatArray
    counts: FloatArray
    black_level: float
    sigma: float
    step: float
    frames: int
    pixels: int
    note: str

    @property
    def noisier(self) -> bool:
        """Whether the frames spread clearly more than the credited law: a lower limit, or patterns not counted."""
        mean = float(np.average(self.codes, weights=self.counts))
        variance = float(np.average((self.codes - mean) ** 2, weights=self.counts)) - self.step**2 / 12
        return variance > 1.02 * self.sigma**2

    def expected(self) -> FloatArray:
        """Counts the model predicts at each code, shape (k,): total · (Φ(upper edge) − Φ(lower edge))."""
        z = (self.codes - self.black_level) / (self.sigma * math.sqrt(2.0))
        half = self.step / (2.0 * self.sigma * math.sqrt(2.0))
        cells = [
            0.5 * (math.erfc(abs(x) - half) - math.erfc(abs(x) + half)) for x in z
        ]  # no cancellation in tails
        return np.asarray(self.counts.sum() * np.array(cells), dtype=np.float64)

    def residuals(self) -> FloatArray:
        """(counts − expected) / √expected, shape (k,); NaN where fewer than 5 are expected."""
        expected = self.expected()
        enough = expected >= 5.0
        scale = np.sqrt(np.where(enough, expected, 1.0))
        return np.where(enough, (self.counts - expected) / scale, np.nan)


@dataclass(frozen=True)
class Run:
    """One run folder. `summary` and `config` are as written; `metrics` is one dict a row, by step."""

    name: str
    summary: dict[str, Any]
    guarantee: Guarantee
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    calibration: DarkHistogram | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read `folder`.

        Raises:
            UsageError: not a run folder, an unfinished one, or one with a damaged file.
        """
        if not folder.is_dir():
            raise UsageError(
                f"{folder} is not a folder; give the folder named with `optical-dfa train --out`"
            )
        if not (folder / SUMMARY).is_file():
            raise UsageError(
                f"{folder} has no {SUMMARY}; give a finished run's folder, or finish it with train --resume"
            )
        calibration = folder / CALIBRATION
        summary = _object(folder / SUMMARY)
        if not isinstance(summary.get("guarantee"), dict):
            raise _damaged(folder / SUMMARY, "it states no guarantee")
        try:
            guarantee = Guarantee.from_dict(summary["guarantee"])
        except UsageError as error:
            raise _damaged(folder / SUMMARY, str(error)) from None
        return cls(
            name=folder.resolve().name,
            summary=summary,
            guarantee=guarantee,
            config=_toml(folder / CONFIG) if (folder / CONFIG).is_file() else {},
            metrics=_rows(folder / METRICS) if (folder / METRICS).is_file() else [],
            calibration=_calibration(calibration) if calibration.is_file() else None,
        )

    @property
    def budget(self) -> float | None:
        """The ε the run was allowed to spend, where one was set."""
        return number(self.summary.get("target_epsilon", flatten(self.config).get("epsilon")))

    def series(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Steps and values of the rows in which `name` is a finite number; shapes (k,), (k,)."""
        pairs = [(number(row.get("step")), number(row.get(name))) for row in self.metrics]
        kept = [(step, value) for step, value in pairs if step is not None and value is not None]
        return np.array([s for s, _ in kept], dtype=np.float64), np.array(
            [v for _, v in kept], dtype=np.float64
        )


def number(value: object) -> float | None:
    """`value` as a finite float; None for anything else ("inf", null, a missing field, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, in order."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read one or several run folders.

    Raises:
        UsageError: none given, or one of them cannot be read.
    """
    if not folders:
        raise UsageError(
            "no run folder was given; name at least one folder written by `optical-dfa train --out`"
        )
    return [Run.read(folder) for folder in folders]


def _damaged(path: Path, reason: object) -> UsageError:
    return UsageError(f"{path} is damaged ({reason}); restore it, or train again with --overwrite")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it does not hold a JSON object")
    return value


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines()
    for index, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if index == len(lines):
                break  # a killed run leaves its last line half written
            raise _damaged(path, f"line {index}: {error}") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _calibration(path: Path) -> DarkHistogram:
    raw = _object(path)
    try:
        result = DarkHistogram(
            codes=np.asarray(raw["codes"], dtype=np.float64),
            counts=np.asarray(raw["counts"], dtype=np.float64),
            black_level=float(raw["black_level_dn"]),
            sigma=float(raw["sigma_dn"]),
            step=float(raw.get("step_dn", 1.0)),
            frames=int(raw["frames"]),
            pixels=int(raw["pixels"]),
            note=str(raw.get("note", "")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    shapes_agree = (
        result.codes.ndim == 1 and result.codes.shape == result.counts.shape and result.codes.size > 0
    )
    if not shapes_agree or not result.sigma > 0 or not result.step > 0 or not result.counts.sum() > 0:
        raise _damaged(path, "codes and counts must be equally long and sigma, step and counts positive")
    return result
