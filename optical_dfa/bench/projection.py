"""Projection speed: the simulated OPU's two fidelities, lightonml's noiseless device and a plain matmul, paired.

The four take turns on one batch of -1, 0 and 1, so that the machine's drift hits all of them alike; a ratio is the
median of the ratios of neighbouring calls. Once with the devices' default encoding, eight binary frames a record,
and once with the ternary one, two frames: physics and lightonml take time for every frame, the effective model
hardly does.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noise_models.randomness.generator import NoiseGenerator
from optical_dfa.backends import create

INPUTS, OUTPUTS, BATCH = 784, 4096, 512
WARM_UP = 1
DEFAULT, TERNARY = "bit-planes", "ternary"

# Name in the result -> backend and options; the plain matmul is added to them.
DEVICES: dict[str, tuple[str, dict[str, Any]]] = {
    "physics": ("simulated-opu", {"fidelity": "physics"}),
    "effective": ("simulated-opu", {"fidelity": "effective"}),
    "lightonml": ("lightonml-simulated", {}),
}


def run(rounds: int = 5) -> dict[str, Any]:
    """Median milliseconds a batch, and medians of paired ratios, with the default encoding.

    Args:
        rounds: measured calls of each contestant and encoding.
    Returns:
        `physics_ms, effective_ms, lightonml_ms, matmul_ms, ratio_physics_over_effective,
        ratio_lightonml_over_effective, ratio_effective_over_matmul`, the same under `ternary`, and the setting.
    Raises:
        DeviceError: lightonml is not installed.
    """
    return {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "batch_size": BATCH,
        "rounds": rounds,
        "encoding": DEFAULT,
        **_measured(DEFAULT, rounds),
        "ternary": _measured(TERNARY, rounds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def _measured(encoding: str, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    e = torch.randint(-1, 2, (BATCH, INPUTS), generator=generator).float()
    matrix = torch.randn(INPUTS, OUTPUTS, generator=generator)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        name: _device(backend, {**options, "encoding": encoding}).project
        for name, (backend, options) in DEVICES.items()
    }
    calls["matmul"] = lambda x: x @ matrix
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call(e)
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - started)

    def ratio(over: str, under: str) -> float:
        pairs = zip(times[over], times[under], strict=True)
        return round(statistics.median(p / q for p, q in pairs), 3)

    return {
        **{f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in times.items()},
        "ratio_physics_over_effective": ratio("physics", "effective"),
        "ratio_lightonml_over_effective": ratio("lightonml", "effective"),
        "ratio_effective_over_matmul": ratio("effective", "matmul"),
    }


def _device(backend: str, options: dict[str, Any]) -> Any:
    return create(
        backend,
        in_features=INPUTS,
        out_features=OUTPUTS,
        seed=0,
        noise=NoiseGenerator.secure(f"bench {backend}"),
        options=options,
    )
