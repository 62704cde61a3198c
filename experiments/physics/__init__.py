"""The physics-level device, calibrated, against a digital projection."""

from datetime import UTC, datetime
from pathlib import Path

from experiments.harness.experiment import load
from noise_models.calibration.document import Calibration
from noise_models.calibration.photon_transfer import calibrate
from noise_models.errors import DeviceError, UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create

FOLDER = Path(__file__).parent
# Eight seconds of a 1 kHz camera: the more frames, the nearer the credit comes to the noise.
DARK_FRAMES = 8192


def prepare() -> None:
    """A calibration of the experiment's camera where its rows expect one, unless one that serves is there."""
    (settings,) = (row.settings for row in load(FOLDER).row if "calibration" in row.settings)
    path = Path(settings["calibration"])
    with create(
        settings["backend"],
        in_features=10,
        out_features=16,
        seed=0,
        noise=NoiseGenerator.secure("calibration"),
        options=settings["backend_options"],
    ) as device:
        try:
            Calibration.load(path).refuse_other(device.camera_fingerprint(), datetime.now(UTC))
        except (UsageError, DeviceError):
            path.parent.mkdir(parents=True, exist_ok=True)
            calibrate(device, dark_frames=DARK_FRAMES).save(path)
