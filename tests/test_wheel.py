"""The wheel: built, installed alone into a folder, and used from an empty one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("optical_dfa", "privacy", "noise_models", "experiments")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what a source distribution has: a build leaves files beside its source."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "theory", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    asked = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        ".",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *asked], check=False, capture_output=True, text=True, cwd=source
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(
    wheel: Path, install: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install(wheel, folder)
    return folder


def python(installed: Path, empty: Path, *arguments: str) -> str:
    """What Python says in an empty folder, where the installed wheel is all there is of this library."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False, capture_output=True, text=True, cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "120"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    here = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "py.typed", "config.toml", "sample.txt")
        for path in (ROOT / package).rglob(pattern)
    }
    assert {"privacy/py.typed", "experiments/text/config.toml", "experiments/text/sample.txt"} <= here
    assert names == here


def test_the_installed_wheel_is_used_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "train" in python(installed, tmp_path, "-m", "optical_dfa", "--help")
    assert "rules-cifar" in python(installed, tmp_path, "-m", "optical_dfa", "reproduce", "--list")
    code = (
        "from optical_dfa import PrivacyEngine, align; import privacy; print(align.__name__, privacy.__file__);"
        "from optical_dfa.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    said = python(
        installed, tmp_path, "-c", code, "train", "--dataset", "digits", "--model", "mlp:8", "--epochs", "1",
        "--out", "run", "--json",
    )  # fmt: skip
    (name, where), trained = said.splitlines()[0].split(maxsplit=1), said.partition("\n")[2]
    assert name == "align"
    assert Path(where).is_relative_to(installed)
    assert json.loads(trained)["guarantee"]["epsilon"] <= 8.0
    assert (tmp_path / "run" / "ledger.sqlite").exists()
