"""What tables of embeddings contribute."""

from __future__ import annotations

import math

from torch import Tensor, nn

from noise_models.errors import UsageError
from optical_dfa.capture.contributions import Lookup
from optical_dfa.capture.layers.pairs import Pairs


def embedding(layer: nn.Embedding, x: Tensor, delta: Tensor) -> Pairs:
    """delta lands in the rows of the tokens."""
    _check(layer)
    tokens = x.reshape(len(x), -1)
    rows = delta.reshape(len(x), tokens.shape[1], layer.embedding_dim)
    return [(layer.weight, Lookup(tokens, rows, layer.num_embeddings, layer.padding_idx))]


def embedding_bag(
    layer: nn.EmbeddingBag,
    x: Tensor,
    delta: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Pairs:
    """delta lands in the rows of the bag's tokens: in each (sum), by its share (mean), or where it is largest (max)."""
    _check(layer)
    if x.ndim != 2:
        raise UsageError(
            f"a private EmbeddingBag takes indices of shape (records, size) without offsets, not of {x.ndim} axes; "
            "fill shorter bags with padding_idx"
        )
    taken = x != (-1 if layer.padding_idx is None else layer.padding_idx)
    rows = delta.unsqueeze(1).expand(-1, x.shape[1], -1)
    if layer.mode == "max":
        entries = layer.weight.detach()[x].masked_fill(~taken.unsqueeze(2), -math.inf)
        rows = delta.new_zeros(entries.shape).scatter_(1, entries.argmax(1, keepdim=True), delta.unsqueeze(1))
    elif layer.mode == "mean":
        rows = rows / taken.sum(1).clamp_min(1).view(-1, 1, 1)
    elif per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(2)
    return [(layer.weight, Lookup(x, rows, layer.num_embeddings, layer.padding_idx))]


def _check(layer: nn.Embedding | nn.EmbeddingBag) -> None:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
        raise UsageError(
            f"a private {type(layer).__name__} takes neither max_norm, scale_grad_by_freq nor sparse; leave them out"
        )
