"""Every shipped backend keeps the promises of the interface, and the suite notices those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from noise_models.camera import PhysicalCamera
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create
from optical_dfa.backends.base import ProjectionBackend
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.backends.interferometry import METHODS
from optical_dfa.backends.simulated_opu import FIDELITIES, SimulatedOpuBackend
from optical_dfa.testing import CHECKS, BackendConformance, ConformanceError, Limits, check_backend


class _Shipped(BackendConformance):
    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def make(self, in_features: int, out_features: int, seed: int) -> ProjectionBackend:
        return create(
            self.name,
            in_features=in_features,
            out_features=out_features,
            seed=seed,
            noise=NoiseGenerator.seeded(seed, "conformance"),
            options=self.options,
        )


class TestDigital(_Shipped):
    name = "digital"


class TestDigitalUniform(_Shipped):
    name = "digital"
    options: ClassVar[dict[str, Any]] = {"distribution": "uniform"}


class TestStreamed(_Shipped):
    name = "streamed"


class TestStructured(_Shipped):
    name = "structured"


class TestSimulatedOpu(_Shipped):
    name = "simulated-opu"
    limits = Limits(relative_noise=0.08)


class TestSimulatedOpuAbsolute(_Shipped):
    name = "simulated-opu"
    options: ClassVar[dict[str, Any]] = {"encoding": "ternary-absolute", "amplitude": 0.5, "threshold": 0.2}
    limits = Limits(relative_noise=0.08)


class TestSimulatedOpuBitPlanes(_Shipped):
    name = "simulated-opu"
    options: ClassVar[dict[str, Any]] = {"encoding": "bit-planes", "bits": 6, "adc_bits": 12}
    limits = Limits(relative_noise=0.08)


# Every method, with the imperfections that go beyond the default.
_METHODS: dict[str, dict[str, Any]] = {
    "phase-4": {},
    "phase-3": {"contrast": 200.0, "decorrelation_seconds": 3600.0},
    "anchor": {"drift_per_hour": 0.01, "prnu": 0.003},
    "balanced": {"camera": "scientific-cmos"},
    "homodyne": {"camera": "industrial"},
    "off-axis": {"contrast": 500.0, "dark_pixels": 8192},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_simulated_opu_in_every_way(check: Any, fidelity: str, method: str) -> None:
    options = {"encoding": "ternary", "fidelity": fidelity, "method": method, "dark_pixels": 4096}
    options |= {
        key: value for key, value in _METHODS[method].items() if fidelity == "physics" or key != "prnu"
    }

    def make(n_in: int, n_out: int, seed: int) -> ProjectionBackend:
        noise = NoiseGenerator.seeded(seed, "conformance")
        return create(
            "simulated-opu", in_features=n_in, out_features=n_out, seed=seed, noise=noise, options=options
        )

    check(make, Limits(relative_noise=0.13, noise_by_position=fidelity == "effective"))


class TestLightonmlSimulated(_Shipped):
    name = "lightonml-simulated"


class TestLightonmlSimulatedBitPlanes(_Shipped):
    name = "lightonml-simulated"
    options: ClassVar[dict[str, Any]] = {"encoding": "bit-planes"}


class _BatchMaximum(DigitalBackend):
    """Rounds to a scale that the whole batch shares: couples records."""

    def _project(self, e: Tensor) -> Tensor:
        scale = torch.nan_to_num(e).abs().amax() if len(e) else 1.0
        return super()._project((e / scale * 100).round() * scale / 100)


class _Reused(DigitalBackend):
    """Answers out of one buffer."""

    def _project(self, e: Tensor) -> Tensor:
        answer = super()._project(e)
        if not hasattr(self, "_buffer") or self._buffer.shape != answer.shape:
            self._buffer = answer
        return self._buffer.copy_(answer)


class _NanSpreads(DigitalBackend):
    """Subtracts a batch mean of zero weight: 0 * NaN."""

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e) + 0.0 * e.sum()


class _NanHidden(DigitalBackend):
    """Turns a broken record into an ordinary one."""

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(torch.nan_to_num(e))


class _WrongScale(DigitalBackend):
    std = 1.05


class _Rectified(DigitalBackend):
    """What forgetting the negative frame does."""

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e.clamp_min(0))


class _SeedIgnored(DigitalBackend):
    def __init__(self, n_in: int, n_out: int, *, seed: int, noise: NoiseGenerator) -> None:
        super().__init__(n_in, n_out, seed=0, noise=noise)


class _ForgetfulFingerprint(DigitalBackend):
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "seed": 0}


class _NeverClosed(DigitalBackend):
    def close(self) -> None:
        pass


class _Replayed(SimulatedOpuBackend):
    """Hands the same dark frames out again."""

    def dark(self, frames: int) -> Tensor:
        self._require_open()
        if frames not in self._old:
            self._old[frames] = super().dark(frames)
        return self._old[frames]

    def __init__(self, n_in: int, n_out: int, *, seed: int, noise: NoiseGenerator) -> None:
        super().__init__(n_in, n_out, seed=seed, noise=noise)
        self._old: dict[int, Tensor] = {}


class _Quiet(SimulatedOpuBackend):
    """Has 5 % less dark noise than it claims credit for."""

    def __init__(self, n_in: int, n_out: int, *, seed: int, noise: NoiseGenerator) -> None:
        super().__init__(n_in, n_out, seed=seed, noise=noise)
        self.noise.camera = replace(self.noise.camera, read_noise_electrons=4.75)
        self.noise.credit = PhysicalCamera(replace(self.noise.camera, read_noise_electrons=5.0)).credit  # type: ignore[method-assign]


class _Restless(DigitalBackend):
    """Declares no noise and does not repeat."""

    def _project(self, e: Tensor) -> Tensor:
        self._calls = getattr(self, "_calls", 0) + 1
        return super()._project(e) * (1 + 1e-6 * self._calls)


class _Warming(DigitalBackend):
    """Its gain creeps with what it has been shown."""

    def _project(self, e: Tensor) -> Tensor:
        answer = super()._project(e) * getattr(self, "_gain", 1.0)
        if float(torch.nan_to_num(e).abs().amax() if len(e) else 0.0) > 100:
            self._gain = 1.01
        return answer


class _GlobalNoise(DigitalBackend):
    """Noise too small for the limits, from torch's global generator."""

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e) + 1e-9 * torch.randn(len(e), 1, dtype=e.dtype)


class _NumpyNoise(SimulatedOpuBackend):
    """More noise, from numpy's global generator."""

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e) + 1e-9 * float(np.random.standard_normal())


class _PooledAnswers(DigitalBackend):
    """Answers are views of one buffer as large as the largest batch."""

    def _project(self, e: Tensor) -> Tensor:
        if not hasattr(self, "_buffer") or len(self._buffer) < len(e) or self._buffer.dtype != e.dtype:
            self._buffer = torch.empty(2 * len(e), self.out_features, dtype=e.dtype)
        return self._buffer[: len(e)].copy_(super()._project(e))


class _Remembered(DigitalBackend):
    """Hands the same answer out for the same errors, with what its caller wrote into it."""

    def _project(self, e: Tensor) -> Tensor:
        known = self.__dict__.setdefault("_known", {})
        key = str(e.tolist()), e.dtype
        if key not in known:
            known[key] = super()._project(e)
        return known[key]


class _ClampedByTheLargest(DigitalBackend):
    """Scales down a batch whose largest error is above what an ordinary batch holds."""

    def _project(self, e: Tensor) -> Tensor:
        largest = torch.nan_to_num(e).abs().amax() if len(e) else torch.ones(())
        return super()._project(e / (largest / 1e4).clamp_min(1))


class _Muted(DigitalBackend):
    """Answers nothing to a batch with a faint record in it."""

    def _project(self, e: Tensor) -> Tensor:
        faint = bool(((e.norm(dim=1) > 0) & (e.norm(dim=1) < 1e-5)).any())
        return super()._project(e) * (not faint)


class _Ordered(DigitalBackend):
    """The last record's answer is the first's as well where the batch is of even size."""

    def _project(self, e: Tensor) -> Tensor:
        answer = super()._project(e)
        return answer if len(e) % 2 or not len(e) else answer + 1e-3 * answer[-1]


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (_Restless, "check_repeats"),
        (_Warming, "check_repeats"),
        (_GlobalNoise, "check_generators"),
        (_NumpyNoise, "check_generators"),
        (_PooledAnswers, "check_shapes"),
        (_Remembered, "check_shapes"),
        (_ClampedByTheLargest, "check_row_independence"),
        (_Muted, "check_row_independence"),
        (_Ordered, "check_row_independence"),
        (_BatchMaximum, "check_row_independence"),
        (_Reused, "check_shapes"),
        (_NanSpreads, "check_non_finite_rows"),
        (_NanHidden, "check_non_finite_rows"),
        (_WrongScale, "check_scale"),
        (_Rectified, "check_linear"),
        (_SeedIgnored, "check_seed"),
        (_ForgetfulFingerprint, "check_fingerprint"),
        (_NeverClosed, "check_closing"),
        (_Replayed, "check_dark_frames"),
        (_Quiet, "check_dark_frames"),
    ],
)
def test_suite_catches(broken: Any, caught_by: str) -> None:
    def make(n_in: int, n_out: int, seed: int) -> ProjectionBackend:
        device: ProjectionBackend = broken(
            n_in, n_out, seed=seed, noise=NoiseGenerator.seeded(seed, "conformance")
        )
        return device

    check = next(check for check in CHECKS if check.__name__ == caught_by)
    with pytest.raises(ConformanceError):
        check(make, Limits(relative_noise=0.08 if issubclass(broken, SimulatedOpuBackend) else 1e-5))


def test_check_backend_runs_every_check() -> None:
    names = check_backend(TestDigital().make)
    assert names == [check.__name__ for check in CHECKS]
    methods = {name.removeprefix("test_") for name in vars(BackendConformance) if name.startswith("test_")}
    assert methods == {name.removeprefix("check_") for name in names}
