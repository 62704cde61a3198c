"""The study of the published mechanism, on digits: what a training tells, what is kept, what table and picture say."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.harness.experiment import RESULTS, TABLE
from experiments.photonic_dp import study
from experiments.photonic_dp.plan import EPSILON, Plan, key, read, step_claim
from experiments.photonic_dp.training import DELTA, Training, measure, own_noise
from optical_dfa import align
from optical_dfa.data import load
from optical_dfa.networks.building import build
from privacy.accounting.published import ORDERS, renyi
from privacy.attacks.finding import Finding

TINY = Training("digits", "bp", "digital", 0.1, model="mlp:16,16", batch_size=256, epochs=2)
PLAN = Plan(
    datasets=("digits",),
    seeds=(0, 1),
    multipliers=(0.1, 0.75, 6.0),
    attacked="digits",
    releases=("per-record, as published", "photon (T10)"),
    epochs=2,
)


def test_backpropagation_is_aligned_with_itself_and_noise_inside_the_projection_is_not() -> None:
    data = load("digits")
    plain = measure(TINY, data)
    assert plain["alignment"] == pytest.approx([1.0, 1.0])
    assert plain["test_accuracy"][-1] > plain["test_accuracy"][0] > 0.15
    assert (plain["epsilon"], plain["kind"], plain["noise_std"]) == (None, "none", 0.0)
    z = 6.0
    noised = measure(replace(TINY, rule="dfa", noise_multiplier=z, epochs=1), data)
    assert abs(noised["alignment"][0]) < 0.2
    assert noised["noise_std"] == pytest.approx(4 * z / math.sqrt(TINY.batch_size))
    assert noised["kind"] == "conditional"
    rate, steps = TINY.batch_size / len(data.x_train), round(len(data.x_train) / TINY.batch_size)
    published = min(steps * renyi(rate, z, k) + math.log(1 / DELTA) / (k - 1) for k in ORDERS)
    assert noised["epsilon"] == pytest.approx(published)


def test_a_devices_own_noise_is_what_two_answers_to_one_error_differ_by() -> None:
    data = load("digits")

    def noise(rule: str, backend: str, **options: float) -> float:
        net = build(TINY.model, data.input_shape, data.classes, 0)
        return own_noise(align(net, rule=rule, backend=backend, backend_options=options, show=None), data)

    quiet = noise("ternary", "simulated-opu")
    noisy = noise("ternary", "simulated-opu", full_well_electrons=2500.0, read_noise_electrons=0.0)
    assert 0 < quiet < noisy
    assert noise("dfa", "digital") == 0.0


def stub(monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> list[str]:
    """Parts that are told, and not done; after `most` of them the user interrupts."""
    told: list[str] = []

    def note(what: str) -> None:
        if len(told) == most:
            raise KeyboardInterrupt
        told.append(what)

    def training(setting: Training, data: object, progress: object) -> dict[str, Any]:
        note(f"{setting.rule} {setting.noise_multiplier} {setting.seed}")
        z = setting.noise_multiplier
        claim = {"epsilon": None, "kind": "none"} if z is None else {"epsilon": 5 / z, "kind": "conditional"}
        accuracy = 0.5 + setting.seed / 100
        return {
            "setting": asdict(setting),
            "test_accuracy": [0.25, accuracy],
            "alignment": [0.125, 0.25],
            "noise_std": 0.01 if z is None else z / 8,
            **claim,
            "seconds": 1.0,
        }

    def attack(name: str, setting: Any) -> Finding:
        note(f"{name} {setting.epsilon:.4g}")
        assert (setting.release, setting.dataset, setting.delta) == ("per-record", "digits", DELTA)
        details = {"batch": 48, "noise_multiplier": 1.0}
        return Finding(
            name,
            setting.release,
            "digital",
            4.5,
            0.999,
            setting.epsilon,
            DELTA,
            "conditional",
            3000,
            "",
            details,
        )

    def train(config: Any, progress: object) -> dict[str, Any]:
        note(config.release)
        kind = "conditional" if config.release == "per-record" else "record-dp"
        assert (config.epsilon, config.delta, config.model) == (EPSILON, DELTA, "mlp:512,512")
        stated = {"epsilon": 2.9995, "kind": kind, "adjacency": "add-or-remove-one", "device_share": 1.0}
        return {"test_accuracy": 0.75, "guarantee": stated, "steps": 3, "seconds": 2.0}

    monkeypatch.setattr(study, "measure", training)
    monkeypatch.setattr(study, "attack", attack)
    monkeypatch.setattr(study, "train", train)
    return told


def test_finished_parts_are_not_done_again_and_the_table_says_what_they_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "PICTURE", tmp_path / "picture.png")
    told = stub(monkeypatch, most=9)
    assert study.main([], PLAN) == 130
    assert "same command goes on" in capsys.readouterr().err
    plain = [f"{rule} None 0" for rule in ("shallow", "bp", "dfa", "ternary", "ternary")]
    first = [*plain, "ternary 0.1 0", "ternary 0.75 0", "ternary 6.0 0"]
    assert told == [*first, f"span {step_claim(0.75):.4g}"]
    lines = (tmp_path / RESULTS).read_text(encoding="utf-8")
    (tmp_path / RESULTS).write_text(lines + '{"part": "tr', encoding="utf-8")  # torn by a crash
    assert study.main(["--table-only"], PLAN) == 1  # no claim has fallen yet
    assert "(1 of 2 seeds)" in (tmp_path / TABLE).read_text(encoding="utf-8")
    assert not (tmp_path / "picture.png").exists()
    rest = stub(monkeypatch)
    assert study.main([], PLAN) == 0
    second = [name[:-1] + "1" for name in first]
    assert rest == [f"span {step_claim(6.0):.4g}", "per-record", "photon", *second]
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    for row in (
        "| BP | 0.01 | 50.50 % ± 0.71 | 0.125, 0.250 | none | none | – | – |",
        "| photonic DFA, z = 0.1 | 0.013 | 50.50 % ± 0.71 | 0.125, 0.250 | 50 | conditional | 111.6 | – |",
        "| photonic DFA, z = 0.75 | 0.094 | 50.50 % ± 0.71 | 0.125, 0.250 | 6.667 | conditional | 7.323 | 4.50 |",
        "| photonic DFA, z = 6 | 0.75 | 50.50 % ± 0.71 | 0.125, 0.250 | 0.8334 | conditional | 0.8137 | **4.50** |",
        "| photon (T10) | – | 75.00 % | – | 3 | record-dp | – | – |",
    ):
        assert f"| digits {row}" in text
    assert (tmp_path / "picture.png").stat().st_size > 20_000


def test_a_true_claim_above_what_was_asked_for_is_told() -> None:
    fell = {"part": "attack", "epsilon_lower": 4.5, "epsilon_claimed": 1.0}
    release = {"part": "release", "epsilon": 2.99}
    assert study.as_expected({"a": fell, "b": release})
    assert not study.as_expected({"a": fell, "b": {**release, "epsilon": 3.01}})
    assert not study.as_expected({"a": fell, "b": {**release, "epsilon": "inf"}})
    assert not study.as_expected({"a": {**fell, "epsilon_lower": 0.5}, "b": release})


def test_the_published_table_is_its_results() -> None:
    plan, found = Plan(), read(study.FOLDER / RESULTS)
    assert study.whole(plan, found)
    assert (study.FOLDER / TABLE).read_text(encoding="utf-8") == study.table(plan, found)
    assert study.as_expected(found)
    kinds = {name: found[key("release", plan.release("mnist", name))]["kind"] for name in plan.releases}
    assert list(kinds.values()) == ["conditional", *["record-dp"] * 4, "label-dp"]


def test_data_that_are_not_there_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    assert study.main(["--data-dir", str(tmp_path)], replace(PLAN, datasets=("cifar10",))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
