"""A generator whose words a test names, so that every way through a sampler can be taken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from noise_models.randomness.generator import NoiseGenerator


class Words(NoiseGenerator):
    """Gives the words it was told to."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(bytes(32), "told", 0)
        self.told = np.array(words, dtype=np.uint64)

    def uint64(self, n: int) -> npt.NDArray[np.uint64]:
        given, self.told = self.told[:n], self.told[n:]
        assert len(given) == n
        return given

    def fill(self, words: npt.NDArray[np.uint64], n: int) -> None:
        words[:n] = self.uint64(n)
