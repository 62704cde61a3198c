"""The run folder on disk: its files, who may replace them, and how rows and documents are written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise_models.errors import UsageError
from optical_dfa import config as settings

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LEDGER = "ledger.sqlite"
CHECKPOINT = "checkpoint.safetensors"
CALIBRATION = "calibration.json"  # histogram of the start-up's dark frames
CAMERA = "camera-calibration.json"  # the calibration that the ledger names
CERTIFICATE = "certificate.json"  # which assumptions of the published proof fail (release per-record)
REPORT = "report.html"
TENSORBOARD = "tensorboard"  # a folder, where `--diagnose` found that package
FILES = (
    *(CONFIG, SUMMARY, METRICS, REPORT, CALIBRATION, CAMERA, CERTIFICATE, CHECKPOINT),
    *(LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"),
)
# What may change when a run is resumed; the budget, noise and clipping norm are the ledger's to check.
RESUMED_ANEW = {
    *(
        "epsilon",
        "delta",
        "noise_multiplier",
        "max_grad_norm",
        "reproducible",
        "unsafe_diagnostics",
        "diagnose",
    ),
    *(
        "epochs",
        "lr",
        "lr_schedule",
        "momentum",
        "weight_decay",
        "data_dir",
        "device",
        "max_physical_batch_size",
        "calibration",
    ),
}


class RunFolder:
    """Where one run keeps its files. Nothing is created before `begin`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._last_step: object = None

    def holds_run(self) -> bool:
        """Whether a run was begun here before."""
        return any((self.path / name).exists() for name in (CONFIG, LEDGER, CHECKPOINT, SUMMARY))

    def refuse_run(self) -> None:
        """Refuse to begin where a run was begun before.

        Raises:
            UsageError: naming the folder.
        """
        if self.holds_run():
            raise UsageError(
                f"{self.path} already holds a run; resume it, overwrite it, or choose another folder"
            )

    def refuse_other(self, config: settings.TrainConfig) -> None:
        """Refuse to go on with the run here under settings that make it another run.

        Raises:
            UsageError: the setting, its value then and now.
        """
        before = settings.merge(settings.read(self.path / CONFIG), {}).model_dump()
        for name, value in config.model_dump(exclude=RESUMED_ANEW).items():
            if before[name] != value:
                raise UsageError(
                    f"the run to resume had {name} {before[name]!r}, not {value!r}; resume it with its own settings"
                )

    def begin(self, config: settings.TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Create the folder, take it for this process, clear an earlier run and write the configuration.

        Raises:
            UsageError: the folder cannot be created or written, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"another process trains in {self.path}; wait for it, or name another folder"
                ) from None
            if not resume and not overwrite:
                self.refuse_run()  # one may have begun since the first look
            if not resume:
                for name in FILES:
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
            settings.write(config, self.path / CONFIG)
        except OSError as error:
            raise UsageError(
                f"run folder {self.path} cannot be written ({error.strerror}); name another folder"
            ) from None

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to `metrics.jsonl`, unless the row of its step was kept from before a resume."""
        if row["step"] == self._last_step:
            return
        self._last_step = row["step"]
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def keep_metrics_until(self, step: int) -> None:
        """Drop rows of steps that a resumed run takes again, and all from a damaged one on (a crash cuts one)."""
        path = self.path / METRICS
        if not path.is_file():
            return
        kept = []
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            taken = row.get("step") if isinstance(row, dict) else None
            if not isinstance(taken, int) or isinstance(taken, bool):
                break
            if taken <= step:
                kept.append(line.decode() + "\n")
                self._last_step = taken
        self._replace(METRICS, "".join(kept))

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON document whole or not at all."""
        self._replace(name, json.dumps(document, indent=2, allow_nan=False) + "\n")

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)
