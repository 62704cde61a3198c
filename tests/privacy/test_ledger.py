import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.errors import UsageError
from privacy.ledger import Ledger, ReleaseEvent

STEP = ReleaseEvent("gaussian", "digital", 0.01, 1.1, 1.0, 1000)
HEADER = {"release": "digital", "nominal_size": 60000}


def written(path: Path, steps: int = 5) -> str:
    with Ledger.create(path, HEADER) as ledger:
        ledger.register_key("ab" * 32, "noise")
        for _ in range(steps):
            ledger.append_release(STEP)
        return ledger.head()


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete;" + ";".join(statements))
    connection.close()


def findings(path: Path) -> list[str]:
    with Ledger.open(path, read_only=True) as ledger:
        return ledger.verify()


releases = st.builds(
    ReleaseEvent,
    mechanism=st.just("gaussian"),
    source=st.sampled_from(["digital", "dark-frame"]),
    sample_rate=st.floats(1e-9, 1),
    noise_multiplier=st.floats(0, 1e6),
    sensitivity=st.floats(0, 1e6),
    dimension=st.integers(0, 10**12),
    log_ratio=st.floats(0, 1),
    log_inflation=st.floats(0, 1),
    mass=st.floats(0, 1),
    device_share=st.floats(0, 1),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(releases, max_size=5))
def test_reads_back_what_was_written(batch: list[ReleaseEvent]) -> None:
    with Ledger.create(None, HEADER) as ledger:
        assert [ledger.append_release(release) for release in batch] == list(range(1, len(batch) + 1))
        assert ledger.releases() == batch
        assert ledger.tally() == Counter(batch)
        assert ledger.count() == len(batch)
        assert ledger.verify() == []


def test_everything_survives_reopening(tmp_path: Path) -> None:
    head = written(tmp_path / "l.sqlite")
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.header() == HEADER
        assert ledger.head() == head
        ledger.append_event("resume", {"step": 5})
        assert ledger.append_release(STEP) == 6
        assert ledger.events("resume") == [{"step": 5}]
        assert ledger.contains(head)
        assert ledger.count_at(head) == 5
        assert not ledger.contains("0" * 64)
        assert ledger.verify() == []


def test_a_row_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    """Another connection sees the row at once: nothing waits in an open transaction."""
    with Ledger.create(tmp_path / "l.sqlite", HEADER) as ledger:
        for step in range(1, 4):
            ledger.append_release(STEP)
            with Ledger.open(tmp_path / "l.sqlite", read_only=True) as reader:
                assert reader.count() == step
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


WRITER = """
import sys
from privacy.ledger import Ledger, ReleaseEvent
ledger = Ledger.create(sys.argv[1], {})
step = ReleaseEvent("gaussian", "digital", 0.01, 1.1, 1.0, 1000)
while True:
    print(ledger.append_release(step), flush=True)
"""


@pytest.mark.parametrize("steps", [1, 37, 200])
def test_kill_loses_no_acknowledged_release(tmp_path: Path, steps: int) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(tmp_path / "l.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for _ in range(steps):
            acknowledged = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.count() in {acknowledged, acknowledged + 1}  # written, killed before it could say so
        assert ledger.verify() == []


def test_a_draft_left_by_a_kill_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite.9-ab.new").write_bytes(b"half a ledger")
    written(tmp_path / "l.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]


def test_a_key_is_never_used_twice(tmp_path: Path) -> None:
    written(tmp_path / "l.sqlite")
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(UsageError, match="used before"):
            ledger.register_key("ab" * 32, "dither")
        ledger.register_key("cd" * 32, "dither")
        assert [key["name"] for key in ledger.events("key")] == ["noise", "dither"]


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM entries WHERE seq = 3", "missing"),
        ("DELETE FROM entries WHERE seq = 0", "missing"),
        (
            """UPDATE entries SET body = replace(body, '1.1', '9.9') WHERE seq = 4""",
            "row 4 (release) does not fit",
        ),
        ("UPDATE entries SET kind = 'note' WHERE seq = 4", "row 4 (note) does not fit"),
        ("UPDATE entries SET hash = lower(hex(randomblob(32))) WHERE seq = 6", "row 6"),
        (
            """INSERT INTO entries SELECT 7, kind, body, nonce, hash FROM entries WHERE seq = 1""",
            "used again in row 7",
        ),
        ("UPDATE entries SET body = '{' WHERE seq = 4", "unreadable"),
        ("DELETE FROM entries", "empty"),
    ],
)
def test_tampering_shows_and_stops_the_run(tmp_path: Path, statement: str, finding: str) -> None:
    path = tmp_path / "l.sqlite"
    written(path)
    assert findings(path) == []
    tamper(path, statement)
    assert any(finding in line for line in findings(path)), findings(path)
    with pytest.raises(UsageError, match="start a new run"):
        Ledger.open(path)
    with Ledger.open(path, read_only=True) as ledger, pytest.raises(UsageError, match="damaged"):
        ledger.tally()


def test_a_cut_off_tail_shows_by_the_head(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    head = written(path)
    tamper(path, "DELETE FROM entries WHERE seq > 3")
    assert findings(path) == []  # the chain alone cannot know
    with Ledger.open(path) as ledger:
        assert not ledger.contains(head)
        for _ in range(3):  # the very rows that were cut off do not bring the head back
            ledger.append_release(STEP)
        assert ledger.count() == 5
        assert not ledger.contains(head)


def test_sql_cannot_change_a_row(tmp_path: Path) -> None:
    written(tmp_path / "l.sqlite")
    connection = sqlite3.connect(tmp_path / "l.sqlite")
    for statement in ("UPDATE entries SET body = '{}'", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_two_writers_do_not_share_a_ledger(tmp_path: Path) -> None:
    written(tmp_path / "l.sqlite")
    with Ledger.open(tmp_path / "l.sqlite") as one, Ledger.open(tmp_path / "l.sqlite") as two:
        one.append_release(STEP)
        with pytest.raises(UsageError, match="another process"):
            two.append_release(STEP)


def test_reading_leaves_no_trace_and_works_in_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    written(folder / "l.sqlite")
    folder.chmod(0o500)
    try:
        assert findings(folder / "l.sqlite") == []
        assert [file.name for file in folder.iterdir()] == ["l.sqlite"]
    finally:
        folder.chmod(0o700)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with pytest.raises(UsageError, match="does not exist"):
        Ledger.open(path)
    with pytest.raises(UsageError, match="finite numbers"):
        Ledger.create(path, {"epsilon": float("inf")})
    assert not path.exists()
    with pytest.raises(UsageError, match="cannot be created"):
        Ledger.create(tmp_path / "nowhere" / "l.sqlite", HEADER)
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(UsageError, match="not a readable ledger"):
        Ledger.open(path)
    with pytest.raises(UsageError, match="exists"):
        Ledger.create(path, HEADER)
    path.rename(tmp_path / "l.sqlite-wal")  # the log of a removed ledger must not be replayed into a new one
    with pytest.raises(UsageError, match=r"l\.sqlite-wal exists"):
        Ledger.create(path, HEADER)
    with Ledger.create(None, HEADER) as ledger, pytest.raises(UsageError, match="ledger's own"):
        ledger.append_event("release", {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mechanism", "laplace"),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("sample_rate", float("nan")),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", float("nan")),
        ("sensitivity", float("inf")),
        ("mass", -1e-9),
        ("log_ratio", float("nan")),
        ("device_share", 1.1),
    ],
)
def test_a_release_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        replace(STEP, **{field: value})


def test_what_a_ledgers_file_holds_besides_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, {"run": "here"}):
        pass
    for made, said in (
        ("TABLE records (x)", "table 'records'"),
        ("VIEW seen AS SELECT * FROM entries", "view 'seen'"),
    ):
        with sqlite3.connect(path) as connection:
            connection.execute(f"CREATE {made}")
        with Ledger.open(path, read_only=True) as ledger:
            assert any(said in finding for finding in ledger.verify())


# ---- copies, as several workers keep them


def test_a_copy_follows_row_by_row_to_the_same_head(tmp_path: Path) -> None:
    written(tmp_path / "l.sqlite")
    with Ledger.open(tmp_path / "l.sqlite") as ledger, Ledger.copy(ledger.rows()) as copy:
        for _ in range(3):
            length = ledger.length
            ledger.append_release(replace(STEP, noise_multiplier=2.0))
            ledger.append_event("note", {"a": 1})
            copy.follow(ledger.rows(length))
        assert copy.head() == ledger.head()
        assert copy.length == ledger.length
        assert (copy.header(), copy.count(), copy.tally()) == (ledger.header(), 8, ledger.tally())
        assert copy.verify() == []
        with pytest.raises(UsageError, match="was used before"):
            copy.register_key("ab" * 32, "noise")


@pytest.mark.parametrize("change", ["a body", "a row left out", "a row of its own"])
def test_a_copy_takes_over_no_row_that_does_not_continue_its_chain(change: str, tmp_path: Path) -> None:
    written(tmp_path / "l.sqlite")
    with Ledger.open(tmp_path / "l.sqlite", read_only=True) as ledger:
        rows = [list(row) for row in ledger.rows()]
    if change == "a body":
        rows[3][2] = rows[3][2].replace("1.1", "1.2")
    elif change == "a row left out":
        del rows[3]
    copy = Ledger.copy(rows[:3])
    if change == "a row of its own":
        copy.append_release(STEP)
    with copy, pytest.raises(UsageError, match="does not continue its chain"):
        copy.follow(rows[3:])
