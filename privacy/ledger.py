"""The ledger: an append-only, hash-chained SQLite record of every release, written BEFORE the release.

One table, one chain: the header, every release, event and key is a row whose SHA-256 covers the row before
it, so an edited, removed or inserted row shows. A cut-off tail leaves a valid chain; it shows because every
checkpoint names the head at its time, and a row below that head names the checkpoint's tensors
(`privacy.weights`). The chain is not signed: who writes to the ledger can cut off its tail and append a row
that names the weights. A statement filed before the cut contradicts (`privacy.auditing.filed`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import stat
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from noise_models.errors import UsageError
from privacy import ledger_file
from privacy.errors import LedgerUnreadableError
from privacy.mechanisms import MECHANISMS

_GENESIS = hashlib.sha256(b"optical-dfa ledger, version 1").hexdigest()
_SCHEMA = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, nonce TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


SETTINGS = "settings"  # in the header, and kind of a row for a later part of the run with others
# SQLite's names of errors that say nothing about what is in the file.
_OUT_OF_REACH = (
    *("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_AUTH"),
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_NOMEM", "SQLITE_PROTOCOL"),
)


# A row as it is kept: number, kind, body, nonce and hash.
Row = Sequence[Any]

# What helps where another account's files are kept from this one.
GIVE_LEAVE = (
    "its owner can give this account leave (chmod -R a+rX on the run's folder; under umask 077 files are the owner's "
    "alone), or do this as the owner"
)


@dataclass(frozen=True)
class ReleaseEvent:
    """The event "one step was released": what an accountant needs, and nothing that depends on the data.

    Attributes:
        mechanism: a name of `privacy.mechanisms.MECHANISMS`, such as "gaussian", the (Poisson-subsampled) Gaussian
            mechanism of THEORY T3.
        source: where its noise came from, a name of `privacy.releases.RELEASES`.
        sample_rate: Poisson sampling rate q, 0 < q <= 1.
        noise_multiplier: noise standard deviation over sensitivity, >= 0 (0: no privacy).
        sensitivity: clipping bound C of one record's whole stack, in units of the update.
        dimension: number of released coordinates.
        log_ratio: multiplicative extra loss of the step, dimension * ln((1 + eta) / (1 - eta)) (THEORY T4).
        log_inflation: dimension * ln(1 + eta); delta is multiplied by the exponential of its sum (THEORY T4).
        mass: total-variation mass of the step (clipped readouts, generator tails); delta grows by (1 +
            e^eps) * mass.
        device_share: fraction of the noise variance supplied by the device, 0 to 1.
        epoch: number of the pass over the data, from 0, where a record takes part once a pass; 0 elsewhere.

    Raises:
        UsageError: a value out of its range; a ledger never holds one.
    """

    mechanism: str
    source: str
    sample_rate: float
    noise_multiplier: float
    sensitivity: float
    dimension: int
    log_ratio: float = 0.0
    log_inflation: float = 0.0
    mass: float = 0.0
    device_share: float = 0.0
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise UsageError(
                f"mechanism {self.mechanism!r} has no accountant: allowed is {', '.join(MECHANISMS)}"
            )
        if not 0 < self.sample_rate <= 1:
            raise UsageError(f"sample_rate = {self.sample_rate!r}: give a value with 0 < sample_rate <= 1")
        if not 0 <= self.device_share <= 1:
            raise UsageError(f"device_share = {self.device_share!r}: give a fraction from 0 to 1")
        for name in (
            "noise_multiplier",
            "sensitivity",
            "dimension",
            "log_ratio",
            "log_inflation",
            "mass",
            "epoch",
        ):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} = {value!r}: give a finite value >= 0")


class Ledger:
    """Append-only record of a run. Use `create` or `open`; a context manager closes it.

    The header describes the run: `release`, `adjacency`, `delta`, `target_epsilon`, `sample_rate`,
    `noise_multiplier`, `max_grad_norm`, `nominal_size` (N, declared public), `batch_size` (expected),
    `reproducible`, `accountant`, `backend`, `backend_fingerprint`, `credit`, `calibration_beta` (THEORY T8),
    `calibration` (which one the credit rests on), `names_weights`, `assumptions`, `version`. `privacy.auditing` reads
    them. Rows of kind "health" say what the device's tests found: a start-up that passed before every part of the
    run, and every failure. Rows of kind "checkpoint" name the weights that were kept.
    """

    def __init__(self, connection: sqlite3.Connection, where: str) -> None:
        self._connection = connection
        self._where = where
        self._tally: Counter[ReleaseEvent] = Counter()
        self._keys: set[str] = set()
        self._count = 0
        self._intact = True
        self._next = 0
        self._head = _GENESIS
        self._file: tuple[Path, ledger_file.Number] | None = None  # to be watched from the first row on
        self._watch: ledger_file.Watch | None = None
        self._ending: weakref.finalize[..., Ledger] | None = None
        self._logless = False

    @classmethod
    def create(cls, path: Path | str | None, header: Mapping[str, Any]) -> Ledger:
        """A new ledger at `path` (None: in memory) whose first row is `header` (JSON types).

        Raises:
            UsageError: there is a file at `path`, its folder is missing, or `header` is not JSON.
        """
        canonical = _canonical(dict(header))  # refuse a bad header before a file exists
        if path is None:
            ledger = cls(sqlite3.connect(":memory:", isolation_level=None), "in memory")
            ledger._begin(canonical)
            return ledger
        path = Path(path).resolve()
        ledger_file.create(path, lambda connection: cls(connection, str(path))._begin(canonical))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False) -> Ledger:
        """The ledger at `path`. To be written its chain must be intact; `read_only` opens a broken one too.

        A link is followed to the file, beside which its log of newest rows is.

        Raises:
            LedgerUnreadableError: it is there, and cannot be read here and now.
            UsageError: no file, not a ledger, or (for writing) one that cannot be written or has findings of `verify`.
        """
        path = Path(path).resolve()
        if not _is_file(path):
            raise UsageError(f"ledger {path} does not exist: give the run folder or ledger.sqlite of a run")
        connection = None
        try:
            number = ledger_file.number_of(path)
            connect = ledger_file.connect_to_read if read_only else ledger_file.connect_to_write
            connection, logless = connect(path)
            connection.execute("SELECT seq, kind, body, nonce, hash FROM entries LIMIT 1").fetchall()
            ledger = cls(connection, str(path))
            ledger._logless = logless
            findings = ledger.verify()
            ledger._load(intact=not findings)
            if not read_only and not findings:
                ledger_file.make_durable(connection)
                ledger._file = (path, number)
                ledger._ending = weakref.finalize(ledger, ledger_file.end_unwritten, connection, path, number)
        except (sqlite3.Error, UsageError, OSError) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, UsageError):
                raise
            raise _refusal(path, error) from error
        if findings and not read_only:
            connection.close()
            raise UsageError(
                f"ledger {path} was damaged ({findings[0]}): it cannot be continued; start a new run"
            )
        return ledger

    @classmethod
    def copy(cls, rows: Iterable[Row]) -> Ledger:
        """A ledger in memory with the rows of another one, the header first (`rows`).

        Raises:
            UsageError: as `follow`.
        """
        ledger = cls(sqlite3.connect(":memory:", isolation_level=None), "in memory")
        ledger._connection.executescript(_SCHEMA)
        ledger.follow(rows)
        return ledger

    def _begin(self, header: str) -> None:
        self._connection.executescript(_SCHEMA)
        self._append("header", header)

    def _load(self, *, intact: bool) -> None:
        query = "SELECT COUNT(*) FROM entries WHERE kind = 'release'"
        self._count, self._intact = int(self._connection.execute(query).fetchone()[0]), intact
        if not intact:
            return
        for seq, kind, body, _, digest in self._rows():
            self._note(kind, body)
            self._next, self._head = seq + 1, digest

    def _note(self, kind: str, body: str) -> None:
        if kind == "release":
            self._tally[_release(body)] += 1
        elif kind == "key":
            self._keys.add(str(json.loads(body)["fingerprint"]))

    def _rows(self, since: int = 0) -> Iterator[tuple[int, str, str, str, str]]:
        # A cursor, no generator: one left half read would complain when the ledger was closed before it.
        query = "SELECT seq, kind, body, nonce, hash FROM entries WHERE seq >= ? ORDER BY seq"
        return self._connection.execute(query, (since,))

    @property
    def length(self) -> int:
        """Number of rows, the header among them."""
        return self._next

    def rows(self, since: int = 0) -> list[Row]:
        """The rows from number `since` on as they are kept (JSON types), for `copy` and `follow`."""
        with self._reading("row"):
            return [list(row) for row in self._rows(since)]

    def follow(self, rows: Iterable[Row]) -> None:
        """Take over the next rows of the ledger that this one is a copy of.

        Raises:
            UsageError: they do not continue this one's chain.
        """
        for seq, kind, body, nonce, digest in rows:
            if seq != self._next or _link(self._head, seq, kind, body, nonce) != digest:
                raise UsageError(
                    f"row {seq} of the ledger that this one is a copy of does not continue its chain of {self._next} "
                    "rows: one of them was changed; nothing more is released"
                )
            self._connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (seq, kind, body, nonce, digest)
            )
            self._note(kind, body)
            self._count += kind == "release"
            self._next, self._head = seq + 1, digest

    def _append(self, kind: str, canonical: str) -> None:
        nonce = secrets.token_hex(
            8
        )  # equal rows differ: a cut-off tail cannot be grown again to the same head
        row = (self._next, kind, canonical, nonce)
        digest = _link(self._head, *row)
        try:
            if self._file is not None and self._watch is None:
                self._watch = ledger_file.begin_writing(self._connection, *self._file)
                # A program that ends without close(), as scripts do, leaves the file closed all the same.
                if self._ending is not None:
                    self._ending.detach()
                self._ending = weakref.finalize(self, ledger_file.end_writing, self._connection, self._watch)
            if self._watch is not None:
                self._watch.refuse_moved()
            # Autocommit: with WAL and synchronous=FULL the row is on disk when execute returns.
            self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (*row, digest))
        except sqlite3.IntegrityError as error:
            raise UsageError(
                f"ledger {self._where} was written by another process: one run, one ledger"
            ) from error
        except sqlite3.Error as error:
            raise UsageError(
                f"ledger {self._where} cannot be written ({error}): nothing was released; "
                "check disk and permissions, then resume"
            ) from error
        if self._watch is not None:
            self._watch.refuse_moved()  # what was written is on disk under the ledger's name
        self._next, self._head = self._next + 1, digest

    def header(self) -> dict[str, Any]:
        """The run's description as given to `create`. Raises UsageError where the row is missing."""
        query = "SELECT body FROM entries WHERE seq = 0 AND kind = 'header'"
        with self._reading("header"):
            row = self._connection.execute(query).fetchone()
            found = None if row is None else dict(json.loads(row[0]))
        if found is None:
            raise UsageError(f"ledger {self._where} has no header: it is not the ledger of a run")
        return found

    def append_release(self, release: ReleaseEvent) -> int:
        """Commits `release` to disk, returns its step number (1-based). Only then may the step be
        released."""
        self._append("release", _canonical(vars(release)))
        self._tally[release] += 1
        self._count += 1
        return self._count

    def append_event(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Commits an event (a resume, a health finding, ...) of any `kind` not used by the ledger itself."""
        if kind in {"header", "release", "key", SETTINGS}:
            raise UsageError(f"event kind {kind!r} is the ledger's own: choose another name")
        self._append(kind, _canonical(dict(payload)))

    def append_settings(self, settings: Mapping[str, Any]) -> None:
        """Commits the settings of a part of the run that begins now, where they are not those of the part before.

        Those of the first part are in the header.
        """
        canonical, before = (
            _canonical(dict(settings)),
            [self.header().get(SETTINGS), *self.events(SETTINGS)][-1],
        )
        if before is None or _canonical(before) != canonical:
            self._append(SETTINGS, canonical)

    def register_key(self, fingerprint: str, name: str) -> None:
        """Commits the fingerprint of a generator's key, and when it was drawn.

        Raises:
            UsageError: the key was used in this run before: its stream would repeat.
        """
        if fingerprint in self._keys:
            raise UsageError(
                f"key {fingerprint[:16]}… of generator {name!r} was used before: "
                "draw a fresh key, never restore one"
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._append("key", _canonical({"fingerprint": fingerprint, "name": name, "at": at}))
        self._keys.add(fingerprint)

    def count(self) -> int:
        """Number of releases, those whose step was lost included."""
        return self._count

    def tally(self) -> Mapping[ReleaseEvent, int]:
        """How often each distinct release occurred: all that `privacy.accounting.epsilon` needs, from memory.

        Raises:
            UsageError: the ledger was opened for reading and is damaged.
        """
        if not self._intact:
            raise UsageError(f"ledger {self._where} was damaged: audit it; its releases cannot be counted on")
        return dict(self._tally)

    def releases(self) -> list[ReleaseEvent]:
        """Every release in order. Raises UsageError on a row that is not a release (a damaged ledger)."""
        with self._reading("row"):
            return [_release(body) for _, kind, body, _, _ in self._rows() if kind == "release"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of all rows of this kind ("key" for the registered keys), in order.

        Raises:
            UsageError: a row is no JSON (a damaged ledger).
        """
        with self._reading(f"{kind} row"):
            rows = self._connection.execute("SELECT body FROM entries WHERE kind = ? ORDER BY seq", (kind,))
            return [json.loads(body) for (body,) in rows]

    def history(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and payload of every row after the header, in order.

        Raises:
            UsageError: a row is no JSON object (a damaged ledger).
        """
        with self._reading("row"):
            return [(kind, dict(json.loads(body))) for seq, kind, body, _, _ in self._rows() if seq]

    def head(self) -> str:
        """Hash of the last row; a checkpoint stores it."""
        with self._reading("row"):
            row = self._connection.execute("SELECT hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        return _GENESIS if row is None else str(row[0])

    def contains(self, head: str) -> bool:
        """Whether `head` is, or once was, this ledger's head."""
        return self.count_at(head) is not None

    def count_at(self, head: str) -> int | None:
        """Number of releases when `head` was the head; None where it never was."""
        with self._reading("row"):
            row = self._connection.execute("SELECT seq FROM entries WHERE hash = ?", (head,)).fetchone()
            if row is None:
                return None
            query = "SELECT COUNT(*) FROM entries WHERE kind = 'release' AND seq <= ?"
            return int(self._connection.execute(query, row).fetchone()[0])

    def newest_at(self, head: str, kind: str) -> Any:
        """Payload of the newest row of a kind when `head` was the head; None where there was none.

        Raises:
            UsageError: it is no JSON (a damaged ledger).
        """
        query = (
            "SELECT body FROM entries WHERE kind = ? AND seq <= (SELECT seq FROM entries WHERE hash = ?) "
            "ORDER BY seq DESC LIMIT 1"
        )
        with self._reading(f"{kind} row"):
            row = self._connection.execute(query, (kind, head)).fetchone()
            return None if row is None else json.loads(row[0])

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """What a damaged database, text or JSON makes the libraries raise, in one line."""
        try:
            yield
        except UsageError:
            raise
        except (sqlite3.Error, TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"ledger {self._where} has an unreadable {what} ({error}): it was damaged"
            ) from error

    def _besides(self) -> list[str]:
        """What the file holds besides a ledger's own table and triggers: nobody would read it."""
        asked = "SELECT type, name, sql FROM sqlite_master"
        with closing(sqlite3.connect(":memory:")) as plain:
            plain.executescript(_SCHEMA)
            own = set(plain.execute(asked))
        there = set(self._connection.execute(asked))
        return [
            f"the file holds {kind} {name!r}, which no ledger has"
            for kind, name, _ in sorted(there - own, key=str)
        ]

    def verify(self) -> list[str]:
        """Recomputes the chain from its first row; one line per finding, none for an intact ledger."""
        findings = [ledger_file.LOGLESS] if self._logless else []
        previous, expected = _GENESIS, 0
        keys: dict[str, int] = {}
        try:
            findings += self._besides()
            for seq, kind, body, nonce, digest in self._rows():
                if seq != expected:
                    findings.append(f"rows {expected} to {seq - 1} are missing")
                elif _link(previous, seq, kind, body, nonce) != digest:
                    findings.append(
                        f"row {seq} ({kind}) does not fit the chain: it or the row before it was changed"
                    )
                if (kind == "header") != (seq == 0):
                    findings.append(f"row {seq} is of kind {kind!r}: the header and only the header is row 0")
                if (
                    _canonical(json.loads(body)) != body
                ):  # a key given twice, say: readers differ in which they see
                    findings.append(f"row {seq} ({kind}) is not written as the ledger writes rows")
                if kind == "release":
                    _release(body)
                elif kind == "key":
                    fingerprint = str(json.loads(body)["fingerprint"])
                    if fingerprint in keys:
                        findings.append(
                            f"key {fingerprint[:16]}… of row {keys[fingerprint]} is used again in row {seq}"
                        )
                    keys.setdefault(fingerprint, seq)
                previous, expected = digest, seq + 1
        except (sqlite3.Error, KeyError, TypeError, ValueError, RecursionError) as error:
            findings.append(f"row {expected} is unreadable ({error})")
        if expected == 0 and not findings:
            findings.append("the ledger is empty: not even a header")
        return findings

    def close(self) -> None:
        """Closes the file; further calls fail."""
        if self._ending is not None:
            self._ending()
            self._ending = self._watch = None
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_file(path: Path) -> bool:
    """
    Raises:
        LedgerUnreadableError: nobody can tell.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: sqlite3.Error | OSError) -> UsageError:
    """What an error on opening means: no ledger, or one that is there and out of reach."""
    name = getattr(error, "sqlite_errorname", "") or ""
    out_of_reach = isinstance(error, OSError) or name.startswith(_OUT_OF_REACH)
    effective = os.access in os.supports_effective_ids  # the account that opens files
    kept_out = isinstance(error, PermissionError) or not os.access(path, os.R_OK, effective_ids=effective)
    if out_of_reach or kept_out:
        remedy = GIVE_LEAVE if kept_out else "look to permissions, disk and other programs that have it open"
        return LedgerUnreadableError(
            f"ledger {path} cannot be read or written ({error}): nothing was released and nothing was checked; {remedy}"
        )
    return UsageError(f"{path} is not a readable ledger ({error}): give the ledger.sqlite of a run")


def _canonical(payload: Mapping[str, Any]) -> str:
    try:
        return json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"not a ledger entry ({error}): give finite numbers, strings, lists and dicts"
        ) from error


def _link(previous: str, seq: int, kind: str, canonical: str, nonce: str) -> str:
    return hashlib.sha256(f"{previous}\n{seq}\n{json.dumps([kind, nonce])}\n{canonical}".encode()).hexdigest()


def _release(body: str) -> ReleaseEvent:
    try:
        return ReleaseEvent(**json.loads(body))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"ledger row {body[:60]!r} is not a release ({error}): the ledger was damaged"
        ) from error
