"""The calibration as a document: what is written comes back, and nothing that contradicts itself is believed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from noise_models.calibration.document import DRIFT_ALLOWANCE, Calibration, Interval
from noise_models.errors import DeviceError, UsageError

TAKEN = datetime(2026, 1, 2, tzinfo=UTC)


def made(**changed: Any) -> Calibration:
    values: dict[str, Any] = {
        "camera": "simulated-opu", "camera_fingerprint": "abc", "taken_at": TAKEN.isoformat(),
        "expires_at": (TAKEN + timedelta(days=30)).isoformat(), "frames": 1700, "confidence": 0.99, "beta": 1e-6,
        "parameters": {"gain_dn_per_electron": Interval(0.8, 0.79, 0.81)}, "credit_dn": 4.0, "credit_lower_dn": 3.0,
        "step_dn": 1.0, "clipped_mass": 1e-30, "dark_level_dn": 64.0, "light_level_dn": 70.0, "saturation_dn": 255.0,
        "passed": True, "findings": (), "assumptions": ("the noise is Gaussian",), "curves": {"mean": [1.0, 2.0]},
    }  # fmt: skip
    return Calibration(**{**values, **changed})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "cal.json"
    made().save(path)
    again = Calibration.load(path)
    assert again == made()
    assert again.digest == made().digest != made(beta=2e-6).digest


def test_credit_is_the_lower_limit_less_drift_or_nothing() -> None:
    credit = made().credit()
    assert credit.std == pytest.approx(3.0 * (1 - DRIFT_ALLOWANCE))
    assert (credit.beta, credit.step, credit.level) == (1e-6, 1.0, 64.0)
    assert made().digest[:16] in credit.argument
    failed = made(passed=False, findings=("the converter is uneven",)).credit()
    assert failed.std == 0.0
    assert "uneven" in failed.argument


def test_another_camera_and_another_time_are_refused() -> None:
    made().refuse_other("abc", TAKEN + timedelta(days=29))
    with pytest.raises(DeviceError, match="not of this one"):
        made().refuse_other("abd", TAKEN)
    with pytest.raises(DeviceError, match="expired"):
        made().refuse_other("abc", TAKEN + timedelta(days=30))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("beta", value) for value in ("1e-6", None, 0.0, -1e-6, 0.5, float("nan"), True)),
        *(("clipped_mass", value) for value in ("0", float("nan"), -1.0, 2.0)),
        *(("credit_lower_dn", value) for value in ("3.9", float("nan"), -1.0, 4.1, float("inf"))),
        *(("expires_at", value) for value in ("tomorrow", None, "2026-02-01T00:00:00", TAKEN.isoformat())),
        *(("passed", value) for value in ("no", 1, None, False)),
        *(("findings", value) for value in (["bad"], "bad", None)),
        *(("assumptions", value) for value in ([], [1, 2], "abc", None)),
        *(("step_dn", value) for value in (0, -1.0, None)),
        *(("light_level_dn", value) for value in (None, "70", 256.0)),
        *(("confidence", value) for value in (2, 0.0)),
        *(("frames", value) for value in (1.5, "many")),
        *(("parameters", value) for value in ([], {"gain": {"value": 1.0}}, {"gain": 1.0})),
        *(("format", value) for value in (2, "1", None)),
        ("credit_dn", None),
        ("dark_level_dn", "x"),
        ("unknown", 1),
    ],
    ids=str,
)
def test_edited_documents_are_refused_in_one_line(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "cal.json"
    path.write_text(json.dumps({**made().to_dict(), name: value}))
    with pytest.raises(UsageError, match="is no calibration") as refused:
        Calibration.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format": 1'])
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cal.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is no calibration|cannot be read") as refused:
        Calibration.load(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="cannot be read"):
        Calibration.load(tmp_path)
