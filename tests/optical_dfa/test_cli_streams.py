"""The program on streams that lack Greek, are closed, full or left; what is no answer never exits with 1."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise_models.errors import DeviceError, UsageError
from optical_dfa.cli import app, main
from optical_dfa.cli.output import print_table
from optical_dfa.cli.streams import readable, spelt
from optical_dfa.config import merge
from optical_dfa.progress import progress_for
from optical_dfa.training.trainer import train

ROOT = Path(__file__).parents[2]
ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "koi8-r", "utf-8", "utf-16"]
KINDS = ["ascii", "cp437", "utf-16"]  # without Greek, with some of it, with all and a mark at the beginning
ACCOUNT = ["account", "--sample-rate", "0.01", "--delta", "1e-5", "--steps", "100", "--noise-multiplier", "1"]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Failing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run ε"
    train(merge({}, {"epochs": 1, "backend": "digital", "release": "digital", "model": "mlp:8"}), folder)
    return folder


@contextmanager
def speaking(encoding: str) -> Iterator[io.TextIOWrapper]:
    """Standard output and error of an encoding, strict as the interpreter opens them; they are left as they were."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        yield out
    assert (out.errors, err.errors) == ("strict", "strict")


def said(stream: Any) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", KINDS)
def test_every_command_speaks_every_encoding(encoding: str, run: Path, tmp_path: Path) -> None:
    greek = "ε" if encoding in ("utf-16", "cp437") else "epsilon"
    with speaking(encoding) as out:
        assert main(["audit", str(run), "--statement", str(tmp_path / "δ.md")]) == 0
        assert f"({greek}, " in said(out)
        for arguments in (ACCOUNT, ["backends"], ["report", str(run)], ["attack", "--list"]):
            assert main(arguments) == 0
        for command in app.COMMANDS:
            assert main([command, "--help"]) == 0
        assert main(["train", "--rule", "ε"]) == 2
        assert f"'{greek}'" in said(sys.stderr)
        assert main(["train", "--dataset", "mnist\udce9"]) == 2  # a name that is no UTF-8
    assert (tmp_path / "δ.md").read_text(encoding="utf-8").startswith("# Privacy statement")


@pytest.mark.parametrize("encoding", KINDS)
def test_json_is_the_same_document_in_every_encoding(encoding: str, run: Path) -> None:
    with speaking(encoding) as out:
        assert main(["audit", str(run), "--json"]) == 0
        document = json.loads(said(out))
    assert document["consistent"] is True
    assert "run ε" in json.dumps(document, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_bars_and_drawn_tables_on_a_terminal_that_lacks_their_lines(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.io.TextIOWrapper", Terminal)
    with speaking(encoding) as out, readable():
        print_table(("ε", "value"), [("δ", "…")])
        bar = progress_for(sys.stderr)
        bar.start(3)
        bar.update(3, {"ε": "∞"})
        bar.finish()
        assert "epsilon" in said(out)
        assert "epsilon inf" in said(sys.stderr)


def test_a_run_in_a_c_locale_is_trained_reported_and_audited(tmp_path: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)

    out = str(tmp_path / "läuf")
    settings = ["--epochs", "1", "--backend", "digital", "--release", "digital", "--model", "mlp:8"]
    code = (
        "import sys; from optical_dfa.cli import main; out = sys.argv[1];"
        f"print([main(['train', '--out', out, *{settings}]), main(['audit', out])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, out], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.endswith(b"[0, 0]\n")
    assert done.stdout.count(b"(epsilon, delta)") >= 2
    assert done.stdout.replace("läuf".encode(), b"").isascii()


@given(st.text(), st.sampled_from(ENCODINGS))
def test_any_text_can_be_spelt_and_ascii_stays(text: str, encoding: str) -> None:
    shown = spelt(text, encoding)
    shown.encode(encoding)
    assert spelt(shown, encoding) == shown
    if text.isascii():
        assert shown == text


def test_tables_stay_aligned_where_names_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    print_table(("ε", "σ"), [("1", "2")])
    assert said(out) == "epsilon  sigma\n1        2\n"


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("seed is -1;\nuse 0"), 2),
        (DeviceError("the camera is unplugged"), 1),
        (OSError(28, "No space left on device", "/run/x"), 3),
        (PermissionError(13, "Permission denied", "/run/x"), 3),
        (MemoryError(), 3),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3),
        (ZeroDivisionError("3 of 8 records"), 70),
        (KeyError("row"), 70),
        (UnicodeEncodeError("ascii", "ε", 0, 1, "no"), 70),
        (RecursionError(), 70),
        (AssertionError("3 of 8 records"), 70),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_whatever_ends_a_command_is_one_line_and_only_an_answer_is_1(
    error: BaseException,
    code: int,
    json_too: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("privacy.auditing.audit.audit", fail)
    assert main(["audit", "run", *(["--json"] if json_too else [])]) == code
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert "records" not in output.err  # an unforeseen error's own text may speak of private ones
    if not json_too:
        assert output.out == ""
        return
    document = json.loads(output.out)
    assert document == {"error": output.err.strip().removeprefix("error: "), "exit_code": code}


@pytest.mark.parametrize(
    "arguments",
    [["frob"], ["train", "--frob"], ["account"], ["audit"], ["audit", "absent"], ["bench", "x"], ["report", "x"],
     ["attack", "x"], ["reproduce", "x"], ["calibrate", "--backend", "x"], ["train", "--epochs", "many"],
     ["train", "--config", "absent.toml"], ["backends", "more"]],
    ids=" ".join,
)  # fmt: skip
def test_every_commands_errors_are_json_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"error", "exit_code"}
    assert document["exit_code"] == 2


def test_a_reader_who_leaves_and_a_full_disc_are_no_answers(
    monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((BrokenPipeError(32, "Broken pipe"), 141), (OSError(28, "No space left"), 3)):
        monkeypatch.setattr("sys.stdout", Failing(error))
        assert main(["audit", str(run)]) == code
        assert main(["audit", str(run), "--json"]) == code
    assert "Traceback" not in capsys.readouterr().err


FULL = "error: the output cannot be written (No space left on device); make room, or send it elsewhere\n"


def test_a_full_output_is_one_line_and_no_answer(run: Path) -> None:
    command = [sys.executable, "-m", "optical_dfa", "audit", str(run)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 3
    assert ended.stderr == FULL


@pytest.mark.parametrize("arguments", [["--json"], ["--statement", "{there}/s.md"]], ids=str)
def test_whatever_is_asked_for_a_full_output_is_no_answer(
    arguments: list[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["audit", str(run), *(text.format(there=tmp_path) for text in arguments)]) == 3
    assert capsys.readouterr().err == FULL


def test_closed_streams_are_written_into_nothing(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert main(["audit", str(run)]) == 0
    assert main(["backends"]) == 0
    assert main(["frob"]) == 2
    assert sys.stdout is None
