"""The file of a ledger: under which name it is read, who may create it, and what becomes of it while it is written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from optical_dfa import align
from optical_dfa.cli import main
from privacy.auditing.audit import audit
from privacy.engine import PrivacyEngine
from privacy.errors import LedgerUnreadableError
from privacy.ledger import Ledger, ReleaseEvent

ROOT = Path(__file__).parents[2]
STEP = ReleaseEvent("gaussian", "digital", 0.02, 1.5, 1.0, 500)
HEADER = {
    "release": "digital",
    "adjacency": "add-or-remove-one",
    "delta": 1e-5,
    "sample_rate": 0.02,
    "noise_multiplier": 1.5,
    "nominal_size": 1000,
    "batch_size": 20,
    "reproducible": False,
    "version": "0.1.0",
}


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of 5 releases whose log still has the last three of them."""
    folder = tmp_path / "run"
    folder.mkdir()
    with Ledger.create(folder / "ledger.sqlite", HEADER) as ledger:
        for _ in range(2):
            ledger.append_release(STEP)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.register_key("11" * 32, "noise")
        for _ in range(3):
            ledger.append_release(STEP)
        yield ledger


# ---- under which name it is read


def linked(run: Path, other: Path) -> Path:
    (other / "ledger.sqlite").symlink_to(run / "ledger.sqlite")
    return other


def linked_relatively_twice(run: Path, other: Path) -> Path:
    (other / "one").symlink_to(os.path.relpath(run / "ledger.sqlite", other))
    (other / "ledger.sqlite").symlink_to("one")
    return other / "ledger.sqlite"


def linked_folder(run: Path, other: Path) -> Path:
    (other / "run").symlink_to(run)
    return other / "run"


@pytest.mark.parametrize("link", [linked, linked_relatively_twice, linked_folder])
def test_a_link_hides_no_release(link: Callable[[Path, Path], Path], writing: Ledger, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    there = link(tmp_path / "run", tmp_path / "other")
    by_its_own_name, by_the_link = audit(tmp_path / "run"), audit(there)
    assert by_the_link.releases == by_its_own_name.releases == writing.count() == 5
    assert by_the_link.epsilon == by_its_own_name.epsilon
    path = there / "ledger.sqlite" if there.is_dir() else there
    writing.close()
    with Ledger.open(path) as ledger:  # it goes on in the file itself
        assert ledger.append_release(STEP) == 6
        assert (tmp_path / "run" / "ledger.sqlite-wal").exists()
        assert not (path.with_name("ledger.sqlite-wal")).is_symlink()
    assert audit(tmp_path / "run").releases == 6


def copied(path: Path, other: Path) -> None:
    shutil.copy(path, other)


def hard_linked(path: Path, other: Path) -> None:
    os.link(path, other)


def renamed(path: Path, other: Path) -> None:
    path.rename(other)


@pytest.mark.parametrize("take", [copied, hard_linked, renamed])
def test_a_file_without_its_log_says_so(
    take: Callable[[Path, Path], None], writing: Ledger, tmp_path: Path
) -> None:
    """A copy, a second name or a new name of a ledger that is being written, or whose run was killed."""
    other = tmp_path / "other.sqlite"
    take(tmp_path / "run" / "ledger.sqlite", other)
    report = audit(other)
    assert not report.consistent
    assert "log of newest rows is not beside it" in report.findings[0]
    assert report.guarantee.kind.value == "none"
    with pytest.raises(UsageError):
        Ledger.open(other)


def test_a_copy_with_its_log_and_one_of_a_closed_ledger_are_whole(writing: Ledger, tmp_path: Path) -> None:
    with_log, closed = tmp_path / "with", tmp_path / "closed.sqlite"
    shutil.copytree(tmp_path / "run", with_log)
    assert (audit(with_log).releases, audit(with_log).findings) == (5, ())
    writing.close()
    shutil.copy(tmp_path / "run" / "ledger.sqlite", closed)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["ledger.sqlite"]
    assert (audit(closed).releases, audit(closed).findings) == (5, ())
    with Ledger.open(closed) as ledger:
        assert ledger.append_release(STEP) == 6


def test_a_second_name_is_no_place_to_write(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "l.sqlite", HEADER).close()
    os.link(tmp_path / "l.sqlite", tmp_path / "m.sqlite")
    for name in ("l.sqlite", "m.sqlite"):
        with pytest.raises(UsageError, match="hard link"):
            Ledger.open(tmp_path / name)
        assert audit(tmp_path / name).findings == ()  # closed: it is whole under both
    (tmp_path / "m.sqlite").rename(tmp_path / "l.sqlite.9-ab.new")  # what a kill while it is created leaves
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        assert ledger.append_release(STEP) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]


# ---- what becomes of it while it is written


def removed(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()


def replaced_by_an_earlier_copy(folder: Path) -> None:
    shutil.copy(folder / "ledger.sqlite", folder / "copy")
    (folder / "copy").rename(folder / "ledger.sqlite")


def without_its_log(folder: Path) -> None:
    (folder / "ledger.sqlite-wal").unlink()


def with_another_log(folder: Path) -> None:
    (folder / "ledger.sqlite-wal").unlink()
    (folder / "ledger.sqlite-wal").write_bytes(b"")


def without_the_index_of_its_log(folder: Path) -> None:
    (folder / "ledger.sqlite-shm").unlink()


def the_folder_moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


CHANGES = (removed, replaced_by_an_earlier_copy, without_its_log, with_another_log, the_folder_moved)


@pytest.mark.parametrize("change", [*CHANGES, without_the_index_of_its_log])
def test_nothing_is_released_into_a_ledger_that_is_no_longer_there(
    change: Callable[[Path], None], writing: Ledger, tmp_path: Path
) -> None:
    change(tmp_path / "run")
    for append in (
        lambda: writing.append_release(STEP),
        lambda: writing.append_event("note", {}),
        lambda: writing.register_key("22" * 32, "noise"),
    ):
        with pytest.raises(UsageError, match="removed, renamed or replaced"):
            append()
    assert writing.count() == 5


@pytest.mark.parametrize("change", CHANGES)
def test_nor_where_it_goes_between_the_row_and_the_answer(
    change: Callable[[Path], None], writing: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writing._watch is not None
    looks = iter((lambda: None, lambda: change(tmp_path / "run")))
    look = writing._watch.refuse_moved

    def then(self: object) -> None:
        next(looks)()
        look()

    monkeypatch.setattr(type(writing._watch), "refuse_moved", then)
    with pytest.raises(UsageError, match="removed, renamed or replaced"):
        writing.append_release(STEP)


@pytest.mark.parametrize("change", [*CHANGES, without_the_index_of_its_log])
def test_an_engine_whose_ledger_went_changes_no_weight(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)  # the file is watched by its full name, whatever the program's folder is
    x, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    engine = PrivacyEngine(ledger="ledger.sqlite")
    module, optimizer, loader = engine.make_private(
        module=align(net, rule="dfa", backend="digital", example=x[:1], show=None),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=12),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    monkeypatch.chdir(tmp_path)
    batches = iter(loader)

    def step() -> None:
        records, labels = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(records), labels).backward()
        optimizer.step()

    step()
    change(folder)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(UsageError, match="removed, renamed or replaced"):
        step()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), before, strict=True))
    engine.close()


def test_opening_changes_nothing(tmp_path: Path) -> None:
    """A run that is refused after its ledger was opened leaves the file as it was."""
    Ledger.create(tmp_path / "l.sqlite", HEADER).close()
    before = (tmp_path / "l.sqlite").read_bytes()
    Ledger.open(tmp_path / "l.sqlite").close()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("l.sqlite", before)]
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        (tmp_path / "l.sqlite").rename(tmp_path / "m.sqlite")
        with pytest.raises(UsageError, match="removed, renamed or replaced"):
            ledger.append_release(STEP)


def test_a_run_that_was_killed_and_then_refused_goes_on(tmp_path: Path) -> None:
    """Whoever opens what a kill left, and closes it without a row, takes nothing away."""
    path = tmp_path / "l.sqlite"
    script = (
        "import os\nfrom privacy.ledger import Ledger\n"
        f"ledger = Ledger.create({str(path)!r}, {{'release': 'none', 'reproducible': False}})\n"
        "ledger.append_event('note', {'a': 1})\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert {file.name for file in tmp_path.iterdir()} == {"l.sqlite", "l.sqlite-wal", "l.sqlite-shm"}
    for _ in range(2):
        Ledger.open(path).close()
        with Ledger.open(path, read_only=True) as ledger:
            assert ledger.verify() == []
            assert ledger.events("note") == [{"a": 1}]
    del ledger
    assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]


# ---- who may create it

CREATE = """
import sys, time
from pathlib import Path
from noise_models.errors import UsageError
from privacy.ledger import Ledger, ReleaseEvent
print("ready", flush=True)
sys.stdin.readline()
for trial in range(int(sys.argv[2])):
    path = Path(sys.argv[1]) / f"{trial}.sqlite"
    while time.time() < float(sys.argv[3]) + trial / 20:
        pass
    try:
        ledger = Ledger.create(path, {"by": sys.argv[4]})
    except UsageError as error:
        print("lost", "exists" in str(error), flush=True)
        continue
    for _ in range(3):
        ledger.append_release(ReleaseEvent("gaussian", "digital", 0.02, 1.5, 1.0, 500))
    ledger.close()
    print("won", True, flush=True)
"""


def created_at_once(folder: Path, processes: int, trials: int) -> None:
    start = str(time.time() + 1.0 + processes)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(folder), str(trials), start, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("\n")[0].splitlines() for process in running]
    for trial in range(trials):
        said = sorted(answer[trial] for answer in answers)
        assert said == ["lost True"] * (processes - 1) + ["won True"], said
        winner = next(number for number, answer in enumerate(answers) if answer[trial] == "won True")
        with Ledger.open(folder / f"{trial}.sqlite") as ledger:
            assert (ledger.verify(), ledger.header(), ledger.count()) == ([], {"by": str(winner)}, 3)
    assert not [file.name for file in folder.iterdir() if not file.name.endswith(".sqlite")]


def test_of_two_processes_one_creates_the_ledger(tmp_path: Path) -> None:
    created_at_once(tmp_path, 2, 10)


@pytest.mark.slow
def test_of_many_processes_one_creates_the_ledger(tmp_path: Path) -> None:
    created_at_once(tmp_path, 8, 100)


def test_a_file_system_without_hard_links_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UsageError, match="no hard links"):
        Ledger.create(tmp_path / "l.sqlite", HEADER)
    assert not list(tmp_path.iterdir())


# ---- a full disk, and what cannot be read


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(ledger: Ledger) -> str:
    """Releases until the disk is full; why there was no other."""
    try:
        for _ in range(100):
            ledger.append_release(STEP)
    except UsageError as error:
        return str(error)
    return "never"


def test_a_full_disk_releases_nothing_and_the_run_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    for size in (0, 1000, 5000):
        with disk_of(size), pytest.raises(UsageError, match="nothing was released"):
            Ledger.create(path, HEADER)
        assert not list(tmp_path.iterdir())
    Ledger.create(path, HEADER).close()
    with Ledger.open(path) as ledger, disk_of(1000), pytest.raises(UsageError, match="nothing was released"):
        ledger.append_release(STEP)
    with Ledger.open(path) as ledger:
        with disk_of(60_000):
            refusal = fill(ledger)
        assert "nothing was released" in refusal
        released = ledger.count()
    with Ledger.open(path) as ledger:
        assert (ledger.verify(), ledger.count()) == ([], released)
        assert ledger.append_release(STEP) == released + 1


def test_a_ledger_without_leave_to_read_is_not_checked(
    writing: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(LedgerUnreadableError, match="nothing was"):
        audit(tmp_path / "run" / "ledger.sqlite")


@pytest.fixture
def other_account() -> Iterator[Callable[[], None]]:
    """Become an account that owns nothing here, where the tests run as the administrator; files of mode 0 stay shut."""
    before = os.geteuid()
    yield lambda: os.seteuid(65534) if before == 0 else None
    os.seteuid(before)


@pytest.mark.parametrize("shut", ["ledger.sqlite", "."], ids=["file", "folder"])
def test_another_account_is_told_how_it_gets_leave(
    shut: str, other_account: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as there:
        run = Path(there) / "run"
        run.mkdir()
        Ledger.create(run / "ledger.sqlite", HEADER).close()
        Path(there).chmod(0o755)
        (run / shut).chmod(0)
        other_account()
        assert main(["audit", str(run)]) == 2
        with pytest.raises(LedgerUnreadableError) as refused:
            Ledger.open(run / "ledger.sqlite")
        os.seteuid(os.getuid())
        (run / shut).chmod(0o755)
    for said in (capsys.readouterr().err, str(refused.value)):
        assert "nothing was checked" in said
        for words in ("chmod -R a+rX", "umask 077", "as the owner"):
            assert words in said


@pytest.mark.parametrize("ending", ["the end of the program", "nobody holds it", "an error"])
def test_a_ledger_that_nobody_closed_is_whole(tmp_path: Path, ending: str) -> None:
    """As a script leaves it that never heard of close()."""
    path = tmp_path / "run.sqlite"
    last = {"the end of the program": "", "nobody holds it": "del ledger", "an error": "raise ValueError"}[
        ending
    ]
    script = (
        "import sys\nfrom privacy.ledger import Ledger\n"
        f"ledger = Ledger.create({str(path)!r}, {{'release': 'none', 'reproducible': False}})\n"
        f"ledger.append_event('note', {{'a': 1}})\n{last}\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.verify() == []
        assert ledger.events("note") == [{"a": 1}]
    with Ledger.open(path) as ledger:
        ledger.append_event("note", {"a": 2})
