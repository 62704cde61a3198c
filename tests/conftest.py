"""What tests of several folders start from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def install() -> Callable[[Path, Path], None]:
    """Installs a source folder or a wheel into a folder: no dependencies, no network."""

    def installed(what: Path, target: Path) -> None:
        asked = [
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--target",
            str(target),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *asked, str(what)], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return installed


@pytest.fixture(scope="session")
def own_parts(install: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the example's package of own parts is installed in."""
    folder = tmp_path_factory.mktemp("own parts")
    source = shutil.copytree(
        EXAMPLES / "own_parts", folder / "source"
    )  # a build leaves files beside its source
    install(source, folder / "installed")
    return folder / "installed"
