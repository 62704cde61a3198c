"""Digital gains that an offset map hides from the histogram of all pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_camera import NumpyCamera
from torch import Tensor

from noise_models.base import Frame
from noise_models.calibration.photon_transfer import calibrate
from noise_models.calibration.residues import MODULI, PIXELS, Residues


def codes(sigma: float, gain: int, frames: int = 256, pixels: int = 3000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = sigma * rng.standard_normal((frames, pixels)) + rng.uniform(0, 40, pixels)
    return (200 + gain * np.rint(noise / gain) - rng.integers(0, 40, pixels)).astype(np.int32)


def comb(sigma: float, gain: int, **options: int) -> tuple[int, float, float]:
    taken = codes(sigma, gain, **options)
    residues = Residues(taken.shape[1])
    for part in np.array_split(taken, 3):
        residues.add(part)
    found = residues.comb(sigma**2)
    return found.modulus, found.share, found.p_value


@pytest.mark.parametrize("gain", MODULI)
def test_every_gain_is_found(gain: int) -> None:
    modulus, share, p_value = comb(4.0, gain, frames=64)
    assert p_value < 1e-7
    assert gain % modulus == 0
    assert share == pytest.approx(1.0, abs=1e-6)


def test_a_stretched_code_is_found() -> None:
    # A gain of 3/2, codes 0 2 3 5 6 8 …: E exp(2 pi i code/3) is a half.
    rng = np.random.default_rng(4)
    raw = np.rint(5 * rng.standard_normal((128, 2000)) + 100)
    stretched = (np.floor(1.5 * raw + 0.5) + rng.integers(0, 9, 2000)).astype(np.int32)
    residues = Residues(2000)
    residues.add(stretched)
    found = residues.comb(7.5**2)
    assert (found.modulus % 3, found.p_value) == (0, 0.0)
    assert found.share == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_raw_codes_have_uniform_or_larger_p_values(sigma: float) -> None:
    # Below 0.05 comes with probability 0.05, and 7 or more of 20 with probability 3e-5.
    low = sum(comb(sigma, 1, frames=100, pixels=PIXELS, seed=seed)[2] < 0.05 for seed in range(20))
    assert low < 7


class Corrected(NumpyCamera):
    """A digital gain, and then the usual subtraction of the fixed pattern."""

    factor = 2

    def expose(self, frames: int, *, light: float, seconds: float | None, setting: Frame) -> Tensor:
        gain = self.gain if setting is Frame.DARK else self.gain / self.amplification
        offset = np.rint(gain * self.pattern)
        self.convert = lambda analog: np.rint(analog / self.factor) * self.factor - offset
        return super().expose(frames, light=light, seconds=seconds, setting=setting)


def test_a_calibration_does_not_pass_behind_an_offset_map() -> None:
    camera = Corrected(gain=1.2, dsnu=8, bits=10, black=400, ideal_converter=True)
    found = calibrate(camera, dark_frames=256)
    assert found.credit_lower_dn == 0.0
    assert any("digital gain before its offset correction" in text for text in found.findings), found.findings
