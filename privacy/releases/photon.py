"""`photon`: the shot noise of the light that carries the sum is the noise (THEORY T10).

The records' clipped, whole-number sum S is cut into columns of p entries, clamped to what a macro-pixel holds, and
every column, zero ones too, is shown as amplitudes in one exposure each and read by interference with a strong
reference. A count's amplitude, the square root of its rate, has the same noise at every intensity: this is why shot
noise may be credited. One record moves all amplitudes of a step by at most κ M D, and a step costs Φ_a κ² M² D² at
Rényi's order a. What follows the photo-electrons (amplifier, dark counts, converter, the pseudo-inverse that reads the
columns back) is post-processing. The attenuator κ is set from the noise that is asked for.

Under rule `gated-dfa` the columns are those of A (blocks of them where the network has gates of its own), B is the
medium itself, and `B B⁺` of what was read is the update: the projection that protects is the rule's own. Every other
rule's sum goes through the medium as columns of any p entries and is read back (corollary of T10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noise_models.calibration.document import DRIFT_ALLOWANCE
from noise_models.calibration.light import LightCalibration, refuse_moved
from noise_models.calibration.probed_light import ProbedLight
from noise_models.errors import DeviceError, UsageError
from noise_models.places import on_cpu
from noise_models.randomness.generator import NoiseGenerator
from privacy.accounting.photon import LARGEST_CHANGE
from privacy.contributions.integers import least_bound
from privacy.contributions.protocols import (
    FactoredContributions,
    PhotonDevice,
    PhotonLimits,
    PhotonReadout,
)
from privacy.ledger import ReleaseEvent
from privacy.releases.card import ReleaseCard
from privacy.releases.clipped import ClippedSum
from privacy.releases.device_health import FAULT_LASTS, DeviceHealth, refuse_other
from privacy.releases.source import Departure, Parts, Source

# Of a field to its reference, at most: the clamp follows from it. M grows with it, by two arms a few percent, by one
# arm more: it is less where M would be beyond this much above its least.
RATIO: Final = 0.25
NORM_GROWTH: Final = 1.1
ROWS: Final = 16  # entries of an answer for each of a column, where the projection is not the rule's own
_COLUMNS: Final = 8192  # shown at a time


def measured_limits(calibration: LightCalibration) -> PhotonLimits:
    """What a calibration allows to count on: its limits, less what the light path may drift unseen (THEORY T8)."""
    wider, fainter = 1 + DRIFT_ALLOWANCE, 1 - DRIFT_ALLOWANCE
    return PhotonLimits(
        norm=calibration.norm * wider,
        row=calibration.row * wider,
        reach=calibration.reach * wider,
        reference=calibration.least * fainter,
        least=calibration.least * fainter,
        beta=calibration.beta,
    )


class Level(NamedTuple):
    """A light level.

    Attributes:
        light: κ, √photo-electrons a mirror; of a calibrated light path its upper limit.
        most: K, at which entries of the sum are clamped.
        ratio: ρ, upper limit of a field over the reference.
        change: η, largest relative change of an amplitude by a record.
    """

    light: float
    most: int
    ratio: float
    change: float


class ShotNoise(Source):
    """The light path, and the light level at which its shot noise is what was asked for."""

    name = "photon"
    device_share = 1.0
    calibration: LightCalibration | None

    def __init__(
        self,
        device: PhotonDevice,
        readout: PhotonReadout,
        bound: int,
        calibration: LightCalibration | None = None,
        known: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            device: whose light it is.
            readout: its light path, or a part of its pixels.
            bound: D of the whole numbers.
            calibration: what the light path was measured to do at most; None takes what the device says of itself.
            known: digests of dark frames that earlier parts of the run logged.
        """
        self.readout, self._device, self._bound = readout, device, bound
        self.calibration = calibration
        self._health = DeviceHealth(device, known=known)
        self._limits = lru_cache(maxsize=64)(self._known_limits)
        self.beta = self._limits(RATIO).beta
        self._ratio = self._largest_ratio()
        self.assumptions = (
            "the counts of photo-electrons are independent Poisson ones, given the fields: the light is coherent, no "
            "more regular than that; what is common to an exposure (intensity, phase) does not depend on records"
            + ("" if device.physical else " (in the simulated device: by construction)"),
            "mirrors, medium and light keep no memory of records (no heating, no exposure control), and a pattern is "
            "static while it is exposed",
            "M and ρ are upper limits and the reference's amplitude a lower one, in photo-electrons, mirrors' "
            "inequality, drift of intensity and phase included"
            + (
                f" (measured: calibration {calibration.digest[:16]} of {calibration.taken_at}, whatever the "
                f"reference's phase, except with probability {calibration.beta:g})"
                if calibration is not None
                else ""
                if device.physical
                else " (in the simulated device: computed from its matrix)"
            ),
            *(() if calibration is None else calibration.assumptions),
            "no light returns to the mirrors: the field is linear in them",
            FAULT_LASTS,
            *(
                ()
                if device.physical
                else (
                    "the simulated device's generator (AES-256 in counter mode) cannot be told from random bits",
                )
            ),
        )

    @property
    def generators(self) -> tuple[NoiseGenerator, ...]:
        return self._device.generators

    def _known_limits(self, ratio: float) -> PhotonLimits:
        return self.readout.limits(ratio) if self.calibration is None else measured_limits(self.calibration)

    def level(self, noise_multiplier: float) -> Level:
        """The light level at which 1 / (2 κ M D) is this noise multiplier or more."""
        target = 1 / (2 * noise_multiplier * self._bound)  # κ M
        limits = self._limits(0.0)
        # M grows with ρ, so that the ρ which the smallest M asks for covers the κ which its own M allows.
        ratio = target / limits.norm * limits.reach * self.readout.most / limits.reference * (1 + 1e-9)
        ratio = min(ratio, self._ratio)
        limits = self._limits(ratio)
        light = target / limits.norm
        most = min(self.readout.most, math.floor(ratio * limits.reference / (light * limits.reach)))
        change = light * self._bound * limits.row / ((1 - ratio) * limits.least)
        return Level(light, most, ratio, min(change, LARGEST_CHANGE))

    def _largest_ratio(self) -> float:
        """ρ that an entry may fill, from below."""
        most, low, high = NORM_GROWTH * self._limits(0.0).norm, 0.0, RATIO
        if self._limits(high).norm <= most:
            return high
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self._limits(middle).norm <= most else (low, middle)
        return low

    def norm(self, ratio: float) -> float:
        """M, upper limit, where |E| is at most `ratio` of |r|."""
        return self._limits(ratio).norm

    def limits_hold(self, ratio: float) -> None:
        """Whether the device is still within the limits that its light level was set from.

        Raises:
            DeviceError: it is not.
        """
        own = self._limits(ratio) if self.calibration is None else self.readout.limits(ratio)
        if not self.readout.keeps(own, ratio):
            raise DeviceError(
                "the medium or the light has moved beyond what the light level was set for; nothing more is released "
                "(a run of fewer steps, or a medium that ages more slowly, stays within it)"
            )

    def start_up(self) -> dict[str, Any]:
        self._refuse_other()
        found = self._health.start_up()[1]
        if self.calibration is not None:
            path = cast(ProbedLight, self._device.photon_readout(self.calibration.rows))
            found["light_since_calibration"] = refuse_moved(path, self.calibration)
        return found

    def vouch(self) -> None:
        self._refuse_other()
        self._health.vouch()

    def _refuse_other(self) -> None:
        if self.calibration is not None:
            refuse_other(self.calibration, self.readout.fingerprint())
            self.calibration.refuse_larger(self.readout.inputs, self.readout.rows, self.readout.most)

    def setting(self, light: float) -> float:
        """Of the attenuator, at which κ is at most `light`.

        Raises:
            UsageError: the light path was not measured in so little light.
        """
        if self.calibration is None:
            return light
        found = self.calibration.setting(light)
        if found is None:
            raise UsageError(
                f"light {light:.3g} is asked for, and the calibration knows of {self.calibration.attenuator[0][0]:.3g} "
                "and more; take a larger epsilon, or calibrate with more frames (--frames)"
            )
        return found

    def shown(self) -> tuple[str, ...]:
        return self._health.shown()

    def cost(self, dimension: int) -> Departure:
        columns = math.ceil(dimension / self.readout.inputs)
        return Departure(0.0, 0.0, columns * self.readout.counts * self.readout.count_mass)


class PhotonRelease(ClippedSum[ShotNoise]):
    """The clipped sum as light carries it: columns read back by the pseudo-inverse of what the device answers.

    Attributes:
        source: the light path.
    """

    mechanism = "photon"
    _changing = ClippedSum._changing | {"_read"}

    def __init__(
        self,
        contributions: FactoredContributions,
        device: PhotonDevice,
        readout: PhotonReadout,
        coins: NoiseGenerator,
        *,
        max_grad_norm: float,
        expected_batch_size: float,
        calibration: LightCalibration | None = None,
        known: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            contributions, coins, max_grad_norm, expected_batch_size: as for `ClippedSum`.
            device: whose light it is.
            readout: its light path.
            calibration: what it was measured to do at most; None takes what the device says of itself.
            known: digests of dark frames that earlier parts of the run logged.
        """
        steps = self.least_steps(contributions.stacked)
        super().__init__(
            contributions,
            ShotNoise(device, readout, steps, calibration, known),
            coins,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            grid_steps=steps,
        )
        self._level: Level | None = None
        self._setting = 0.0
        self._rate = device.frame_rate_hz
        self._columns = math.ceil(self.dimension / readout.inputs)
        self._order = np.arange(self.dimension)
        if contributions.projects:
            self._order = _in_columns(contributions.stacked, readout.inputs)
        self.exposures = self._columns * readout.exposures
        self._read: NDArray[np.float64] | None = None

    @staticmethod
    def least_steps(shapes: Sequence[Sequence[int]]) -> int:
        """A coarse grid: mirrors count its steps."""
        return least_bound(shapes, 1 << 8, 1 / 20)

    def event(self, sample_rate: float, noise_multiplier: float, epoch: int = 0) -> ReleaseEvent:
        row = super().event(sample_rate, noise_multiplier, epoch)
        return replace(row, sensitivity=self.source.level(noise_multiplier).change)

    def prepare(self, noise_multiplier: float) -> None:
        """
        Raises:
            UsageError: so little noise takes more light than the reference bears.
        """
        level = self.source.level(noise_multiplier)
        if level.most < self.steps or level.change >= LARGEST_CHANGE:
            raise UsageError(
                f"noise multiplier {noise_multiplier:.4g} leaves room for {level.most} steps of the grid in an entry "
                f"of the sum, and one record may fill {self.steps}; take a smaller epsilon, more mirrors (backend "
                "option mirrors) or a camera with a larger full well"
            )
        self._setting = self.source.setting(level.light)
        self._level = level

    def describe(self) -> dict[str, Any]:
        """What a step takes of the device, and the light level where one was set."""
        readout, found = self.source.readout, super().describe()
        found |= {
            "light_path": readout.describe(),
            "columns_a_step": self._columns,
            "counts_a_column": readout.counts,
            "count_mass": readout.count_mass,
            "exposures_a_step": self.exposures,
            "seconds_a_step": self.exposures / self._rate if self._rate else None,
            "mirrors": readout.mirrors,
        }
        if self._level is not None:
            found |= {
                "photo_electrons_a_mirror": self._level.light**2,
                "attenuator": self._setting,
                "clamp": self._level.most,
                "largest_field_over_reference": self._level.ratio,
                "norm": self.source.norm(self._level.ratio),
                "largest_change_of_an_amplitude": self._level.change,
            }
        return found

    def _add_noise(self, noise_multiplier: float) -> None:
        level, readout = self._level, self.source.readout
        if level is None or level != self.source.level(noise_multiplier):
            raise UsageError(
                f"the light level is not set for noise multiplier {noise_multiplier}; call prepare first"
            )
        self.source.limits_hold(level.ratio)
        total = on_cpu(self._sum.total).numpy().astype(np.int64)
        columns = np.zeros((self._columns, readout.inputs), np.int64)
        columns.reshape(-1)[: self.dimension] = np.clip(total[self._order], -level.most, level.most)
        inverse = np.ascontiguousarray(np.linalg.pinv(readout.response).T)  # of the medium as it is now
        read = np.empty((self._columns, readout.inputs))
        for start in range(0, self._columns, _COLUMNS):
            part = slice(start, start + _COLUMNS)
            np.matmul(readout.show(columns[part], self._setting), inverse, out=read[part])
        self._read = read

    def _released(self) -> Tensor:
        assert self._read is not None  # add_noise came before
        flat = np.empty(self.dimension)
        flat[self._order] = self._read.reshape(-1)[: self.dimension]
        self._read = None
        flat *= 1 / (self._grid * self.expected_batch_size)
        return self.contributions.unpack(torch.from_numpy(flat).to(self._sum.total.device, self._dtype))

    def _forget(self) -> None:
        super()._forget()
        self._read = None


def _in_columns(shapes: Sequence[Sequence[int]], inputs: int) -> NDArray[np.int64]:
    """The entries of a stack that the rule projects, in the order in which columns of `inputs` entries show them.

    A block of as many rows, or of several times as many, is shown by its own columns, any other as it stands.
    """
    order, start = [], 0
    for shape in shapes:
        block = np.arange(start, start := start + math.prod(shape))
        if shape and shape[0] % inputs == 0:
            block = block.reshape(shape[0] // inputs, inputs, -1).transpose(0, 2, 1).reshape(-1)
        order.append(block)
    return np.concatenate(order)


@ReleaseCard(
    summary="the shot noise of the light that carries the sum, and nothing else",
    statement="{drawn}, rounded to whole numbers of a public grid and bounded there. The sum over the records, of "
    "{dimension} coordinates, went through the device as amplitudes of light, column by column, and photo-electrons "
    "were counted. The shot noise of a count's amplitude is {noise} times the most that one record moves all of them "
    "by, taken together, and no record changes a single one by more than {sensitivity} of itself. Only what was "
    "counted reached the weights.",
    mechanism="photon",
    dark_frames=True,
    calibration="noise_models.calibration.light:LightCalibration",
    light=True,
    workers=True,
    sum_projected="gated-dfa",
    backend="simulated-opu",
    backend_options=(("method", "homodyne"),),
)
def make(parts: Parts) -> PhotonRelease:
    """This release.

    Raises:
        UsageError: the rule has no device, or one that shows no amplitudes, or a real one that nobody calibrated.
    """
    if parts.device is None:
        raise UsageError(
            "no trained layer is taught through a device, so there is no light; use --rule dfa or gated-dfa with "
            "--backend simulated-opu and a hidden layer that is trained, or --release digital"
        )
    device = cast(PhotonDevice, parts.device)
    whole = device.photon_readout()  # refuses before anything is recorded
    if device.physical and parts.calibration is None:
        raise UsageError(
            f"the light of backend {device.name} is real, and what it does at most is not known; measure it: "
            "optical-dfa calibrate --photon, and give --calibration FILE"
        )
    contributions = cast(FactoredContributions, parts.start_capture("light"))
    rows = whole.rows if contributions.projects else min(whole.rows, ROWS * whole.inputs)
    return PhotonRelease(
        contributions,
        device,
        device.photon_readout(rows),
        parts.generator("rounding"),
        max_grad_norm=parts.max_grad_norm,
        expected_batch_size=parts.expected_batch_size,
        calibration=cast("LightCalibration | None", parts.calibration),  # the engine saw to it
        known=parts.known,
    )
