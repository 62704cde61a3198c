"""The report page: made from run-folder files alone, self-contained, escaped, never a bare epsilon."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from noise_models.errors import UsageError
from optical_dfa.feedback import RULES, make_rule
from optical_dfa.feedback.rule import ProjectingRule
from optical_dfa.report.page import write_report
from optical_dfa.report.plots import plot_picture
from optical_dfa.runs.reading import Run

GUARANTEE: dict[str, Any] = {
    "epsilon": 2.9987,
    "delta": 1e-5,
    "kind": "record-dp",
    "adjacency": "add-or-remove-one",
    "accountant": "pld",
    "assumptions": [
        "the read noise of dark frames is Gaussian with at least its credited standard deviation",
        "frames are independent of each other and of the data",
        "the number of training records, 60000, is public",
    ],
    "nominal_epsilon": None,
    "device_share": 0.881,
}


def write_run(folder: Path, *, guarantee: dict[str, Any] | None = None, **summary: Any) -> Path:
    """A run folder as `train --out` leaves it, with made-up figures."""
    folder.mkdir(parents=True)
    stated = {**GUARANTEE, **(guarantee or {})}
    written = {
        "dataset": "fashion-mnist",
        "model": "mlp",
        "rule": "dfa",
        "backend": "simulated-opu",
        "release": "dark-frame",
        "epochs": 40,
        "steps": 586,
        "batch_size": 4096,
        "sample_rate": 4096 / 60000,
        "seed": 0,
        "test_accuracy": 0.8531,
        "guarantee": stated,
        "noise_multiplier": 2.46,
        "max_grad_norm": 1.0,
        "seconds": 141.3,
        "seconds_per_step": 0.2411,
        "versions": {"optical-dfa": "0.1.0", "torch": "2.13.0"},
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(written))
    (folder / "config.toml").write_text(
        'dataset = "fashion-mnist"\nmodel = "mlp"\nrule = "dfa"\n'
        'backend = "simulated-opu"\nrelease = "dark-frame"\n'
        "epsilon = 3.0\ndelta = 1e-5\nbatch_size = 4096\nlr = 1.0\n[backend_options]\nbits = 8\n"
    )
    rows = []
    for step in range(15, 587, 15):
        accuracy = 0.8531 - 0.25 * math.exp(-step / 90)
        row: dict[str, Any] = {"step": step, "epoch": step / 14.65, "test_accuracy": accuracy}
        row["epsilon"] = stated["epsilon"] if stated["epsilon"] == "inf" else 3.0 * math.sqrt(step / 587)
        if stated["nominal_epsilon"] is not None:
            row["nominal_epsilon"] = stated["nominal_epsilon"] * math.sqrt(step / 587)
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    generator = np.random.default_rng(7)
    codes = np.arange(40, 90)
    readouts = np.rint(generator.normal(64.21, 4.07, 1_000_000))
    counts = [int((readouts == code).sum()) for code in codes]
    calibration = {
        "codes": codes.tolist(),
        "counts": counts,
        "black_level_dn": 64.21,
        "sigma_dn": 4.07,
        "step_dn": 1.0,
        "frames": 16,
        "pixels": 62500,
        "note": "Frames of the simulated camera.",
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    return folder


def rewrite(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


class Outline(HTMLParser):
    """Tags, attributes and visible text of a page; refuses unbalanced markup."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs] or [(tag, "", "")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*folders: Path) -> str:
    out = folders[0].parent / "page.html"
    write_report(folders, out)
    return out.read_text(encoding="utf-8")


def test_page_says_what_the_run_did_and_what_it_guarantees(tmp_path: Path) -> None:
    text = Outline(page_of(write_run(tmp_path / "run"))).text
    for expected in (
        "Direct Feedback Alignment",
        "85.3 %",
        "ε = 2.999, δ = 1e-5",
        "record-dp",
        "88.1 %",
        "budget 3",
        "presence or absence of one record",
        "Timing, memory use and power",
        "SIMULATED",
        "backend_options.bits",
        "2.13.0",
        "Frames of the simulated camera.",
        *GUARANTEE["assumptions"],
    ):
        assert expected in text


def test_page_is_self_contained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    outline = Outline(page_of(run, run))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _, _ in outline.attributes}
    for tag, name, value in outline.attributes:
        if name in {"href", "xlink:href", "src", "action"}:
            assert value.startswith("#"), (tag, name, value)
        assert "url(" not in value.replace("url(#", ""), (tag, name, value)
        assert not name.startswith("on")


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path / "run"))
    outline = Outline(html)
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
    assert references
    assert references <= set(ids)


def test_plots_follow_the_colour_scheme(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path / "run"))
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        assert "var(--accent)" in drawing
        # A fixed colour would vanish on one of the two backgrounds.
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)
        assert not re.search(r"fill: (black|white)", drawing)


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp; <b>"]
)
def test_strings_from_the_folder_are_escaped(tmp_path: Path, hostile: str) -> None:
    run = write_run(
        tmp_path / "run", dataset=hostile, versions={hostile: hostile}, rule=hostile, backend=hostile
    )
    rewrite(run / "calibration.json", {"note": hostile})
    rewrite(
        run / "summary.json", {"guarantee": {**GUARANTEE, "assumptions": [hostile], "accountant": hostile}}
    )
    (run / "config.toml").write_text(f"model = {json.dumps(hostile)}\n")
    for html in (page_of(run), page_of(run, run)):
        assert hostile not in html
        assert hostile in "".join(Outline(html).words)


def test_conditional_is_never_a_bare_epsilon(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", guarantee={"kind": "conditional"})
    for html in (page_of(run), page_of(run, run)):
        text = Outline(html).text
        assert "conditional: ε = 2.999" in text
        assert "NOT a worst-case guarantee" in text
        assert not re.search(r"(?<!conditional: )ε = 2\.999", text)


def test_reproducible_run_shows_no_guarantee_and_labels_the_nominal_epsilon(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", guarantee={"kind": "none", "epsilon": "inf", "nominal_epsilon": 2.9987})
    text = Outline(page_of(run)).text
    assert "no guarantee" in text
    assert "nominal ε = 2.999, which does not hold for this run" in text
    assert "Nominal ε, had the noise been secret" in text
    assert "Privacy loss ε spent" not in text


@pytest.mark.parametrize(
    ("settings", "said", "not_said"),
    [
        ({"backend": "lightonml"}, "as its driver reports", "SIMULATED"),
        ({"backend": "lightonml-simulated"}, "SIMULATED", "as its driver reports"),
        ({"backend": "digital", "release": "digital"}, "No optical device took part", "SIMULATED"),
        ({"rule": "bp", "release": "digital"}, "No projection device took part", "projected by"),
        ({"rule": "bp"}, "SIMULATED", "projected by"),
        ({"backend": "third-party"}, "third-party is not registered here", "SIMULATED"),
    ],
)
def test_page_says_whether_there_was_hardware(
    settings: dict[str, str], said: str, not_said: str, tmp_path: Path
) -> None:
    text = Outline(page_of(write_run(tmp_path / "run", **settings))).text
    assert said in text
    assert not_said not in text


# By their kinds: errors projected, projected in part, sent back, not sent, targets projected.
KINDS = ("dfa", "gated-dfa", "hybrid", "recurrent-hybrid", "fa", "bp", "shallow", "drtp")


@pytest.mark.parametrize(
    "rule", [rule if rule in KINDS else pytest.param(rule, marks=pytest.mark.slow) for rule in sorted(RULES)]
)
def test_page_names_a_projection_where_the_rule_makes_one(rule: str, tmp_path: Path) -> None:
    made = make_rule(rule)
    projects = isinstance(made, ProjectingRule) and getattr(made, "between", "dfa") == "dfa"
    text = Outline(page_of(write_run(tmp_path / "run", rule=rule))).text
    assert ("its errors projected by the" in text) == projects


@pytest.mark.parametrize(
    ("rule", "release", "what"),
    [
        ("gated-dfa", "aggregate", "released sums"),
        ("gated-dfa", "photon", "released sums"),
        ("dfa", "photon", "errors"),
    ],
)
def test_page_says_what_the_device_projected(rule: str, release: str, what: str, tmp_path: Path) -> None:
    text = Outline(page_of(write_run(tmp_path / "run", rule=rule, release=release))).text
    assert f"its {what} projected by the" in text


def test_run_without_privacy_has_no_epsilon_plot(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", guarantee={"kind": "none", "epsilon": "inf", "device_share": None}, release="none"
    )
    (run / "calibration.json").unlink()
    html = page_of(run)
    assert html.count("<svg") == 1
    assert "no guarantee" in Outline(html).text


def test_comparison_names_every_run_and_what_differs(tmp_path: Path) -> None:
    first = write_run(tmp_path / "simulated")
    second = write_run(tmp_path / "digital", backend="digital", test_accuracy=0.8612)
    config = second / "config.toml"
    config.write_text(config.read_text().replace("simulated-opu", "digital").replace("bits = 8", "bits = 8"))
    text = Outline(page_of(first, second)).text
    differing = text[text.index("Settings that differ") :]
    assert "simulated-opu digital" in differing
    assert "batch_size" not in differing
    assert "85.3 %" in text
    assert "86.1 %" in text


def test_calibration_model_is_the_rounded_normal(tmp_path: Path) -> None:
    calibration = Run.read(write_run(tmp_path / "run")).calibration
    assert calibration is not None
    law = norm(calibration.black_level, calibration.sigma)
    cells = law.cdf(calibration.codes + 0.5) - law.cdf(calibration.codes - 0.5)
    np.testing.assert_allclose(calibration.expected(), calibration.counts.sum() * cells, rtol=1e-7)


def test_residuals_are_standard_under_the_model_and_show_a_wrong_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    right = Run.read(run).calibration
    assert right is not None
    residuals = right.residuals()[np.isfinite(right.residuals())]
    assert residuals.size > 30
    # Fixed seed. For about 40 cells, a maximum above 5 has probability below 40 * 5.7e-7 = 2.3e-5.
    assert np.abs(residuals).max() < 5
    assert 0.5 < residuals.std() < 1.6
    rewrite(run / "calibration.json", {"sigma_dn": 4.2})
    wrong = Run.read(run).calibration
    assert wrong is not None
    assert np.nanmax(np.abs(wrong.residuals())) > 8


def test_frames_noisier_than_credited_are_said_to_be_and_not_called_a_misfit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    fits = page_of(run)
    assert "residual (σ)" in fits
    assert "noisier" not in fits
    rewrite(run / "calibration.json", {"sigma_dn": 3.2})
    lower = page_of(run)
    assert "residual (σ)" not in lower
    assert "noisier than what is credited" in lower
    assert "credited: rounded N(" in lower


def test_a_killed_run_may_end_in_half_a_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = len(Run.read(run).metrics)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 600, "test_acc')
    assert len(Run.read(run).metrics) == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", "{}"),
        ("summary.json", '{"guarantee": {"kind": "excellent"}}'),
        ("config.toml", "= ="),
        ("metrics.jsonl", "{\n{}\n"),
        ("metrics.jsonl", "\xff\n{}\n"),
        ("calibration.json", '{"codes": [1, 2], "counts": [1]}'),
        (
            "calibration.json",
            '{"codes": [], "counts": [], "black_level_dn": 1, "sigma_dn": 1, "frames": 1, "pixels": 1}',
        ),
    ],
)
def test_damaged_files_are_named_in_one_line_and_nothing_is_written(
    tmp_path: Path, name: str, content: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        write_report([run], tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("page*"))


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folders in ([], [tmp_path / "absent"], [tmp_path / "empty"]):
        with pytest.raises(UsageError):
            write_report(folders, tmp_path / "page.html")
    with pytest.raises(UsageError):
        write_report([write_run(tmp_path / "run")], tmp_path / "absent" / "page.html")


def test_picture_is_a_png_of_two_panes(tmp_path: Path) -> None:
    from matplotlib.image import imread

    plot_picture(write_run(tmp_path / "run"), tmp_path / "picture.png")
    picture = imread(tmp_path / "picture.png")
    height, width = picture.shape[:2]
    assert width > 2 * height
    for half in (picture[:, : width // 2, :3], picture[:, width // 2 :, :3]):
        assert (half < 0.9).any(axis=2).mean() > 0.01
