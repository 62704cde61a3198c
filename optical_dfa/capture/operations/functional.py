"""Rules of the operations that layers are made of: convolution, embedding, normalisation, pooling, attention."""

from __future__ import annotations

from torch import Tensor

from optical_dfa.capture.operations.call import DIFFERS, ELSEWHERE, NO_CONSTANT, OVER, Call, MixingError
from optical_dfa.capture.operations.rules import Placed, RowRule, Rules, across, free_of_last
from optical_dfa.capture.rows import FIRST, places

RULES = Rules()


@RULES.of(
    "convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution"
)
def convolution(call: Call) -> Placed:
    _, rows = call.only("input") if call.get("input") is not None else call.only()
    if rows.axis != 0:
        raise MixingError("by a convolution " + OVER)
    return rows


@RULES.of("embedding")
def embedding(call: Call) -> Placed:
    _, rows = call.only("indices")
    return rows


@RULES.of("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Placed:
    """Bags of one size: that of each record starts at its place times the size."""
    call.constants("weight")
    indices, rows = call.get("indices"), call.rows(call.get("indices"))
    if rows is None or rows.axis or rows.outer != 1 or call.get("include_last_offset"):
        raise MixingError("by bags that are not those of a record each")
    if call.rows(call.get("offsets")) != places(rows.inner):
        raise MixingError(
            "by bags that are not those of a record each; give indices of shape (records, size)"
        )
    call.added(rows, call.get("per_sample_weights"), indices.ndim)
    return (FIRST, None, None, None)


@RULES.of("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> Placed:
    x, rows = call.only("input")
    return free_of_last(x, rows, len(call.get("normalized_shape")))


@RULES.of("native_group_norm")
def group_norm(call: Call) -> Placed:
    _, rows = call.only("input")
    if rows.axis != 0:
        raise MixingError("by a normalisation " + OVER)
    return (rows, rows if rows.alone else None, rows if rows.alone else None)


@RULES.of("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
          "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm")  # fmt: skip
def batch_norm(call: Call) -> Placed:
    """In evaluation, constants along the channels; in training each channel by itself (instance_norm's use of it)."""
    x = call.get("input")
    rows = call.rows(x)
    training = bool(call.get("training", "no_training" not in call.name and "no_update" not in call.name))
    held = [call.get(name) for name in ("running_mean", "running_var")]
    if rows is None:
        raise MixingError(NO_CONSTANT)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.get(name)
        if not isinstance(value, Tensor) or not value.numel():
            continue
        other = call.rows(value)
        if other is not None and other.moved(1) != rows:
            raise MixingError(ELSEWHERE)
        if other is None and rows.axis == 1 and not call.uniform(value, rows.moved(0)):
            raise MixingError(DIFFERS)
    if training and (rows.axis != 1 or any(isinstance(value, Tensor) for value in held)):
        raise MixingError("by a normalisation " + OVER)
    channel = rows.moved(0) if rows.axis == 1 else None
    return (rows, channel, channel)


def _spatial(axes: int) -> RowRule:
    def of_images(call: Call) -> Placed:
        first = "self" if call.get("self") is not None else "input"
        x, rows = call.only(first)
        return free_of_last(x, rows, axes)

    return of_images


for _axes_mixed, _names in {
    1: ("avg_pool1d", "adaptive_avg_pool1d", "reflection_pad1d", "replication_pad1d", "upsample_nearest1d",
        "_upsample_nearest_exact1d", "upsample_linear1d"),
    2: ("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "reflection_pad2d",
        "replication_pad2d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
        "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d"),
    3: ("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d", "reflection_pad3d",
        "replication_pad3d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d",
        "pixel_shuffle", "pixel_unshuffle", "im2col"),
}.items():  # fmt: skip
    RULES.of(*_names)(_spatial(_axes_mixed))


@RULES.of("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, 1, x.ndim)


@RULES.of("col2im")
def col2im(call: Call) -> Placed:
    x, rows = call.only()
    return free_of_last(x, rows, 2)


@RULES.of("affine_grid_generator")
def affine_grid(call: Call) -> Placed:
    x, rows = call.only("theta")
    return free_of_last(x, rows, 2)


@RULES.of("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(call: Call) -> Placed:
    x, grid = call.get("input"), call.get("grid")
    rows = call.together([x, grid], x.ndim)
    if rows.axis != 0:
        raise MixingError(OVER)
    return rows


@RULES.of("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
          "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
          "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention")  # fmt: skip
def attention(call: Call) -> Placed:
    if call.get("dropout_p", 0.0):
        raise MixingError("with masks of its own generator, which is not secret")
    query, key, value = call.get("query"), call.get("key"), call.get("value")
    rows = free_of_last(query, call.together([query, key, value], query.ndim), 2)
    for name in ("attn_mask", "attn_bias"):
        mask = call.get(name)
        if isinstance(mask, Tensor):
            call.added(rows, mask, query.ndim)
    outputs = len(call.out) if isinstance(call.out, tuple | list) else 1
    if outputs == 1:
        return rows
    return (rows, rows, *[None] * (outputs - 2))


@RULES.of("mkldnn_rnn_layer")
def recurrent_layer(call: Call) -> Placed:
    """Sequences of shape (T, records, units), states of shape (records, units)."""
    x = call.get("input")
    rows = call.rows(x)
    if rows is None or rows.axis != 1 or not rows.alone:
        raise MixingError("by a recurrent layer " + OVER)
    for name in ("hx_", "cx_"):
        state = call.get(name)
        other = call.rows(state)
        if other is not None and other != FIRST:
            raise MixingError(ELSEWHERE)
        if other is None and not call.uniform(state, FIRST):
            raise MixingError(DIFFERS)
    return (rows, FIRST, FIRST, None)
