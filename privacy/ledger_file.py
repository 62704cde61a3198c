"""The file of a ledger: put in its place exactly once, opened under its real name, watched while it is written.

SQLite keeps the newest rows in a log beside the file. The log bears the file's name, so whoever opens the file under
another one (a link, a copy, a new name) would read it without them. So names are resolved, and a file that is open for
writing says so in itself: without its log it is not whole.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from noise_models.drafts import draft_of, is_draft
from noise_models.errors import UsageError

LOGLESS = (
    "its log of newest rows is not beside it (a copy, a link or a new name without it?): rows are missing"
)
Number = tuple[int, int] | None
_CLOSED, _OPENED = 0, 1  # SQLite's user_version: whether the file may need a log
_USER_VERSION = (
    60  # its place in the file, four bytes (https://www.sqlite.org/fileformat.html#the_database_header)
)
_LINKLESS = "another program holds its place, or this file system has no hard links"


def create(path: Path, begin: Callable[[sqlite3.Connection], None]) -> None:
    """A database at `path` that `begin` filled, whole or not at all; of several processes one succeeds.

    Args:
        path: resolved.
        begin: writes the first rows.
    Raises:
        UsageError: there is one already, or the folder cannot be written.
    """
    _refuse_there(path)
    draft = draft_of(path)
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            begin(connection)
        os.link(draft, path)  # unlike a rename, never over a file that is there
    except (OSError, sqlite3.Error) as error:
        _refuse_there(path)
        reason = _LINKLESS if isinstance(error, OSError) and draft.is_file() else error
        raise UsageError(
            f"ledger {path} cannot be created ({reason}); nothing was released: give a writable folder with space"
        ) from error
    finally:
        _remove(draft)
    for left in _drafts(path):  # of processes that were killed, or come too late
        _remove(left)


def _refuse_there(path: Path) -> None:
    for file in (path, log_of(path)):
        if os.path.lexists(file):
            raise UsageError(
                f"ledger {file} exists: continue that run with PrivacyEngine(ledger=FILE, resume=True), or choose "
                "another file"
            )


def _drafts(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if is_draft(file.name, path.name)]


def _remove(draft: Path) -> None:
    for file in (draft, draft.with_name(draft.name + "-journal")):
        with contextlib.suppress(OSError):
            file.unlink()


def log_of(path: Path) -> Path:
    """SQLite's write-ahead log of the database at `path`."""
    return path.with_name(path.name + "-wal")


def connect_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that changes nothing, and whether the log that the file needs is missing.

    Args:
        path: resolved.
    """
    while True:
        logged = _is_logged(path)
        # Without a log nobody writes: `immutable` leaves no side files and works in a read-only folder.
        mode = "mode=ro" if logged else "immutable=1"
        connection = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, isolation_level=None)
        missing = not logged and _is_opened(connection)
        if not missing or not _is_logged(path):
            return connection, missing
        connection.close()  # a writer began in between


def connect_to_write(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection for one writer, and whether the log that the file needs is missing; `begin_writing` follows.

    Args:
        path: resolved.
    Raises:
        UsageError: the file has a second name, under which another process would keep another log.
    """
    if path.stat().st_nlink > 1:
        for left in _drafts(path):  # a kill between link and removal
            if left.samefile(path):
                _remove(left)
    if path.stat().st_nlink > 1:
        raise UsageError(
            f"ledger {path} has a second name (a hard link): a run could go on under either; remove the other name, "
            "or copy the file"
        )
    logged = _is_logged(path)
    connection = sqlite3.connect(path, isolation_level=None)
    return connection, not logged and _is_opened(connection)


def make_durable(connection: sqlite3.Connection) -> None:
    """Every row is on disk once it is written."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def begin_writing(connection: sqlite3.Connection, path: Path, number: Number) -> Watch:
    """Mark the file as open, in the file itself, and watch it; before the first row and not before.

    Args:
        connection: of `connect_to_write`.
        path: resolved.
        number: of the file that the connection has.
    Raises:
        sqlite3.Error: it cannot be written.
        UsageError: the file is no longer there.
    """
    if number_of(path) != number:
        refuse_gone(path)
    connection.execute(f"PRAGMA user_version={_OPENED}")
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # from the log into the file
    return Watch(path, number)


def end_writing(connection: sqlite3.Connection, watch: Watch) -> None:
    """Close the connection: the log moves into the file, and the mark goes. Where it cannot move, both stay."""
    try:
        connection.execute(f"PRAGMA user_version={_CLOSED}")
    except sqlite3.Error:  # no room for a row more in the log; the file itself may have room for the log
        connection.close()
        unmark(watch.path, watch.number)
    else:
        connection.close()


def end_unwritten(connection: sqlite3.Connection, path: Path, number: Number) -> None:
    """Close a connection of `connect_to_write` through which nothing was written.

    Of the last connection the log of a writer that was killed moves into the file, where its mark is then wrong.
    """
    connection.close()
    unmark(path, number)


def unmark(path: Path, number: Number) -> None:
    """Write in place that the file is closed, once no log is left that it would need.

    Args:
        path: resolved.
        number: of the file that is meant.
    """
    if os.path.lexists(log_of(path)) or number_of(path) != number:
        return
    with contextlib.suppress(OSError), path.open("r+b") as file:
        file.seek(_USER_VERSION)
        if file.read(4) != _CLOSED.to_bytes(4, "big"):
            file.seek(_USER_VERSION)
            file.write(_CLOSED.to_bytes(4, "big"))
            file.flush()
            os.fsync(file.fileno())


class Watch:
    """The files that a writer has open, by number: what is written to them stays under their names."""

    def __init__(self, path: Path, number: Number) -> None:
        self.path, self.number = path, number
        others = (log_of(path), path.with_name(path.name + "-shm"))
        self._files = {path: number} | {file: number_of(file) for file in others}

    def refuse_moved(self) -> None:
        """
        Raises:
            UsageError: one of the files was removed, renamed or replaced.
        """
        if any(number_of(file) != number for file, number in self._files.items()):
            refuse_gone(self.path)


def refuse_gone(path: Path) -> NoReturn:
    """
    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"ledger {path} was removed, renamed or replaced while the run went on: nothing more is released; put it back "
        "and resume, or begin a new run"
    )


def number_of(path: Path) -> Number:
    """By which the file under a name is known, whatever happens to the name; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_logged(path: Path) -> bool:
    try:
        return log_of(path).stat().st_size > 0
    except FileNotFoundError:
        return False


def _is_opened(connection: sqlite3.Connection) -> bool:
    try:
        return bool(connection.execute("PRAGMA user_version").fetchone()[0] == _OPENED)
    except sqlite3.Error:
        connection.close()
        raise
