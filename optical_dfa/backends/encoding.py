"""How a real-valued error is shown to a device that takes binary frames (DMD pixels on or off).

Every encoding sends the same number of frames whatever the data, and what it does to a record depends on that
record and on public constants alone (THEORY T3). Amplitudes stay in the computer; the light carries bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from noise_models.errors import UsageError


@dataclass(frozen=True)
class ModulatorFrames:
    """A batch as binary frames: `e_i ≈ scale_i · Σ_k weights_k planes_k,i`.

    Attributes:
        planes: shape (k, m, in_features), entries 0 or 1, in e's dtype.
        weights: k numbers that sum to zero, so that the camera's black level cancels.
        scale: shape (m,); NaN for a record that is not finite.
    """

    planes: Tensor
    weights: tuple[float, ...]
    scale: Tensor


class Encoding(ABC):
    """From errors of shape (m, in_features) to binary frames."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, e: Tensor) -> ModulatorFrames:
        """Frames of `e`; a non-finite record becomes dark frames with scale NaN."""

    def decode(self, frames: ModulatorFrames) -> Tensor:
        """What the frames stand for, shape (m, in_features): the error as an ideal device would see it."""
        weights = torch.tensor(frames.weights, dtype=frames.planes.dtype, device=frames.planes.device)
        return torch.einsum("k,kmi->mi", weights, frames.planes) * frames.scale[:, None]

    def describe(self) -> dict[str, Any]:
        """Name and public constants (JSON types)."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


def _ternary_frames(e: Tensor, cut: Tensor | float) -> tuple[Tensor, Tensor]:
    """Positive and negative frame of the entries beyond `cut`, and those two stacked as 0/1 of e's dtype."""
    return torch.stack((e > cut, e < -cut)).to(e.dtype), torch.isfinite(e).all(dim=1)


@dataclass(frozen=True)
class Ternary(Encoding):
    """`T_i = sign(e_i) 1[|e_i| > t max_j |e_j|]`, scaled by the record's own `<e,T>/<T,T>` (least squares).

    Threshold and amplitude are the record's own: sound for per-record clipped releases (THEORY T3), NOT for
    label or aggregate releases, which need public constants (`TernaryAbsolute`).

    Attributes:
        threshold: t, public, 0 <= t < 1.
    """

    threshold: float = 0.4
    name: ClassVar[str] = "ternary"

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise UsageError(
                f"relative ternary threshold is {self.threshold}; it must be at least 0 and below 1"
            )

    def encode(self, e: Tensor) -> ModulatorFrames:
        largest = e.abs().amax(dim=1, keepdim=True)
        planes, finite = _ternary_frames(e, self.threshold * largest)
        planes *= finite[:, None]
        signs = planes[0] - planes[1]
        scale = (e * signs).sum(dim=1) / signs.abs().sum(dim=1).clamp_min(1)
        return ModulatorFrames(planes, (1.0, -1.0), scale.masked_fill(~finite, torch.nan))


@dataclass(frozen=True)
class TernaryAbsolute(Encoding):
    """`amplitude · sign(e_i) 1[|e_i| > threshold]`: both are public constants, the same for every record.

    Attributes:
        threshold: in units of the error, not negative.
        amplitude: what an entry beyond the threshold stands for, in units of the error, positive.
    """

    threshold: float = 0.1
    amplitude: float = 0.5
    name: ClassVar[str] = "ternary-absolute"

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < float("inf"):
            raise UsageError(
                f"absolute ternary threshold is {self.threshold}; it must be finite and not negative"
            )
        if not 0.0 < self.amplitude < float("inf"):
            raise UsageError(f"ternary amplitude is {self.amplitude}; it must be positive and finite")

    def encode(self, e: Tensor) -> ModulatorFrames:
        planes, finite = _ternary_frames(e, self.threshold)
        planes *= finite[:, None]
        scale = torch.full_like(e[:, 0], self.amplitude).masked_fill(~finite, torch.nan)
        return ModulatorFrames(planes, (1.0, -1.0), scale)


@dataclass(frozen=True)
class BitPlanes(Encoding):
    """`|e_i| / max_j |e_j|` rounded to b bits, one frame a bit, each sign apart: 2b frames.

    The scale is the record's own maximum: for per-record clipped releases only, as `Ternary`.

    Attributes:
        bits: b, 1 to 16.
    """

    bits: int = 4
    name: ClassVar[str] = "bit-planes"

    def __post_init__(self) -> None:
        if self.bits != int(self.bits) or not 1 <= self.bits <= 16:
            raise UsageError(f"number of bit planes is {self.bits}; it must be a whole number from 1 to 16")

    def encode(self, e: Tensor) -> ModulatorFrames:
        finite = torch.isfinite(e).all(dim=1)
        clean = e.masked_fill(~finite[:, None], 0.0)
        largest = clean.abs().amax(dim=1)
        top = 2**self.bits - 1
        relative = clean / torch.where(largest > 0, largest, torch.ones_like(largest))[:, None]
        levels = (relative * top).round_().to(torch.int32)
        parts = (levels.clamp_min(0), (-levels).clamp_min(0))
        planes = torch.stack([(part >> bit) & 1 for part in parts for bit in range(self.bits)]).to(e.dtype)
        weights = tuple(sign * 2.0**bit / top for sign in (1, -1) for bit in range(self.bits))
        return ModulatorFrames(planes, weights, largest.masked_fill(~finite, torch.nan))


ENCODINGS: Final[dict[str, type[Encoding]]] = {cls.name: cls for cls in (Ternary, TernaryAbsolute, BitPlanes)}


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """What may be chosen of the encoding by every device that has one.

    Attributes:
        encoding: "ternary", "ternary-absolute" or "bit-planes".
        threshold, amplitude, bits: its constants; None is its default.
    """

    encoding: str = BitPlanes.name
    threshold: float | None = None
    amplitude: float | None = None
    bits: int | None = None

    def build(self) -> Encoding:
        """
        Raises:
            UsageError: unknown name, a constant this encoding does not have, or one out of its range.
        """
        name = self.encoding
        if name not in ENCODINGS:
            raise UsageError(f"encoding is {name!r}; it must be one of: {', '.join(ENCODINGS)}")
        cls = ENCODINGS[name]
        constants = {key: getattr(self, key) for key in ("threshold", "amplitude", "bits")}
        given = {key: value for key, value in constants.items() if value is not None}
        own = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
        for key in given:
            if key not in own:
                raise UsageError(f"encoding {name} has no {key}; it has: {', '.join(own)}")
        return cls(**given)
