"""Sums of noises: laws against their parts, and credit that adds only where it may."""

from __future__ import annotations

import json
from math import hypot

import numpy as np
import pytest
import torch
from laws import chi_square, rounded_normal
from scipy import stats

from noise_models.base import Credit, Frame, NoiseModel
from noise_models.camera import PhysicalCamera, named_camera
from noise_models.composite import CompositeNoise
from noise_models.correlated import CorrelatedNoise
from noise_models.drift import LinearDrift
from noise_models.errors import UsageError
from noise_models.gaussian import GaussianNoise
from noise_models.randomness.generator import NORMAL_TAIL_MASS, NoiseGenerator
from noise_models.readout import IdealConverter
from noise_models.shot import ShotNoise
from noise_models.skellam import SkellamNoise

CONVERTER = IdealConverter(8, 64.0)


class Measured(GaussianNoise):
    """Gaussian noise whose credit was measured."""

    def credit(self, frame: Frame) -> Credit:
        return Credit(
            std=0.9 * self.std, step=0.0, clipped_mass=1e-12, beta=1e-6, argument="measured", level=0.5
        )


def test_credit_adds_variances_betas_and_masses() -> None:
    noise = CompositeNoise((Measured(3.0), Measured(4.0), GaussianNoise(1.0)))
    credit = noise.credit(Frame.DARK)
    assert credit.std == pytest.approx(np.sqrt(2.7**2 + 3.6**2 + 1))
    assert credit.beta == pytest.approx(2e-6)
    assert credit.clipped_mass == pytest.approx(2e-12 + NORMAL_TAIL_MASS)
    assert credit.level == 1.0
    assert credit.step == 0.0
    assert any("independent" in text for text in credit.assumptions)
    assert noise.credit(Frame.DATA) == credit


def test_converter_rounds_and_clips_what_is_credited() -> None:
    noise = CompositeNoise((GaussianNoise(3.0), CorrelatedNoise(1, 4, 4.0, 0.2, row_std=5.0)), CONVERTER)
    credit = noise.credit(Frame.DARK)
    least = noise.parts[1].credit(Frame.DARK).std
    assert credit.std == pytest.approx(hypot(3.0, least))
    assert credit.step == 1.0
    assert credit.level == 64.0
    # The tails are those of all that is there, not of what is credited.
    assert credit.clipped_mass == pytest.approx(CONVERTER.clipped_probability(hypot(3.0, 4.0, 5.0)), rel=1e-9)
    assert not any("no converter" in text for text in credit.assumptions)
    assert any("raw codes" in text for text in credit.assumptions)


@pytest.mark.parametrize("part", [ShotNoise(), SkellamNoise(50.0), LinearDrift(0.1)])
def test_uncredited_parts(part: NoiseModel) -> None:
    noise = CompositeNoise((GaussianNoise(2.0), part))
    assert noise.credit(Frame.DARK).std == 2.0
    data = noise.credit(Frame.DATA)
    assert data.std == 0.0
    assert part.credit(Frame.DATA).argument in data.argument
    alone = CompositeNoise((part,)).credit(Frame.DARK)
    assert alone.std == 0.0
    converted = CompositeNoise((GaussianNoise(2.0), part), CONVERTER).credit(Frame.DARK)
    # Only a noise with tails of its own in the dark spoils a converter's credit.
    assert converted.std == (0.0 if isinstance(part, SkellamNoise) else 2.0)


def test_rounded_parts_earn_nothing() -> None:
    camera = PhysicalCamera(named_camera("machine-vision"))
    credit = CompositeNoise((GaussianNoise(2.0), camera)).credit(Frame.DARK)
    assert credit.std == 0.0
    assert "rounded" in credit.argument


def test_sums_have_the_moments_of_their_parts() -> None:
    # Mean and variance of 2·10^5 draws at 5 sigma: false alarm 1e-6.
    n, signal = 200_000, 30.0
    parts = (ShotNoise(), SkellamNoise(40.0), GaussianNoise(3.0))
    noise = CompositeNoise(parts)
    level = torch.full((n,), signal, dtype=torch.float64)
    x = noise.sample(level, NoiseGenerator.seeded(1, "sum"), Frame.DATA)
    variance = float(noise.variance(level, Frame.DATA)[0])
    assert variance == signal + 80 + 9
    assert abs(float(x.mean()) - signal) < 5 * np.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 5 * variance * np.sqrt(2.1 / n)
    assert (level == signal).all()


def test_gaussians_through_a_converter() -> None:
    # Chi-square on 4·10^5 codes: false alarm 1e-6.
    noise = CompositeNoise((GaussianNoise(3.0), GaussianNoise(4.0)), CONVERTER)
    codes = noise.sample(torch.full((400_000,), 2.25), NoiseGenerator.seeded(2, "sum"), Frame.DARK)
    assert chi_square(codes, rounded_normal(66.25, 5.0, 255)) > 1e-6


def test_a_camera_is_the_composite_of_its_stages() -> None:
    # A camera of one DN an electron against shot noise + read noise + converter: two-sample chi-square, 1e-6.
    sheet = named_camera("machine-vision").ideal()
    gain = sheet.data_gain_dn_per_electron
    signal = torch.full((200_000,), 3000.0)
    camera = PhysicalCamera(sheet).sample(signal.view(4, -1), NoiseGenerator.seeded(3, "camera"), Frame.DATA)
    stages = CompositeNoise((ShotNoise(), GaussianNoise(sheet.read_noise_electrons)))
    analog = stages.sample(signal, NoiseGenerator.seeded(4, "stages"), Frame.DATA) * gain
    codes = IdealConverter(8, sheet.data_black_dn).sample(
        analog, NoiseGenerator.seeded(5, "unused"), Frame.DATA
    )
    counts = np.stack([np.bincount(x.int().flatten().numpy(), minlength=256) for x in (camera, codes)])
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 20]).pvalue > 1e-6
    total = gain**2 * stages.variance(signal[:1], Frame.DATA) + 1 / 12
    assert torch.allclose(PhysicalCamera(sheet).variance(signal[:1], Frame.DATA), total)


def test_description_and_refusals() -> None:
    noise = CompositeNoise((ShotNoise(), GaussianNoise(3.0)), CONVERTER)
    described = json.loads(json.dumps(noise.describe()))
    assert described["model"] == "composite"
    assert described["0.model"] == "shot"
    assert described["1.std_dn"] == 3.0
    assert described["2.bits"] == 8
    with pytest.raises(UsageError):
        CompositeNoise(())
    with pytest.raises(UsageError, match="converter="):
        CompositeNoise((GaussianNoise(1.0), CONVERTER))
