"""Audits of honest, tampered and contradictory run folders."""

import contextlib
import gc
import json
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.numpy import save_file

from noise_models.calibration.document import Calibration, Interval
from noise_models.errors import UsageError
from privacy import health_log
from privacy.accounting import epsilon
from privacy.auditing.audit import audit
from privacy.auditing.markdown import markdown
from privacy.auditing.statement import statement
from privacy.guarantee import Guarantee, Kind
from privacy.ledger import Ledger, ReleaseEvent
from privacy.notions import Adjacency
from privacy.weights import name_weights, tensors_digest

N, BATCH, SIGMA, DELTA, STEPS = 1000, 20, 1.5, 1e-5, 50
STEP = ReleaseEvent("gaussian", "dark-frame", BATCH / N, SIGMA, 1.0, 500, device_share=0.9)
HEADER: dict[str, Any] = {
    "release": "dark-frame",
    "adjacency": "add-or-remove-one",
    "delta": DELTA,
    "target_epsilon": 0.6,
    "sample_rate": BATCH / N,
    "noise_multiplier": SIGMA,
    "nominal_size": N,
    "batch_size": BATCH,
    "reproducible": False,
    "device_share": 0.9,
    "calibration": None,
    "accountant": "pld",
    "max_grad_norm": 1.0,
    "assumptions": ["the read noise is Gaussian"],
    "version": version("optical-dfa"),
    "names_weights": True,
}

PASSED = {"phase": "start-up", "passed": True, "at": "2030-01-02T00:00:00+00:00"}


def checkpoint(run: Path, ledger: Ledger, step: int) -> None:
    """Weights as the trainer keeps them: named by a row first."""
    weights = np.full(3, float(step))
    head = name_weights(ledger, tensors_digest(["weight"], lambda _: torch.from_numpy(weights)), step)
    metadata = {"ledger_head": head, "step": str(step), "releases": str(ledger.count()), "seconds": "1.0"}
    rest = {"noise_position": "0", "optimizer": "{}"}
    save_file({"weight": weights}, run / "checkpoint.safetensors", metadata | rest)


def summary(run: Path, guarantee: Guarantee, steps: int = STEPS, **header: Any) -> None:
    """Summary and row of metrics as the trainer writes them for this header."""
    said = {**HEADER, **header}
    private = said["release"] != "none"
    own = ("sample_rate", "noise_multiplier", "max_grad_norm", "target_epsilon")
    seen = {"test_accuracy": 0.5, "test_loss": 1.0}
    document = {
        "dataset": "digits",
        "model": "mlp:8",
        "rule": "dfa",
        "backend": "digital",
        "epochs": 1,
        "seed": 0,
        "release": said["release"],
        "batch_size": BATCH,
        "steps": steps,
        "releases": steps if private else None,
        **{name: said[name] if private else None for name in own},
        **seen,
        "test_auc": None,
        "guarantee": guarantee.to_dict(),
        "parameters": 3,
        "seconds": 1.0,
        "seconds_per_step": 1.0 / steps,
        "data_frames": 0,
        "hardware_seconds": 0.0,
        "versions": {"optical-dfa": version("optical-dfa"), "torch": "2.6", "python": "3.11"},
    }
    (run / "summary.json").write_text(json.dumps(document))
    stated = guarantee.to_dict()
    name = "nominal_epsilon" if guarantee.kind is Kind.NONE else "epsilon"
    row = {"step": steps, "epoch": steps * BATCH / N, **seen} | ({name: stated[name]} if private else {})
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def claim(value: float | None = None, kind: Kind = Kind.RECORD_DP, nominal: float | None = None) -> Guarantee:
    value = epsilon({STEP: STEPS}, DELTA) if value is None else value
    spoken = None if nominal is None else Kind.RECORD_DP
    rest = (("the read noise is Gaussian",), nominal, 0.9, spoken)
    return Guarantee(value, DELTA, Adjacency.ADD_REMOVE, kind, "pld", *rest)


def histogram(run: Path) -> None:
    """calibration.json as the trainer writes it for release dark-frame."""
    law = {"codes": [0, 1], "counts": [5, 5], "black_level_dn": 0.5, "sigma_dn": 0.5, "step_dn": 1.0}
    (run / "calibration.json").write_text(json.dumps({**law, "frames": 1, "pixels": 10, "note": ""}))


def make_run(run: Path, steps: int = STEPS, step: ReleaseEvent = STEP, **header: Any) -> Path:
    """An honest run folder as the trainer leaves it, up to what the arguments change."""
    run.mkdir()
    with Ledger.create(run / "ledger.sqlite", {**HEADER, **header}) as ledger:
        ledger.register_key("11" * 32, "noise")
        ledger.register_key("22" * 32, "sampling")
        ledger.append_event("health", PASSED)
        for _ in range(steps):
            ledger.append_release(step)
        checkpoint(run, ledger, steps)
    summary(run, claim(), steps, **header)
    histogram(run)
    settings(run, {**HEADER, **header})
    return run


def settings(run: Path, header: dict[str, Any]) -> None:
    """config.toml as the trainer writes it for this header."""
    names = {"epsilon": "target_epsilon", "public_size": "nominal_size"}
    kept = ("release", "delta", "epsilon", "batch_size", "public_size", "reproducible")
    values = {name: header.get(names.get(name, name)) for name in kept}
    kept = {name: value for name, value in values.items() if value is not None}
    text = tomli_w.dumps(kept | {"device": "cpu"})
    (run / "config.toml").write_text(text)


def tamper(run: Path, statement: str) -> None:
    connection = sqlite3.connect(run / "ledger.sqlite")
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {statement}")
    connection.close()


def test_an_honest_run_is_confirmed(tmp_path: Path) -> None:
    report = audit(make_run(tmp_path / "run"))
    assert report.consistent, report.findings
    passed, confirmed = report.notes
    assert passed == "start-up tests that the device passed: 1"
    assert confirmed.startswith("both accountants give upper bounds, pld 0.4559")
    assert report.epsilon == pytest.approx(epsilon({STEP: STEPS}, DELTA), rel=1e-3)
    assert report.guarantee.kind is Kind.RECORD_DP
    assert report.guarantee.accountant == "numerical"
    assert report.guarantee.device_share == 0.9
    assert report.guarantee.assumptions == ("the read noise is Gaussian",)
    stored = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert {"epsilon", "delta", "consistent", "findings"} <= stored.keys()
    assert (stored["releases"], stored["findings"], stored["delta"]) == (STEPS, [], DELTA)


def test_the_audit_of_a_ledger_alone_and_at_another_delta(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert audit(run / "ledger.sqlite").epsilon == audit(run).epsilon
    other = audit(run, delta=1e-6)
    assert other.epsilon == pytest.approx(epsilon({STEP: STEPS}, 1e-6), rel=1e-3)
    assert other.consistent
    assert any("compared at its own delta = 1e-05" in note for note in other.notes)


def test_a_step_lost_in_a_crash_still_counts(tmp_path: Path) -> None:
    """More releases than steps is honest; its epsilon covers them all."""
    run = make_run(tmp_path / "run")
    with Ledger.open(run / "ledger.sqlite") as ledger:
        for _ in range(20):
            ledger.append_release(STEP)
    summary(run, claim(epsilon({STEP: STEPS + 20}, DELTA)))
    report = audit(run)
    assert report.consistent, report.findings
    assert report.epsilon == pytest.approx(epsilon({STEP: STEPS + 20}, DELTA), rel=1e-3)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM entries WHERE seq = 10", "missing"),
        (
            """UPDATE entries SET body = replace(body, '"noise_multiplier":1.5', '"noise_multiplier":3.0')""",
            "chain",
        ),
        ("UPDATE entries SET body = replace(body, '2222', '1111') WHERE seq = 2", "chain"),
        ("UPDATE entries SET body = (SELECT body FROM entries WHERE seq = 1) WHERE seq = 2", "used again"),
        ("DELETE FROM entries WHERE seq > 30", "tail was cut off"),
    ],
)
def test_a_tampered_ledger_supports_nothing(tmp_path: Path, statement: str, finding: str) -> None:
    run = make_run(tmp_path / "run")
    tamper(run, statement)
    report = audit(run)
    assert not report.consistent
    assert any(finding in line for line in report.findings), report.findings
    assert report.epsilon == math.inf
    assert report.guarantee.kind is Kind.NONE
    assert report.guarantee.nominal_epsilon is None
    assert "damaged" in report.guarantee.assumptions[0]


@pytest.mark.parametrize(
    "body",
    ["{", "3", '{"sample_rate":"abc"}',
     '{"mechanism":"gaussian","source":"digital","sample_rate":2,"noise_multiplier":1,"sensitivity":1,"dimension":1}'],
)  # fmt: skip
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_release_that_cannot_be_read_is_a_finding(tmp_path: Path, body: str) -> None:
    run = make_run(tmp_path / "run")
    tamper(run, f"UPDATE entries SET body = '{body}' WHERE seq = 10")
    report = audit(run)
    gc.collect()
    assert any("row 10 " in line for line in report.findings), report.findings
    assert report.releases == STEPS
    assert report.epsilon == math.inf
    assert report.guarantee.kind is Kind.NONE
    assert report.guarantee.nominal_epsilon is None
    assert all("\n" not in line for line in report.findings)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("body", ["{", "3", "[]", "{}", '{"sha256":null,"step":50}'])
def test_a_row_of_weights_that_cannot_be_read_is_a_finding(tmp_path: Path, body: str) -> None:
    run = make_run(tmp_path / "run")
    tamper(run, f"UPDATE entries SET body = '{body}' WHERE kind = 'checkpoint'")
    found = audit(run).findings
    said = "unreadable checkpoint row" if body == "{" else "does not hold the weights"
    assert any("fit the chain" in line for line in found), found
    assert any(said in line for line in found), found


def test_a_key_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    tamper(run, "UPDATE entries SET body = '{' WHERE seq = 1")
    report = audit(run)
    assert not report.consistent
    assert report.epsilon == math.inf


def test_a_claim_that_is_no_number_is_a_finding(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", reproducible=True)
    said = claim(math.inf, Kind.NONE, 0.5).to_dict()
    (run / "summary.json").write_text(json.dumps({"guarantee": {**said, "nominal_epsilon": math.nan}}))
    assert any("NaN is not a finite number" in line for line in audit(run).findings)


@pytest.mark.parametrize(
    "header",
    [
        *({"adjacency": value} for value in ([1], {}, None, "both")),
        *({"release": value} for value in ([1], 3, None)),
        *({name: "abc"} for name in ("delta", "target_epsilon", "device_share", "calibration_beta")),
        *({"assumptions": value} for value in (3, [3], "text")),
        {"batch_size": True},
    ],
    ids=str,
)
def test_a_header_of_other_types_is_refused_in_one_line(tmp_path: Path, header: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", **header)
    with pytest.raises(UsageError, match=f"has {next(iter(header))}") as caught:
        audit(run)
    assert "\n" not in str(caught.value)


def cut_and_continue(run: Path) -> None:
    tamper(run, "DELETE FROM entries WHERE seq > 30")
    with Ledger.open(run / "ledger.sqlite") as ledger:
        for _ in range(40):
            ledger.append_release(STEP)


def checkpoint_ahead(run: Path) -> None:
    with Ledger.open(run / "ledger.sqlite") as ledger:
        checkpoint(run, ledger, STEPS + 1)


def checkpoint_silent(run: Path) -> None:
    save_file({"weight": np.zeros(3)}, run / "checkpoint.safetensors", {"step": "1"})


def checkpoint_broken(run: Path) -> None:
    (run / "checkpoint.safetensors").write_bytes(b"garbage")


def summary_broken(run: Path) -> None:
    (run / "summary.json").write_text('{"steps": 3')


CONTRADICTIONS: list[tuple[Callable[[Path], None], str]] = [
    (cut_and_continue, "tail was cut off"),
    (checkpoint_ahead, "is of step 51"),
    (checkpoint_silent, "does not name its ledger head"),
    (checkpoint_broken, "checkpoint.safetensors is unreadable"),
    (summary_broken, "summary.json is unreadable"),
    (lambda run: summary(run, claim(0.9 * epsilon({STEP: STEPS}, DELTA))), "reports epsilon"),
    (lambda run: summary(run, claim(), STEPS + 1), "reports 51 steps"),
    (lambda run: summary(run, claim(math.inf, Kind.NONE)), "reports kind none"),
]


@pytest.mark.parametrize(("change", "finding"), CONTRADICTIONS)
def test_contradictions(tmp_path: Path, change: Callable[[Path], None], finding: str) -> None:
    run = make_run(tmp_path / "run")
    change(run)
    report = audit(run)
    assert not report.consistent
    assert any(finding in line for line in report.findings), report.findings


@pytest.mark.parametrize(
    ("header", "finding"),
    [
        ({"batch_size": 40}, "sample rate 0.02 is not"),
        ({"nominal_size": 0}, "sample rate 0.02 is not"),
        ({"noise_multiplier": 2.0}, "has noise_multiplier 1.5, the header 2"),
        ({"sample_rate": 0.01, "batch_size": 10}, "has sample_rate 0.02"),
        ({"release": "digital"}, "come from dark-frame"),
        ({"release": "none"}, "release is none"),
        ({"target_epsilon": 0.3}, "more than the run's budget of 0.3"),
        ({"device_share": 0.95}, "95.0% of the noise variance"),
    ],
)
def test_a_header_that_its_releases_contradict(tmp_path: Path, header: dict[str, Any], finding: str) -> None:
    report = audit(make_run(tmp_path / "run", **header))
    assert not report.consistent
    assert any(finding in line for line in report.findings), report.findings


def test_releases_need_a_registered_key(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.sqlite", HEADER) as ledger:
        ledger.append_release(STEP)
    assert any("registered generator key" in line for line in audit(tmp_path).findings)


def test_reproducible_is_no_guarantee_but_consistent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", reproducible=True)
    nominal = epsilon({STEP: STEPS}, DELTA)
    summary(run, claim(math.inf, Kind.NONE, nominal))
    report = audit(run)
    assert report.consistent, report.findings
    assert report.to_dict()["epsilon"] == "inf"
    assert report.to_dict()["nominal_epsilon"] == pytest.approx(nominal, rel=1e-3)
    summary(run, claim(nominal))  # the same run sold as private
    assert not audit(run).consistent
    summary(run, claim(math.inf, Kind.NONE, nominal / 2))
    assert any("nominal" in line for line in audit(run).findings)


def test_unsafe_diagnostics_void_the_guarantee(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unsafe_diagnostics=True)
    assert not audit(run).consistent  # its summary still claims record-dp
    summary(run, claim(math.inf, Kind.NONE, epsilon({STEP: STEPS}, DELTA)))
    report = audit(run)
    assert report.consistent, report.findings
    assert "--unsafe-diagnostics" in report.guarantee.assumptions[0]


def test_a_run_without_a_budget_is_audited_at_the_delta_it_reports(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", delta=None)
    assert audit(run).delta == DELTA
    assert audit(run).epsilon == pytest.approx(epsilon({STEP: STEPS}, DELTA), rel=1e-3)
    assert audit(run / "ledger.sqlite", delta=1e-6).delta == 1e-6


def test_a_run_without_release(tmp_path: Path) -> None:
    header = {"release": "none", "reproducible": False}
    with Ledger.create(tmp_path / "ledger.sqlite", header):
        pass
    summary(tmp_path, Guarantee.of_run(header, math.inf, 0.0, "none"), 100, **header)
    settings(tmp_path, header)
    report = audit(tmp_path)
    assert report.consistent, report.findings
    assert report.to_dict()["epsilon"] == "inf"
    assert report.guarantee.kind is Kind.NONE


def test_calibration_confidence_is_taken_from_delta(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", calibration_beta=4e-6)
    summary(run, claim(epsilon({STEP: STEPS}, DELTA, beta=4e-6)))
    report = audit(run)
    assert [line for line in report.findings if "names no calibration" not in line] == []
    assert report.epsilon == pytest.approx(epsilon({STEP: STEPS}, 6e-6), rel=1e-3)


def test_a_delta_too_small_for_the_independent_accountant_is_said(tmp_path: Path) -> None:
    report = audit(make_run(tmp_path / "run"), delta=1e-13)
    assert report.guarantee.accountant == "pld"
    assert any("too small" in note for note in report.notes)


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        audit(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(UsageError, match="not a readable ledger"):
        audit(tmp_path)
    for name, header in (
        ("a", {"release": "digital", "reproducible": False}),
        ("b", {**HEADER, "adjacency": "neighbours"}),
        ("c", {**HEADER, "nominal_size": None}),
        ("d", {**HEADER, "release": "unheard-of"}),
        ("e", {**HEADER, "delta": None}),
    ):
        with Ledger.create(tmp_path / name, header):
            pass
        with pytest.raises(UsageError, match=r"header|adjacency|no known guarantee|fixes no delta") as caught:
            audit(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- the device: tested before every release, credited by the calibration that is there

FAILED = {"phase": "step", "passed": False, "at": "2030-01-03T00:00:00+00:00", "message": "the lamp is off"}
CALIBRATED = Calibration(
    camera="simulated-opu",
    camera_fingerprint="c" * 16,
    taken_at="2030-01-01T00:00:00+00:00",
    expires_at="2030-02-01T00:00:00+00:00",
    frames=100,
    confidence=0.999,
    beta=1e-9,
    parameters={"read_noise_electrons": Interval(5.0, 4.9, 5.1)},
    credit_dn=4.08,
    credit_lower_dn=4.04,
    step_dn=1.0,
    clipped_mass=1e-20,
    dark_level_dn=64.0,
    light_level_dn=70.0,
    saturation_dn=255.0,
    passed=True,
    findings=(),
    assumptions=("the read noise is Gaussian",),
    curves={},
)


def make_tested_run(run: Path, rows: list[Any], **header: Any) -> Path:
    """A run whose ledger has these rows: a health row, a number of releases, or "part" for another part's keys."""
    run.mkdir()
    with Ledger.create(run / "ledger.sqlite", {**HEADER, "calibration": None, **header}) as ledger:
        ledger.register_key("11" * 32, "sampling")
        for number, row in enumerate(rows):
            if row == "part":
                ledger.register_key(f"{number + 2:02d}" * 32, "sampling")
            elif isinstance(row, dict):
                ledger.append_event("health", row)
            else:
                for _ in range(row):
                    ledger.append_release(STEP)
        checkpoint(run, ledger, STEPS)
    summary(run, claim(), STEPS)
    histogram(run)
    settings(run, HEADER | header)
    return run


def test_a_tested_device_is_shown(tmp_path: Path) -> None:
    report = audit(make_tested_run(tmp_path / "run", [PASSED, 20, "part", PASSED, 30]))
    assert report.consistent, report.findings
    assert "start-up tests that the device passed: 2" in report.notes
    assert report.to_dict()["health"] == [PASSED, PASSED]
    assert report.to_dict()["calibration"] is None


@pytest.mark.parametrize(
    ("rows", "first", "count"),
    [
        ([50], 1, 50),
        ([20, PASSED, 30], 1, 20),
        ([PASSED, 20, FAILED, 30], 21, 30),
        ([PASSED, 20, "part", 30], 21, 30),
        ([PASSED, 20, FAILED, "part", 10, PASSED, 20], 21, 10),
        ([{**PASSED, "passed": "yes"}, 50], 1, 50),
    ],
)
def test_a_release_without_a_tested_device_is_found(
    rows: list[Any], first: int, count: int, tmp_path: Path
) -> None:
    report = audit(make_tested_run(tmp_path / "run", rows))
    assert not report.consistent
    assert any(f"release {first} was made" in line and f"({count} such" in line for line in report.findings)


def test_a_run_that_a_failure_stopped_is_consistent_and_says_why(tmp_path: Path) -> None:
    report = audit(make_tested_run(tmp_path / "run", [PASSED, 50, FAILED]))
    assert report.consistent, report.findings
    assert "the device was refused: the lamp is off" in report.notes


def test_the_calibration_that_a_run_relied_on(tmp_path: Path) -> None:
    named = health_log.identity(CALIBRATED)
    run = make_tested_run(tmp_path / "run", [PASSED, 50], calibration=named, calibration_beta=1e-9)
    assert any("that is not there" in line for line in audit(run).findings)
    CALIBRATED.save(run / "camera-calibration.json")
    report = audit(run)
    assert report.consistent, report.findings
    assert any(CALIBRATED.digest in note for note in report.notes)
    assert report.to_dict()["calibration"]["digest"] == CALIBRATED.digest
    replace(CALIBRATED, credit_lower_dn=4.07).save(run / "camera-calibration.json")
    assert any("camera-calibration.json has digest" in line for line in audit(run).findings)
    (run / "camera-calibration.json").write_text("{")
    assert any("unreadable" in line for line in audit(run).findings)


def test_a_part_that_began_after_the_calibration_expired_is_found(tmp_path: Path) -> None:
    late = {**PASSED, "at": "2030-02-02T00:00:00+00:00"}
    named = health_log.identity(CALIBRATED)
    report = audit(make_tested_run(tmp_path / "run", [PASSED, 20, "part", late, 30], calibration=named))
    assert any("expired" in line for line in report.findings)


# ---- files of any content

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_tested_run(tmp_path_factory.mktemp("intact") / "run", [PASSED, 3], credit={})
    assert not any("calibration" in line for line in audit(run).findings)
    return run


@settings_of_hypothesis(deadline=None, max_examples=75)
@given(st.data())
def test_whatever_a_file_holds_the_audit_answers(intact: Path, data: st.DataObject) -> None:
    """Any JSON in any place: a report that can be stated and written, or one line; never a traceback."""
    field = data.draw(
        st.sampled_from([*HEADER, "calibration", "credit", "mechanism", "max_grad_norm", "module"])
    )
    place = data.draw(st.sampled_from(["header", "key", "health", "release", "row", "summary", "settings"]))
    value = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(intact, Path(folder) / "run"))
        if place == "summary":
            (run / "summary.json").write_text(
                json.dumps({"guarantee": claim().to_dict(), "steps": 3, field: value})
            )
        elif place == "settings":
            keys = {"release": "digital"} if value is None else {"seed": value, field: value}
            with contextlib.suppress(TypeError):
                (run / "config.toml").write_text(tomli_w.dumps(keys))
        else:
            kind = "release" if place == "row" else place
            connection = sqlite3.connect(run / "ledger.sqlite")
            connection.executescript("DROP TRIGGER no_update")
            query = "SELECT seq, body FROM entries WHERE kind = ? ORDER BY seq LIMIT 1"
            seq, body = connection.execute(query, (kind,)).fetchone()
            new = (
                value
                if place == "row"
                else {**json.loads(body), data.draw(st.sampled_from([field, *json.loads(body)])): value}
            )
            connection.execute("UPDATE entries SET body = ? WHERE seq = ?", (json.dumps(new), seq))
            connection.commit()
            connection.close()
        try:
            report = audit(run)
        except UsageError as error:
            said = str(error)
        else:
            said = ""
            stated = statement(report, str(run), "No device.")
            json.dumps([report.to_dict(), stated], allow_nan=False)
            assert markdown(stated).startswith("# Privacy statement")
            assert all("\n" not in line for line in report.findings)
        assert "\n" not in said
