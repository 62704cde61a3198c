"""The run folder on disk: its files, who may replace them, and how rows and documents are written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noise_models.drafts import is_draft, replacing
from noise_models.errors import UsageError
from optical_dfa.config import TrainConfig, merge, read, write
from privacy.auditing import fields

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
# Settings of the machine: no ledger holds them, for neither weights nor guarantee depend on them.
LOCAL = set(fields.LOCAL)
# What may change when a run is resumed; the budget, noise and clipping norm are the ledger's to check.
RESUMED_ANEW = LOCAL | {
    *(
        "epsilon",
        "delta",
        "noise_multiplier",
        "max_grad_norm",
        "reproducible",
        "unsafe_diagnostics",
        "diagnose",
    ),
    *("epochs", "lr", "lr_schedule", "momentum", "weight_decay"),
}


class RunFolder:
    """Where one run keeps its files. Nothing is created before `begin`, and nothing removed that is not this run's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._made = False  # the folder itself is this process's
        self._was_empty = False  # when this process took it: every file of a run in it is this process's
        self._last_step: object = None

    def holds_run(self) -> bool:
        """Whether files of a run are here."""
        return any(os.path.lexists(self.path / name) for name in (*FILES, TENSORBOARD))

    def refuse_run(self) -> None:
        """Refuse to begin where a run was begun before.

        Raises:
            UsageError: naming the folder.
        """
        if self.holds_run():
            raise UsageError(
                f"{self.path} already holds a run; resume it, overwrite it, or choose another folder"
            )

    def refuse_other(self, config: TrainConfig) -> None:
        """Refuse to go on with the run here under settings that make it another run.

        Raises:
            UsageError: the setting, its value then and now.
        """
        before = merge(read(self.path / CONFIG), {}).model_dump()
        for name, value in config.model_dump(exclude=RESUMED_ANEW).items():
            if before[name] != value:
                raise UsageError(
                    f"the run to resume had {name} {before[name]!r}, not {value!r}; resume it with its own settings"
                )

    def refuse_other_end(self, config: TrainConfig) -> None:
        """Refuse settings under which the run here, of which nothing is left to train, was not trained.

        Raises:
            UsageError: the setting, its value then and now.
        """
        before = merge(read(self.path / CONFIG), {}).model_dump()
        for name, value in config.model_dump(exclude=LOCAL).items():
            if before[name] != value:
                raise UsageError(
                    f"the run in {self.path} is finished, and {name} {value!r} in place of {before[name]!r} would "
                    "change nothing of it; resume it with its own settings, or train in another folder"
                )

    def take(self) -> None:
        """Keep other processes out until `close`.

        Raises:
            UsageError: another process trains in it, or it is not there.
        """
        if self._lock is None and not self._locked():
            raise UsageError(f"{self.path} is not there; name the run's folder")

    def begin(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Create the folder, take it for this process, clear an earlier run and write the configuration.

        Raises:
            UsageError: the folder cannot be created or written, or another process trains in it.
        """
        try:
            self._make()
            while self._lock is None and not self._locked():
                self._make()
            self._was_empty = not any(self.path.iterdir())
            self._remove_drafts()
            if not resume and not overwrite:
                self.refuse_run()  # one may have begun since the first look
            if overwrite:
                self._remove_files()
            write(config, self.path / CONFIG)
        except OSError as error:
            raise self._unwritable(error) from None

    def undo(self) -> None:
        """Take back what `begin` made, for a run that could not begin; what was there before stays."""
        if self._lock is None or not self._was_empty:
            return
        with contextlib.suppress(OSError):
            self._remove_files()
            if self._made:
                self.path.rmdir()

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to `metrics.jsonl`, unless the row of its step was kept from before a resume.

        Raises:
            UsageError: it cannot be written.
        """
        if row["step"] == self._last_step:
            return
        self._last_step = row["step"]
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None

    def keep_metrics_until(self, step: int) -> None:
        """Drop rows of steps that a resumed run takes again, and a last one that a crash cut.

        `privacy.auditing.beyond` said before that the ledger knows of all of them.
        """
        path = self.path / METRICS
        if not path.is_file():
            return
        kept = []
        for line in path.read_bytes().splitlines():
            try:
                taken = json.loads(line)["step"]
            except ValueError:
                break
            if taken <= step:
                kept.append(line.decode() + "\n")
                self._last_step = taken
        self._replace(METRICS, "".join(kept))

    def write_json(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON document whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        self._replace(name, json.dumps(document, indent=2, allow_nan=False) + "\n")

    def _replace(self, name: str, text: str) -> None:
        try:
            with replacing(self.path / name) as draft:
                draft.write_text(text, encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from None

    def _locked(self) -> bool:
        """Whether the folder is locked now; False where it is not there, or went while this process locked it."""
        try:
            lock = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(self.path)):
                self._lock, lock = lock, -1
        except BlockingIOError:
            raise UsageError(
                f"another process trains in {self.path}; wait for it, or name another folder"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            if lock >= 0:
                os.close(lock)
        return self._lock is not None

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True)
            self._made = True
        except FileExistsError:
            if not self.path.is_dir():
                raise

    def _remove_files(self) -> None:
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)

    def _remove_drafts(self) -> None:
        """What a crash left of a run's files; the page's may be another process's, which needs no lock."""
        for file in self.path.iterdir():
            if any(is_draft(file.name.removesuffix("-journal"), name) for name in FILES if name != REPORT):
                file.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"run folder {self.path} cannot be written ({error.strerror}); make room or name another folder"
        )
