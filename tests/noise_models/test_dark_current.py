"""Dark current that is strong, that differs between pixels, or that exposure times do not show."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import torch
from numpy_camera import NumpyCamera
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration import dark_current as module
from noise_models.calibration.document import Calibration
from noise_models.calibration.exposures import take_frames
from noise_models.calibration.photon_transfer import calibrate

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def run(camera: NumpyCamera, dark_frames: int = 512) -> Calibration:
    return calibrate(camera, dark_frames=dark_frames, ideal_converter=True, now=NOW)


def measured(camera: NumpyCamera, frames: int = 256) -> tuple[module.DarkCurrent, np.ndarray]:
    taken = take_frames(camera, frames, camera.shape, lambda n, what: None)
    level = taken.dark.image.mean()
    found = module.dark_current(
        taken.shutter, taken.dark, float(level), 0.01, camera.camera().get("dark_exposure_seconds")
    )
    assert found is not None
    return found, taken.dark.cumulants()[0]


@pytest.mark.parametrize("current", [1e4, 1e5, 3e5])
@pytest.mark.parametrize("declares", [True, False])
def test_strong_dark_current_is_charged_in_full(current: float, declares: bool) -> None:
    # 1, 10 and 30 electrons in the setting's own exposure; the last saturates from a millisecond on.
    camera = NumpyCamera(current=current, declares_exposure=declares)
    true = 0.64 * current * camera.exposure
    found, variance = measured(camera)
    shot = found.shot(0.8, 0.81, 5.0)
    assert shot.value == pytest.approx(true, rel=0.05)
    assert true <= shot.upper <= 1.1 * true + 0.2
    own = found.own_shot(variance, 0.81, 5.0)
    assert own.min() >= 0.95 * true  # of 4096 pixels, each at five standard errors; they scatter by one
    result = run(NumpyCamera(current=current, declares_exposure=declares))
    assert result.credit_lower_dn <= 4.0
    assert result.credit_dn <= 4.0 * 1.01
    assert result.parameters["dark_current_electrons_per_second"].value == pytest.approx(current, rel=0.02)


def test_no_limit_falls_below_zero_or_below_what_the_exposure_gathers() -> None:
    # A level below its extrapolation: the rise is negative, the rate is not.
    found, variance = measured(NumpyCamera(current=1e4))
    bent = module.DarkCurrent(**{**vars(found), "offset": (-5.0, 0.01)})
    assert bent.shot(0.8, 0.8, 5.0).upper >= 0.8 * found.rate[0] * 1e-4
    silent = module.DarkCurrent(**{**vars(bent), "exposure": None, "rate": (-3.0, 0.1)})
    assert silent.shot(0.8, 0.8, 5.0).upper == 0.0
    assert silent.own_shot(variance, 0.8, 5.0).min() >= 0.0


class Hot(NumpyCamera):
    """One pixel in a hundred has 0.6 of the others' read noise, and as much variance by its own dark current."""

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        dark = setting is Frame.DARK
        gain = self.gain if dark else self.gain / self.amplification
        hot = np.arange(self.dark_pixels) % 100 == 0
        time = self.exposure if seconds is None else seconds
        mean = self.response * light * self.lamp + np.where(hot, 16 / self.exposure, 10.0) * time
        electrons = self.rng.poisson(mean, (frames, self.dark_pixels)) + self.pattern
        electrons = electrons + np.where(hot, 3.0, 5.0) * self.rng.standard_normal(electrons.shape)
        analog = (self.black if dark else self.data_black) + gain * electrons
        return torch.from_numpy(np.clip(np.rint(analog), 0, self.top).astype(np.int32))


@pytest.mark.parametrize("declares", [True, False])
def test_a_hot_pixel_is_charged_its_own_dark_current(declares: bool) -> None:
    found = run(Hot(dsnu=0.5, declares_exposure=declares), 2048)
    assert found.credit_lower_dn <= 0.8 * 3.0
    assert found.credit_dn == pytest.approx(4.0, rel=0.02)  # pooled, where they do not show


class Bent(NumpyCamera):
    """Exposure times that the level does not follow, by name."""

    what = ""

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        if seconds is not None and light == 0.0:
            seconds = {"root": 1e-2 * seconds**0.5, "rails": 1.0}[self.what]
        return super().expose(frames, light=light, seconds=seconds, setting=setting)


@pytest.mark.parametrize(
    ("what", "options", "text"),
    [
        ("root", {"current": 1e5}, "in proportion to exposure time"),
        ("rails", {"current": 1e6}, "off the ends of the range"),
    ],
)
def test_exposure_times_that_show_no_dark_current(what: str, options: dict[str, Any], text: str) -> None:
    camera = Bent(**options)
    camera.what = what
    found = run(camera, 256)
    assert found.credit().std == found.credit_lower_dn == 0.0
    assert any(text in finding for finding in found.findings), found.findings
