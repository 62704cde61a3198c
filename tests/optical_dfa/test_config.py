"""Settings: bounds and names, file and flags, defaults, and the way there and back through TOML."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise_models.errors import UsageError
from optical_dfa.backends import BACKENDS
from optical_dfa.config import (
    ResolvedConfig,
    TrainConfig,
    merge,
    read,
    resolve,
    write,
)
from optical_dfa.data import DATASETS, names, registered
from optical_dfa.data.defaults import ADAM_LR, for_records
from optical_dfa.feedback import RULES, make_rule
from optical_dfa.feedback.rule import ProjectingRule
from privacy.releases import RELEASES

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {"digits": 1437, "mnist": 60000, "fashion-mnist": 60000, "cifar10": 50000, ".npz": 3000}
SIZES |= {"tiny-shakespeare": 15443, ".txt": 3000}


def refusal(**flags: Any) -> str:
    with pytest.raises(UsageError) as caught:
        merge({}, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epsilon", [0, -1.0, math.inf, math.nan, "8", True]),
        ("delta", [0, 1, 1.5, -1e-5, math.nan, "1e-5"]),
        ("noise_multiplier", [0, -1, math.inf, math.nan]),
        ("max_grad_norm", [0, -1, math.inf, math.nan]),
        ("batch_size", [0, -1, 2.5, "256", True]),
        ("public_size", [0, -1, 2.5]),
        ("epochs", [0, -1, 1.5, math.inf, "10"]),
        ("max_physical_batch_size", [0, -1]),
        ("lr", [0, -0.1, 1e300, math.inf, math.nan]),
        ("momentum", [-0.1, 1, 1.5, math.nan]),
        ("weight_decay", [-1e-9, 1e300, math.inf, math.nan]),
        ("seed", [-1, 2**63, 0.5, "0"]),
        ("reproducible", ["yes", 1]),
        ("unsafe_diagnostics", ["no", 0]),
        ("model", [3]),
        ("data_dir", [3]),
        ("backend_options", [3, "a=1"]),
        ("rule_options", [[1]]),
        ("dataset", ["imagenet", "", "data.csv", 3]),
        ("rule", ["DFA", "hebb", ""]),
        ("release", ["labels", "device_entropy", "per_record", "dark_frame"]),
        ("backend", ["optical", ""]),
        ("optimizer", ["sdg", "lbfgs"]),
        ("lr_schedule", ["linear", ""]),
        ("points", ["all", ""]),
        ("device", ["gpu", "cuda:", "cuda:x", "cpu\n"]),
    ],
)
def test_what_is_not_allowed(name: str, values: list[Any]) -> None:
    for value in values:
        text = refusal(**{name: value})
        assert text.startswith(f"{name} is {value!r}; it must be ")
        assert len(text) < 300


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("dataset", (*names(), ".npz", ".txt")),
        ("rule", ("bp", "dfa", "shallow")),
        ("release", ("none", "digital", "dark-frame")),
        ("optimizer", ("sgd", "adam")),
    ],
)
def test_unknown_names_list_the_known_ones(name: str, allowed: tuple[str, ...]) -> None:
    text = refusal(**{name: "wrong"})
    assert all(word in text for word in allowed)


def test_backends_come_from_the_registry() -> None:
    text = refusal(backend="wrong")
    assert {"digital", "simulated-opu", "lightonml", "lightonml-simulated"} <= set(BACKENDS)
    assert all(name in text for name in BACKENDS)
    for name in BACKENDS:
        assert merge({}, {"backend": name}).backend == name


def test_unknown_settings() -> None:
    assert "did you mean epsilon?" in refusal(epsilom=3.0)
    assert "did you mean max_grad_norm?" in refusal(**{"max-grad-norm": 1.0})
    assert "noise_multiplier" in refusal(xyzzy=1)


def test_noise_is_given_once() -> None:
    text = refusal(epsilon=8.0, noise_multiplier=1.1)
    assert "8.0" in text
    assert "1.1" in text


@pytest.mark.parametrize(
    "given",
    [
        {"epsilon": 8.0},
        {"noise_multiplier": 1.0},
        {"delta": 1e-5},
        {"max_grad_norm": 1.0},
        {"public_size": 100},
    ],
)
def test_no_privacy_settings_without_privacy(given: dict[str, Any]) -> None:
    text = refusal(release="none", **given)
    assert next(iter(given)) in text
    assert "none" in text


def test_adam_has_no_momentum() -> None:
    assert "momentum" in refusal(optimizer="adam", momentum=0.9)


def test_flags_override_the_file() -> None:
    file = {"epochs": 3, "lr": 0.25, "epsilon": 2.0, "backend_options": {"threshold": 0.1, "bits": 8}}
    config = merge(file, {"epochs": 7, "lr": None, "noise_multiplier": 1.5, "backend_options": {"bits": 4}})
    assert (config.epochs, config.lr) == (7, 0.25)
    assert (config.epsilon, config.noise_multiplier) == (None, 1.5)
    assert config.backend_options == {"threshold": 0.1, "bits": 4}
    assert file["epsilon"] == 2.0  # what was passed is left alone
    assert file["backend_options"] == {"threshold": 0.1, "bits": 8}


def test_a_file_that_gives_the_noise_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="one of the two"):
        merge({"epsilon": 2.0, "noise_multiplier": 1.0}, {})


def test_frozen() -> None:
    config = merge({}, {})
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("release", ["none", *RELEASES])
@pytest.mark.parametrize("dataset", [*names(), "own.npz", "own.TXT"])
def test_every_default_is_filled_in(dataset: str, release: str) -> None:
    key = registered(dataset)
    assert key in {*names(), ".npz", ".txt"}
    config = resolve(merge({}, {"dataset": dataset, "release": release}), SIZES[key])
    shipped = DATASETS[key].shipped(release != "none")
    if key == ".npz" and release != "none":
        shipped = replace(for_records(SIZES[key], clips=RELEASES[release].clips), lr=config.lr, momentum=0.9)
        assert 0 < config.lr < 1
    assert (config.batch_size, config.epochs, config.lr) == (shipped.batch_size, shipped.epochs, shipped.lr)
    private = (config.epsilon, config.delta, config.max_grad_norm, config.public_size)
    if release == "none":
        assert private == (None, None, None, None)
    else:
        assert config.noise_multiplier is None
        assert config.epsilon == shipped.epsilon
        assert config.max_grad_norm == (shipped.max_grad_norm if RELEASES[release].clips else None)
        assert config.public_size == SIZES[key]
        assert config.delta is not None
        assert 0 < config.delta < 1 / SIZES[key]
    assert resolve(config, SIZES[key]) == config


def test_what_was_given_stays() -> None:
    flags = {
        "dataset": "mnist", "noise_multiplier": 0.8, "delta": 1e-6, "max_grad_norm": 0.1, "batch_size": 7,
        "epochs": 2, "lr": 0.3, "momentum": 0.0, "public_size": 59000,
    }  # fmt: skip
    config = resolve(merge({}, flags), 60000)
    assert {name: getattr(config, name) for name in flags} == flags
    assert config.epsilon is None


def test_adam_defaults() -> None:
    config = resolve(merge({}, {"optimizer": "adam"}), 1437)
    assert (config.lr, config.momentum) == (ADAM_LR, None)


def test_small_data_of_ones_own() -> None:
    config = resolve(merge({}, {"dataset": "own.npz"}), 50)
    assert config.batch_size == 32
    assert resolve(merge({}, {"dataset": "own.npz"}), 20).batch_size == 20
    assert config.delta == 1e-5
    assert resolve(merge({}, {"dataset": "own.npz"}), 10**6).delta == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"delta": 1 / 1437}, "delta is"),
        ({"delta": 0.5}, "delta is 0.5"),
        ({"batch_size": 1438}, "batch_size is 1438"),
        ({"batch_size": 101, "public_size": 100}, "batch_size is 101"),
        ({"release": "none", "batch_size": 1438}, "batch_size is 1438"),
        ({"delta": 1e-4, "public_size": 10001}, "delta is 0.0001"),
    ],
)
def test_against_the_size_of_the_data(flags: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        resolve(merge({}, flags), 1437)
    assert "\n" not in str(caught.value)


def test_no_training_records() -> None:
    with pytest.raises(UsageError, match="0 training records"):
        resolve(merge({}, {}), 0)


@settings(deadline=None, max_examples=40)
@given(
    epsilon=st.floats(1e-6, 1e6),
    lr=st.floats(1e-12, 1e6),
    seed=st.integers(0, 2**63 - 1),
    dataset=st.sampled_from([*names(), 'quo"ted\\ ünï.npz']),
    data_dir=st.sampled_from([None, Path("/a b/c"), Path("rel")]),
    options=st.dictionaries(
        st.sampled_from(["bits", "a.b", "é", ""]),
        st.integers(-9, 9) | st.text(max_size=9) | st.booleans() | st.floats(-1, 1),
    ),
)
def test_toml_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, epsilon: float, lr: float, seed: int, dataset: str,
    data_dir: Path | None, options: dict[str, Any],
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    flags = {"epsilon": epsilon, "lr": lr, "seed": seed, "dataset": dataset, "data_dir": data_dir}
    config = merge({}, {**flags, "backend_options": options})
    write(config, path)
    assert merge(read(path), {}) == config
    resolved = resolve(config, 5000)
    write(resolved, path)
    assert resolve(merge(read(path), {}), 5000) == resolved


def test_written_file_is_plain_toml_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    config = resolve(merge({}, {"backend_options": {"threshold": 0.2}}), 1437)
    write(config, path)
    values = tomllib.loads(path.read_text())
    assert values["backend_options"] == {"threshold": 0.2}
    missing = {name for name in TrainConfig.model_fields if name not in values}
    assert missing == {name for name, value in config.model_dump().items() if value is None}
    assert missing == {
        "data_dir",
        "lr_schedule",
        "transfer",
        "points",
        "calibration",
        "noise_multiplier",
        "max_physical_batch_size",
        "parallel",
        "micro_batches",
        "release_options",
        "features",
    }


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve(merge({}, {"dataset": "own.npz", "data_dir": "d"}), 100)
    assert isinstance(config, ResolvedConfig)
    assert config.dataset == str(tmp_path / "own.npz")
    assert config.data_dir == tmp_path / "d"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs = \n", ["not valid TOML", "line 1"]),
        (b"epochs 3\nlr = 1\n", ["not valid TOML"]),
        (b"lr = 1\nlr = 2\n", ["not valid TOML"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
        (b"epochz = 3\n", ["'epochz'", "did you mean epochs?"]),
        (b"[training]\nepochs = 3\n", ["'training'"]),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in [str(path), *words]:
        assert word in text


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(UsageError, match="give the path of a TOML file"):
            read(path)


def test_a_date_in_the_file_is_no_number() -> None:
    values = tomllib.loads("epochs = 2026-01-01")
    with pytest.raises(UsageError, match=r"epochs is .*; it must be a whole number"):
        merge(values, {})


def test_importing_does_not_import_torch() -> None:
    use = "import sys, optical_dfa.config as c; c.resolve(c.merge({}, {'backend': 'digital'}), 1437)"
    code = f"{use}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


GIVEN_ALONE = [  # what was given -> rule, backend, release
    ({}, ("dfa", "simulated-opu", "dark-frame")),
    ({"backend": "digital"}, ("dfa", "digital", "digital")),
    ({"backend": "lightonml-simulated"}, ("dfa", "lightonml-simulated", "digital")),
    (
        {"backend": "lightonml-simulated", "backend_options": {"device": "physics"}},
        ("dfa", "lightonml-simulated", "dark-frame"),
    ),
    ({"backend": "lightonml"}, ("dfa", "lightonml", "dark-frame")),
    ({"rule": "bp"}, ("bp", "simulated-opu", "digital")),
    ({"rule": "shallow"}, ("shallow", "simulated-opu", "digital")),
    ({"rule": "bdfa"}, ("bdfa", "digital", "digital")),
    ({"rule": "ternary"}, ("ternary", "simulated-opu", "dark-frame")),
    ({"release": "label"}, ("dfa", "digital", "label")),
    ({"release": "aggregate"}, ("gated-dfa", "simulated-opu", "aggregate")),
    (
        {"release": "dark-frame", "backend": "digital"},
        ("dfa", "digital", "dark-frame"),
    ),  # asked for: refused later
    ({"release": "none", "rule": "bp"}, ("bp", "simulated-opu", "none")),
    ({"calibration": Path("c.json"), "backend": "lightonml"}, ("dfa", "lightonml", "dark-frame")),
]


@pytest.mark.parametrize(("given", "follow"), GIVEN_ALONE)
def test_rule_backend_and_release_follow_one_another(
    given: dict[str, Any], follow: tuple[str, str, str]
) -> None:
    config = merge({}, given)
    assert (config.rule, config.backend, config.release) == follow
    from_file = merge(given, {})
    assert (from_file.rule, from_file.backend, from_file.release) == follow


def test_what_a_rules_card_says_is_true() -> None:
    for name, card in RULES.items():
        rule = make_rule(name)
        assert card.projects == isinstance(rule, ProjectingRule) or name == "hybrid", name
        assert card.recurrent == ("recurrent" in name)
        assert card.refused is rule.refused
        assert card == type(rule).card


def test_recurrent_rules_say_which_data_they_want() -> None:
    assert "add dataset tiny-shakespeare" in refusal(rule="recurrent-hybrid")
    assert "path ending in .txt" in refusal(rule="sparse-recurrent", dataset="own.npz")
    merge({}, {"rule": "recurrent-hybrid", "dataset": "own.TXT"})


def test_the_network_follows_the_data_unless_named() -> None:
    config = merge({}, {"dataset": "own.npz"})
    assert resolve(config, 500, "embed").model == "embed"
    assert resolve(config, 500).model == "mlp"
    assert resolve(merge({}, {"dataset": "own.npz", "model": "mlp"}), 500, "embed").model == "mlp"


def test_names_that_are_no_utf8_are_refused() -> None:
    for name in ("dataset", "model", "device"):
        assert refusal(**{name: "daten\udce4.npz"}).startswith(f"{name} is ")
    assert "UTF-8" in refusal(data_dir=Path("d\udce4"))


@settings(max_examples=50)
@given(
    size=st.integers(1, 10**8),
    epsilon=st.floats(1e-3, 1e3),
    batch=st.one_of(st.none(), st.integers(1, 10**6)),
    epochs=st.one_of(st.none(), st.integers(1, 1000)),
    release=st.sampled_from(["digital", "label"]),
)
def test_settings_by_records_are_whole_and_more_privacy_never_learns_faster(
    size: int, epsilon: float, batch: int | None, epochs: int | None, release: str
) -> None:
    flags = {
        "dataset": "own.npz", "backend": "digital", "release": release, "delta": 1e-9, "epochs": epochs,
        "batch_size": None if batch is None else min(batch, size),
    }  # fmt: skip
    config, stronger = (
        resolve(merge({}, {**flags, "epsilon": value}), size) for value in (epsilon, epsilon / 2)
    )
    assert 0 < stronger.lr <= config.lr <= 1
    assert 1 <= config.batch_size <= size
    assert resolve(config, size) == config
    noise = resolve(merge({}, {**flags, "noise_multiplier": 1.0}), size)
    assert 0 < noise.lr <= 1
