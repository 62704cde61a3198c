"""The eight faults of a device, each through the program: exit code 1, one line, a ledger row, and no release after."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from noise_models.calibration.document import Calibration
from optical_dfa.backends.faults import FAULTS
from optical_dfa.cli import main
from privacy.auditing.audit import audit
from privacy.ledger import Ledger

START_UP, STEP = 8 + 2, 1 + 2 + 1  # frames: dark and lit; released, dark and lit
TRAIN = [
    *("train", "--dataset", "digits", "--model", "mlp:8", "--epochs", "1", "--batch-size", "256"),
    *("--epsilon", "8", "--json"),
]


def fail(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> str:
    """The one line with which training fails."""
    capsys.readouterr()
    assert main([*TRAIN, "--out", str(out), *more]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"error": said.err.strip().removeprefix("error: "), "exit_code": 1}
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def rows(out: Path) -> list[tuple[str, dict]]:  # type: ignore[type-arg]
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.verify() == []
        history = ledger.history()
    kinds = [kind for kind, _ in history]
    # The digests of its frames are on disk before each release.
    assert all(kinds[place - 1] == "frames" for place, kind in enumerate(kinds) if kind == "release")
    return [row for row in history if row[0] not in ("key", "frames")]


# Frames from the fault's first to the one that shows it, at one released frame a step.
DELAYS = {
    "lamp-off": 4,
    "saturation": 1,
    "frozen-frame": 1,
    "replayed-frame": 1,
    "stuck-rows": 3,
    "correlated-rows": 3,
    "gain-drop": 1,
}


STANDING = ("--release", "dark-frame")
LIGHT = ("--release", "photon", "--model", "mlp:16")
DIGITS = ("--release", "dark-frame", "--release-option", "digits=9")
STOPPING = (
    "lamp-off",
    "frozen-frame",
    "correlated-rows",
)  # of light, of one frame, and of the law of a frame


@pytest.mark.parametrize(
    ("name", "release"),
    [
        *((name, ()) for name in FAULTS),
        *(pytest.param(n, DIGITS, marks=() if n in STOPPING else pytest.mark.slow) for n in FAULTS),
    ],
)
def test_a_fault_in_training_stops_it_before_the_release(
    name: str, release: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, after = tmp_path / "run", START_UP + 2 * STEP
    options = [*release, "--backend-option", f"fault={name}", "--backend-option", f"fault_after={after}"]
    line = fail(capsys, out, *options)
    assert "health test" in line
    assert "nothing more is released" in line
    history = rows(out)
    assert [kind for kind, _ in history] == ["health", "release", "release", "health"]
    start, finding = history[0][1], history[-1][1]
    assert (start["passed"], start["phase"], start["lamp_tested"]) == (True, "start-up", True)
    assert (finding["passed"], finding["phase"]) == (False, "step")
    assert finding["message"] in line
    assert finding["frame"] - after == DELAYS[name]
    assert finding["false_alarm"] < 1e-7
    report = audit(out)
    assert (report.consistent, report.releases) == (True, 2), report.findings
    assert any(finding["message"] in note for note in report.notes)
    # To go on takes a new start-up, which sees the same device: it fails where the first one did.
    assert "health test" in fail(capsys, out, "--resume", *options)
    assert [kind for kind, _ in rows(out)][4:] == ["health", "release", "release", "health"]
    assert audit(out).consistent


@pytest.mark.parametrize(
    ("name", "release"),
    [
        # Who tests the device is the same under every release; all of them are tried on one fault.
        pytest.param(
            name, release, marks=() if release == STANDING or name == "lamp-off" else pytest.mark.slow
        )
        for name in FAULTS
        for release in (STANDING, ("--release", "device-entropy"), DIGITS, LIGHT)
    ],
)
def test_a_faulty_device_does_not_start(
    name: str, release: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = fail(capsys, out, *release, "--backend-option", f"fault={name}")
    assert "health test" in line
    assert [(kind, row["passed"]) for kind, row in rows(out)] == [("health", False)]
    assert (audit(out).releases, audit(out).consistent) == (0, True)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "lamp-off" else pytest.mark.slow) for n in FAULTS]
)
def test_a_fault_stops_light_that_carries_the_sum_before_the_release(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two releases the device is looked at in two dark frames and a lit one."""
    out = tmp_path / "run"
    options = ["--backend-option", f"fault={name}", "--backend-option", f"fault_after={START_UP + 2 * 3}"]
    line = fail(capsys, out, *LIGHT, *options)
    assert "health test" in line
    assert "nothing more is released" in line
    assert [kind for kind, _ in rows(out)] == ["health", "release", "release", "health"]
    report = audit(out)
    assert (report.consistent, report.releases) == (True, 2), report.findings


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in STOPPING else pytest.mark.slow) for n in FAULTS]
)
def test_device_entropy_stops_at_the_fault_too(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--release", "device-entropy", "--backend-option", f"fault={name}", "--backend-option"]
    fail(capsys, out, *options, "fault_after=38")
    history = rows(out)
    assert history[0][1]["passed"] is True
    assert history[-1][1]["passed"] is False
    assert 0 < audit(out).releases < 6
    assert audit(out).consistent


def test_a_gain_that_drifts_beyond_its_limit_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = fail(capsys, out, "--backend-option", "drift_per_hour=100")
    assert "drift" in line
    assert [(kind, row.get("phase")) for kind, row in rows(out)] == [
        ("health", "start-up"), ("release", None), ("health", "ageing"),
    ]  # fmt: skip


# ---- the eighth: the wrong calibration


def saved(calibration: Calibration, path: Path) -> list[str]:
    calibration.save(path)
    return ["--calibration", str(path)]


def test_the_ledger_names_the_calibration_that_the_run_relied_on(
    calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = saved(calibration, tmp_path / "cal.json")
    assert main([*TRAIN, "--out", str(out), *given]) == 0
    guarantee = json.loads(capsys.readouterr().out)["guarantee"]
    assert any(calibration.digest[:16] in text for text in guarantee["assumptions"])
    report = audit(out)
    assert (report.consistent, report.epsilon) == (True, pytest.approx(guarantee["epsilon"], rel=1e-3))
    assert report.to_dict()["calibration"]["digest"] == calibration.digest
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        header = ledger.header()
    assert header["calibration_beta"] == 1e-6  # it enters delta
    assert header["credit"]["gaussian_std_steps"] == pytest.approx(calibration.credit().std)
    assert Calibration.load(out / "camera-calibration.json") == calibration


def wrong(calibration: Calibration, how: str) -> Calibration:
    now = datetime.now(UTC)
    match how:
        case "of another camera":
            return replace(calibration, camera_fingerprint="0123456789abcdef")
        case "expired":
            return replace(  # taken before: the fixture's own may be younger than a second
                calibration,
                taken_at=(now - timedelta(days=1)).isoformat(),
                expires_at=(now - timedelta(seconds=1)).isoformat(),
            )
        case "more noise than there is":
            factor = 1.1
        case _:  # "less noise than there is", under this camera's name
            factor = 0.8
    return replace(
        calibration,
        credit_dn=factor * calibration.credit_dn,
        credit_lower_dn=factor * calibration.credit_lower_dn,
    )


@pytest.mark.parametrize(
    ("how", "test"),
    [
        ("of another camera", "calibration"),
        ("expired", "calibration"),
        ("more noise than there is", "variance"),
        ("less noise than there is", "variance"),
    ],
)
def test_a_wrong_calibration_stops_the_run_before_anything_is_released(
    how: str, test: str, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = fail(capsys, out, *saved(wrong(calibration, how), tmp_path / "cal.json"))
    (row,) = rows(out)
    assert (row[0], row[1]["passed"], row[1]["phase"], row[1]["test"]) == ("health", False, "start-up", test)
    assert row[1]["message"] in line
    assert "calibrat" in line
    assert audit(out).releases == 0


def test_a_run_goes_on_with_its_own_calibration_only(
    calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = saved(calibration, tmp_path / "cal.json")
    after = START_UP + STEP
    fault = ["--backend-option", "fault=gain-drop", "--backend-option", f"fault_after={after}"]
    fail(capsys, out, *given, *fault)
    other = saved(replace(calibration, frames=101), tmp_path / "other.json")
    line = fail(capsys, out, "--resume", *other, *fault)
    assert calibration.digest[:16] in line
    kind, row = rows(out)[-1]
    assert (kind, row["passed"], row["test"]) == ("health", False, "calibration")
    moved = saved(calibration, tmp_path / "moved.json")  # the same document, elsewhere
    assert "'variance'" in fail(capsys, out, "--resume", *moved, *fault)
    report = audit(out)
    assert (report.consistent, report.releases) == (True, 2), report.findings


def test_a_calibration_that_nothing_relies_on_is_refused(
    calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = saved(calibration, tmp_path / "cal.json")
    for release in ("digital", "device-entropy", "none"):
        arguments = [word for word in TRAIN if word not in ("--epsilon", "8")]
        assert main([*arguments, "--release", release, *given]) == 2
        assert "drop calibration" in capsys.readouterr().err
    assert main([*TRAIN, "--calibration", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
