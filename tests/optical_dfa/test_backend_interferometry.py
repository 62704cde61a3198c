"""Interferometry against complex arithmetic and its noise against the closed forms, with numpy's own Poisson law."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noise_models.errors import UsageError
from optical_dfa.backends.interferometry import (
    METHODS,
    Anchor,
    Interferometry,
    PhaseStepping,
    brightest,
    method_class,
)

PIXELS = 200
LEAK = 0.3
READ = 6.0
REFERENCE = 40.0


def anchored(pixels: int = PIXELS) -> tuple[Anchor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    a = 40 * torch.polar(
        0.8 + 0.4 * torch.rand(pixels, generator=stream, dtype=torch.float64),
        2 * pi * torch.rand(pixels, generator=stream, dtype=torch.float64),
    )
    return Anchor(a.real, a.imag, LEAK, a.abs()), a


def method(name: str) -> tuple[Interferometry, Tensor | None]:
    if name == "anchor":
        return anchored()
    cls = method_class(name)
    assert issubclass(cls, PhaseStepping)
    return cls(REFERENCE), None


def field(seed: int, rows: int, scale: float = 15.0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, PIXELS, generator=stream, dtype=torch.complex128)


@pytest.mark.parametrize("name", METHODS)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-2, 1e3))
def test_differences_of_fields_are_recovered_exactly(name: str, seed: int, scale: float) -> None:
    # Up to a constant that every frame has: a difference of two frames is exact.
    how, anchor = method(name)
    e = field(seed, 2, scale)
    images = list(how.intensities(e.real, e.imag))
    assert len(images) == len(how.cameras)
    assert all(bool((image >= 0).all()) for image in images)
    quadratures = how.reconstruct(images)
    assert len(quadratures) == how.quadratures
    turned = e if anchor is None else e * anchor.conj() / anchor.abs()
    for answer, expected in zip(quadratures, (turned.real, turned.imag), strict=False):
        difference = (answer[0] - answer[1]) - (expected[0] - expected[1])
        assert float(difference.abs().max()) <= 1e-9 * (scale**2 / REFERENCE + scale + REFERENCE)


@pytest.mark.parametrize("name", ["phase-4", "phase-3", "balanced", "off-axis"])
def test_a_plane_reference_leaves_no_constant(name: str) -> None:
    how, _ = method(name)
    e = field(2, 3)
    re, im = how.reconstruct(how.intensities(e.real, e.imag))
    torch.testing.assert_close(torch.complex(re, im), e)


def test_homodyne_detection_answers_the_quadrature_in_phase() -> None:
    how, _ = method("homodyne")
    e = field(2, 3)
    (re,) = how.reconstruct(how.intensities(e.real, e.imag))
    torch.testing.assert_close(re, e.real)


@pytest.mark.parametrize("name", METHODS)
def test_images_are_the_physics(name: str) -> None:
    how, anchor = method(name)
    e = field(3, 1)
    if anchor is not None:
        waves = [(1.0, anchor), (1.0, LEAK * anchor)]
    elif name == "phase-3":
        waves = [(1.0, torch.tensor(REFERENCE * np.exp(2j * pi * k / 3))) for k in range(3)]
    else:
        steps = (1, 1j, -1, -1j)
        order = {
            "phase-4": steps, "off-axis": steps, "balanced": (1, -1, 1j, -1j), "homodyne": (1, -1),
        }[name]  # fmt: skip
        waves = [(how.light, torch.tensor(REFERENCE * phase)) for phase in order]
    for image, (share, wave) in zip(how.intensities(e.real, e.imag), waves, strict=True):
        torch.testing.assert_close(image, share * (e + wave).abs().square())


def test_light_is_shared_and_frames_are_counted() -> None:
    counts = {name: (cls.frames, len(cls.cameras), cls.quadratures) for name, cls in METHODS.items()}
    assert counts == {
        "phase-4": (4, 4, 2), "phase-3": (3, 3, 2), "anchor": (2, 2, 1), "balanced": (2, 4, 2),
        "homodyne": (1, 2, 1), "off-axis": (1, 4, 2),
    }  # fmt: skip
    plus, minus = list(method("balanced")[0].intensities(*_parts(field(4, 5))))[:2]
    whole = list(method("phase-4")[0].intensities(*_parts(field(4, 5))))
    torch.testing.assert_close(plus + minus, (whole[0] + whole[2]) / 2)


def _parts(e: Tensor) -> tuple[Tensor, Tensor]:
    return e.real, e.imag


def measured(how: Interferometry, e: Tensor, repeats: int, seed: int) -> list[np.ndarray]:
    """Reconstructions of independent Poisson images with Gaussian read noise, shape (repeats, pixels) each."""
    rng = np.random.default_rng(seed)
    images = [
        torch.from_numpy(
            rng.poisson(image.numpy(), (repeats, PIXELS)) + READ * rng.standard_normal((repeats, PIXELS))
        )
        for image in how.intensities(e.real, e.imag)
    ]
    return [part.numpy() for part in how.reconstruct(images)]


@pytest.mark.parametrize("name", ["phase-4", "phase-3", "balanced"])
def test_noise_propagation_pixel_by_pixel(name: str) -> None:
    # 200 pixels with 2000 repetitions each; chi-square of the ratios at 6 standard errors.
    how, _ = method(name)
    e = field(5, 1)
    repeats = 2000
    re, im = measured(how, e, repeats, 1)
    bright, power, read = e[0].abs().square().numpy(), REFERENCE**2, READ**2
    expected = {
        "phase-4": (bright + power + read) / (8 * power),
        "phase-3": (bright + power + read) / (6 * power),
        "balanced": (bright + power + 2 * read) / (4 * power),
    }[name]
    beat = e[0].real.numpy() / (6 * REFERENCE) if name == "phase-3" else 0.0
    for part, variance in ((re, expected + beat), (im, expected - beat)):
        ratio = part.var(axis=0, ddof=1) / variance
        assert ratio.mean() == pytest.approx(1, abs=6 * sqrt(2 / repeats / PIXELS))
        spread = np.sqrt(2 / repeats)
        assert abs(ratio - 1).max() < 6 * spread
        assert abs(part.mean(axis=0) - (e[0].real if part is re else e[0].imag).numpy()).max() < 6 * np.sqrt(
            variance.max() / repeats
        )


def test_noise_propagation_of_the_anchor() -> None:
    how, a = anchored()
    e = field(6, 1)
    repeats = 2000
    (part,) = measured(how, e, repeats, 2)
    images = [image[0].numpy() for image in how.intensities(e.real, e.imag)]
    expected = (images[0] + images[1] + 2 * READ**2) / (4 * (1 - LEAK) ** 2 * a.abs().square().numpy())
    ratio = part.var(axis=0, ddof=1) / expected
    assert ratio.mean() == pytest.approx(1, abs=6 * sqrt(2 / repeats / PIXELS))
    assert abs(ratio - 1).max() < 6 * np.sqrt(2 / repeats)


@pytest.mark.parametrize("name", METHODS)
def test_stated_variance_is_the_mean_over_speckle(name: str) -> None:
    how, _ = method(name)
    e = field(7, 4000)
    speckle = 15.0**2
    total: Tensor | float = 0.0
    for index, image in enumerate(how.intensities(e.real, e.imag)):
        coefficient = how.coefficients(index)[0]
        total = total + coefficient**2 * (image + READ**2)
    assert isinstance(total, Tensor)
    stated = how.variance(torch.tensor([[speckle]], dtype=torch.float64), READ**2)
    ratio = (total / stated).mean(dim=0)
    assert float((ratio - 1).abs().max()) < 6 * float((total / stated).std(dim=0).max()) / sqrt(4000)


def test_anchor_identity_on_mirrors() -> None:
    """Both forms, from binary mirrors through a complex T."""
    stream = torch.Generator().manual_seed(8)
    t = torch.randn(30, 40, generator=stream, dtype=torch.complex128)
    mirrors = (torch.rand(40, generator=stream) < 0.5).to(t.dtype)
    x, own = mirrors.clone(), mirrors.clone()
    x[20:] = 0
    own[:20] = 0  # the anchor's own mirrors, apart from the inputs'
    everything = torch.ones(40, dtype=t.dtype)

    def light(pattern: Tensor) -> Tensor:
        return (t @ pattern).abs().square()

    paper = (light(everything) + light(x) - light(everything - x)) / 2
    torch.testing.assert_close(((t @ everything).conj() * (t @ x)).real, paper)
    ours = (light(own + x) - light(own) - light(x)) / 2
    torch.testing.assert_close(((t @ own).conj() * (t @ x)).real, ours)
    # Why the anchor has mirrors of its own: with the inputs' among them B's entries have a mean.
    shared = ((t @ everything).conj()[:, None] * t).real / (t @ everything).abs()[:, None]
    separate = ((t @ own).conj()[:, None] * t[:, :20]).real / (t @ own).abs()[:, None]
    assert float(shared.mean()) > 0.1
    assert abs(float(separate.mean())) < 6 * sqrt(0.5 / separate.numel())


def test_brightest_leaves_out_the_top_tenth() -> None:
    re, im = torch.arange(100.0).flip(0), torch.zeros(100)
    assert brightest(re, im, 25).tolist() == list(range(10, 35))
    assert brightest(re, im, 100).tolist() == list(range(100))


def test_unknown_method() -> None:
    with pytest.raises(UsageError, match="phase-4, phase-3, off-axis, anchor, balanced"):
        method_class("holography")
