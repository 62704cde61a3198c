"""`optical-dfa calibrate`: figures, files, picture, health, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noise_models.calibration.document import Calibration
from noise_models.calibration.projection_gain import measure_projection
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.cli import main
from optical_dfa.report.photon_transfer import draw_calibration_picture

SMALL = ["--backend-option", "dark_pixels=16384", "--out-features", "256", "--frames", "256"]
PHYSICS = ["--backend-option", "fidelity=physics"]


def calibrate(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["calibrate", "--backend", "simulated-opu", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_default_camera_is_recovered_and_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cal.json"
    found = calibrate(capsys, *PHYSICS, *SMALL, "--matrix", "--out", str(out))
    # The machine-vision camera: 32 · 247 DN / 10 000 e⁻; 5 e⁻. Standard errors are below 0.4 %.
    assert found["gain_dn_per_electron"] == pytest.approx(32 * 247 / 10_000, rel=0.02)
    assert found["read_noise_electrons"] == pytest.approx(5.0, rel=0.02)
    assert found["passed"] is True
    assert found["beta"] == 1e-6
    assert found["saturation_dn"] == 255
    assert 0.35 * found["credit_dn"] < found["credit_lower_dn"] < 32 * 247 / 10_000 * 5
    assert found["frames"] <= 2000
    stored = Calibration.load(out)
    assert stored.digest == found["digest"]
    assert stored.credit_lower_dn == found["credit_lower_dn"]
    assert (tmp_path / "cal.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    arrays = np.load(tmp_path / "cal.npz")
    assert arrays["gain"].shape == arrays["offset"].shape == (256,)
    assert arrays["matrix"].shape == (256, 10)
    assert (
        found["projection"]["matrix_relative_error"]
        < found["projection"]["matrix_relative_error_upper"]
        < 0.05
    )


def test_the_matrix_of_a_device_without_patterns_is_within_its_error() -> None:
    # Response patterns of single pixels are part of what is measured, and not of matrix(): without them.
    for fidelity in ("effective", "physics"):
        options: dict[str, Any] = {"fidelity": fidelity, "dark_pixels": 4096}
        device = create(
            "simulated-opu",
            in_features=10,
            out_features=256,
            seed=1,
            noise=NoiseGenerator.seeded(2, "probe"),
            options=options | ({"prnu": 0.0} if fidelity == "physics" else {}),
        )
        found, known = measure_projection(device), device.matrix()
        assert known is not None
        true = known.double().numpy()
        error = np.linalg.norm(found.matrix - true) / np.linalg.norm(true)
        assert error == pytest.approx(found.relative_error, rel=0.1)
        assert error < found.relative_error_upper * 1.05


def test_a_converter_that_is_not_ideal_earns_no_credit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Vouched for or not: what was measured counts.
    arguments = [*PHYSICS, "--backend-option", "dnl_lsb=0.02", *SMALL, "--plot", str(tmp_path / "bad.png")]
    arguments += ["--ideal-converter"]
    found = calibrate(capsys, *arguments, code=1)
    assert found["passed"] is False
    assert found["credit_lower_dn"] == 0.0
    assert any("not ideal" in text and "device-entropy" in text for text in found["findings"])
    assert (tmp_path / "bad.png").stat().st_size > 10_000


def test_unevenness_too_small_to_see_is_found_in_what_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*PHYSICS, "--backend-option", "dnl_lsb=0.0001", *SMALL]
    found = calibrate(capsys, *arguments, code=1)
    (finding,) = found["findings"]
    assert "thresholds are not known" in finding
    assert found["credit_lower_dn"] == 0.0
    found = calibrate(capsys, *arguments, "--ideal-converter")
    assert found["passed"] is True
    assert any("vouched for by whoever calibrated" in text for text in found["assumptions"])


@pytest.mark.parametrize(
    ("name", "options", "ideal"),
    [
        ("digital", {}, False),
        ("simulated-opu", {}, True),
        ("simulated-opu", {"fidelity": "physics"}, True),
        ("simulated-opu", {"fidelity": "physics", "dnl_lsb": 0.0001}, False),
    ],
)
def test_converters_that_are_ideal_by_construction(name: str, options: dict[str, Any], ideal: bool) -> None:
    noise = NoiseGenerator.seeded(0, "converter")
    device = create(name, in_features=4, out_features=8, seed=0, noise=noise, options=options)
    assert device.ideal_converter is ideal


def test_a_dark_current_that_saturates_long_exposures_is_not_overlooked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 30 electrons, 18.7 DN², in the setting's own 0.1 ms.
    current = ["--backend-option", "dark_current_electrons_per_second=300000"]
    found = calibrate(capsys, *PHYSICS, *SMALL, *current, code=1)
    limits = found["parameters"]["dark_current_electrons_per_second"]
    assert limits["lower"] < 300_000 < limits["upper"]
    assert found["credit_dn"] < 32 * 247 / 10_000 * 5 * 1.01
    assert any("no Gaussian part is left" in text for text in found["findings"])


@pytest.mark.parametrize("fault", ["lamp-off", "saturation", "frozen-frame", "replayed-frame", "stuck-rows"])
def test_faults_earn_no_credit_and_are_drawn(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backend-option", f"fault={fault}", "--plot", str(tmp_path / "fault.png")]
    found = calibrate(capsys, *SMALL, *options, code=1)
    assert found["credit_lower_dn"] == 0.0
    assert found["findings"]
    assert (tmp_path / "fault.png").exists()


def test_people_read_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--backend", "simulated-opu", *SMALL]) == 0
    shown = capsys.readouterr()
    assert "read noise electrons" in shown.out
    assert "verdict: passed" in shown.out
    assert shown.out.count("assumes: ") == 5
    assert shown.err == ""  # no progress in a pipe


def test_health_of_sound_and_broken_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(capsys, "--health")["healthy"] is True
    out = tmp_path / "cal.json"
    calibrate(capsys, *PHYSICS, "--frames", "256", "--out", str(out))
    found = calibrate(capsys, *PHYSICS, "--health", "--calibration", str(out))
    assert found["healthy"] is True
    assert found["found"]["lamp_tested"] is True
    broken = calibrate(capsys, "--health", "--backend-option", "fault=stuck-rows", code=1)
    assert broken["healthy"] is False
    assert broken["finding"]["test"]
    # Another camera's calibration.
    assert main(["calibrate", "--backend", "simulated-opu", "--health", "--calibration", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is of camera" in error
    # A device that has no credit by construction needs a calibration.
    arguments = ["--backend", "simulated-opu", *PHYSICS, "--backend-option", "dnl_lsb=0.02", "--health"]
    assert main(["calibrate", *arguments]) == 1
    assert "--calibration FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--backend", "digital"], 2, "no camera to calibrate"),
        (["--backend", "digital", "--health"], 2, "no dark frames"),
        (["--backend", "nonesuch"], 2, "nonesuch"),
        (["--backend", "simulated-opu", "--frames", "7"], 2, "frames of the calibration are 7"),
        (["--backend", "simulated-opu", "--beta", "2"], 2, "beta is 2"),
        (["--backend", "simulated-opu", "--confidence", "1"], 2, "confidence is 1"),
        (["--backend", "simulated-opu", "--valid-days", "-1"], 2, "-1"),
        (["--backend", "simulated-opu", "--backend-option", "bits"], 2, "NAME=VALUE"),
        (["--backend", "simulated-opu", "--backend-option", "dark_pixels=100"], 2, "100 pixels"),
        (["--backend", "simulated-opu", "--out", "nowhere/cal.json"], 2, "nowhere"),
        (["--backend", "simulated-opu", "--matrix"], 2, "--out FILE"),
        (["--backend", "simulated-opu", "--health", "--matrix"], 2, "--matrix"),
        (["--backend", "simulated-opu", "--health", "--ideal-converter"], 2, "--ideal-converter"),
        (["--backend", "simulated-opu", "--calibration", "x.json"], 2, "--health"),
        (["--backend", "simulated-opu", "--health", "--calibration", "x.json"], 2, "x.json"),
        ([], 2, "--backend"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert text in shown.err
    assert "Traceback" not in shown.err


def test_a_picture_is_drawn_from_the_document_alone(tmp_path: Path) -> None:
    empty = Calibration(
        camera="x", camera_fingerprint="0", taken_at="2026-01-01T00:00:00+00:00",
        expires_at="2026-01-31T00:00:00+00:00", frames=10, confidence=0.99, beta=1e-6, parameters={}, credit_dn=0.0,
        credit_lower_dn=0.0, step_dn=1.0, clipped_mass=1.0, dark_level_dn=0.0, light_level_dn=0.0, saturation_dn=255.0,
        passed=False, findings=("a finding " * 60,), assumptions=(), curves={},
    )  # fmt: skip
    draw_calibration_picture(empty, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 5_000
