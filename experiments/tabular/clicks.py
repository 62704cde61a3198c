"""A synthetic click-through table with a known law: what an ideal classifier would reach can be computed.

Eight categorical columns, each with a long tail (popularity of the k-th category ~ (k + 2)^-1.2), and four numeric ones
(standard normal). Every category c of column j has a main effect a_jc and a latent factor u_jc in R^4, all normal. The
label is 1 with probability sigmoid(s), and

    s = b + α sum_j a_jc + β sum_{pairs i<j} <u_ic, u_jc'> + γ (v·z + z_1 z_2 + z_3 w_c),

with w_c a slope by category of one column. α, β and γ give each of the three parts the standard deviation below.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noise_models.randomness.generator import derive_seed

CARDINALITIES = (500, 200, 100, 100, 50, 50, 20, 10)
NUMERIC = 4
FACTORS = 4
TAIL = 1.2
MAIN, PAIRS, NUMBERS = 1.5, 1.0, 1.0  # standard deviations of the three parts of the logit
BIAS = -1.2
TRAIN, TEST = 60_000, 20_000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Clicks:
    """Training and test records of one law.

    Attributes:
        x: shape (TRAIN + TEST, 12): categories, then numbers.
        y: labels 0 and 1.
        probability: of label 1, the law's own.
    """

    x: Array
    y: NDArray[np.int64]
    probability: Array

    def save(self, path: Path) -> None:
        """As an .npz data set."""
        np.savez(
            path,
            x_train=self.x[:TRAIN].astype(np.float32),
            y_train=self.y[:TRAIN],
            x_test=self.x[TRAIN:].astype(np.float32),
            y_test=self.y[TRAIN:],
            classes=2,
            cardinalities=[*CARDINALITIES, *[0] * NUMERIC],
        )

    def best_auc(self) -> float:
        """Expected area under the ROC curve of the law's own probability on the test records."""
        return best_auc(self.probability[TRAIN:])

    def best_accuracy(self) -> float:
        """Expected accuracy of the likelier label on the test records."""
        p = self.probability[TRAIN:]
        return float(np.maximum(p, 1 - p).mean())


def draw(seed: int) -> Clicks:
    """The table of `seed`: another seed is another law as well."""
    law = np.random.default_rng(derive_seed(seed, "law of clicks"))
    records = np.random.default_rng(derive_seed(seed, "records of clicks"))
    count = TRAIN + TEST
    categories = [records.choice(n, count, p=popularity(n)) for n in CARDINALITIES]
    z = records.normal(size=(count, NUMERIC))
    main: Array = np.sum(
        [law.normal(size=n)[c] for n, c in zip(CARDINALITIES, categories, strict=True)], axis=0
    )
    factors = [law.normal(size=(n, FACTORS))[c] for n, c in zip(CARDINALITIES, categories, strict=True)]
    pairs: Array = np.sum([(u * v).sum(1) for u, v in combinations(factors, 2)], axis=0)
    slope = law.normal(size=CARDINALITIES[3])[categories[3]]
    numbers = z @ law.normal(size=NUMERIC) + z[:, 0] * z[:, 1] + z[:, 2] * slope
    logit = BIAS + sum(
        spread * (part - part.mean()) / part.std()
        for spread, part in ((MAIN, main), (PAIRS, pairs), (NUMBERS, numbers))
    )
    probability = 1 / (1 + np.exp(-logit))
    y = (records.random(count) < probability).astype(np.int64)
    return Clicks(np.column_stack([*categories, z]), y, probability)


def popularity(categories: int) -> Array:
    """Probability of each category of a column, the most popular first."""
    weight = (np.arange(categories) + 2.0) ** -TAIL
    return np.asarray(weight / weight.sum())


def best_auc(probability: Array) -> float:
    """E[pairs (i of label 1, j of label 0) in the right order] / E[such pairs], for independent labels of these odds.

    Args:
        probability: of label 1, shape (n,).
    """
    p = np.sort(probability)
    below = np.concatenate([[0.0], np.cumsum(1 - p)[:-1]])  # expected zeros with a smaller probability
    wanted, pairs = float(p @ below), float(p.sum() * (1 - p).sum() - (p * (1 - p)).sum())
    return wanted / pairs
