"""Whether two quadratures that were measured are those of one field, from its intensity."""

from __future__ import annotations

from typing import Final

import numpy as np

from noise_models.calibration.probed_light import Complex, Reals
from noise_models.errors import DeviceError

MOST_OBLIQUE: Final = 0.1  # by which |E/r|² may differ from the sum of the squares of both quadratures
MOST_UNKNOWN: Final = 0.25  # of that


class Quadratures:
    """|E/r|² of patterns, from the mean of both cameras, against the squares of both quadratures x and y.

    `|E/r|² = a x² + b y² + c x y`, where a = b = 1 and c = 0 of two quadratures of one field, whatever the medium: by
    least squares, the means of every pixel and of every pattern taken off, with them what is common to a frame.
    """

    def __init__(self) -> None:
        self._fields: list[Complex] = []
        self._rates: list[Reals] = []

    def take(self, fields: Complex, rates: Reals) -> None:
        """Of patterns, shape (m, rows) both: E/r, and the mean of both cameras' rates."""
        self._fields.append(fields)
        self._rates.append(rates)

    def limit(self, z: float) -> float:
        """The largest |E/r|² over x² + y², upper limit.

        Args:
            z: standard deviations of an error.
        Raises:
            DeviceError: it is far from 1, or unknown.
        """
        fields, rates = np.concatenate(self._fields), np.concatenate(self._rates)
        x, y = fields.real, fields.imag
        power = np.square(np.abs(fields)).mean(1, keepdims=True)
        seen = rates / rates.mean(1, keepdims=True) * (1 + power)
        known = np.stack([_centred(one).ravel() for one in (x**2, y**2, x * y)])
        seen = _centred(seen).ravel()
        gram = known @ known.T
        a, b, c = found = np.linalg.solve(gram, known @ seen)
        free = (len(x) - 1) * (x.shape[1] - 1) - 3
        error = np.sqrt(np.diag(np.linalg.inv(gram)) * float(np.square(seen - found @ known).sum()) / free)
        wide = z * float(np.linalg.norm(error))  # of the form's norm
        least, most = np.linalg.eigvalsh(np.array([[a, c / 2], [c / 2, b]]))
        if least + wide < 1 - MOST_OBLIQUE or most - wide > 1 + MOST_OBLIQUE:
            off = least if least + wide < 1 - MOST_OBLIQUE else most
            raise DeviceError(
                f"|E/r|² is {off:.3g} of the sum of the squares of both quadratures; allowed is {1 - MOST_OBLIQUE:g} "
                f"to {1 + MOST_OBLIQUE:g}: turn the reference by π/2, and make the codes linear in the light"
            )
        if wide > MOST_UNKNOWN:
            raise DeviceError(
                f"whether the reference was turned by π/2 is known to {wide:.2g}; it must be to {MOST_UNKNOWN:g}: take "
                "more frames (--frames), or read more pixels"
            )
        return float(most + wide)


def _centred(values: Reals) -> Reals:
    return np.asarray(values - values.mean(0) - values.mean(1, keepdims=True) + values.mean())
