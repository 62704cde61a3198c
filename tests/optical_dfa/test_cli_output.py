"""What is printed: JSON that any parser reads, tables, and a progress bar only where it belongs."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optical_dfa.cli.output import print_json, print_table, show
from optical_dfa.progress import BarProgress, SilentProgress, progress_for, waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES))
def test_json_is_strict_for_any_value(value: dict[str, object]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr("sys.stdout", out)
        print_json(value)
    assert set(json.loads(out.getvalue(), parse_constant=refuse)) == set(value)


def test_infinite_epsilon_is_the_string_inf(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"epsilon": float("inf"), "list": [float("-inf"), float("nan")]})
    assert json.loads(capsys.readouterr().out) == {"epsilon": "inf", "list": ["-inf", None]}


def test_table_is_aligned_text_in_a_pipe_and_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "one"), ("long name", "two [not markup]")]
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr("sys.stdout", stream)
        print_table(("name", "value"), rows)
        text = stream.getvalue()
        assert "two [not markup]" in text
        if not stream.isatty():
            assert text == "name       value\na          one\nlong name  two [not markup]\n"


def test_progress_is_a_bar_on_a_terminal_only() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    assert isinstance(progress_for(pipe), SilentProgress)
    bar = progress_for(terminal)
    assert isinstance(bar, BarProgress)
    for progress in (progress_for(pipe), bar):
        progress.start(20)
        progress.update(5, {"test accuracy": 0.81234, "epsilon": "inf [x]"})
        progress.update(20, {})
        progress.finish()
    assert pipe.getvalue() == ""
    assert "20/20" in terminal.getvalue()
    assert "test accuracy 0.8123  epsilon inf [x]" in terminal.getvalue()


def test_progress_may_finish_without_a_start() -> None:
    terminal = Terminal()
    progress = BarProgress(terminal)
    progress.update(3, {})
    progress.finish()
    progress.finish()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (0.123456789, "0.123457"),
        (3, "3"),
        ([1, 2.5], "1, 2.5"),
        ({"a": False}, "a no"),
    ],
)
def test_values_as_people_read_them(value: object, text: str) -> None:
    assert show(value) == text


def test_a_sign_of_life_on_a_terminal_only() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        with waiting(stream, "accounting"):
            pass
    assert pipe.getvalue() == ""
    assert "accounting" in terminal.getvalue()
