"""How a camera, which sees intensities, answers the field: interference with a known wave.

E is the complex field of one pixel in √electrons, R that of the reference. Every method is linear in its images, so
that a fixed pattern or black level cancels between binary frames whose weights sum to zero, and its noise is
Σ_k c_k² (I_k + σ²): independent images with Poisson variance I_k and read noise σ electrons.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from math import cos, pi, sin
from typing import ClassVar, Final

import torch
from torch import Tensor

from noise_models.errors import UsageError

Coefficient = float | Tensor


class Interferometry(ABC):
    """From the field of a binary frame to camera images and back.

    Attributes:
        name: as options name it.
        frames: exposures a binary frame takes, one after the other.
        cameras: which camera takes each image; as many images as entries.
        quadratures: outputs of one pixel: 2 where both Re E and Im E are measured, 1 where one is.
        light: share of the light that each image gets.
        side_by_side: whether all images lie in one exposure of one camera, each on pixels of its own.
    """

    name: ClassVar[str]
    frames: ClassVar[int]
    cameras: ClassVar[tuple[int, ...]]
    quadratures: ClassVar[int]
    light: ClassVar[float] = 1.0
    side_by_side: ClassVar[bool] = False

    @abstractmethod
    def intensities(self, re: Tensor, im: Tensor) -> Iterator[Tensor]:
        """Images of the field `re + i im` (√electrons, shape (…, pixels)): mean electrons, one by one."""

    @abstractmethod
    def coefficients(self, image: int) -> tuple[Coefficient, ...]:
        """What this image contributes to each quadrature, in √electrons an electron."""

    @abstractmethod
    def variance(self, speckle: Tensor, read_variance: float) -> Tensor:
        """Variance of one reconstructed quadrature, in electrons, averaged over pixels' fields.

        Args:
            speckle: mean |E|² of the binary frame, in electrons (of all its light), shape (…, 1).
            read_variance: of one image: read noise and rounding, in electrons².
        """

    def reconstruct(self, images: Iterable[Tensor]) -> list[Tensor]:
        """The quadratures of the field, in √electrons, up to a constant that is the same for every frame."""
        total: list[Tensor] = []
        for index, image in enumerate(images):
            parts = [image * coefficient for coefficient in self.coefficients(index)]
            total = [old + part for old, part in zip(total, parts, strict=True)] if total else parts
        return total


class PhaseStepping(Interferometry):
    """A plane reference wave, stepped in phase: I_k = η |E + R e^{iφ_k}|², E = Σ_k I_k e^{iφ_k} / (n η R).

    Creath, Progress in Optics 26 (1988), §2. Noise, for n evenly spaced phases and a share η of the light:

        Var Re E = Var Im E = (η (|E|² + R²) + σ²) / (2 n η² R²),

    plus, for n = 3 alone, ± R Re E / (6 R²), of mean zero over pixels.
    """

    phases: ClassVar[tuple[float, ...]]
    quadratures = 2

    def __init__(self, reference: float) -> None:
        """
        Args:
            reference: R, in √electrons, positive.
        """
        self.reference = reference

    def intensities(self, re: Tensor, im: Tensor) -> Iterator[Tensor]:
        common = (re.square() + im.square()).add_(self.reference**2).mul_(self.light)
        beat = 2 * self.reference * self.light
        for phase in self.phases:
            image = common
            for part, share in ((re, cos(phase)), (im, sin(phase))):
                if abs(share) > 1e-12:
                    image = torch.add(image, part, alpha=beat * share)
            yield image.clamp_(min=0.0)

    def coefficients(self, image: int) -> tuple[Coefficient, ...]:
        scale = 1 / (len(self.phases) * self.light * self.reference)
        parts = (cos(self.phases[image]) * scale, sin(self.phases[image]) * scale)
        return tuple(part if abs(part) > 1e-12 * scale else 0.0 for part in parts)

    def variance(self, speckle: Tensor, read_variance: float) -> Tensor:
        power = self.light * self.reference**2
        return (self.light * speckle + (power + read_variance)) / (2 * len(self.phases) * self.light * power)


class FourStep(PhaseStepping):
    """Phases 0, π/2, π, 3π/2: Re E = (I₀ − I₂)/4R, Im E = (I₁ − I₃)/4R, variance (|E|² + R² + σ²)/8R²."""

    name = "phase-4"
    frames = 4
    cameras = (0, 0, 0, 0)
    phases = (0.0, pi / 2, pi, 3 * pi / 2)


class OffAxis(FourStep):
    """The reference comes in at an angle: its phase steps from pixel to pixel, a quarter of a fringe each.

    Four steps beside each other, in one exposure of one camera (Cuche, Marquet, Depeursinge 2000, Appl. Opt. 39:4070,
    in the plane of the image). Speckle is spread so that its grain spans a fringe: the field is the same at its four
    pixels, and |E|² drops out of their differences.
    """

    name = "off-axis"
    frames = 1
    side_by_side = True


class ThreeStep(PhaseStepping):
    """Phases 0, 2π/3, 4π/3: Re E = (2 I₀ − I₁ − I₂)/6R, Im E = (I₁ − I₂)/(2√3 R), mean variance
    (|E|² + R² + σ²)/6R²: a third more than four steps, for a quarter fewer frames."""

    name = "phase-3"
    frames = 3
    cameras = (0, 0, 0)
    phases = (0.0, 2 * pi / 3, 4 * pi / 3)


class Balanced(PhaseStepping):
    """A half mirror and two cameras: I± = |E ± R|²/2 at once, I₊ − I₋ = 2R Re E; then the same with iR.

    Variance (|E|² + R² + 2σ²)/4R², each camera with half the light. The cameras are two: their unequal
    pixels leave a residue of |E|².
    """

    name = "balanced"
    frames = 2
    cameras = (0, 1, 0, 1)
    phases = (0.0, pi, pi / 2, 3 * pi / 2)
    light = 0.5


class Homodyne(PhaseStepping):
    """Balanced detection of ONE quadrature, in one exposure: I± = |E ± R|²/2 at once, I₊ − I₋ = 2R Re E.

    Variance (|E|² + R² + 2σ²)/4R², as that of `Balanced`.
    """

    name = "homodyne"
    frames = 1
    cameras = (0, 1)
    quadratures = 1
    phases = (0.0, pi)
    light = 0.5

    def coefficients(self, image: int) -> tuple[Coefficient, ...]:
        return ((0.5 if image == 0 else -0.5) / self.reference,)

    def variance(self, speckle: Tensor, read_variance: float) -> Tensor:
        return (speckle + self.reference**2 + 2 * read_variance) / (4 * self.reference**2)


class Anchor(Interferometry):
    """No reference arm: some extra mirrors, the anchor, are switched on with the frame, then off.

        Re(A* E) = (|A + E|² − |A|² − |E|²)/2

    is the polarisation identity `Re((Ta)* (Tx)) = (|Ta|² + |Tx|² − |T(a−x)|²)/2` at −x: with an anchor of its own
    mirrors a + x is binary and B = Re(A* T)/|A| has mean zero, which it has not where a holds the inputs' mirrors.
    |A|² is the same in every frame and cancels between planes. Frames are |E + A|² and |E + ε A|² (ε: what
    off mirrors let through), their difference over 2 (1−ε) |A| the answer, with variance

        ((1 + ε²) |A|² + 2 |E|² + 2σ²) / (4 (1−ε)² |A|²)   on average over E.

    |A| is the anchor's brightness as calibrated at start (public, without data).
    """

    name = "anchor"
    frames = 2
    cameras = (0, 0)
    quadratures = 1

    def __init__(self, re: Tensor, im: Tensor, leak: float, brightness: Tensor) -> None:
        """
        Args:
            re, im: A as it is now, in √electrons, shape (pixels,).
            leak: ε, amplitude that an off mirror passes, 0 <= ε < 1.
            brightness: |A| as calibrated, in √electrons, shape (pixels,).
        """
        self._re, self._im = re, im
        self._leak = leak
        self._brightness = brightness

    def intensities(self, re: Tensor, im: Tensor) -> Iterator[Tensor]:
        for share in (1.0, self._leak):
            yield (re + share * self._re).square_().add_((im + share * self._im).square_())

    def coefficients(self, image: int) -> tuple[Coefficient, ...]:
        scale = 1 / (2 * (1 - self._leak) * self._brightness)
        return (scale if image == 0 else -scale,)

    def variance(self, speckle: Tensor, read_variance: float) -> Tensor:
        power = self._brightness.square()
        shot = (1 + self._leak**2) * power + 2 * speckle
        return (shot + 2 * read_variance) / (4 * (1 - self._leak) ** 2 * power)


METHODS: Final[dict[str, type[Interferometry]]] = {
    cls.name: cls for cls in (FourStep, ThreeStep, OffAxis, Anchor, Balanced, Homodyne)
}


def method_class(name: str) -> type[Interferometry]:
    """The method `name`.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in METHODS:
        raise UsageError(f"interferometry method is {name!r}; it must be one of: {', '.join(METHODS)}")
    return METHODS[name]


def brightest(re: Tensor, im: Tensor, count: int) -> Tensor:
    """Increasing indices of the `count` pixels whose brightness lies below the top tenth's: bright, and alike.

    The few brightest would set the exposure of all the others.
    """
    order = (re.square() + im.square()).argsort()
    end = max(count, round(0.9 * len(order)))
    return order[end - count : end].sort().values
