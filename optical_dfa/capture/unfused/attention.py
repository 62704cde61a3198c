"""nn.MultiheadAttention, product after product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from noise_models.errors import UsageError
from optical_dfa.capture.unfused.product import Appended, Product


class Attention(nn.Module):
    """Multi-head attention of torch's: own or other keys and values, masks, added positions, dropout."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        """
        Args:
            fused: whose parameters, output layer and settings are taken.
        """
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = fused.embed_dim, fused.kdim, fused.vdim
        self.num_heads, self.head_dim = fused.num_heads, fused.head_dim
        self.dropout, self.batch_first = fused.dropout, fused.batch_first
        self.add_zero_attn = fused.add_zero_attn
        self.packed = fused._qkv_same_embed_dim
        self._qkv_same_embed_dim = False  # keeps nn.TransformerEncoderLayer off its own fused way
        for name, p in fused._parameters.items():
            self.register_parameter(name, p)
        for name in ("bias_k", "bias_v"):
            if getattr(fused, name) is None:
                setattr(self, name, None)
        self.out_proj = fused.out_proj
        self.product, self.appended = Product(), Appended()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of the fused layer; `is_causal` is a hint, and `attn_mask` is what counts.

        Raises:
            UsageError: a single sequence.
        """
        if query.ndim != 3:
            raise UsageError(
                f"attention is given {query.ndim} axes; a private run takes (records, positions, {self.embed_dim}), "
                "with batch_first=True"
            )
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None:
            k, v = self.appended(k, self.bias_k), self.appended(v, self.bias_v)
        q, k, v = (h.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for h in (q, k, v))
        if self.add_zero_attn:
            k, v = (torch.cat([h, h.new_zeros(len(h), self.num_heads, 1, self.head_dim)], 2) for h in (k, v))
        scores = (q / math.sqrt(self.head_dim)) @ k.mT
        added = k.shape[2] - (key.shape[1] if self.batch_first else key.shape[0])
        if attn_mask is not None:
            apart = (
                attn_mask.view(len(q), self.num_heads, *attn_mask.shape[1:])
                if attn_mask.ndim == 3
                else attn_mask
            )
            scores = _masked(scores, apart, added)
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask[:, None, None], added)
        if need_weights or (attn_mask is None and key_padding_mask is None):
            weights = scores.softmax(3)
        else:  # as torch has it: who may read nothing reads 0
            nothing = (scores == -math.inf).all(3, keepdim=True)
            weights = scores.masked_fill(nothing, 0.0).softmax(3).masked_fill(nothing, 0.0)
        if self.training and self.dropout:
            weights = dropout(weights, self.dropout)
        read = (weights @ v).transpose(1, 2).flatten(2)
        out = self.product(read, self.out_proj.weight, self.out_proj.bias)
        out = out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(1) if average_attn_weights else weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, records first; one product where several read the same."""
        q, k, v = (h if self.batch_first else h.transpose(0, 1) for h in (query, key, value))
        width, bias = self.embed_dim, self.in_proj_bias
        if self.packed and query is key and key is value:
            first, second, third = self.product(q, self.in_proj_weight, bias).chunk(3, 2)
            return first, second, third
        names = (
            ("in_proj_weight",) * 3 if self.packed else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
        first, second, third = (
            self.product(h, getattr(self, name), bias, self.packed * place, place, width)
            for h, name, place in zip((q, k, v), names, (0, width, 2 * width), strict=True)
        )
        return first, second, third


def _masked(scores: Tensor, mask: Tensor, added: int) -> Tensor:
    """Scores with -inf where a mask of Booleans says so, or with a mask of numbers added.

    Args:
        scores: shape (m, heads, T, S + added).
        mask: broadcast to (m, heads, T, S); nothing masks what was added.
    """
    mask = pad(mask, (0, added)) if added else mask
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
