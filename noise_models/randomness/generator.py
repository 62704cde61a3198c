"""Cryptographic random bits, normals and coins: AES-256 in counter mode, keyed once, never copied.

Privacy rests on nobody being able to predict these streams (THEORY T4, §4.5), so there is one generator for
private runs and for reproducible experiments; the two differ only in where the key comes from.
"""

from __future__ import annotations

import hashlib
import os
import threading
from fractions import Fraction
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from noise_models.errors import UsageError

# Box-Muller's uniform has a lowest cell of probability 2^-63, all of which lands at 9.42 sigma: moving it
# there is what the truncated tail costs in total variation, for a pair of normals and so for each of them.
# It does not count that floating-point numbers are a grid: a statement about real numbers is printed for them.
NORMAL_TAIL_MASS: Final = 2.0**-63

# Normals a block: scratch (32 bytes a pair) and output stay in a 1 MiB second-level cache. numpy, not torch,
# because its float64 log and float32 sine are twice as fast here and never start threads. The blocks are part
# of the stream's definition.
BLOCK: Final = 1 << 15

_CIPHER_BLOCK: Final = 16
_LANE: Final = _CIPHER_BLOCK << 96  # bytes
_ANGLE_UNIT: Final = np.pi * 2.0**-31


def _digest(domain: str, *parts: bytes) -> bytes:
    """SHA-256 with a domain and unambiguous part boundaries."""
    h = hashlib.sha256(f"optical-dfa/{domain}".encode())
    for part in parts:
        h.update(len(part).to_bytes(8, "big") + part)
    return h.digest()


def derive_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream called `name` of the run seeded with `seed`; names are independent."""
    digest = _digest("derived-seed", str(int(seed)).encode(), name.encode())
    return int.from_bytes(digest[:8], "big") >> 1


class NoiseGenerator:
    """A named stream of cryptographic randomness.

    A secret generator's key never leaves the object: pickling, copying or forking it yields a freshly KEYED
    generator, so no two ever repeat each other; a copy of a conditioned one is keyed by the operating system. A
    seeded one keeps its position through pickle and deepcopy.
    Calls are serialised by a lock. A stream is the same on every machine up to the last bits of log and sin.

    Attributes:
        name: what the stream is for; part of a seeded key.
        secret: True when the key came from the operating system, or from a device whose noise is secret.
    """

    def __init__(self, key: bytes, name: str, seed: int | None, secret: bool = False) -> None:
        """Use `secure`, `conditioned` or `seeded`."""
        self.name = name
        self._seed = seed
        self._secret = secret
        self._lock = threading.Lock()
        self._words = np.empty(BLOCK // 2 + 2, dtype=np.uint64)
        self._turns = np.empty(BLOCK // 2 + 4, dtype=np.int32)
        self._scratch: dict[np.dtype[Any], tuple[npt.NDArray[Any], ...]] = {}
        self._wide = np.empty(BLOCK // 2, dtype=np.float64)
        self._lanes: list[Self] = []
        self._set_key(key)

    def _set_key(self, key: bytes) -> None:
        self._key = key
        self._lanes = []
        self._pid = os.getpid()
        self._seek(0)

    def _seek(self, position: int) -> None:
        """Put the stream at byte `position`."""
        counter = (position // _CIPHER_BLOCK).to_bytes(_CIPHER_BLOCK, "big")
        self._stream: CipherContext = Cipher(AES(self._key), CTR(counter)).encryptor()
        self._stream.update(bytes(position % _CIPHER_BLOCK))
        self._position = position

    @classmethod
    def secure(cls, name: str) -> Self:
        """A generator keyed with 256 bits of the operating system's entropy."""
        return cls(os.urandom(32), name, None, secret=True)

    @classmethod
    def conditioned(cls, key: bytes, name: str, *, secret: bool) -> Self:
        """A generator keyed by a device's conditioned entropy (`noise_models.health.entropy.conditioned_key`).

        Args:
            key: 32 bytes.
            name: what the stream is for.
            secret: whether nobody else can know the key: False where the device's noise is itself seeded.

        Raises:
            UsageError: a key of another length.
        """
        _check_key(key)
        return cls(key, name, None, secret)

    def rekey(self, key: bytes) -> None:
        """Go on from the start of another key's stream, with everything about the old one forgotten.

        Args:
            key: 32 bytes, conditioned like the first; the generator stays as secret as it was.

        Raises:
            UsageError: a key of another length, the key in use (its stream would repeat), or a seeded generator.
        """
        _check_key(key)
        if self._seed is not None:
            raise UsageError(f"generator {self.name!r} is seeded and keeps its key; take a conditioned one")
        with self._lock:
            if key == self._key:
                raise UsageError(f"generator {self.name!r} was given the key it has; condition fresh frames")
            lanes = self._lanes
            self._set_key(key)
            for lane in lanes:
                lane._set_key(os.urandom(32))
            parts: list[NoiseGenerator] = [self, *lanes]
            for part in parts:  # scratch holds the old stream's words
                part._words.fill(0)
                part._turns.fill(0)
                part._wide.fill(0.0)
                part._scratch.clear()

    @classmethod
    def seeded(cls, seed: int, name: str) -> Self:
        """The reproducible stream `name` of `seed`: no protection, whoever knows the seed knows the noise."""
        key = _digest("seeded-key", str(int(seed)).encode(), name.encode())
        return cls(key, name, int(seed))

    @property
    def secret(self) -> bool:
        return self._secret

    def fingerprint(self) -> str:
        """Hex digest of the key, safe to store: equal fingerprints mean a re-used key."""
        with self._lock:
            self._leave_parent()
            return _digest("key-fingerprint", self._key).hex()

    def lanes(self, count: int) -> list[Self]:
        """Generators for threads that draw at once: of the same key, 2^96 blocks of the stream apart.

        The same ones, further on, whenever they are asked for; a new key has new ones.

        Args:
            count: how many, 1 or more.
        Raises:
            UsageError: this is a lane itself, whose lanes would be its sisters.
        """
        if self._position >= _LANE:
            raise UsageError(f"this generator is a lane of {self.name!r}, which has no lanes of its own")
        with self._lock:
            self._leave_parent()
            while len(self._lanes) < count:
                lane = type(self)(self._key, self.name, self._seed, self._secret)
                lane._seek((len(self._lanes) + 1) * _LANE)
                self._lanes.append(lane)
            return self._lanes[:count]

    @property
    def position(self) -> int:
        """Bytes of the stream drawn so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Put a seeded stream at byte `position`, where an interrupted experiment left it.

        Raises:
            UsageError: the key is secret or conditioned: its stream is never drawn twice; or a negative position.
        """
        if self._seed is None or not 0 <= position < _LANE:
            raise UsageError(
                f"generator {self.name!r} cannot go to {position}; only a seeded one, to 0 or more"
            )
        with self._lock:
            self._seek(position)

    def _leave_parent(self) -> None:
        """After a fork parent and child hold one key; the child takes its own."""
        if self.secret and os.getpid() != self._pid:
            self._set_key(os.urandom(32))

    def _fill(self, buffer: npt.NDArray[Any], count: int) -> None:
        """`count` fresh items into `buffer`, which has a spare cipher block at its end."""
        size = count * buffer.itemsize
        written = self._stream.update_into(_ZEROS[:size], buffer.view(np.uint8).data)
        if written != size:
            raise RuntimeError(f"the cipher wrote {written} of {size} bytes")
        self._position += size

    def uint64(self, n: int) -> npt.NDArray[np.uint64]:
        """`n` fresh uniform 64-bit integers, shape (n,).

        Raises:
            UsageError: n is negative.
        """
        _check_count(n)
        with self._lock:
            self._leave_parent()
            return self._uint64(n)

    def fill(self, words: npt.NDArray[np.uint64], n: int) -> None:
        """`n` fresh uniform 64-bit integers into the beginning of `words`, with no memory taken.

        Args:
            words: contiguous, at least n + 2 of them; the cipher needs two spare ones.
            n: 0 to BLOCK.
        Raises:
            UsageError: words or n are not so.
        """
        if not 0 <= n <= min(BLOCK, len(words) - 2) or not words.flags.c_contiguous:
            raise UsageError(
                f"{n} of {len(words)} words are to be filled; at most {BLOCK}, in contiguous memory with two to spare"
            )
        with self._lock:
            self._leave_parent()
            self._fill(words, n)

    def _uint64(self, n: int) -> npt.NDArray[np.uint64]:
        raw = np.empty(n + 2, dtype=np.uint64)
        step = len(_ZEROS) // 8
        for start in range(0, n, step):
            self._fill(raw[start:], min(step, n - start))
        return raw[:n]

    def bernoulli(self, n: int, p: float) -> npt.NDArray[np.int64]:
        """Indices i < n whose independent coin of probability `p` came up, increasing: one Poisson sample.

        `p` is rounded DOWN to a multiple of 2^-64: the rate is never above the one accounted for.

        Raises:
            UsageError: n is negative, or p is not a probability.
        """
        _check_count(n)
        if not 0.0 <= p <= 1.0:
            raise UsageError(f"sampling probability is {p}; it must lie between 0 and 1")
        threshold = int(Fraction(p) * 2**64)
        with self._lock:
            self._leave_parent()
            found = []
            for start in range(0, n, BLOCK):
                coins = self._uint64(min(BLOCK, n - start))
                up = np.ones(len(coins), np.bool_) if threshold == 2**64 else coins < np.uint64(threshold)
                found.append(np.flatnonzero(up) + start)
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, dtype=np.int64)

    def normal_(self, out: Tensor) -> Tensor:
        """Fill `out` with independent N(0, 1), and return it.

        Box and Muller (1958): the radius from 63 bits, evaluated in float64 (no log of 0, tail to 9.42
        sigma, see NORMAL_TAIL_MASS), the angle from 32 bits.

        Raises:
            UsageError: `out` is not a contiguous float32 or float64 CPU tensor.
        """
        self._normals(out, None)
        return out

    def add_normal_(self, out: Tensor, std: float) -> Tensor:
        """`out += std * N(0, 1)` with no temporary of out's size; the same normals `normal_` would give.

        Raises:
            UsageError: as `normal_`, or std is negative or not finite.
        """
        if not 0.0 <= std < float("inf"):
            raise UsageError(f"noise standard deviation is {std}; it must be finite and not negative")
        self._normals(out, std)
        return out

    def _normals(self, out: Tensor, std: float | None) -> None:
        right_type = out.dtype in (torch.float32, torch.float64) and out.device.type == "cpu"
        if not right_type or not out.is_contiguous():
            raise UsageError(
                f"normals need a contiguous float32 or float64 CPU tensor, not {out.dtype} on {out.device} "
                f"with strides {tuple(out.stride())}; draw into a fresh one and copy"
            )
        flat = out.detach().view(-1).numpy()
        with self._lock:
            self._leave_parent()
            for start in range(0, len(flat), BLOCK):
                self._normal_block(flat[start : start + BLOCK], std)

    def _normal_block(self, block: npt.NDArray[Any], std: float | None) -> None:
        pairs = (len(block) + 1) // 2
        self._fill(self._words, pairs)
        self._fill(self._turns, pairs)
        words, wide, turns = self._words[:pairs], self._wide[:pairs], self._turns[:pairs]
        radius, angle, wave = (part[:pairs] for part in self._parts(block.dtype))
        # The conversion of a small integer is exact, so u has full relative precision near 0.
        np.right_shift(words, 1, out=words)
        np.copyto(wide, words.view(np.int64), casting="unsafe")
        np.add(wide, 0.5, out=wide)
        np.multiply(wide, 2.0**-63, out=wide)
        np.log(wide, out=wide)
        np.multiply(wide, -2.0, out=wide)
        np.copyto(radius, wide, casting="same_kind")
        np.sqrt(radius, out=radius)
        if std is not None:
            np.multiply(radius, radius.dtype.type(std), out=radius)
        np.copyto(angle, turns, casting="same_kind")
        np.multiply(angle, angle.dtype.type(_ANGLE_UNIT), out=angle)
        for circular, part in ((np.cos, block[:pairs]), (np.sin, block[pairs:])):
            count = len(part)
            circular(angle[:count], out=wave[:count])
            if std is None:
                np.multiply(wave[:count], radius[:count], out=part)
            else:
                np.multiply(wave[:count], radius[:count], out=wave[:count])
                np.add(part, wave[:count], out=part)

    def _parts(self, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], ...]:
        """Scratch in the output's precision, allocated on first use."""
        if dtype not in self._scratch:
            self._scratch[dtype] = tuple(np.empty(BLOCK // 2, dtype=dtype) for _ in range(3))
        return self._scratch[dtype]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._seed is None:
            return type(self).secure, (self.name,)
        lanes = tuple(lane.position for lane in self._lanes)
        return _restore, (type(self), self._seed, self.name, self._position, lanes)

    def __repr__(self) -> str:
        seed = "conditioned" if self._seed is None else f"seed={self._seed}"
        origin = "secret" if self.secret else seed
        return f"NoiseGenerator({self.name!r}, {origin})"


_ZEROS: Final = memoryview(bytes(1 << 18))


def _check_key(key: bytes) -> None:
    if len(key) != 32:
        raise UsageError(f"key has {len(key)} bytes; give the 32 that conditioning yields")


def _check_count(n: int) -> None:
    if n < 0:
        raise UsageError(f"number of random draws is {n}; it must not be negative")


def _restore(
    cls: type[NoiseGenerator], seed: int, name: str, position: int, lanes: tuple[int, ...]
) -> NoiseGenerator:
    generator = cls.seeded(seed, name)
    for lane, place in zip(generator.lanes(len(lanes)), lanes, strict=True):
        lane._seek(place)
    generator._seek(position)
    return generator
