"""The projection devices by name. Importing this loads no device and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from typing import TYPE_CHECKING, Any, Final

from noise_models.cards import Registry
from noise_models.errors import DeviceError, UsageError
from optical_dfa import options as options_of
from optical_dfa.backends.card import BackendCard

if TYPE_CHECKING:
    from noise_models.randomness.generator import NoiseGenerator
    from optical_dfa.backends.base import ProjectionBackend

NO_OPTIONS: Final = ("in_features", "out_features", "seed", "noise")

BACKENDS: Final = Registry(
    "backend",
    BackendCard,
    {
        "digital": "optical_dfa.backends.digital:DigitalBackend",
        "streamed": "optical_dfa.backends.streamed:StreamedBackend",
        "structured": "optical_dfa.backends.structured:StructuredBackend",
        "simulated-opu": "optical_dfa.backends.simulated_opu:SimulatedOpuBackend",
        "lightonml-simulated": "optical_dfa.backends.lightonml_opu:LightonmlSimulatedBackend",
        "lightonml": "optical_dfa.backends.lightonml_opu:LightonmlBackend",
    },
    group="optical_dfa.backends",
)


def has_dark_frames(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether the device has a camera whose dark frames a release can use, as far as its card says.

    Raises:
        UsageError: nothing is registered under `name`.
    """
    BACKENDS.target(name)
    camera = BACKENDS[name].camera
    if isinstance(camera, bool):
        return camera
    option, _, value = camera.partition("=")
    return (options or {}).get(option) == value


def create(
    name: str,
    *,
    in_features: int,
    out_features: int,
    seed: int,
    noise: NoiseGenerator,
    options: Mapping[str, Any] | None = None,
) -> ProjectionBackend:
    """Build the device `name`.

    Args:
        in_features, out_features: sizes of the projection; one device serves all layers of a run.
        seed: determines B where the device lets it be chosen.
        noise: where the device's simulated noise comes from; unused by devices with noise of their own.
        options: device options, keyword arguments of its class.

    Raises:
        UsageError: unknown name or option, or a value that is not allowed.
        DeviceError: the device, or the library that drives it, is not there.
    """
    cls = BACKENDS.load(name)
    chosen = options_of.checked(f"backend {name}", cls, options, NO_OPTIONS)
    build: Any = cls
    device: ProjectionBackend = build(in_features, out_features, seed=seed, noise=noise, **chosen)
    return device


def available() -> list[tuple[str, bool, str]]:
    """(name, can be tried on this machine, what it is, or what is missing and how to get it), for every backend."""
    rows = []
    for name in BACKENDS:
        try:
            card = BACKENDS[name]
        except (DeviceError, UsageError) as error:  # of another package
            rows.append((name, False, str(error)))
            continue
        ways = []
        for modules, how in card.needs:
            missing = [module for module in modules if util.find_spec(module) is None]
            if missing:
                ways.append(f"{', '.join(missing)}: {how}")
        rows.append((name, not ways, f"needs {'; and '.join(ways)}" if ways else card.summary))
    return rows
