"""Calibrate a device, train with noise that is credited at the measured limit, and audit the run.

    python examples/measured_device.py

The camera is simulated down to its photons and codes (`fidelity=physics`). A calibration of a real one is made in the
same way; it earns credit only where the converter is known to be ideal.
"""

from pathlib import Path

from noise_models.calibration.photon_transfer import calibrate
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import create
from optical_dfa.cli import main
from privacy.auditing.audit import audit

OPTIONS = {"fidelity": "physics", "dark_pixels": 131_072}
with create(
    "simulated-opu",
    in_features=10,
    out_features=64,
    seed=0,
    noise=NoiseGenerator.secure("device"),
    options=OPTIONS,
) as device:
    calibration = calibrate(device, dark_frames=256)
calibration.save(Path("calibration.json"))
print(f"credited: {calibration.credit().std:.3f} DN of {calibration.credit_dn:.3f} DN measured")

given = [word for name, value in OPTIONS.items() for word in ("--backend-option", f"{name}={value}")]
status = main(
    ["train", "--dataset", "digits", "--model", "mlp:32", "--epochs", "2", "--batch-size", "128",
     "--calibration", "calibration.json", "--out", "run", *given]
)  # fmt: skip

report = audit("run")
guarantee = report.guarantee
print(f"audit: {report.releases} releases; consistent: {report.consistent}; epsilon {report.epsilon:.2f}")
