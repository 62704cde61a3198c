"""A device that breaks its promises is named itself: its rule is not blamed for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.digital import DigitalBackend


class Restless(DigitalBackend):
    """Declares no noise and answers differently each time."""

    name = "restless"

    def _project(self, e: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super()._project(e) * (1 + 1e-6 * self.calls)


class Alternating(DigitalBackend):
    """Every third answer is another."""

    name = "alternating"

    def _project(self, e: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super()._project(e) * (2 if self.calls % 3 == 0 else 1)


class Undeclared(DigitalBackend):
    """Has noise from torch's global generator that it does not declare."""

    name = "undeclared"

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e) + 1e-3 * torch.randn(len(e), self.out_features, dtype=e.dtype)


class Pooled(DigitalBackend):
    """Scales a batch by its largest error."""

    name = "pooled"

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e / e.abs().max().clamp_min(1e-9))


class Clamped(DigitalBackend):
    """Scales a batch whose largest error is above a million."""

    name = "clamped"

    def _project(self, e: Tensor) -> Tensor:
        return super()._project(e / (e.abs().max() / 1e6).clamp_min(1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Restless, "backend restless declares no noise"),
        (Alternating, "backend alternating declares no noise"),
        (Undeclared, "backend undeclared declares no noise"),
        (Pooled, "backend pooled mixes records"),
        (Clamped, "backend clamped mixes records"),
    ],
)
@pytest.mark.parametrize("rule", ["dfa", "sign-dfa"])
def test_the_device_is_named(kind: type[DigitalBackend], words: str, rule: str) -> None:
    device = kind(3, 8, seed=0, noise=NoiseGenerator.seeded(0, "test"))
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    aligned = align(net, rule=rule, backend=device, show=None)
    with pytest.raises(UsageError) as error:
        aligned.start_capture()
    assert words in str(error.value)
    assert "rule " not in str(error.value)
    assert "\n" not in str(error.value)
