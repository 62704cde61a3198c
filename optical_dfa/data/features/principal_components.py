"""Principal components of the training inputs, for runs whose inputs are public (docs/threat-model.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from noise_models.errors import UsageError
from optical_dfa.data.features.card import FeaturesCard

if TYPE_CHECKING:
    from torch import Tensor

    from optical_dfa.data.dataset import Dataset


@FeaturesCard(
    summary="the inputs' principal components; inputs must be public",
    grammar="pca:K with K principal components, such as pca:64",
    of_one_record=False,
    needs_argument=True,
)
def principal_components(data: Dataset, argument: str, progress: bool) -> Dataset:
    """The data set with its inputs replaced by their first K principal components.

    Mean and axes are those of the TRAINING inputs, in float64, and no label enters. All components are divided by one
    number, so that they have mean square 1 over the training set. Whoever keeps inputs private must not use this.

    Args:
        data: as loaded; inputs of any shape.
        argument: K, at most the number of inputs.
        progress: not used.
    Raises:
        UsageError: more components than inputs.
    """
    import torch

    count = int(argument)
    train, test = (x.flatten(1).double() for x in (data.x_train, data.x_test))
    if count > train.shape[1]:
        raise UsageError(
            f"features is 'pca:{count}', but a record has {train.shape[1]} inputs; ask for at most as many"
        )
    mean = train.mean(0)
    axes = principal_axes(train - mean, count)
    train, test = ((x - mean) @ axes for x in (train, test))
    scale = train.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    public = (
        *data.public,
        "the mean and the principal axes of the training inputs, which features are made of",
    )
    return replace(
        data,
        public=public,
        x_train=(train / scale).float(),
        x_test=(test / scale).float(),
        input_shape=(count,),
        cardinalities=(),
    )


def principal_axes(centred: Tensor, count: int) -> Tensor:
    """The directions of largest variance, shape (d, count), each with its largest entry positive."""
    import torch

    axes: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * largest.sign()
