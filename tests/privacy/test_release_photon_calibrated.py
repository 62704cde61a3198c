"""Release `photon` by a calibration of its light path, in place of what the device says of itself (THEORY T10, T8)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.calibration.document import DRIFT_ALLOWANCE, Calibration
from noise_models.calibration.light import LightCalibration, calibrate_light
from noise_models.errors import DeviceError, HealthError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend
from optical_dfa.cli import main
from privacy.auditing.audit import audit
from privacy.auditing.device import _check_light, _check_limits, check_device
from privacy.auditing.files import CALIBRATION_FILE
from privacy.engine import PrivacyEngine
from privacy.ledger import Ledger
from privacy.releases.photon import RATIO, PhotonRelease, measured_limits

ROOT = Path(__file__).parents[2]
HIDDEN, CLASSES = 32, 4
X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % CLASSES


def device(seed: int = 0, **options: Any) -> SimulatedOpuBackend:
    return SimulatedOpuBackend(
        CLASSES,
        HIDDEN,
        seed=seed,
        noise=NoiseGenerator.seeded(seed, "device"),
        **{"method": "homodyne", "dark_pixels": 16_384, "mirrors": 4800} | options,
    )


@cache
def measured() -> tuple[LightCalibration, np.ndarray]:
    """With the response that was kept."""
    kept: list[np.ndarray] = []
    found = calibrate_light(device().photon_readout(), frames=2560, beta=1e-4, keep=kept.append)
    return found, kept[0]


def calibration() -> LightCalibration:
    return measured()[0]


def private(
    given: Any, ledger: Path | None = None, release: str = "photon", sigma: float = 1.0, **options: Any
) -> tuple[PrivacyEngine, PhotonRelease]:
    net = nn.Sequential(nn.Linear(5, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    engine = PrivacyEngine(ledger=ledger, calibration=given)
    engine.make_private(
        module=align(net, rule="dfa", backend=device(**options), show=None),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=12),
        noise_multiplier=sigma,
        max_grad_norm=0.5,
        target_delta=1e-3,
        release=release,
    )
    assert isinstance(engine.step, PhotonRelease)
    return engine, engine.step


def test_limits_of_the_device_are_inside_those_that_were_measured() -> None:
    """The device's own, for a reference of any phase; those measured are not far from them."""
    own, found = device().photon_readout().limits(RATIO), calibration()
    free = device(phase_drift=1.57).photon_readout().limits(RATIO)
    assert free.norm < found.norm < 3.2 * free.norm
    assert own.row < found.row < 3.5 * own.row
    assert own.reach / own.least < found.reach / found.least < 4 * own.reach / own.least
    assert 0.7 * own.least < found.least < own.least


def test_the_response_that_is_kept_reads_back() -> None:
    """Up to the reference's phase, the device's own to a few percent."""
    light_path = device().photon_readout()
    own = light_path._field / light_path._reference
    assert np.linalg.norm(measured()[1] - own) < 0.05 * np.linalg.norm(own)


def test_the_light_is_what_the_calibration_allows_and_beta_is_within_delta() -> None:
    found = calibration()
    engine, release = private(found)
    (_, own) = private(None)
    level, stated = release.source.level(1.0), own.source.level(1.0)
    bound = release.steps
    wider = 1 + DRIFT_ALLOWANCE
    assert level.light * found.norm * wider * bound * 2 == pytest.approx(1)
    assert level.light < stated.light
    assert level.ratio * (1 - DRIFT_ALLOWANCE) * found.least >= level.light * found.reach * wider * level.most
    assert level.change == pytest.approx(
        level.light * bound * found.row * wider / ((1 - level.ratio) * (1 - DRIFT_ALLOWANCE) * found.least)
    )
    header = engine.ledger.header()
    assert header["calibration_beta"] == found.beta
    assert header["calibration"] == found.identity()
    assert set(found.assumptions) <= set(header["assumptions"])
    assert not any("computed from its matrix" in text for text in header["assumptions"])
    assert any(found.digest[:16] in text for text in header["assumptions"])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("is of light path", {"seed": 1}),
        ("is of light path", {"mirrors": 4808}),
        ("is of light path", {"full_well_electrons": 11_000.0}),
    ],
)
def test_another_light_paths_calibration_stops_the_run(words: str, options: dict[str, Any]) -> None:
    with pytest.raises(HealthError, match=words):
        private(calibration(), **options)


def test_light_that_is_not_as_it_was_stops_the_run() -> None:
    """By a tenth of an amplitude, at one pixel of one camera or everywhere; by a hundredth it goes on."""
    found = calibration()

    def changed(name: str, factor: float, pixels: slice = slice(None), rows: slice = slice(None)) -> Any:
        table = np.array(getattr(found, name))
        table[rows, pixels] *= factor
        return tuple(tuple(row) for row in table.tolist())

    private(replace(found, reference_dn=changed("reference_dn", 1.02)))
    for pixels, rows in ((slice(None), slice(None)), (slice(3, 4), slice(1, 2))):
        with pytest.raises(DeviceError, match=r"amplitude of the reference at a pixel is 0\.91"):
            private(replace(found, reference_dn=changed("reference_dn", 1.2, pixels, rows)))
    names = ("columns_real", "columns_imaginary")
    private(replace(found, **{name: changed(name, 1.01) for name in names}))
    with pytest.raises(DeviceError, match=r"amplitude of the fields is 0\.9"):
        private(replace(found, **{name: changed(name, 1.1) for name in names}))
    # One macro-pixel's field is another, of the same brightness; a fifth of the pixels see another medium.
    for columns, rows in ((slice(5, 6), slice(None)), (slice(None), slice(0, 6))):
        with pytest.raises(DeviceError, match="fields of the macro-pixels moved by"):
            private(replace(found, **{name: changed(name, -1.0, columns, rows) for name in names}))
    both = changed("reference_dn", 1.08)  # each alone is within what is allowed
    private(replace(found, reference_dn=both))
    with pytest.raises(DeviceError, match="in photo-electrons"):
        private(replace(found, reference_dn=both, **{name: changed(name, 1.03) for name in names}))


def test_a_calibration_of_fewer_pixels_serves_no_more() -> None:
    """All mirrors and inputs as they are, and the first pixels only."""
    found = calibration()
    fewer = replace(
        found, rows=16, reference_dn=tuple(row[:16] for row in found.reference_dn),
        columns_real=found.columns_real[:16], columns_imaginary=found.columns_imaginary[:16],
    )  # fmt: skip
    with pytest.raises(DeviceError, match="is of 16 pixels of a camera, and the run uses 32"):
        private(fewer)
    with pytest.raises(DeviceError, match="mirrors of a macro-pixel"):
        private(replace(found, most=found.most - 1))
    with pytest.raises(DeviceError, match="entries of a column"):
        found.refuse_larger(found.inputs + 1, 16, found.most)
    fewer.refuse_larger(found.inputs, 16, found.most)


def test_an_expired_one_stops_it_before_a_release_too() -> None:
    past = replace(calibration(), expires_at=datetime.now(UTC).isoformat())
    with pytest.raises(HealthError, match="expired"):
        private(past)
    soon = replace(calibration(), expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    _, release = private(soon)
    object.__setattr__(release.source.calibration, "expires_at", datetime.now(UTC).isoformat())
    with pytest.raises(HealthError, match="nothing more is released"):
        release.source.vouch()


def test_a_light_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="knows of 1e\\+03 and more; take a larger epsilon"):
        private(replace(calibration(), attenuator=((1e3, 1.0), (1e4, 1.0))))


def test_a_calibration_of_something_else_is_refused() -> None:
    camera = Calibration(
        camera="x", camera_fingerprint="0", taken_at="2026-01-01T00:00:00+00:00",
        expires_at="2036-01-31T00:00:00+00:00", frames=10, confidence=0.99, beta=1e-6, parameters={}, credit_dn=1.0,
        credit_lower_dn=1.0, step_dn=1.0, clipped_mass=0.0, dark_level_dn=0.0, light_level_dn=0.0, saturation_dn=255.0,
        passed=True, findings=(), assumptions=("one",), curves={},
    )  # fmt: skip
    with pytest.raises(UsageError, match="is of a camera"):
        private(camera)
    with pytest.raises(UsageError, match="is of a light path"):
        private(calibration(), release="dark-frame")
    with pytest.raises(UsageError, match="credits nothing that is measured"):
        private(calibration(), release="digital")


def test_real_light_is_calibrated_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedOpuBackend, "physical", True)
    private(calibration())
    with pytest.raises(UsageError, match="calibrate --photon"):
        private(None)


def test_its_assumptions_are_explained() -> None:
    explained = " ".join((ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").split()).lower()
    for text in calibration().assumptions:
        assert re.split(r"[(:,]", text.lower())[0].strip() in explained, text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "balanced"}, "method is balanced"),
        ({"method": "off-axis"}, "method is off-axis"),
        ({"levels": 255}, "levels is 255"),
        ({"decorrelation_seconds": 10.0}, "the medium ages"),
    ],
)
def test_light_paths_that_no_calibration_serves_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        calibrate_light(device(**options).photon_readout(), frames=2048)


# ---- as a user


def test_a_calibrated_run_is_audited_against_its_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "cal.json", tmp_path / "run"
    backend = ["--backend-option", "mirrors=10000", "--backend-option", "fidelity=physics"]
    backend += ["--backend-option", "adc_bits=12"]
    arguments = ["calibrate", "--photon", "--backend", "simulated-opu", *backend, "--out-features", "32"]
    arguments += ["--frames", "4096", "--beta", "1e-5", "--matrix", "--out", str(out), "--json"]
    assert main(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert LightCalibration.load(out).digest == shown["digest"]
    assert np.load(tmp_path / "cal.npz")["response"].shape == (32, 10)
    arguments = ["train", "--dataset", "digits", "--model", "mlp:32", "--epochs", "1", "--epsilon", "8"]
    arguments += ["--rule", "gated-dfa", "--release", "photon", "--backend", "simulated-opu", *backend]
    assert main([*arguments, "--calibration", str(out), "--out", str(run)]) == 0
    report = audit(run)
    assert report.consistent, report.findings
    assert report.calibration is not None
    assert report.calibration["digest"] == shown["digest"]
    assert report.header["credit"]["norm"] == pytest.approx(measured_limits(LightCalibration.load(out)).norm)
    capsys.readouterr()
    kept = run / CALIBRATION_FILE
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps(document | {"norm": document["norm"] / 2}))
    assert not audit(run).consistent


def test_what_a_header_has_beyond_its_calibration_is_found() -> None:
    found = calibration()
    _, release = private(found)
    credit = release.describe()
    assert _check_limits(found, credit) == []
    for name, factor, words in (
        ("norm", 0.5, "norm"),
        ("attenuator", 2.0, "attenuator at"),
        ("largest_change_of_an_amplitude", 0.5, "change of an amplitude"),
        ("largest_field_over_reference", 0.5, "fields of"),
        ("counts_a_column", 2.0, "counts a column"),
    ):
        (finding, *_) = _check_limits(found, credit | {name: credit[name] * factor})
        assert words in finding
        assert "\n" not in finding
    others = credit["light_path"] | {"mirrors_each": found.most + 1}
    (finding,) = _check_limits(found, credit | {"light_path": others})
    assert "macro-pixels of" in finding
    assert math.isclose(credit["norm"], found.norm * (1 + DRIFT_ALLOWANCE))


def test_numbers_that_no_float_holds_and_a_calibration_taken_out_are_found() -> None:
    found = calibration()
    engine, release = private(found)
    credit = release.describe()
    assert _check_limits(found, credit | {"largest_field_over_reference": 1.0})
    header = engine.ledger.header()
    for name in ("norm", "clamp", "attenuator"):
        huge = header | {"credit": credit | {name: 10**400}}
        assert _check_light(huge, []) == [
            "the header's credit does not say at which light level the device was used"
        ]
    for name in ("calibration_beta", "calibration"):
        taken = {**header, name: None if name == "calibration" else 10**400}
        taken |= {"calibration_beta": None} if name == "calibration" else {}
        ledger = Ledger.create(None, taken)
        assert [text for text in check_device(ledger, taken, None, [], []) if "calibration" in text]
        ledger.close()


def test_more_light_than_the_level_says_is_found() -> None:
    engine, _ = private(None)
    header = engine.ledger.header()
    assert _check_light(header, []) == []
    header["credit"]["attenuator"] *= 1.01
    (finding,) = _check_light(header, [])
    assert "attenuator stood at" in finding


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--photon", "--matrix"], "--matrix keeps the matrix beside the calibration"),
        (["--photon", "--ideal-converter"], "--ideal-converter belongs to a camera's calibration"),
        (["--photon", "--plot", "x.png"], "--plot belongs to a camera's calibration"),
        (["--photon", "--health"], "give one of the two"),
        (["--photon", "--confidence", "0.9"], "--confidence belongs to a camera's calibration"),
        (["--photon", "--frames", "100"], "frames of the reference are 100"),
        (["--photon", "--backend-option", "method=phase-4"], "method is phase-4"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--backend", "simulated-opu", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert text in shown.err
