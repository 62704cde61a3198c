"""One layer of a batch as the per-record mechanism of T1 and T7 sees it: numpy, a few lines, no production code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.theory.gaussians import Array


@dataclass(frozen=True)
class Layer:
    """What is public about one layer at one step.

    Attributes:
        h: inputs with a 1 appended, shape (m, d).
        slope: phi'(a), shape (m, n); ones for the output layer.
        feedback: B, shape (n, c); the identity for the output layer.
        sigma: standard deviation of the noise in one record's projection.
    """

    h: Array
    slope: Array
    feedback: Array
    sigma: float

    def update(self, e: Array, noise: Array | float = 0.0) -> Array:
        """`sum_i ((B e_i + g_i) ⊙ phi'_i) h_i^T`, shape (n, d), for errors e of shape (m, c)."""
        delta = (e @ self.feedback.T + noise) * self.slope
        total: Array = delta.T @ self.h
        return total

    def noise(self, generator: np.random.Generator) -> Array:
        """g, shape (m, n)."""
        return self.sigma * generator.standard_normal(self.slope.shape)

    def rows(self, k: int) -> Array:
        """H_k, shape (m, d): row k of the update is `w^T H_k` with w = B e + g of neuron k."""
        scaled: Array = self.slope[:, k, None] * self.h
        return scaled


def hidden(
    generator: np.random.Generator, records: int, inputs: int, neurons: int, classes: int, sigma: float
) -> Layer:
    """A tanh layer on normal inputs, weights and feedback normal and scaled by their width."""
    h = np.column_stack((generator.standard_normal((records, inputs)), np.ones(records)))
    a = h @ generator.standard_normal((inputs + 1, neurons)) / np.sqrt(inputs)
    feedback = generator.standard_normal((neurons, classes)) / np.sqrt(neurons)
    return Layer(h, 1 - np.tanh(a) ** 2, feedback, sigma)


def errors(generator: np.random.Generator, records: int, classes: int) -> tuple[Array, Array]:
    """Predictions and errors `softmax(z) - onehot(y)` of random logits and labels, shape (records, classes)."""
    z = generator.standard_normal((records, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, p - np.eye(classes)[generator.integers(classes, size=records)]


def leverage(rows: Array) -> Array:
    """`row_i (H^T H)^+ row_i^T` of every row, shape (m,): the squared row norms of the left singular vectors.

    Nothing is cut off: where H has lost rank in floating point this is an upper bound, at most 1.
    """
    left: Array = np.linalg.svd(rows, full_matrices=False)[0]
    squares: Array = np.square(left).sum(1)
    return squares


def leverages(layer: Layer) -> Array:
    """tau_ik of every record and neuron, shape (m, n)."""
    return np.column_stack([leverage(layer.rows(k)) for k in range(layer.slope.shape[1])])
