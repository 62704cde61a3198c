"""`python -m experiments defaults`: how the settings that `train` chooses for private tables were chosen.

Synthetic tables, of 500 to 50,000 records and 5 to 100 columns, two classes or ten, with categorical columns or
without, are trained on with the chosen settings and with neighbours of each (half and double the learning rate, a
quarter and four times the clipping norm, half and double the batch). Printed is the test loss of each, beside that of
the best constant prediction and that of the law itself. A few minutes on one thread; `--quick` does the chosen ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noise_models.randomness.generator import derive_seed
from optical_dfa.config import merge, resolve
from optical_dfa.training.trainer import train

TEST = 5000
CASES = (  # records, columns, classes, categorical columns
    (500, 5, 2, 0), (500, 100, 2, 0), (2000, 14, 2, 0), (2000, 20, 10, 0), (8000, 40, 10, 0), (32561, 14, 2, 0),
    (32561, 14, 2, 8), (32561, 100, 10, 0), (50000, 5, 10, 0),
)  # fmt: skip
EPSILONS = (1.0, 8.0)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Records of a known law.

    Attributes:
        x, y: records + `TEST` rows; categories come first, as whole numbers.
        classes: number of classes.
        cardinalities: of each column, 0 for a numeric one.
        constant: test loss of the best constant prediction, nats.
        law: test loss of the law itself, nats.
    """

    x: Array
    y: NDArray[np.int64]
    classes: int
    cardinalities: tuple[int, ...]
    constant: float
    law: float

    def save(self, path: Path) -> None:
        """As an .npz data set."""
        np.savez(
            path, x_train=self.x[:-TEST], y_train=self.y[:-TEST], x_test=self.x[-TEST:], y_test=self.y[-TEST:],
            classes=self.classes, cardinalities=np.asarray(self.cardinalities),
        )  # fmt: skip


def draw(records: int, columns: int, classes: int, categorical: int = 0, seed: int = 0) -> Table:
    """A table: up to 8 hidden factors, columns that mix them with noise, a label that is a curved function of them.

    Every third numeric column has long tails, all have standard deviation 1; a categorical one is a column cut at its
    quantiles into 3 to 12 categories in an order without meaning. Two classes are unequal, about 1 : 3.
    """
    rng = np.random.default_rng(derive_seed(seed, f"table {records} {columns} {classes} {categorical}"))
    count, factors = records + TEST, min(columns, 8)
    z = rng.normal(size=(count, factors))
    x = z @ rng.normal(size=(factors, columns)) / np.sqrt(factors) + 0.7 * rng.normal(size=(count, columns))
    x[:, ::3] = np.sign(x[:, ::3]) * np.expm1(0.7 * np.abs(x[:, ::3]))
    x /= x.std(0)
    cardinalities = [0] * columns
    for column in range(categorical):
        cardinalities[column] = 3 + column % 10
        edges = np.quantile(x[:, column], np.linspace(0, 1, cardinalities[column] + 1)[1:-1])
        x[:, column] = rng.permutation(cardinalities[column])[np.searchsorted(edges, x[:, column])]
    hidden = np.tanh(1.5 * z @ rng.normal(size=(factors, 16)) / np.sqrt(factors))
    logits = hidden @ rng.normal(size=(16, classes)) * 0.85
    if classes == 2:
        logits[:, 1] -= 2.0
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random((count, 1))).sum(1).clip(0, classes - 1)
    shares = np.bincount(y[:-TEST], minlength=classes) / records
    return Table(
        x, y, classes, tuple(cardinalities),
        constant=float(-np.log(shares[y[-TEST:]] + 1e-9).mean()),
        law=float(-np.log(p[-TEST:][np.arange(TEST), y[-TEST:]]).mean()),
    )  # fmt: skip


def trained(table: Table, **settings: Any) -> dict[str, Any]:
    """The summary of a run on the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npz"
        table.save(path)
        return train(merge({"dataset": str(path)}, settings))


def neighbours(records: int, epsilon: float) -> dict[str, dict[str, Any]]:
    """Settings to compare: those chosen, and one after another changed."""
    chosen = resolve(merge({"dataset": "table.npz", "epsilon": epsilon}, {}), records)
    assert chosen.max_grad_norm is not None
    found: dict[str, dict[str, Any]] = {"chosen": {}}
    for factor in (0.5, 2.0):
        found[f"lr x {factor:g}"] = {"lr": factor * chosen.lr}
        found[f"batch x {factor:g}"] = {"batch_size": round(factor * chosen.batch_size)}
    for factor in (0.125, 4.0):
        found[f"clip x {factor:g}"] = {"max_grad_norm": factor * chosen.max_grad_norm}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of test losses."""
    parser = argparse.ArgumentParser(prog="python -m experiments defaults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the chosen settings alone")
    quick = parser.parse_args(arguments).quick
    for records, columns, classes, categorical in CASES:
        table = draw(records, columns, classes, categorical)
        for epsilon in EPSILONS:
            row = {"constant": table.constant, "law": table.law}
            for name, settings in neighbours(records, epsilon).items():
                if not quick or name == "chosen":
                    row[name] = trained(table, **settings, epsilon=epsilon, backend="digital")["test_loss"]
            figures = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
            what = (
                f"{records} x {columns} ({categorical} categorical), {classes} classes, epsilon {epsilon:g}"
            )
            print(f"{what}: {figures}", flush=True)
    return 0
