"""What goes wrong with a camera or its lamp, on purpose: the faults that the health tests must find.

A simulated device passes its lamp level and its raw codes through one of these. A fault strikes frames without
data (`dark`, `expose`); it has no access to anything else.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

import torch
from torch import Tensor

from noise_models.base import Frame
from noise_models.errors import UsageError

FAULTS: Final[dict[str, str]] = {
    "lamp-off": "the lamp gives no light",
    "saturation": "one pixel in 100 reads the largest code (a light leak)",
    "frozen-frame": "the last frame before the fault comes again and again",
    "replayed-frame": "earlier frames of the same setting come again, in turn",
    "stuck-rows": "two rows read one constant code",
    "correlated-rows": "the noise of each row has a correlation of 0.1 with the row above",
    "gain-drop": "the camera's gain is 20 % lower",
}
_SATURATED: Final = 100  # one pixel in so many
_MEMORY: Final = 8  # frames of each setting that come again
_CORRELATION: Final = 0.1
_GAIN: Final = 0.8


class Fault:
    """One fault of one camera, which begins after a number of frames.

    Attributes:
        name: one of FAULTS.
        after: frames that are still good.
        taken: frames so far.
    """

    def __init__(self, name: str, *, after: int, shape: tuple[int, int], top: int) -> None:
        """
        Args:
            name: one of FAULTS.
            after: frames that are still good; the fault strikes all that follow.
            shape: rows and columns of a frame.
            top: the converter's largest code.

        Raises:
            UsageError: an unknown fault, or a negative number of frames.
        """
        if name not in FAULTS:
            raise UsageError(f"fault is {name!r}; it must be one of {', '.join(FAULTS)}")
        if isinstance(after, bool) or not isinstance(after, int) or after < 0:
            raise UsageError(f"fault_after is {after!r}; it must be a number of frames, 0 or more")
        self.name, self.after, self.taken = name, after, 0
        self._rows, self._columns = shape
        self._top = top
        self._last: Tensor | None = None
        self._earlier: dict[Frame, deque[Tensor]] = defaultdict(lambda: deque(maxlen=_MEMORY))

    def light(self, level: float, frames: int = 1) -> float:
        """Lamp level of the next `frames` frames; a fault that begins among them begins with the first."""
        return 0.0 if self.name == "lamp-off" and self.taken + frames > self.after else level

    def codes(self, codes: Tensor, *, setting: Frame, black: float) -> Tensor:
        """What arrives of these frames; counts them.

        Args:
            codes: raw codes, shape (frames, pixels), any real dtype.
            setting: which setting of the camera they were taken with.
            black: that setting's black level, in DN.
        Returns:
            the same shape and dtype; `codes` itself is left as it was.
        """
        good = min(len(codes), max(0, self.after - self.taken))
        out = codes.clone()
        for index in range(len(codes)):
            if index >= good:
                out[index] = self._struck(codes[index], setting, black)
            if self.name == "frozen-frame" and (index < good or self._last is None):
                self._last = out[index].clone()
            elif self.name == "replayed-frame" and index < good:
                self._earlier[setting].append(out[index].clone())
            self.taken += 1
        return out

    def _struck(self, codes: Tensor, setting: Frame, black: float) -> Tensor:
        """One frame after the fault began, shape (pixels,)."""
        match self.name:
            case "saturation":
                codes = codes.clone()
                codes[::_SATURATED] = self._top
            case "frozen-frame":
                return codes if self._last is None else self._last
            case "replayed-frame":
                earlier = self._earlier[setting]
                if not earlier:  # nothing to play yet: this frame is the first that will come again
                    earlier.append(codes.clone())
                earlier.rotate(-1)
                return earlier[-1]
            case "stuck-rows":
                codes = codes.clone()
                first = self._rows // 3
                codes.view(self._rows, self._columns)[first : first + 2] = round(black)
            case "correlated-rows":
                noise = self._analog(codes).view(self._rows, self._columns) - black
                above = noise.roll(1, dims=0)
                mixed = (1 - _CORRELATION**2) ** 0.5 * noise + _CORRELATION * above
                return self._converted(mixed.flatten() + black, codes.dtype)
            case "gain-drop":
                return self._converted(_GAIN * (self._analog(codes) - black) + black, codes.dtype)
        return codes

    def _analog(self, codes: Tensor) -> Tensor:
        """Values that these codes may have come from: spread evenly over each code's width."""
        jitter = torch.Generator().manual_seed(self.taken)
        return codes.double() + torch.rand(codes.shape, generator=jitter, dtype=torch.float64) - 0.5

    def _converted(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.round().clamp(0, self._top).to(dtype)
