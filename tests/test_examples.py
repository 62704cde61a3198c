"""Every example runs, in an empty folder, and does what it says."""

from __future__ import annotations

import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs an example by name: its variables."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(EXAMPLES / name))


def promised(guarantee: Any, epsilon: float) -> None:
    assert guarantee.kind == "record-dp"
    assert 0.8 * epsilon < guarantee.epsilon <= epsilon


def test_one_flag(run: Any) -> None:
    results = run("one_flag.py")["results"]
    assert set(results) == {"digital", "simulated-opu"}
    for accuracy, guarantee in results.values():
        promised(guarantee, 8.0)
        assert accuracy > 0.6  # chance is 0.1


@pytest.mark.parametrize(
    ("name", "epsilon", "accuracy"),
    [("from_opacus.py", 8.71, 0.5), ("own_model.py", 8.0, 0.4), ("text.py", 8.0, 0.4)],
)
def test_a_script_stays_within_its_budget_and_learns(
    name: str, epsilon: float, accuracy: float, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(name)
    promised(found["guarantee"], epsilon)
    assert found["accuracy"] > accuracy  # chance is 0.1 or less
    said = capsys.readouterr().out
    if name == "own_model.py":
        assert "by default: autograd still connects output and 4.branch.1" in said
        assert "4 [96] <- 4.branch.0.weight, 4.branch.0.bias, 4.branch.2.weight, 4.branch.2.bias" in said


def test_the_run_relies_on_what_was_measured(run: Any) -> None:
    found = run("measured_device.py")
    assert (found["status"], found["report"].consistent) == (0, True)
    promised(found["guarantee"], 8.0)
    calibration = found["calibration"]
    assert calibration.credit().std < 0.96 * calibration.credit_dn
    assert any(calibration.digest[:16] in text for text in found["guarantee"].assumptions)
    assert 0.5 < found["guarantee"].device_share < 0.85  # 0.874 where the noise is credited by construction


def test_own_parts(run: Any, own_parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("optical_dfa.config")  # by now, in a process that installs a package later
    monkeypatch.syspath_prepend(str(own_parts))
    found = run("own_parts/run.py")
    assert (found["status"], found["report"].consistent) == (0, True)
    promised(found["guarantee"], 4.0)
    settings = found["report"].settings
    assert [settings[key] for key in ("rule", "backend", "release")] == [
        "half-dfa",
        "mirrored",
        "plain-noise",
    ]


def test_examples_stay_short() -> None:
    scripts = [path for path in EXAMPLES.rglob("*.py") if path.name != "__init__.py"]
    assert len(scripts) == 6 + 4
    for path in scripts:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path
