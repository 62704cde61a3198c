"""The projection devices by name. Importing this loads no device and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module, util
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from noise_models.errors import DeviceError, UsageError
from optical_dfa import options as options_of

if TYPE_CHECKING:
    from noise_models.generator import NoiseGenerator
    from optical_dfa.backends.base import ProjectionBackend

ENTRY_POINT_GROUP: Final = "optical_dfa.backends"
NO_OPTIONS: Final = ("in_features", "out_features", "seed", "noise")

BACKENDS: Final[dict[str, str]] = {
    "digital": "optical_dfa.backends.digital:DigitalBackend",
    "simulated-opu": "optical_dfa.backends.simulated_opu:SimulatedOpuBackend",
    "lightonml-simulated": "optical_dfa.backends.lightonml_opu:LightonmlSimulatedBackend",
    "lightonml": "optical_dfa.backends.lightonml_opu:LightonmlBackend",
}

_ABOUT: Final[dict[str, str]] = {
    "digital": "a matrix product on the computer, without noise",
    "simulated-opu": "mirrors, speckle, interference and camera, simulated (fidelity=effective or physics)",
    "lightonml-simulated": "lightonml's front end over its noiseless device, or over ours (device=physics)",
    "lightonml": "a LightOn OPU through lightonml and its drivers",
}

# What a device needs besides this package: module -> how to get it.
_LIBRARY: Final = ("lightonml", "numexpr", "attr", "requests", "packaging")
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "lightonml-simulated": _LIBRARY,
    "lightonml": (*_LIBRARY, "lightonopu"),
}
_INSTALL: Final = "pip install 'optical-dfa[lighton]'; pip install --no-deps lightonml==1.4.3"
_DRIVERS: Final = "the drivers of a LightOn OPU (lightonopu), which come with the device"


def targets() -> dict[str, str]:
    """Every registered name -> "module:Class": the built-in ones, then installed third-party ones."""
    found = dict(BACKENDS)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(point.name, point.value)
    return found


def backend_class(name: str) -> type[ProjectionBackend]:
    """The class registered under `name`.

    Raises:
        UsageError: the name is unknown.
        DeviceError: what is registered under it cannot be imported.
    """
    known = targets()
    if name not in known:
        raise UsageError(f"backend is {name!r}; it must be one of: {', '.join(known)}")
    module, _, attribute = known[name].partition(":")
    try:
        found: type[ProjectionBackend] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DeviceError(f"backend {name} cannot be loaded from {known[name]}: {error}") from error
    return found


def has_dark_frames(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether the device has a camera whose dark frames a release can use, as far as is known without building it.

    A third-party device that cannot be loaded, or finds its camera only when built, is taken to have one: who uses it
    says so, or refuses.
    """
    if name == "lightonml-simulated":
        return (options or {}).get("device") == "physics"
    return name != "digital"


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
    cls = backend_class(name)
    chosen = options_of.checked(f"backend {name}", cls, options, NO_OPTIONS)
    build: Any = cls
    device: ProjectionBackend = build(in_features, out_features, seed=seed, noise=noise, **chosen)
    return device


def available() -> list[tuple[str, bool, str]]:
    """(name, can be tried on this machine, what it is, or what is missing and how to get it), for every backend."""
    rows = []
    for name, target in targets().items():
        missing = [need for need in _NEEDS.get(name, ()) if util.find_spec(need) is None]
        about = _ABOUT[name] if name in BACKENDS else f"installed: {target}"
        rows.append((name, not missing, f"needs {_getting(missing)}" if missing else about))
    return rows


def _getting(missing: list[str]) -> str:
    """How to get these modules."""
    ways = []
    library = [need for need in missing if need in _LIBRARY]
    if library:
        ways.append(f"{', '.join(library)}: {_INSTALL}")
    if "lightonopu" in missing:
        ways.append(_DRIVERS)
    return "; and ".join(ways)
