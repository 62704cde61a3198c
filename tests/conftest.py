"""What tests of several folders start from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the example's package of own parts is installed in."""
    folder = tmp_path_factory.mktemp("own parts")
    source = shutil.copytree(
        EXAMPLES / "own_parts", folder / "source"
    )  # a build leaves files beside its source
    install(source, folder / "installed")
    return folder / "installed"


def install(what: Path, target: Path) -> None:
    """Install a source folder or a wheel into a folder: no dependencies, no network."""
    asked = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*asked, "--target", str(target), str(what)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
