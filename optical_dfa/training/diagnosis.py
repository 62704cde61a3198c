"""`train --diagnose`: at every evaluation, how the rule's teaching compares with backpropagation's.

One batch of training records is looked at throughout, so its figures are computed from records: a private run shows
them only with `unsafe_diagnostics`, which voids its guarantee.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from noise_models.errors import UsageError
from noise_models.places import place_of
from optical_dfa.aligning import align, unalign
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.measure.alignment import alignment, estimator, feedback_angles
from optical_dfa.measure.costs import cost
from optical_dfa.runs.folder import TENSORBOARD
from optical_dfa.training.loss import cross_entropy

RECORDS = 256
REPEATS = 8


class Diagnosis:
    """The figures of one run.

    Attributes:
        costs: multiply-adds and words of one record's step, under the rule and under backpropagation.
    """

    def __init__(self, module: AlignedModule, x: Tensor, y: Tensor, folder: Path | None) -> None:
        """
        Args:
            module: the module under its rule, before it is made private.
            x, y: the training records, of which the first `RECORDS` are looked at.
            folder: for TensorBoard's files; None writes none.
        Raises:
            UsageError: the network has no hidden output to compare at.
        """
        place = place_of(module)
        self._x, self._y = x[:RECORDS].to(place), y[:RECORDS].to(place)
        self._board = TensorBoard(folder) if folder is not None and TensorBoard.installed() else None
        self._shown: dict[str, float | str] = {}
        alignment(
            module, self._x[:2], lambda z: cross_entropy(z, self._y[:2])
        )  # refuses before anything is written
        plain = align(unalign(copy.deepcopy(module)), rule="bp", example=x[:1], show=None)
        self.costs = {"rule": cost(module).to_dict(), "bp": cost(plain).to_dict()}

    def row(self, step: int, module: AlignedModule) -> dict[str, Any]:
        """What a row of metrics says besides (JSON types, null where there is no number).

        `alignment`: [mean per-record cosine, its standard deviation, norm ratio] by hidden output;
        `gradient_alignment`: [cosine, norm ratio] of the whole gradient; `feedback_angles`: degrees by feedback point;
        `estimator_bias`, `estimator_variance`: of `REPEATS` estimates, relative to the gradient.
        """

        def loss(z: Tensor) -> Tensor:
            return cross_entropy(z, self._y)

        found = alignment(module, self._x, loss)
        angles = feedback_angles(module)
        try:
            estimate = estimator(module, self._x, loss, REPEATS)
            bias, variance = _number(estimate.bias), _number(estimate.variance)
        except UsageError:  # a gradient of zero has no relative error
            bias = variance = None
        described = found.to_dict()
        cosines = [p.cosine for p in found.points.values()]
        self._shown = {"alignment": " ".join("–" if math.isnan(c) else f"{c:+.2f}" for c in cosines)}
        row: dict[str, Any] = {
            "alignment": described["points"],
            "gradient_alignment": described["network"],
            "feedback_angles": {name: _number(angle.degrees) for name, angle in angles.items()},
            "estimator_bias": bias,
            "estimator_variance": variance,
        }
        if self._board is not None:
            self._board.add(step, row)
        return row

    def shown(self) -> Mapping[str, float | str]:
        """For the progress bar: the mean cosine at each hidden output, lowest first."""
        return self._shown

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()


class TensorBoard:
    """The same figures as TensorBoard scalars, in `DIR/tensorboard`. Needs the package `tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TENSORBOARD
        self._writer: Any = None

    @staticmethod
    def installed() -> bool:
        """Whether the optional package is there."""
        return find_spec("tensorboard") is not None

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """One scalar a figure; on a resumed run later ones of the same step win."""
        if self._writer is None:  # not before the run folder was begun
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            self._writer = writer(str(self._path), purge_step=step)
        for name, values in row["alignment"].items():
            for label, value in zip(("cosine", "spread", "norm ratio"), values, strict=True):
                self._scalar(f"alignment {label}/{name}", value, step)
        for name, degrees in row["feedback_angles"].items():
            self._scalar(f"feedback angle/{name}", degrees, step)
        self._scalar("gradient/cosine", row["gradient_alignment"][0], step)
        for name in ("estimator_bias", "estimator_variance"):
            self._scalar(name.replace("_", "/"), row[name], step)

    def _scalar(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out and close."""
        if self._writer is not None:
            self._writer.close()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
