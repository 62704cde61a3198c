"""Features computed from the inputs alone, for runs whose inputs are public (docs/threat-model.md)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from noise_models.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from optical_dfa.data.dataset import Dataset

GRAMMAR = "pca:K with K principal components, such as pca:64"


def components(spec: str) -> int:
    """K of `pca:K`.

    Raises:
        UsageError: another specification.
    """
    name, colon, count = spec.partition(":")
    if (
        name != "pca"
        or not colon
        or not (count.isascii() and count.isdigit())
        or not 1 <= int(count) <= 65536
    ):
        raise UsageError(f"features is {spec!r}; it must be {GRAMMAR}")
    return int(count)


def with_features(data: Dataset, spec: str) -> Dataset:
    """The data set with its inputs replaced by their first K principal components.

    Mean and axes are those of the TRAINING inputs, in float64, and no label enters. All components are divided by one
    number, so that they have mean square 1 over the training set. Whoever keeps inputs private must not use this.

    Args:
        data: as loaded; inputs of any shape.
        spec: `pca:K`, K at most the number of inputs.
    Raises:
        UsageError: no such features, or more components than inputs.
    """
    import torch

    count = components(spec)
    if data.text:
        raise UsageError(f"features is {spec!r}, but {data.name} is text; drop features")
    train, test = (x.flatten(1).double() for x in (data.x_train, data.x_test))
    if count > train.shape[1]:
        raise UsageError(
            f"features is {spec!r}, but a record has {train.shape[1]} inputs; ask for at most as many"
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
