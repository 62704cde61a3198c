"""The light path of an optical projector: mirrors, medium, interference, camera; and its effective model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import ncx2
from torch import Tensor

from noise_models.base import Frame
from noise_models.camera import PhysicalCamera
from noise_models.data_sheet import Camera
from noise_models.errors import UsageError
from noise_models.places import CPU, on_cpu
from noise_models.randomness.chunks import draw_in_chunks
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends.encoding import ModulatorFrames
from optical_dfa.backends.interferometry import Anchor, Interferometry, brightest, method_class
from optical_dfa.backends.medium import Medium

# The reference takes this share of the full well's amplitude, the speckle's peaks the rest. The shot-noise optimum
# is near 1/3 and 1.2 dB better; at 1/2 no more than a ninth of the noise follows the signal.
REFERENCE_SHARE: Final = 0.5

# With all mirrors on, 1 pixel in 15 000 exceeds the full well at this full scale over sqrt(inputs).
FULL_SCALE: Final = 3.909

# The effective model leaves saturation out: no more than this share may saturate with all mirrors on.
EFFECTIVE_SATURATION: Final = 0.01

# Pixels that the anchor method chooses from, for each pixel it reads.
_CANDIDATES: Final = 4

# Camera pixels simulated at a time; normals drawn at a time (fixed: part of the stream's definition).
_PIXELS: Final = 1 << 18
_NORMALS: Final = 1 << 17


class Optics:
    """E = a T x + constant, read by interference, for binary mirror patterns x.

    Mirrors that are off still pass an amplitude ε = 1/√contrast: x' = ε + (1−ε) x. The constant cancels between
    planes whose weights sum to zero, the factor 1−ε is divided out. Outputs are all Re E, then all Im E
    (the anchor method has one output a pixel), in units in which B = √2 [Re T; Im T] has unit variance.

    Exposure is a public constant: at |B x| = full_scale in phase with the reference a pixel reaches its full
    well. So √(full well) = R + a full_scale/√2, R = REFERENCE_SHARE √(full well), all in electrons.

    Attributes:
        full_scale: see above.
        amplitude: a, in √electrons.
        leak: ε.
        reference: R, in √electrons.
        medium: T.
        pixels: points of the field that are read.
        camera_pixels: that read them, of each camera.
        anchor_mirrors: mirrors of the anchor; 0 without one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int,
        camera: Camera,
        method: str,
        full_scale: float | None,
        contrast: float | None,
        grain: float | None,
        decorrelation_seconds: float | None,
    ) -> None:
        """
        Raises:
            UsageError: a value out of its range.
        """
        if full_scale is not None and not 0.0 < full_scale < float("inf"):
            raise UsageError(f"full_scale is {full_scale}; it must be positive and finite")
        if contrast is not None and not 1.0 < contrast < float("inf"):
            raise UsageError(f"mirror contrast is {contrast}; it must be above 1 and finite, or left out")
        self._method = method_class(method)
        self.in_features, self.out_features = in_features, out_features
        self.full_scale = FULL_SCALE * sqrt(in_features) if full_scale is None else full_scale
        self.leak = 0.0 if contrast is None else 1 / sqrt(contrast)
        self._well = sqrt(camera.full_well_electrons / self._method.light)
        self.amplitude = (1 - REFERENCE_SHARE) * self._well * sqrt(2) / self.full_scale
        self.reference = REFERENCE_SHARE * self._well
        self.pixels = ceil(out_features / self._method.quadratures)
        self.camera_pixels = self.pixels * (len(self._method.cameras) if self._method.side_by_side else 1)
        self._anchor_scale = 0.0
        anchored = issubclass(self._method, Anchor)
        self.medium = Medium(
            in_features + anchored,
            self.pixels * (_CANDIDATES if anchored else 1),
            seed,
            grain=grain,
            decorrelation_seconds=decorrelation_seconds,
        )
        if anchored:
            # One more column of T: the field of all anchor mirrors together.
            self.medium.keep(brightest(*self._halves(self.medium.columns[-1]), self.pixels))
            re, im = self._halves(self.medium.columns[-1])
            self._brightness = torch.hypot(re, im)
            self._anchor_scale = self.reference / float(self._brightness.max())
        self.anchor_mirrors = ceil(2 * (self._anchor_scale / self.amplitude) ** 2)
        self._refresh()

    def _halves(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part, of pixels as the medium has them now."""
        return columns[..., : self.medium.pixels], columns[..., self.medium.pixels :]

    def advance(self, seconds: float) -> None:
        """Let the medium age by public time."""
        self.medium.advance(seconds)
        if self.medium.moved:
            self._refresh()

    def _refresh(self) -> None:
        """What follows from T, after T changed."""
        columns = self.medium.columns
        if issubclass(self._method, Anchor):
            re, im = (part * self._anchor_scale for part in self._halves(columns[-1]))
            brightness = self._brightness * self._anchor_scale
            self.interferometer: Interferometry = Anchor(re, im, self.leak, brightness)
            self._inputs = columns[:-1]
            first, second = self._halves(self._inputs)
            projection = first * (re / brightness) + second * (im / brightness)
        else:
            self.interferometer = self._method(self.reference)  # type: ignore[call-arg]
            self._inputs = columns
            projection = columns[:, : self.out_features]
        projection = projection.contiguous()
        self._projection = {projection.device: projection}

    def projection(self, device: torch.device | None = None) -> Tensor:
        """Bᵀ, shape (in_features, out_features), float32."""
        here = self._projection[CPU]
        if device is not None and device not in self._projection:
            self._projection[device] = here.to(device)
        return here if device is None else self._projection[device]

    def saturated_fraction(self) -> float:
        """Share of pixels beyond the full well, in one image, with all mirrors on: |E + R|² is Rician.

        An upper bound for the anchor method, whose pixels are at most as bright as the reference would be.
        """
        speckle = self.amplitude**2 * self.in_features / self._well**2
        return float(ncx2.sf(2 / speckle, 2, 2 * REFERENCE_SHARE**2 / speckle))

    @property
    def unit(self) -> float:
        """B x for one √electron of a reconstructed quadrature."""
        return sqrt(2) / (self.amplitude * (1 - self.leak))

    def fields(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Re E and Im E in √electrons, shape (m, pixels), of 0/1 patterns of shape (m, in_features)."""
        mirrors = on_cpu(plane, torch.float32)
        field = (mirrors * (1 - self.leak)).add_(self.leak) @ self._inputs
        return self._halves(field.mul_(self.amplitude / sqrt(2)))

    def speckle(self, planes: Tensor) -> Tensor:
        """Mean |E|² over pixels, in electrons, of 0/1 patterns of shape (…, in_features)."""
        on = planes.sum(dim=-1, dtype=torch.float64)
        return self.amplitude**2 * (on + self.leak**2 * (self.in_features - on))

    def physics(
        self, frames: ModulatorFrames, cameras: Sequence[PhysicalCamera], generator: NoiseGenerator
    ) -> Tensor:
        """Every image of every plane through its camera; shape (m, out_features), in units of B e."""
        method, pixels = self.interferometer, self.pixels
        records = len(frames.scale)
        factor = self.unit / cameras[0].camera.data_gain_dn_per_electron
        out = torch.empty(records, self.out_features)
        rows = max(1, _PIXELS // self.camera_pixels)
        for start in range(0, records, rows):
            part = slice(start, min(start + rows, records))
            total = torch.zeros(part.stop - start, method.quadratures * pixels)
            for plane, weight in zip(frames.planes, frames.weights, strict=True):
                re, im = self.fields(plane[part])
                for index, codes in enumerate(self._exposed(re, im, cameras, generator)):
                    for q, share in enumerate(method.coefficients(index)):
                        answer = total[:, q * pixels : (q + 1) * pixels]
                        if isinstance(share, Tensor):
                            answer.addcmul_(codes, share, value=weight * factor)
                        elif share != 0.0:
                            answer.add_(codes, alpha=weight * factor * share)
            out[part] = total[:, : self.out_features]
        return out.to(frames.scale).mul_(frames.scale[:, None])

    def _exposed(
        self, re: Tensor, im: Tensor, cameras: Sequence[PhysicalCamera], generator: NoiseGenerator
    ) -> Iterator[Tensor]:
        """Codes of the images of a field, one by one."""
        method = self.interferometer
        images = method.intensities(re, im)
        if method.side_by_side:
            together = torch.cat(list(images), dim=-1)
            codes = cameras[0].sample(together, generator, Frame.DATA)
            yield from torch.split(codes, self.pixels, dim=-1)
            return
        for image, camera in zip(images, method.cameras, strict=True):
            yield cameras[camera].sample(image, generator, Frame.DATA)

    def effective(self, frames: ModulatorFrames, camera: PhysicalCamera, generator: NoiseGenerator) -> Tensor:
        """The law of `physics` with an ideal camera, but for saturation and the part of a pixel's noise that
        follows its own speckle: ONE product of the decoded planes, and ONE normal an output whose variance is
        all the images' together, averaged over speckle; shape (m, out_features).

        What is left out makes the physics' noise, pooled over pixels, a mixture: with all mirrors on an excess
        kurtosis of 0.02 (a few tenths for the anchor, whose images hold a beat), here 0.
        """
        scale = frames.scale
        weights = torch.tensor(frames.weights, dtype=torch.float32, device=scale.device)
        decoded = torch.einsum("k,kmi->mi", weights * camera.gain_factor, frames.planes.float())
        answer = on_cpu(decoded @ self.projection(scale.device)).numpy()
        out = torch.empty(answer.shape, dtype=scale.dtype)
        std = on_cpu(self.noise_std(frames, camera), torch.float32).numpy()
        final, scales = out.numpy(), on_cpu(scale).numpy()[:, None]
        rows = max(1, _NORMALS // self.out_features)

        def draw(i: int, child: np.random.Generator) -> None:
            part = slice(i * rows, (i + 1) * rows)
            noise = child.standard_normal(answer[part].shape, dtype=np.float32)
            # A record that is not finite, or too large for its type, answers so.
            with np.errstate(over="ignore", invalid="ignore"):
                noise *= std[part]
                noise += answer[part]
                np.multiply(noise, scales[part], out=final[part])

        draw_in_chunks(-(-len(answer) // rows), generator, draw)
        return out.to(scale.device)

    def noise_std(self, frames: ModulatorFrames, camera: PhysicalCamera) -> Tensor:
        """Standard deviation of the answer before each record's scale, shape (m, 1), or (m, out_features)
        where pixels differ (anchor): the planes' variances add, with their squared weights."""
        squares = torch.tensor(frames.weights, dtype=torch.float64, device=frames.planes.device).square()
        total = float(squares.sum())
        # The variance is affine in the speckle: one mean serves all planes.
        speckle = on_cpu(torch.einsum("k,km->m", squares / total, self.speckle(frames.planes)))
        gain = camera.camera.data_gain_dn_per_electron * camera.gain_factor
        read = camera.camera.read_noise_electrons**2 + 1 / (12 * gain**2)
        variance = self.interferometer.variance(speckle[:, None], read) * (total * camera.gain_factor**2)
        return variance.sqrt() * self.unit

    def describe(self) -> dict[str, Any]:
        """Public constants (JSON types)."""
        return {
            "method": self._method.name,
            "full_scale": self.full_scale,
            "reference_share": REFERENCE_SHARE,
            "off_mirror_amplitude": self.leak,
            "anchor_mirrors": self.anchor_mirrors,
            "pixels": self.camera_pixels,
        }
