"""`optical-dfa account` for every mechanism: plans, tables, pictures, cross-checks, and what it refuses."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from optical_dfa.cli import main
from privacy.accounting.gdp import gaussian_epsilon

DELTA = ["--delta", "1e-5"]
GAUSSIAN = [*DELTA, "--sample-rate", "0.01"]
QUICK = [*GAUSSIAN, "--accountant", "rdp"]  # searches by the fastest accountant
LABEL = [*DELTA, "--mechanism", "label-gaussian"]
SKELLAM = [*GAUSSIAN, "--mechanism", "skellam", "--sensitivity", "200", "--dimension", "100000"]
POISSON = [*GAUSSIAN, "--mechanism", "poisson", "--sensitivity", "40", "--largest", "2"]
PUBLISHED = [*GAUSSIAN, "--mechanism", "published"]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["account", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("case", "kind", "adjacency"),
    [
        ([*GAUSSIAN, "--accountant", "rdp"], "record-dp", "add-or-remove-one"),
        ([*DELTA, "--sample-rate", "1", "--adjacency", "replace-one"], "record-dp", "replace-one"),
        (SKELLAM, "record-dp", "add-or-remove-one"),
        (LABEL, "label-dp", "label"),
        (POISSON, "record-dp", "add-or-remove-one"),
        (PUBLISHED, "conditional", "add-or-remove-one"),
    ],
)
def test_each_of_the_three_follows_from_the_others(
    case: list[str], kind: str, adjacency: str, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = answer(capsys, *case, "--epsilon", "2", "--steps", "30")
    assert (noise["kind"], noise["adjacency"]) == (kind, adjacency)
    assert 1.98 < noise["epsilon"] <= 2
    sigma = repr(noise["noise_multiplier"])
    assert answer(capsys, *case, "--noise-multiplier", sigma, "--steps", "30")["epsilon"] == pytest.approx(
        noise["epsilon"], rel=1e-9
    )
    steps = answer(capsys, *case, "--noise-multiplier", sigma, "--epsilon", "2")
    assert steps["steps"] >= 30
    assert steps["epsilon"] <= 2
    more = answer(capsys, *case, "--noise-multiplier", sigma, "--steps", str(steps["steps"] + 1))
    assert more["epsilon"] > 2


def test_shot_noise_is_planned_by_its_least_rate(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answer(capsys, *POISSON, "--least-rate", "3000", "--steps", "50")
    assert plan["least_rate"] == pytest.approx(3000, rel=1e-12)
    assert plan["noise_multiplier"] == pytest.approx(math.sqrt(3000) / 40, rel=1e-12)
    assert (plan["sensitivity"], plan["largest"]) == (40, 2)
    assert any("no release of this program relies on shot noise" in text for text in plan["assumptions"])
    least = answer(capsys, *POISSON, "--epsilon", repr(plan["epsilon"]), "--steps", "50")
    assert least["least_rate"] == pytest.approx(3000, rel=5e-3)
    most = answer(capsys, *POISSON, "--epsilon", repr(plan["epsilon"]), "--least-rate", "3000")
    assert most["steps"] == 50
    anywhere = answer(capsys, *POISSON[:-2], "--least-rate", "3000", "--steps", "50")
    assert anywhere["epsilon"] > plan["epsilon"]
    assert main(["account", *POISSON, "--least-rate", "3000", "--steps", "50"]) == 0
    assert "least rate        3000 photo-electrons" in capsys.readouterr().out


def test_label_epochs_compose_like_gaussian_dp(capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, *LABEL, "--epochs", "20", "--noise-multiplier", "5")
    assert result["steps"] == 20
    assert result["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(20) / 5, 1e-5), rel=1e-12)


def test_calibration_beta_is_taken_from_delta_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--noise-multiplier", "2", "--steps", "100"]
    with_beta = answer(capsys, *GAUSSIAN, *plan, "--calibration-beta", "4e-6")
    smaller = answer(capsys, "--delta", "6e-6", "--sample-rate", "0.01", *plan)
    assert with_beta["epsilon"] == pytest.approx(smaller["epsilon"], rel=1e-9)
    assert with_beta["delta"] == 1e-5
    assert any("4e-06" in text for text in with_beta["assumptions"])


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (GAUSSIAN, {"pld", "rdp", "numerical", "prv"}),
        ([*GAUSSIAN, "--adjacency", "replace-one"], {"pld", "numerical"}),
        ([*DELTA, "--sample-rate", "1"], {"pld", "rdp", "numerical", "prv", "gdp"}),
        ([*DELTA, "--sample-rate", "1", "--adjacency", "replace-one"], {"pld", "numerical", "gdp"}),
        (LABEL, {"gdp", "numerical"}),
        (SKELLAM, {"skellam-rdp", "skellam-exact"}),
        (POISSON, {"poisson-rdp"}),
        (PUBLISHED, {"published", "published-rdp"}),
    ],
)
def test_cross_check_by_every_accountant_that_covers_it(
    case: list[str], names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, *case, "--noise-multiplier", "12", "--steps", "40", "--cross-check")
    checks = result["cross_check"]
    assert set(checks) == names
    assert checks[result["accountant"]] == result["epsilon"]
    if "gdp" in names:
        assert checks["gdp"] <= min(checks.values()) * (1 + 1e-9)
        assert checks["numerical"] == pytest.approx(checks["gdp"], rel=5e-4)
    if "pld" in names:
        assert checks["pld"] == pytest.approx(checks["numerical"], rel=2e-3, abs=1e-6)


def test_cross_check_leaves_out_what_cannot_resolve_the_delta(capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, "--delta", "1e-13", "--sample-rate", "0.01", "--noise-multiplier", "2", "--steps", "100",
                    "--cross-check")  # fmt: skip
    assert "numerical" not in result["cross_check"]


def test_a_table_has_a_row_for_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    result = answer(capsys, *QUICK, "--steps", "500", "--table", "epsilon=0.5,2,8")
    rows = result["rows"]
    assert result["varied"] == "epsilon"
    assert all(0.99 * asked <= row["epsilon"] <= asked for asked, row in zip((0.5, 2, 8), rows, strict=True))
    assert rows[0]["noise_multiplier"] > rows[1]["noise_multiplier"] > rows[2]["noise_multiplier"]
    single = answer(capsys, *QUICK, "--steps", "500", "--epsilon", "2")
    assert rows[1] == single


def test_a_table_over_epochs_delta_and_sample_rate(capsys: pytest.CaptureFixture[str]) -> None:
    epochs = answer(capsys, *GAUSSIAN, "--noise-multiplier", "1", "--table", "epochs=1,2")["rows"]
    assert [row["steps"] for row in epochs] == [100, 200]
    deltas = answer(
        capsys, *GAUSSIAN, "--noise-multiplier", "1", "--steps", "9", "--table", "delta=1e-4,1e-6"
    )
    assert [row["delta"] for row in deltas["rows"]] == [1e-4, 1e-6]
    assert deltas["rows"][0]["epsilon"] < deltas["rows"][1]["epsilon"]
    rates = answer(
        capsys, *GAUSSIAN, "--noise-multiplier", "1", "--steps", "9", "--table", "sample-rate=0.1,0.2"
    )
    assert rates["rows"][0]["epsilon"] < rates["rows"][1]["epsilon"]


def test_a_table_marks_what_is_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    plan = [*QUICK, "--noise-multiplier", "0.5", "--table", "epsilon=0.001,5"]
    assert answer(capsys, *plan)["rows"][0] == {"epsilon": 0.001}
    assert main(["account", *plan]) == 0
    text = capsys.readouterr().out
    assert "0.001" in text
    assert "out of reach" in text
    assert main(["account", *plan[:-1], "epsilon=0.001,0.002"]) == 2


def test_a_conditional_epsilon_is_never_bare(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["--noise-multiplier", "1", "--steps", "100"]
    assert main(["account", *PUBLISHED, *plan, "--cross-check"]) == 0
    text = capsys.readouterr().out
    assert "NOT a worst-case guarantee" in text
    assert "epsilon (conditional)" in text
    assert main(["account", *PUBLISHED, "--noise-multiplier", "1", "--table", "steps=10,100"]) == 0
    assert "epsilon (conditional)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [*GAUSSIAN, "--noise-multiplier", "1", "--steps", "300"],
        [*QUICK, "--steps", "300", "--table", "epsilon=1,2,4"],
        [*LABEL, "--noise-multiplier", "3", "--table", "epochs=1,10,100"],
        [*QUICK, "--epsilon", "3", "--table", "noise-multiplier=0.8,1,1.5"],
    ],
)
def test_a_plot_is_a_picture(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "budget.png"
    answer(capsys, *arguments, "--plot", str(picture))
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 400


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*DELTA, "--steps", "10", "--noise-multiplier", "1"], "--sample-rate is missing"),
        ([*GAUSSIAN, "--mechanism", "laplace", "--steps", "10", "--noise-multiplier", "1"], "'laplace'"),
        ([*LABEL, "--sample-rate", "0.1", "--steps", "10", "--noise-multiplier", "1"], "leave it out"),
        ([*LABEL, "--adjacency", "replace-one", "--steps", "10", "--noise-multiplier", "1"], "'replace-one'"),
        ([*LABEL, "--accountant", "pld", "--steps", "10", "--noise-multiplier", "1"], "'pld'"),
        ([*GAUSSIAN, "--mechanism", "skellam", "--steps", "10", "--noise-multiplier", "1"], "--dimension"),
        (
            [*SKELLAM, "--adjacency", "replace-one", "--steps", "10", "--noise-multiplier", "1"],
            "'replace-one'",
        ),
        (
            [*SKELLAM, "--sensitivity", "0.5", "--steps", "10", "--noise-multiplier", "1"],
            "at least 1 grid unit",
        ),
        ([*GAUSSIAN, "--dimension", "10", "--steps", "10", "--noise-multiplier", "1"], "leave it out"),
        (
            [*GAUSSIAN, "--calibration-beta", "1e-5", "--steps", "10", "--noise-multiplier", "1"],
            "below --delta",
        ),
        (
            [*GAUSSIAN, "--calibration-beta", "-1", "--steps", "10", "--noise-multiplier", "1"],
            "--calibration-beta",
        ),
        ([*GAUSSIAN, "--steps", "10", "--table", "epsilon"], "NAME=V1,V2"),
        ([*GAUSSIAN, "--steps", "10", "--table", "epsilon=1,two"], "NAME=V1,V2"),
        ([*GAUSSIAN, "--epsilon", "1", "--table", "steps=1.5,2"], "NAME=V1,V2"),
        ([*GAUSSIAN, "--steps", "10", "--table", "colour=1,2"], "NAME=V1,V2"),
        (
            [*GAUSSIAN, "--steps", "10", "--noise-multiplier", "1", "--table", "steps=1,2"],
            "leave out --steps",
        ),
        ([*GAUSSIAN, "--epochs", "1", "--noise-multiplier", "1", "--table", "steps=1,2"], "steps"),
        ([*GAUSSIAN, "--steps", "10", "--table", "epsilon=1,2", "--cross-check"], "leave out --table"),
        ([*GAUSSIAN, "--steps", "10", "--noise-multiplier", "1", "--plot", "budget.pdf"], ".png"),
        ([*GAUSSIAN, "--steps", "10", "--noise-multiplier", "1", "--plot", "absent/budget.png"], "exists"),
    ],
)
def test_wrong_use_gets_one_line(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["account", *arguments]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1
