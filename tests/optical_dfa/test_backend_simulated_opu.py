"""The simulated device: its camera is in the loop, and its noise is what the model says."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from noise_models.base import Frame
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator
from optical_dfa.backends.simulated_opu import SimulatedOpuBackend


def device(noise: NoiseGenerator | None = None, n_in: int = 10, n_out: int = 64, **options: Any) -> Any:
    generator = noise or NoiseGenerator.seeded(1, "noise")
    return SimulatedOpuBackend(n_in, n_out, seed=1, noise=generator, **options)


def test_noise_of_a_ternary_projection() -> None:
    # Two frames, each with read noise and rounding. Variance at 6 sigma: false alarm 2e-9.
    opu = device(n_out=2000, encoding="ternary", read_noise_electrons=40.0, dark_amplification=1.0)
    e = torch.eye(10).repeat(10, 1)
    residual = (opu.project(e) - e @ opu.matrix().T) * opu.dn_per_unit
    n = residual.numel()
    expected = 2 * float(opu.noise.variance(torch.zeros(1), Frame.DATA))
    assert float(residual.double().var()) == pytest.approx(expected, rel=6 * np.sqrt(2 / n))
    assert stats.kstest(residual[:, 0].numpy() / np.sqrt(expected), "norm").pvalue > 1e-6


def test_answers_are_differences_of_codes() -> None:
    opu = device(encoding="ternary")
    e = torch.tensor([[0.25, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25]], dtype=torch.float64)
    codes = opu.project(e) / 0.25 * opu.dn_per_unit
    assert float((codes - codes.round()).abs().max()) < 1e-4


def test_saturation() -> None:
    opu = device(full_scale=0.1)
    codes = opu.project(torch.ones(50, 10)) * opu.dn_per_unit
    signal = (torch.ones(50, 10) @ opu.matrix().T).abs() > 0.2
    assert signal.any()
    # The positive frame is at an end of the range (0 or 255), the negative one dark at 128 or its neighbours.
    assert bool(((codes[signal].abs() - 127.5).abs() < 2).all())


def test_chunks_do_not_change_a_record() -> None:
    # More pixels than one chunk holds; with no noise the answer is deterministic up to rounding.
    quiet = device(n_out=40_000, read_noise_electrons=0.0)
    e = torch.randn(7, 10, generator=torch.Generator().manual_seed(3))
    together = quiet.project(e)
    alone = torch.cat([quiet.project(row[None]) for row in e])
    # Signals within float rounding of a half code may fall either way.
    assert float((together != alone).float().mean()) < 1e-3


def test_dark_frames_come_from_the_injected_generator() -> None:
    one, two = device(NoiseGenerator.seeded(5, "dark")), device(NoiseGenerator.seeded(5, "dark"))
    assert torch.equal(one.dark(2), two.dark(2))
    assert not torch.equal(one.dark(2), device(NoiseGenerator.seeded(6, "dark")).dark(2))
    assert one.dark(1).dtype == torch.uint8
    assert one.dark(1).shape == (1, 131_072)
    assert one.noise.credit(Frame.DARK).std == pytest.approx(4.08)
    with pytest.raises(UsageError):
        one.dark(-1)


def test_a_restored_device_never_repeats_secret_noise() -> None:
    opu = device(NoiseGenerator.secure("noise"), encoding="bit-planes", bits=3, dark_pixels=64)
    twin = pickle.loads(pickle.dumps(opu))
    assert twin.describe() == opu.describe()
    assert torch.equal(twin.matrix(), opu.matrix())
    assert not torch.equal(twin.dark(1), opu.dark(1))


def test_exposure_is_a_public_constant() -> None:
    assert device().full_scale == pytest.approx(4 * np.sqrt(10))
    assert device(full_scale=7.0).fingerprint() != device(full_scale=8.0).fingerprint()
    assert device().noise.describe() != device(read_noise_electrons=4.0).noise.describe()


@pytest.mark.parametrize("seed", [1, 2])
def test_default_encoding_keeps_the_direction_of_the_error(seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    e = torch.softmax(2 * torch.randn(1000, 10, generator=stream), 1)
    e -= torch.eye(10)[torch.randint(10, (1000,), generator=stream)]
    opu = device(n_out=1000)
    cosine = torch.nn.functional.cosine_similarity(opu.project(e), e @ opu.matrix().T, dim=1)
    assert float(cosine.mean()) > 0.9
