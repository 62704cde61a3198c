"""The promises of `ProjectionBackend`, each as a check that any backend can be run through.

    from optical_dfa.testing import BackendConformance, Limits

    class TestMyDevice(BackendConformance):  # pytest collects one test a promise
        limits = Limits(relative_noise=0.1)

        def make(self, in_features, out_features, seed):
            noise = NoiseGenerator.seeded(seed, "conformance")
            return MyDevice(in_features, out_features, seed=seed, noise=noise)

`check_backend(make, limits)` runs the same checks without pytest. Statistical checks allow six standard
errors: a sound device fails one with probability below 1e-8.
"""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from noise_models.base import Frame, NoNoise
from noise_models.errors import UsageError
from optical_dfa.backends.base import ProjectionBackend

Make = Callable[[int, int, int], ProjectionBackend]

_IN: Final = 10
_OUT: Final = 512
_SIGMAS: Final = 6.0
# Conformance inputs are ternary with this amplitude, so that every binary encoding is exact on them.
_AMPLITUDE: Final = 0.5
# Of one record beside ordinary ones: what depends on a batch's largest, smallest or mean shows at some of them.
_SCALES: Final = (0.0, 1e-30, 1e-6, 1e-2, 10.0, 1e3, 1e8, 1e30)


class ConformanceError(AssertionError):
    """A backend broke a promise; the message says which."""


@dataclass(frozen=True)
class Limits:
    """What a backend is allowed.

    Attributes:
        relative_noise: root mean square of `project(e) - B e` over that of `B e`, at most, for ternary e.
        reproducible: two devices made alike answer alike, noise included.
        noise_by_position: reproducible noise is drawn for a record's place in the batch, whatever the data are.
            False where a sampler's use of its stream follows the data (true Poisson counts): then only the LAW
            of a record's noise is the record's own, and its draws are compared within `relative_noise`.
    """

    relative_noise: float = 1e-5
    reproducible: bool = True
    noise_by_position: bool = True

    @property
    def between_twins(self) -> float:
        """Relative difference allowed between two devices made alike that were shown different neighbours."""
        return 1e-6 if self.reproducible and self.noise_by_position else 2 * self.relative_noise


def _require(condition: bool, promise: str) -> None:
    if not condition:
        raise ConformanceError(promise)


def _ternary(rows: int, seed: int, columns: int = _IN) -> Tensor:
    """Rows of -a, 0 and a, none of them all zero, float32."""
    stream = torch.Generator().manual_seed(seed)
    e = torch.randint(-1, 2, (rows, columns), generator=stream).float() * _AMPLITUDE
    e[:, 0] = _AMPLITUDE
    return e


def _close(answer: Tensor, expected: Tensor, limit: float, promise: str) -> None:
    error = float((answer - expected).double().norm() / expected.double().norm().clamp_min(1e-300))
    _require(error <= limit, f"{promise} (relative error {error:.3g}, allowed {limit:.3g})")


def _refuses(action: Callable[[], Any], promise: str) -> None:
    try:
        action()
    except UsageError as error:
        _require("\n" not in str(error) and len(str(error)) > 0, f"{promise}: the message is one line")
    else:
        raise ConformanceError(f"{promise} by a UsageError")


def check_shapes(make: Make, limits: Limits) -> None:
    """Shape, dtype and device follow the input, which is left alone; no gradient; results do not alias."""
    with make(_IN, _OUT, 1) as device:
        for dtype in (torch.float32, torch.float64):
            e = _ternary(5, 1).to(dtype).requires_grad_()
            before = e.detach().clone()
            out = device.project(e)
            _require(out.shape == (5, _OUT), f"project answers (m, out_features), not {tuple(out.shape)}")
            _require(out.dtype == dtype and out.device == e.device, "project keeps dtype and device")
            _require(not out.requires_grad, "no gradient flows through project")
            _require(torch.equal(e.detach(), before), "project leaves its input alone")
            kept = out.clone()
            for rows in (5, 2, 9, 5):
                device.project(-_ternary(rows, 2).to(dtype))
                _require(torch.equal(out, kept), "a later call does not change an earlier answer")
            out.fill_(torch.nan)  # callers scale the answer in place
            _require(torch.equal(e.detach(), before), "the answer does not share its input's memory")
            _require(
                bool(device.project(e).isfinite().all()), "what is written into an answer is in no later one"
            )
            strided = _ternary(5, 1, 2 * _IN).to(dtype)[:, ::2]
            _require(device.project(strided).shape == (5, _OUT), "project takes strided input")
            _require(device.project(e[:0]).shape == (0, _OUT), "an empty batch has an empty answer")
            _require(device.project(e[:0]).dtype == dtype, "an empty answer keeps its dtype")


def check_refusals(make: Make, limits: Limits) -> None:
    """Wrong shapes and types are refused in one line."""
    with make(_IN, _OUT, 1) as device:
        _refuses(lambda: device.project(torch.zeros(3, _IN + 1)), "a wrong width is refused")
        _refuses(lambda: device.project(torch.zeros(_IN)), "a vector is refused")
        _refuses(lambda: device.project(torch.zeros(3, 1, _IN)), "three dimensions are refused")
        _refuses(lambda: device.project(torch.zeros(3, _IN, dtype=torch.int64)), "integers are refused")
        _refuses(lambda: device.project(torch.zeros(3, _IN, dtype=torch.float16)), "float16 is refused")
    _refuses(lambda: make(0, _OUT, 1), "in_features = 0 is refused")
    _refuses(lambda: make(_IN, 0, 1), "out_features = 0 is refused")


def check_scale(make: Make, limits: Limits) -> None:
    """B's entries have mean 0 and the standard deviation the device states."""
    out_features = 4096
    with make(_IN, out_features, 1) as device:
        entries = device.project(torch.eye(_IN) * _AMPLITUDE).double() / _AMPLITUDE
        n = entries.numel()
        spread = float(entries.square().mean().sqrt()) / device.std
        # The noise of a single active input is at most sqrt(in) times that of a full one.
        noise = limits.relative_noise * sqrt(_IN)
        _require(
            abs(spread - 1) <= _SIGMAS / sqrt(2 * n) + noise,
            f"B's entries have standard deviation {device.std}: measured {spread * device.std:.4g}",
        )
        mean = float(entries.mean()) / device.std
        _require(abs(mean) <= (_SIGMAS + noise) / sqrt(n), f"B's entries have mean 0: measured {mean:.3g}")


def check_linear(make: Make, limits: Limits) -> None:
    """Sums project to sums, on ternary inputs of disjoint support; and to B e where B is known."""
    with make(_IN, _OUT, 1) as device:
        e = _ternary(64, 3)
        left, right = e.clone(), e.clone()
        left[:, _IN // 2 :] = 0
        right[:, : _IN // 2] = 0
        total = device.project(e)
        # Half the inputs carry half the signal but all of the noise.
        limit = 4 * limits.relative_noise
        _close(
            device.project(left) + device.project(right), total, limit, "project is linear on ternary input"
        )
        _close(device.project(-e), -total, limit, "project is odd")
        matrix = device.matrix()
        if matrix is not None:
            _require(matrix.shape == (_OUT, _IN), "matrix() has shape (out_features, in_features)")
            _close(total, e @ matrix.T, limits.relative_noise, "project agrees with matrix()")


def check_row_independence(make: Make, limits: Limits) -> None:
    """A record's answer does not depend on the other records of its batch (THEORY T3), of whatever size they are."""
    e = _ternary(16, 4)
    with make(_IN, _OUT, 1) as one:
        plain = one.project(e)
        alone = max(1e-6, 2 * limits.relative_noise)
        for row in (3, 0, 15):
            others = [other for other in range(16) if other != row]
            _close(one.project(e[others]), plain[others], alone, "a batch's size changes nothing")
            _close(
                one.project(e[row : row + 1]), plain[row : row + 1], alone, "a batch's size changes nothing"
            )
        _close(one.project(e.flip(0)).flip(0), plain, alone, "a batch's order changes nothing")
        twice = one.project(torch.cat([e, e[:8]]))
        _close(twice[:16], plain, alone, "records that are there twice change nothing")
        _close(twice[16:], plain[:8], alone, "records that are there twice are answered twice")
    for place, scale in enumerate(_SCALES):
        row = (3, 0, 15)[place % 3]
        others = [other for other in range(16) if other != row]
        for moved_rows, kept in (([row], others), (others, [row])):
            changed = e.clone()
            changed[moved_rows] = -scale * e[moved_rows].roll(1, 1)
            with make(_IN, _OUT, 1) as one, make(_IN, _OUT, 1) as two:
                _close(
                    two.project(changed)[kept],
                    one.project(e)[kept],
                    limits.between_twins,
                    f"changing {'one record' if kept is others else 'the other records'} by a factor of {scale:g} "
                    "leaves a record's answer alone",
                )


def check_repeats(make: Make, limits: Limits) -> None:
    """A device that declares no noise answers the same again; and no device keeps anything of what it was shown."""
    e, between = _ternary(8, 10), -1000.0 * _ternary(8, 11)
    with make(_IN, _OUT, 1) as used, make(_IN, _OUT, 1) as fresh:
        exact = isinstance(used.noise, NoNoise)
        first = used.project(e)
        if exact:
            promise = "a device without noise (NoNoise) answers the same errors alike; declare what moves its answers"
            for _ in range(3):
                _require(torch.equal(used.project(e), first), promise)
            torch.rand(1)  # moves the global generator
            _require(torch.equal(used.project(e), first), promise)
        for _ in range(3):
            used.project(between)
        again, expected = used.project(e), fresh.project(e) if exact else first
        promise = "an answer does not depend on what was projected before"
        _close(again, expected, 1e-6 if exact else 2 * limits.relative_noise, promise)


def check_generators(make: Make, limits: Limits) -> None:
    """Python's, numpy's and torch's own generators are left alone: noise comes from the one the device was given."""
    e = _ternary(8, 12)

    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()

    with make(_IN, _OUT, 1) as device:
        device.project(e)  # a device may set itself up at the first call
        before = states()
        device.project(e)
        _require(
            states() == before, "project draws from the generator it was given alone, not from a global one"
        )


def check_non_finite_rows(make: Make, limits: Limits) -> None:
    """A NaN or an infinity spoils its own row, visibly, and no other; it is not an error."""
    e = _ternary(16, 5)
    broken = e.clone()
    broken[2, 1], broken[5, 0], broken[9, 7] = torch.nan, torch.inf, -torch.inf
    bad = [2, 5, 9]
    good = [row for row in range(16) if row not in bad]
    with make(_IN, _OUT, 1) as one, make(_IN, _OUT, 1) as two:
        plain, answer = one.project(e), two.project(broken)
        _require(
            not bool(torch.isfinite(answer[bad]).all(dim=1).any()), "a non-finite record answers non-finite"
        )
        promise = "a non-finite record leaves the others' answers alone"
        _close(answer[good], plain[good], limits.between_twins, promise)


def check_seed(make: Make, limits: Limits) -> None:
    """The seed determines a reproducible device; different seeds give unrelated ones."""
    if not limits.reproducible:
        return
    e = _ternary(8, 6)
    with make(_IN, _OUT, 1) as one, make(_IN, _OUT, 1) as same, make(_IN, _OUT, 2) as other:
        first = one.project(e)
        _require(torch.equal(first, same.project(e)), "equal seeds answer alike")
        related = torch.nn.functional.cosine_similarity(first.flatten(), other.project(e).flatten(), dim=0)
        # 8 rows of rank 8 in 10 directions: the cosine's standard error is at most 1/sqrt(out).
        limit = _SIGMAS / sqrt(_OUT)
        _require(abs(float(related)) < limit, f"different seeds are unrelated (cosine {float(related):.3g})")


def check_fingerprint(make: Make, limits: Limits) -> None:
    """describe() is JSON, and the fingerprint tells devices apart and does not move with use."""
    with make(_IN, _OUT, 1) as one, make(_IN, _OUT, 1) as same, make(_IN, _OUT + 1, 1) as wider:
        json.dumps(one.describe(), allow_nan=False)
        before = one.fingerprint()
        one.project(_ternary(3, 7))
        _require(one.fingerprint() == before, "the fingerprint does not change with use")
        _require(same.fingerprint() == before, "devices made alike have equal fingerprints")
        _require(wider.fingerprint() != before, "the fingerprint depends on the size")
    if limits.reproducible:
        with make(_IN, _OUT, 2) as other:
            _require(other.fingerprint() != before, "the fingerprint depends on the seed")


def check_dark_frames(make: Make, limits: Limits) -> None:
    """Dark frames are raw, fresh, uncorrelated codes with at least the credited noise; or are refused."""
    with make(_IN, _OUT, 1) as device:
        if device.dark_pixels == 0:
            _refuses(lambda: device.dark(1), "dark frames without a camera are refused")
            return
        count = max(4, 200_000 // device.dark_pixels)
        codes = device.dark(count)
        _require(codes.shape == (count, device.dark_pixels), "dark answers (frames, dark_pixels)")
        _require(not codes.is_floating_point(), "dark frames are raw integer codes")
        _require(device.dark(0).shape == (0, device.dark_pixels), "no frames is not an error")
        again = device.dark(count)
        credit = device.noise.credit(Frame.DARK)
        if credit.std == 0.0:
            return
        # A camera's fixed pattern is not noise: each pixel's mean over all frames goes. That leaves a covariance
        # of -variance/frames between any two of them.
        both = torch.cat((codes, again)).double()
        both -= both.mean(dim=0)
        frames = len(both)
        x, y = both[:count], both[count:]
        variance = float(both.square().mean()) * frames / (frames - 1)
        standard_error = variance * sqrt(2 / both.numel())
        _require(
            variance >= credit.std**2 - _SIGMAS * standard_error,
            f"the credited noise is there: credit {credit.std**2:.4g} DN², measured {variance:.4g} DN²",
        )
        for label, pair, expected in (
            ("calls", (x.flatten(), y.flatten()), -1 / frames),
            ("frames", (x[:-1].flatten(), x[1:].flatten()), -1 / frames),
            ("pixels", (x.flatten()[:-1], x.flatten()[1:]), 0.0),
        ):
            correlation = float((pair[0] * pair[1]).mean()) / variance - expected
            _require(
                abs(correlation) < _SIGMAS / sqrt(pair[0].numel()),
                f"dark {label} are independent (correlation {correlation:.3g})",
            )


def check_closing(make: Make, limits: Limits) -> None:
    """A closed device refuses to work; closing twice is harmless; the context manager closes."""
    device = make(_IN, _OUT, 1)
    with device as entered:
        _require(entered is device, "the context manager answers the device")
    _refuses(lambda: device.project(_ternary(1, 8)), "projecting with a closed device is refused")
    _refuses(lambda: device.dark(1), "dark frames from a closed device are refused")
    device.close()


def check_copies(make: Make, limits: Limits) -> None:
    """A deepcopy shares the device; a pickle restores an equal one, or is refused."""
    with make(_IN, _OUT, 1) as device:
        _require(copy.deepcopy(device) is device, "a deepcopy is the device itself")
        try:
            text = pickle.dumps(device)
        except UsageError:
            return
        with pickle.loads(text) as restored:
            _require(restored.fingerprint() == device.fingerprint(), "a restored device has its fingerprint")
            e = _ternary(64, 9)
            limit = max(1e-6, 2 * limits.relative_noise)
            _close(restored.project(e), device.project(e), limit, "a restored device has its B")


def check_kept_components(make: Make, limits: Limits) -> None:
    """Asked to keep a part of its frame, a device stays what it is, and answers with the frame's own numbers."""
    e, asked = _ternary(64, 13), range(_OUT // 3, _OUT // 2)
    with make(_IN, _OUT, 1) as device, make(_IN, _OUT, 1) as whole:
        fingerprint, kept = device.fingerprint(), device.keep(asked)
        _require(
            set(asked) <= set(kept) <= set(range(_OUT)), "keep leaves out none of the components asked for"
        )
        expected = whole.project(e)[:, kept.start : kept.stop]
        promise = "a kept component's answer is the frame's"
        if isinstance(device.noise, NoNoise):
            _require(torch.equal(device.project(e), expected), f"{promise}, to the bit")
        _close(device.project(e), expected, max(1e-6, 2 * limits.relative_noise), promise)
        _require(device.fingerprint() == fingerprint, "a device that keeps a part is the device it was")


CHECKS: Final[tuple[Callable[[Make, Limits], None], ...]] = (
    check_shapes,
    check_refusals,
    check_scale,
    check_linear,
    check_row_independence,
    check_repeats,
    check_generators,
    check_non_finite_rows,
    check_seed,
    check_fingerprint,
    check_dark_frames,
    check_closing,
    check_copies,
    check_kept_components,
)


def check_backend(make: Make, limits: Limits | None = None) -> list[str]:
    """Run every check; the names of those that passed.

    Args:
        make: builds a device from (in_features, out_features, seed), its noise seeded by the same seed.
        limits: what the device is allowed; exact and reproducible by default.

    Raises:
        ConformanceError: the first broken promise.
    """
    for check in CHECKS:
        check(make, limits or Limits())
    return [check.__name__ for check in CHECKS]


class BackendConformance:
    """Base of a pytest class: override `make`, and `limits` for a device with noise."""

    limits: Limits = Limits()

    def make(self, in_features: int, out_features: int, seed: int) -> ProjectionBackend:
        """The device under test, its noise seeded by `seed`."""
        raise NotImplementedError

    def test_shapes(self) -> None:
        check_shapes(self.make, self.limits)

    def test_refusals(self) -> None:
        check_refusals(self.make, self.limits)

    def test_scale(self) -> None:
        check_scale(self.make, self.limits)

    def test_linear(self) -> None:
        check_linear(self.make, self.limits)

    def test_row_independence(self) -> None:
        check_row_independence(self.make, self.limits)

    def test_repeats(self) -> None:
        check_repeats(self.make, self.limits)

    def test_generators(self) -> None:
        check_generators(self.make, self.limits)

    def test_non_finite_rows(self) -> None:
        check_non_finite_rows(self.make, self.limits)

    def test_seed(self) -> None:
        check_seed(self.make, self.limits)

    def test_fingerprint(self) -> None:
        check_fingerprint(self.make, self.limits)

    def test_dark_frames(self) -> None:
        check_dark_frames(self.make, self.limits)

    def test_closing(self) -> None:
        check_closing(self.make, self.limits)

    def test_copies(self) -> None:
        check_copies(self.make, self.limits)

    def test_kept_components(self) -> None:
        check_kept_components(self.make, self.limits)
