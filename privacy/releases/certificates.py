"""Which assumption of the published proof fails on THIS run of release `per-record`, and by how much (THEORY T1).

The published form (`privacy.accounting.published`) takes the noise of an update for an isotropic Gaussian. Row k of a
layer's update has the covariance `sigma² H_k^T H_k`, rows of H_k = φ'(a_ik) (h_i, 1): a Gaussian on
span{(h_i, 1) : φ'_ik != 0} and nothing besides. Two sorts of findings:

* public ones, which follow from the sizes of the network and of the batch: shown always;
* those of a realised step, computed from private records: a diagnostic, shown under `--unsafe-diagnostics` only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noise_models.places import on_cpu
from privacy.accounting.divergences import batch_pair
from privacy.contributions.separated import SeparatedLayer

ROWS = 8  # of a layer's covariances that are looked at, evenly spaced
RANK_CUT = 1e-6  # singular values below this share of the largest are float32's rounding of the inputs
NORMALISED = 0.1  # norms that scatter less than this share of what they should have are normalised


@dataclass(frozen=True)
class AssumptionCheck:
    """One assumption of the published proof, looked at.

    Attributes:
        assumption: what the proof takes for granted.
        holds: None where it could not be decided.
        figure: the number it was decided by, None where there is none.
        meaning: what that number is.
        where: layer.
        public: it follows from public numbers; otherwise it was computed from private records.
    """

    assumption: str
    holds: bool | None
    figure: float | None
    meaning: str
    where: str
    public: bool

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILS", None: "not decided"}[self.holds]
        figure = "" if self.figure is None else f" {self.figure:.4g}"
        return f"{verdict}: {self.assumption} [{self.where}: {self.meaning}{figure}]"


@dataclass(frozen=True)
class Certificate:
    """All findings about one run."""

    findings: tuple[AssumptionCheck, ...]

    @property
    def private(self) -> bool:
        """Whether it was computed from private records, and so is itself a release."""
        return any(not finding.public for finding in self.findings)

    def failing(self) -> tuple[AssumptionCheck, ...]:
        """The assumptions that do not hold."""
        return tuple(finding for finding in self.findings if finding.holds is False)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; an infinite figure is the string "inf"."""
        return {
            "release": "per-record",
            "kind": "conditional",
            "computed_from_private_records": self.private,
            "failing": len(self.failing()),
            "findings": [
                {**asdict(f), "figure": "inf" if f.figure is not None and math.isinf(f.figure) else f.figure}
                for f in self.findings
            ],
        }

    def __str__(self) -> str:
        source = "computed from private records: do not publish" if self.private else "from public numbers"
        return "\n".join(
            [f"assumptions of the published proof ({source}):", *(f"  {f}" for f in self.findings)]
        )


def public_findings(
    hidden: Sequence[tuple[str, int]], output: tuple[str, int] | None, most_records: int
) -> tuple[AssumptionCheck, ...]:
    """What the sizes alone decide.

    Args:
        hidden: (name, inputs of its weight, the bias counted as one) of each hidden layer.
        output: (name, coordinates) of the output layer, None where it is not trained.
        most_records: no step has more.
    """
    found = [
        AssumptionCheck(
            "every direction of a row of the update is noised",
            False if most_records < width else None,
            float(most_records - width),
            f"rank of a row's covariance at most {most_records} records of {width} directions, difference",
            name,
            True,
        )
        for name, width in hidden
    ]
    if output is not None:
        found.append(
            AssumptionCheck(
                "every released coordinate is noised",
                False,
                float(output[1]),
                "coordinates of the output layer released without noise",
                output[0],
                True,
            )
        )
    return tuple(found)


def realised_findings(
    layers: Sequence[SeparatedLayer],
    activation_floor: float,
    derivative_floor: float,
    *,
    noise_std: float,
    noise_multiplier: float,
) -> tuple[AssumptionCheck, ...]:
    """What one step's records decide. PRIVATE.

    Args:
        layers: factors of the step's records with `signal` clipped, output layer last, at least one record.
        activation_floor: h_min, below which the published bound has no activation.
        derivative_floor: φ'_min.
        noise_std: sigma of a projection's noise.
        noise_multiplier: z, as which the published form reads it.
    """
    found: list[AssumptionCheck] = []
    output = next((layer for layer in layers if layer.point is None), None)
    for layer in layers:
        if layer.point is None:
            continue
        found += _of_covariances(layer, activation_floor, derivative_floor)
        found += _of_values(layer, activation_floor, derivative_floor)
        found.append(_of_leaving_out(layer, noise_std, noise_multiplier))
        if output is not None:
            found.append(_of_norms(layer, output.taught))
    return tuple(found)


def _weighted(layer: SeparatedLayer, row: int) -> Tensor:
    """H_k: the inputs weighted by the row's gates, shape (m, d)."""
    return layer.inputs.double() * layer.gate[:, row : row + 1].double()


def _of_covariances(
    layer: SeparatedLayer, activation_floor: float, derivative_floor: float
) -> list[AssumptionCheck]:
    records, width = layer.inputs.shape
    units, rows = layer.gate.shape[1], _looked_at(layer)
    claimed = records * (activation_floor * derivative_floor) ** 2
    least_rank, smallest = width, math.inf
    for row in rows:
        values = torch.linalg.svdvals(_weighted(layer, row))
        rank = int((values > RANK_CUT * values[0]).sum()) if values[0] > 0 else 0
        least_rank = min(least_rank, rank)
        smallest = min(smallest, float(values[-1]) ** 2 if rank == width else 0.0)
    looked = f"{len(rows)} of {units} rows"
    return [
        AssumptionCheck(
            "every direction of a row of the update is noised",
            least_rank == width,
            float(least_rank),
            f"least rank of a row's covariance over {looked}, of {width} directions and {records} records",
            layer.name,
            False,
        ),
        AssumptionCheck(
            "the smallest eigenvalue of a row's covariance is not below the variance that is claimed",
            smallest >= claimed,
            smallest / claimed,
            f"their ratio, smallest over {looked}",
            layer.name,
            False,
        ),
    ]


def _looked_at(layer: SeparatedLayer) -> list[int]:
    units = layer.gate.shape[1]
    return sorted({round(k) for k in torch.linspace(0, units - 1, min(ROWS, units)).tolist()})


def _of_leaving_out(layer: SeparatedLayer, noise_std: float, noise_multiplier: float) -> AssumptionCheck:
    """The exact divergence (THEORY T2) between this step and the same one without its first record.

    Rows are independent given the records, so those looked at give a lower bound for the layer.
    """
    rows = _looked_at(layer)
    gate, inputs, signal = (
        on_cpu(part, torch.float64).numpy()
        for part in (layer.gate[:, rows], layer.inputs, layer.signal[:, rows])
    )
    own = np.divide(signal[0], gate[0], out=np.zeros_like(gate[0]), where=gate[0] != 0)
    pair = batch_pair(gate, inputs, own, 0, noise_std)
    divergence = max(pair.renyi(2.0), pair.reversed().renyi(2.0))
    return AssumptionCheck(
        "leaving a record out moves the law of the update by no more than is claimed of a step",
        divergence <= 1 / noise_multiplier**2,
        divergence,
        f"Rényi divergence of order 2 with and without one record over {len(rows)} of {layer.gate.shape[1]} rows "
        f"(claimed: {1 / noise_multiplier**2:.3g}), at least",
        layer.name,
        False,
    )


def _of_values(
    layer: SeparatedLayer, activation_floor: float, derivative_floor: float
) -> list[AssumptionCheck]:
    inputs = layer.inputs if layer.bias is None else layer.inputs[:, :-1]
    # Next to a bias a constant coordinate is a multiple of the column of ones, whatever its value.
    constant = (inputs == inputs[:1]).all(0) if layer.bias is not None else (inputs == 0).all(0)
    low = float((inputs.abs() < activation_floor).double().mean())
    saturated = float((layer.gate.abs() < derivative_floor).double().mean())
    return [
        AssumptionCheck(
            "no coordinate is constant over the batch",
            not bool(constant.any()),
            float(constant.sum()),
            "constant coordinates, each an un-noised direction that is known in advance",
            layer.name,
            False,
        ),
        AssumptionCheck(
            f"no activation is below {activation_floor:g}",
            low == 0,
            low,
            "share of them that are",
            layer.name,
            False,
        ),
        AssumptionCheck(
            f"no unit is saturated: no derivative is below {derivative_floor:g}",
            saturated == 0,
            saturated,
            "share of them that are",
            layer.name,
            False,
        ),
    ]


def _of_norms(layer: SeparatedLayer, error: Tensor) -> AssumptionCheck:
    """Normalised errors teach alike whatever their size: |B e_i| / |e_i| then scatters as 1 / |e_i| does."""
    norms, sizes = layer.taught.double().norm(dim=1), error.double().norm(dim=1)
    kept = (norms > 0) & (sizes > 0)
    scatter, expected = (_scatter(values[kept]) for values in (norms, sizes))
    decided = bool(kept.sum() > 2) and expected > 0
    return AssumptionCheck(
        "errors are clipped, not normalised",
        scatter >= NORMALISED * expected if decided else None,
        scatter / expected if decided else None,
        "scatter of the projected errors' norms over that of the errors' own",
        layer.name,
        False,
    )


def _scatter(values: Tensor) -> float:
    """Standard deviation of the logarithm."""
    return float(values.log().std(correction=0)) if len(values) else 0.0
