"""`device-entropy`: the device supplies the entropy, a cryptographic generator the noise (THEORY T4, last part).

Dark frames go through health tests and a vetted conditioner (NIST SP 800-90B) into the key of the generator that
draws Z. The noise is then exactly as good as `digital`'s and costs the same: no law of the device's noise is
assumed, and no converter has to be ideal. What the device adds is a second source of secrecy beside the operating
system's; either of the two suffices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from noise_models.base import Frame
from noise_models.errors import HealthError, UsageError
from noise_models.health.entropy import ASSESSED_BITS, ContinuousTests, conditioned_key, differences
from noise_models.health.min_entropy import LEAST_SAMPLES, MinEntropy, assess
from noise_models.health.monitor import LEAST_PIXELS, LEAST_STD
from noise_models.health.replays import REPLAY_FALSE_ALARM, frame_digest
from noise_models.places import on_cpu
from noise_models.randomness.generator import NoiseGenerator
from noise_models.randomness.rounded_gaussian import TAIL_MASS
from privacy.contributions.protocols import DarkFrames
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedRelease
from privacy.releases.device_health import DeviceHealth
from privacy.releases.source import Departure, NoiseSource, Parts, WholeNormals, with_camera

# Releases between two keys. A public schedule: it looks at nothing but their number.
RESEED_RELEASES = 64
MOST_SAMPLES = 2 * LEAST_SAMPLES  # a large camera's pair of frames has more than an assessment needs


class DeviceEntropyNoise(NoiseSource):
    """Z from a generator keyed, and keyed anew every RESEED_RELEASES releases, from fresh dark frames.

    `device_share` is 0: none of the variance is the device's. Every pair of frames passes SP 800-90B's own tests and
    is compared with all earlier ones. A device whose noise is known by construction is also watched like one that
    supplies Z (`DeviceHealth`); one that earns no credit (an uneven converter, say) may serve all the same.

    Attributes:
        assessment: min-entropy of the start-up frames; None before `start_up`.
    """

    name = "device-entropy"
    _changing = frozenset({"_releases", "_rekeyed", "_unlogged"})
    assumptions = (
        "the key is secret: the min-entropy of the dark frames is at least a third of what SP 800-90B's estimators "
        "found in it, or the operating system's entropy is secret (HMAC-SHA-256 of both makes either suffice)",
        "the noise generator (AES-256 in counter mode) cannot be told from random bits",
    )

    def __init__(self, device: DarkFrames | None, system: NoiseGenerator, known: Iterable[str] = ()) -> None:
        """
        Args:
            device: the camera.
            system: the operating system's share of every key (a seeded generator in a reproducible run).
            known: digests of dark frames that earlier parts of the run logged.
        Raises:
            UsageError: no device, or one without dark frames.
        """
        device, known = with_camera(device), tuple(known)
        self.assessment: MinEntropy | None = None
        self._health = _watch(device, known)
        self._device = device
        self._system = system
        self._normals = WholeNormals()
        self._generator: NoiseGenerator | None = None
        self._releases = 0
        self._rekeyed = False
        self._seen = {bytes.fromhex(digest) for digest in known}
        self._unlogged: list[str] = []

    def start_up(self) -> dict[str, Any]:
        """Assess the device on frames that nothing else uses, then take the first key from further ones.

        Returns:
            what was found, for the ledger.
        Raises:
            DeviceError: too little entropy, or a failed health test.
        """
        found = {} if self._health is None else self._health.start_up()[1]
        pairs = math.ceil(LEAST_SAMPLES / self._device.dark_pixels)
        codes = self._codes(pairs)
        samples = differences(codes.astype(np.int32))
        self.assessment = assess(samples[:MOST_SAMPLES])
        tests = ContinuousTests(self.assessment.bits)
        statistics = tests.check(samples)
        self._refuse_replay(codes)
        self._key()
        return {
            **found,
            "watched": self._health is not None,
            "source": self.name,
            "standard": "NIST SP 800-90B, non-IID estimators without the predictors, upper 99 % bounds",
            "samples": self.assessment.samples,
            "alphabet": self.assessment.alphabet,
            "min_entropy_bits_per_sample": self.assessment.bits,
            "estimates": self.assessment.estimates,
            **statistics,
            "repetition_cutoff": tests.repetition,
            "proportion_cutoff": tests.proportion,
            "frames_per_key": 2 * self._pairs(),
            "assessed_bits_per_key": self._pairs() * self._device.dark_pixels * self.assessment.bits,
            "reseed_releases": RESEED_RELEASES,
            "false_alarm_per_key": tests.false_alarm(self._pairs() * self._device.dark_pixels),
        }

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        own = () if self._generator is None else (self._generator,)
        return (*own, self._system, *self._device.generators)

    def rekeyed(self) -> tuple[NoiseGenerator, ...]:
        """The generator, if it took a new key since this was last asked (the first key included)."""
        if self._generator is None or not self._rekeyed:
            return ()
        self._rekeyed = False
        return (self._generator,)

    def describe(self) -> dict[str, Any]:
        return {
            "argument": "the device keys a cryptographic generator and supplies none of the variance",
            "conditioner": "HMAC-SHA-256",
            "assessed_bits_needed": ASSESSED_BITS,
            "reseed_releases": RESEED_RELEASES,
            "health": None if self._health is None else self._health.describe(),
            "device": self._device.describe(),
        }

    def cost(self, dimension: int) -> Departure:
        return Departure(log_ratio=0.0, log_inflation=0.0, mass=dimension * TAIL_MASS)

    def prepare(self, std: float) -> None:
        self._normals.prepare(std)

    def add_noise(self, total: Tensor, std: float) -> None:
        """
        Raises:
            DeviceError: frames for a new key failed a health test.
            UsageError: before `start_up`.
        """
        if self._generator is None:
            raise UsageError("the generator has no key yet; call start_up first")
        if self._releases and self._releases % RESEED_RELEASES == 0:
            self._key()
        self._normals.add(total, std, self._generator)
        self._releases += 1

    def vouch(self) -> None:
        if self._health is not None:
            self._health.vouch()

    def _codes(self, pairs: int) -> npt.NDArray[Any]:
        codes: npt.NDArray[Any] = on_cpu(self._device.dark(2 * pairs)).numpy()
        return codes

    def _refuse_replay(self, frames: npt.NDArray[Any]) -> None:
        """No frame is drawn twice."""
        for frame in frames:
            digest = frame_digest(frame)
            if digest in self._seen:
                raise HealthError(
                    "health test 'replay' failed: a dark frame equals an earlier one; restart the camera and its "
                    "driver (nothing was released)",
                    {"test": "replay", "value": 1, "limit": 0, "false_alarm": REPLAY_FALSE_ALARM},
                )
            self._seen.add(digest)
            self._unlogged.append(digest.hex())

    def shown(self) -> tuple[str, ...]:
        own, self._unlogged = tuple(self._unlogged), []
        return own + (() if self._health is None else self._health.shown())

    def _pairs(self) -> int:
        """Pairs of frames whose assessed entropy makes a key."""
        assert self.assessment is not None
        return math.ceil(ASSESSED_BITS / (self.assessment.bits * self._device.dark_pixels))

    def _key(self) -> None:
        """A key from fresh, tested frames that nothing else uses."""
        assert self.assessment is not None
        codes = self._codes(self._pairs())
        frames = codes.astype(np.int32)
        samples = differences(frames)
        ContinuousTests(self.assessment.bits).check(samples)
        self._refuse_replay(codes)
        salt = self._system.uint64(4).tobytes()
        key = conditioned_key(frames, len(samples) * self.assessment.bits, salt, self.name)
        if self._generator is None:
            secret = self._system.secret and all(generator.secret for generator in self._device.generators)
            self._generator = NoiseGenerator.conditioned(key, "noise", secret=secret)
        else:
            self._generator.rekey(key)
        self._rekeyed = True


def _watch(device: DarkFrames, known: Iterable[str]) -> DeviceHealth | None:
    """The health tests of a device whose noise is known by construction, None for another's."""
    credit = device.noise.credit(Frame.DARK)
    if not credit.std >= LEAST_STD * credit.step > 0 or device.dark_pixels < LEAST_PIXELS:
        return None
    return DeviceHealth(device, known=known)


@ReleaseCard(
    summary="noise from a cryptographic generator that the device's dark frames key",
    statement="{drawn}. To the sum, normal noise {size} from a cryptographic generator, whose key the device's dark "
    "frames and the operating system supplied,{each}{only}",
    dark_frames=True,
    isotropic=True,
    workers=True,
)
def make(parts: Parts) -> ClippedRelease:
    """This release."""
    source = DeviceEntropyNoise(parts.device, parts.generator("system entropy"), parts.known)
    return ClippedRelease.of(parts, source)
