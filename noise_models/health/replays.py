"""Frames that come again: whole ones for ever, and parts of the recent ones.

A fault that hands out old pixels hands out released noise a second time, and the difference of two releases then
shows their sums without it. Whole frames are compared by digest with every frame ever shown; chunks of consecutive
pixels with the chunks AT THE SAME PLACE of the recent frames, by hash. Pixels that come again at another place (a
frame rotated or shifted by whole pixels) are not found, nor are chunks of which a single pixel changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from noise_models.randomness.generator import NoiseGenerator

CHUNK_PIXELS: Final = 256
RECENT_FRAMES: Final = 64
RECENT_PIXELS: Final = 1 << 18  # of small sensors, whose steps show more frames than that, more are kept
# Digests have 160 bits: with at most 2^40 frames shown, a frame equals an earlier one with probability 2^-120.
_DIGEST_BYTES: Final = 20
_WORD_BYTES: Final = 8
# An upper bound, for one released frame and the frames shown between it and the next one (at most 130), of the
# probability that any of them looks like a replay though all pixels are fresh.
#
# Digests: 131 · 2^-120 < 2^-112.
# Chunks: two different ones w, w' have the same hash, sum_i k_i w_i mod 2^64 with uniform keys k, with probability
# 2^(v - 64), where 2^v is the largest power of 2 that divides every w_i - w'_i; and both hashes with its square.
# A converter step of 2^a DN (a digital gain) makes v at least a. More takes an even number of steps between the codes
# of the lowest pixel of all 32 words or more: with at least one step of noise, below (2/3)^32 < 2^-18, less than the
# factor 2^14 that up to 7 further bits cost; wholly equal lowest pixels, (1/2)^32 and fewer bits to follow, and equal
# chunks, (1/2)^256, are rarer still. So a pair agrees with probability 2^(2a - 127) at most. A frame of P pixels has
# P/256 chunks, each compared with max(64, 2^18/P) others, and at most 2 + 2^17/P frames lie between two released
# ones: below 2^24 comparisons up to P = 2^24. With a <= 4: 2^(24 + 8 - 127) = 2^-95.
REPLAY_FALSE_ALARM: Final = 2.0**-90

Codes = npt.NDArray[Any]


def frame_digest(frame: Codes) -> bytes:
    """By which a frame of raw codes is known for ever; whole codes given as floats have that of the integers."""
    whole = frame.astype(np.int32) if frame.dtype.kind == "f" else frame
    return hashlib.sha256(np.ascontiguousarray(whole).data).digest()[:_DIGEST_BYTES]


class Replays:
    """What was shown of one camera.

    Attributes:
        chunks: parts that a frame is compared in.
    """

    def __init__(self, pixels: int, known: Iterable[str] = ()) -> None:
        """
        Args:
            pixels: of a frame, CHUNK_PIXELS or more.
            known: hexadecimal digests of frames from earlier parts of a run.
        """
        self._seen = {bytes.fromhex(text) for text in known}
        self._rest = pixels % CHUNK_PIXELS
        self.chunks = -(-pixels // CHUNK_PIXELS)
        recent = max(RECENT_FRAMES, RECENT_PIXELS // pixels)
        self._first, self._second = np.zeros((2, recent, self.chunks), dtype=np.uint64)
        self._shown = 0
        keys = NoiseGenerator.secure("frame hashes").uint64(2 * CHUNK_PIXELS)
        self._keys = keys.reshape(2, CHUNK_PIXELS).T.copy()

    def show(self, frames: Codes, *, noise: bool) -> tuple[list[bytes], int]:
        """Compare frames, shape (frames, pixels), with the earlier ones and each other, and remember them.

        Args:
            noise: whether their pixels have at least a converter step of noise; others are compared as a whole.
        Returns:
            the frames' digests; of the first frame that came before in part, how many of its chunks did.
        """
        frames = np.ascontiguousarray(frames)
        digests = [frame_digest(frame) for frame in frames]
        hashes = self._hashes(frames) if noise else None
        for index, digest in enumerate(digests):
            if digest in self._seen:
                return digests, self.chunks
            self._seen.add(digest)
            if hashes is not None and (found := self._find(*hashes[:, index])):
                return digests, found
        return digests, 0

    def _hashes(self, frames: Codes) -> npt.NDArray[np.uint64]:
        """Both hashes of every chunk, shape (2, frames, chunks)."""
        if self._rest:  # the last chunk overlaps the one before it
            frames = np.concatenate((frames[:, : -self._rest], frames[:, -CHUNK_PIXELS:]), axis=1)
        words = frames.view(np.uint64).reshape(-1, CHUNK_PIXELS * frames.itemsize // _WORD_BYTES)
        return (words @ self._keys[: words.shape[1]]).T.reshape(2, len(frames), self.chunks)

    def _find(self, first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> int:
        """How many chunks of a frame were in a recent one, at the same place; remembers them."""
        same = self._first == first
        found = int((same & (self._second == second)).any(0).sum()) if same.any() else 0
        place = self._shown % len(self._first)
        self._first[place], self._second[place] = first, second
        self._shown += 1
        return found
