"""Networks for tables with categorical columns: embeddings, then a multilayer perceptron.

The plain form of the recommenders that Launay et al. 2020 ("DFA scales", arXiv 2006.12878) trained on Criteo.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from noise_models.errors import UsageError


class ColumnEmbeddings(nn.Module):
    """A table of embeddings for each categorical column, side by side, and then the numeric columns as they are.

    Every table is a default feedback point of its own ("micro"); with points at the activations only ("macro") the
    tables learn through the first layer, by backpropagation.

    Attributes:
        tables: one for each categorical column, in the order of the columns.
    """

    def __init__(self, cardinalities: Sequence[int], dimension: int) -> None:
        """
        Args:
            cardinalities: number of categories of every column, 0 for a numeric one.
            dimension: of each embedding.
        """
        super().__init__()
        self.cardinalities = tuple(cardinalities)
        self.categorical = [j for j, entries in enumerate(cardinalities) if entries]
        self.numeric = [j for j, entries in enumerate(cardinalities) if not entries]
        self.tables = nn.ModuleList(nn.Embedding(cardinalities[j], dimension) for j in self.categorical)
        self.width = dimension * len(self.categorical) + len(self.numeric)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (m, columns), categories as whole numbers in floating point -> (m, width).

        A category is read modulo its column's cardinality, so that the map is defined for every x, those random ones
        included with which `align` and private training probe a network. A `Dataset` has none outside.
        """
        parts = [
            table(x[:, j].long().remainder(self.cardinalities[j]))
            for j, table in zip(self.categorical, self.tables, strict=True)
        ]
        return torch.cat([*parts, x[:, self.numeric]], 1)


def embed(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int],
    activation: type[nn.Module],
    cardinalities: Sequence[int] = (),
) -> nn.Module:
    """`ColumnEmbeddings` of the first width, then a hidden layer for each further width, then logits.

    Raises:
        UsageError: data without categorical columns, or no hidden layer.
    """
    if not any(cardinalities):
        raise UsageError(
            "model embed needs data with categorical columns, but these have none; say in the .npz file which "
            "columns are categorical (array cardinalities), or use mlp"
        )
    if len(widths) < 2:
        raise UsageError(
            f"model embed has one width, {widths[0]}; it needs the embeddings' dimension and then the widths of its "
            "hidden layers, for example embed:8,128,128"
        )
    columns = ColumnEmbeddings(cardinalities, widths[0])
    layers: list[nn.Module] = [columns]
    sizes = [columns.width, *widths[1:]]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
