"""What tests of several folders start from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from noise_models.base import Frame
from noise_models.calibration.document import Calibration, Interval
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend

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


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    """What a calibration of the default device would say."""
    device = SimulatedOpuBackend(10, 8, seed=0, noise=NoiseGenerator.seeded(0, "device"))
    credit, now = device.noise.credit(Frame.DARK), datetime.now(UTC)
    light = device.expose(1, light=1.0, seconds=None, setting=Frame.DATA)
    return Calibration(
        camera="simulated-opu",
        camera_fingerprint=device.camera_fingerprint(),
        taken_at=now.isoformat(),
        expires_at=(now + timedelta(days=1)).isoformat(),
        frames=100,
        confidence=1 - 1e-6,
        beta=1e-6,
        parameters={"read_noise_electrons": Interval(5.0, 4.95, 5.05)},
        credit_dn=credit.std,
        credit_lower_dn=0.98 * credit.std,
        step_dn=1.0,
        clipped_mass=credit.clipped_mass,
        dark_level_dn=credit.level,
        light_level_dn=float(light.double().mean()),
        saturation_dn=255.0,
        passed=True,
        findings=(),
        assumptions=("the read noise is Gaussian",),
        curves={},
    )
