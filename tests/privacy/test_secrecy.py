"""Randomness that somebody could repeat makes a run's kind `none`, wherever its generator hides."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from noise_models.base import NoiseModel, NoNoise, UncalibratedNoise
from noise_models.gaussian import GaussianNoise
from noise_models.randomness.generator import NoiseGenerator
from optical_dfa import align
from optical_dfa.backends.digital import DigitalBackend
from optical_dfa.feedback.rules.dfa import DirectFeedbackAlignment
from privacy.engine import PrivacyEngine
from privacy.guarantee import Guarantee
from privacy.notions import Kind
from privacy.secrecy import unsecret

N = 40
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(1))
_RNG = np.random.default_rng(0)


def guarantee(release: str = "digital", seed: int | None = None, **aligning: Any) -> Guarantee:
    net = aligning.pop("net", None) or nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    engine = PrivacyEngine(reproducible_seed=seed)
    engine.make_private(
        module=align(net, **{"rule": "dfa", "show": None, **aligning}),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(X, Y), batch_size=8),
        noise_multiplier=1.0, max_grad_norm=0.5, release=release,
    )  # fmt: skip
    return engine.get_guarantee(1e-3)


def none_because(words: str, **aligning: Any) -> None:
    with pytest.warns(UserWarning, match="kind none") as told:
        found = guarantee(**aligning)
    assert found.kind is Kind.NONE
    assert found.epsilon == float("inf")
    assert any(words in text for text in found.assumptions)
    [line] = [str(one.message) for one in told if "kind none" in str(one.message)]
    assert words in line
    assert "\n" not in line


SMALL = {"dark_pixels": 1 << 14}


@pytest.mark.parametrize("release", ["digital", "skellam", "dark-frame"])
def test_a_seeded_device_under_a_secret_release(release: str) -> None:
    none_because(
        "seeded generator 'device'", release=release, backend="simulated-opu", backend_options=SMALL,
        noise=NoiseGenerator.seeded(3, "device"),
    )  # fmt: skip


def test_secret_devices_and_devices_that_draw_nothing_keep_the_guarantee(
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert guarantee().kind is Kind.RECORD_DP
    assert (
        guarantee(noise=NoiseGenerator.seeded(3, "device")).kind is Kind.RECORD_DP
    )  # digital: it draws nothing
    for options in (SMALL, {**SMALL, "fidelity": "physics", "decorrelation_seconds": 3600.0, "fault": None}):
        assert guarantee(backend="simulated-opu", backend_options=options).kind is Kind.RECORD_DP
    assert guarantee(rule="bp").kind is Kind.RECORD_DP
    assert not [one for one in recwarn if "kind none" in str(one.message)]


def test_a_reproducible_run_is_not_warned_of_itself(recwarn: pytest.WarningsRecorder) -> None:
    assert guarantee(seed=1).kind is Kind.NONE
    assert not [one for one in recwarn if "kind none" in str(one.message)]


# ---- devices and rules of other packages


class Noisy(DigitalBackend):
    """A simulated device of another package."""

    def __init__(
        self, draw: Callable[[Tensor], Tensor], shown: tuple[NoiseGenerator, ...] = (), **beside: Any
    ) -> None:
        super().__init__(4, 6, seed=0, noise=NoiseGenerator.secure("unused"))
        del self._generator
        self.noise: NoiseModel = GaussianNoise(0.1)
        self.draw, self.generators = draw, shown
        self.__dict__.update(beside)

    def _project(self, e: Tensor) -> Tensor:
        out = super()._project(e)
        return out + 0.1 * self.draw(out)


class Hardware(Noisy):
    physical: ClassVar[bool] = True


def secret_normals(generator: NoiseGenerator) -> Callable[[Tensor], Tensor]:
    return lambda out: generator.normal_(torch.empty(out.shape))


def global_numpy(out: Tensor) -> Tensor:
    return torch.from_numpy(_RNG.standard_normal(out.shape)).float()


def kind_on(device: Any) -> tuple[Kind, tuple[str, ...]]:
    found = guarantee(backend=device)
    return found.kind, found.assumptions


def test_a_device_with_noise_shows_a_secret_generator_or_is_hardware() -> None:
    generator = NoiseGenerator.secure("device")
    assert kind_on(Noisy(secret_normals(generator), (generator,)))[0] is Kind.RECORD_DP
    assert kind_on(Hardware(torch.zeros_like))[0] is Kind.RECORD_DP
    with pytest.warns(UserWarning, match="shows no secret generator"):
        kind, assumptions = kind_on(Noisy(torch.zeros_like))
    assert kind is Kind.NONE
    assert any("`physical`" in text for text in assumptions)


@pytest.mark.filterwarnings("ignore:the guarantee of this run")
@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (secret_normals(NoiseGenerator.seeded(0, "hidden")), "hidden"),  # in a closure
        (global_numpy, "numpy.random"),  # a global of the user's module
        (torch.randn_like, "process"),
        (lambda out: torch.full_like(out, np.random.standard_normal()), "numpy"),
        (lambda out: torch.full_like(out, random.gauss(0, 1)), "random"),
        (partial(torch.normal, 0.0, generator=torch.Generator()), "torch"),
    ],
    ids=["closure", "global", "torch process", "numpy process", "python process", "partial"],
)
def test_a_device_that_shows_one_generator_and_draws_from_another(draw: Any, words: str) -> None:
    shown = NoiseGenerator.secure("device")
    if isinstance(draw, partial):
        bound = draw
        draw = lambda out: bound(torch.ones_like(out))  # noqa: E731
    kind, assumptions = kind_on(Hardware(draw, (shown,)))
    assert kind is Kind.NONE
    assert any(words in text for text in assumptions)


def draw_python() -> float:
    return random.random()


class Slots:
    __slots__ = ("rng",)

    def __init__(self) -> None:
        self.rng = np.random.RandomState(0)


class OfClass:
    stream = torch.Generator()


def stream() -> Any:
    rng = random.Random(0)
    while True:
        yield rng.random()


@pytest.mark.parametrize(
    "hidden",
    [
        torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), np.random.PCG64(0), random.Random(0),
        NoiseGenerator.seeded(0, "x"), NoiseGenerator.conditioned(bytes(32), "x", secret=False),
        {"a": [({"b": deque([torch.Generator()])},)]}, Slots(), OfClass(), np.array([random.Random(0)], dtype=object),
        random.Random(0).gauss, partial(print, torch.Generator()), lambda rng=_RNG: rng, stream(),
        random.random, nn.ModuleList([nn.Identity()]), np.random.normal, lambda: np.random.normal(), draw_python,
        lambda: [draw_python() for _ in range(3)],
    ],
    ids=lambda hidden: type(hidden).__name__,
)  # fmt: skip
def test_generators_are_found_wherever_they_hide(hidden: Any) -> None:
    if isinstance(hidden, nn.ModuleList):
        hidden[0].rng = torch.Generator()
    if hasattr(hidden, "send"):
        next(hidden)
    module = nn.Linear(2, 2)
    assert unsecret(module, None) == ()
    module.hidden = hidden
    assert len(unsecret(module, None)) == 1
    assert len(unsecret(nn.Linear(2, 2), None, [hidden])) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        lambda: np.random.default_rng(0).normal(), lambda: np.random.RandomState(0).normal(),
        lambda: random.SystemRandom().random(), lambda: torch.Generator().manual_seed(0),
        NoiseGenerator.secure("x"), random.SystemRandom(), np.ones(3), torch.ones(2), {"seed": 0}, print, len, np,
        torch.randn,
    ],
    ids=lambda harmless: type(harmless).__name__,
)  # fmt: skip
def test_what_is_no_seeded_generator_is_left_alone(harmless: Any) -> None:
    module = nn.Linear(2, 2)
    module.hidden = harmless
    module.cycle = module.__dict__
    assert unsecret(module, None) == ()


def test_a_device_without_noise_is_not_looked_through_and_one_with_is() -> None:
    device = Noisy(torch.zeros_like, rng=np.random.default_rng(0))
    assert (
        len(unsecret(nn.Linear(2, 2), device)) == 1
    )  # it shows no secret generator; the module does not hold it
    holder = nn.Linear(2, 2)
    holder.backend = device
    assert len(unsecret(holder, device)) == 2
    device.noise = NoNoise()
    assert unsecret(holder, device) == ()
    device.noise = UncalibratedNoise()
    assert len(unsecret(holder, device)) == 2


class Dithered(DirectFeedbackAlignment):
    """A rule of another package, with randomness of its own."""

    rng: ClassVar[Any] = random.Random(0)

    def feedback(self, error: Tensor, points: Any, backend: Any) -> Any:
        return [
            None if s is None else s + 0 * self.rng.random() for s in super().feedback(error, points, backend)
        ]


@pytest.mark.filterwarnings("ignore:the guarantee of this run")
def test_a_rule_with_a_generator_of_its_own() -> None:
    found = guarantee(rule=Dithered())
    assert found.kind is Kind.NONE
    assert any("rule.rng is a random.Random" in text for text in found.assumptions)
    secret = type("Secret", (Dithered,), {"rng": random.SystemRandom()})
    assert len(unsecret(secret(), None)) == 1  # the class it inherits from still holds the other
    assert guarantee(rule=type("Plain", (DirectFeedbackAlignment,), {})()).kind is Kind.RECORD_DP


@pytest.mark.filterwarnings("ignore:the guarantee of this run")
def test_a_module_with_a_generator_of_its_own() -> None:
    class Jitter(nn.Module):
        def __init__(self, rng: Any) -> None:
            super().__init__()
            self.rng = rng

        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    for rng, kind in ((np.random.default_rng(0), Kind.NONE), (None, Kind.RECORD_DP)):
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), Jitter(rng), nn.Linear(6, 4))
        assert guarantee(net=net).kind is kind
