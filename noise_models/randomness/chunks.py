"""Random draws in fixed chunks, each with its own child stream, on as many threads as torch uses.

The chunks are part of the stream's definition, so a result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from noise_models.randomness.generator import NoiseGenerator

# Items a chunk: its float32 working set (and numpy's 64-bit counts) stays in the second-level cache, and its
# draws take about a millisecond, far above the cost of a child stream.
CHUNK: Final = 1 << 15

# 64-bit words of the parent that key a child: 128 bits, so that no two children ever share a stream.
_KEY_WORDS: Final = 2


def draw_in_chunks(
    chunks: int, generator: NoiseGenerator, draw: Callable[[int, np.random.Generator], None]
) -> None:
    """Call `draw(i, child)` for i < chunks; `child` is chunk i's own generator, keyed by `generator`.

    The children (SFC64) are statistical, not cryptographic: noise drawn here is simulated physics, and earns
    no credit. `draw` must touch nothing but its own chunk; numpy's samplers let other threads run meanwhile.
    """
    keys = generator.uint64(_KEY_WORDS * chunks).reshape(chunks, _KEY_WORDS)

    def work(i: int) -> None:
        draw(i, np.random.Generator(np.random.SFC64(keys[i])))

    threads = min(torch.get_num_threads(), chunks)
    if threads <= 1:
        for i in range(chunks):
            work(i)
        return
    # A pool a call: it costs 0.1 ms, and a forked child never waits for threads it does not have.
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(chunks)):
            pass
