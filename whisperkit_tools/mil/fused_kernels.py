"""Kernels for the combinations that `fusion` recognises. Equal to the separate operations up to rounding."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.ops.conv import conv
from whisperkit_tools.mil.ops.tensor_operation import StateBox
from whisperkit_tools.mil.ops.tensor_transformation import axis_slices

Packed: TypeAlias = Any
"""A matrix in float16 in FBGEMM's layout: an opaque object of torch's."""


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of `x` `[B, in, 1, S]` as one matrix product.

    The result lies channels-last in memory. Elementwise operations keep that, a layer norm over the channels needs
    it, and the next product reads it as it is, so that no layout is ever converted.
    """
    rows = F.linear(x.permute(0, 2, 3, 1), weight.reshape(weight.shape[0], -1), bias)
    return rows.permute(0, 3, 1, 2)


def channels_last_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """A convolution whose result lies channels-last in memory, for what follows; see `pointwise_conv`."""
    return conv(x, weight, bias, **options).contiguous(memory_format=torch.channels_last)


def single_position_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of `x` `[1, in, 1, 1]`: a matrix times a vector."""
    matrix, vector = weight.reshape(weight.shape[0], -1), x.reshape(-1)
    result = torch.mv(matrix, vector) if bias is None else torch.addmv(bias, matrix, vector)
    return result.view(1, -1, 1, 1)


def packed_half(weight: Tensor) -> Tensor | Packed:
    """Pack a matrix `[out, in]` as float16 for products with one float32 vector, where that is lossless.

    Such a product takes the time of reading the matrix, so half the bytes are half the time or less. FBGEMM widens the
    weights to float32 on the way and computes in float32. Where it is not available (processors other than x86), or
    where the weights are not float16 numbers, the matrix stays as it is.
    """
    has_fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    available = has_fbgemm and hasattr(torch.ops.quantized, "linear_prepack_fp16")
    if not available or weight.device.type != "cpu" or not torch.equal(weight.half().float(), weight):
        return weight
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


def single_row_linear(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None, *, shape: tuple[int, ...]
) -> Tensor:
    """A linear layer on one vector `x` `[..., in]`, all leading axes of size 1, its weight maybe packed."""
    if not isinstance(weight, Tensor):
        packed: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.reshape(1, -1), weight)
        return (packed if bias is None else packed + bias).view(shape)
    vector = x.reshape(-1)
    result = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return result.view(shape)


def position_convs(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of `x` `[B, in, 1, 1]`: a matrix, maybe packed, times a vector for each of B lanes."""
    if x.shape[0] == 1 and isinstance(weight, Tensor):
        return single_position_conv(x, weight, bias)
    rows = _rows(x.reshape(x.shape[0], -1), weight, bias)
    return rows.view(*rows.shape, 1, 1)


def row_linears(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None, *, shape: tuple[int, ...]) -> Tensor:
    """A linear layer on one vector for each of B lanes, `x` `[B, ..., in]`, its weight maybe packed."""
    if x.shape[0] == 1 and isinstance(weight, Tensor):
        return single_row_linear(x, weight, bias, shape=shape)
    return _rows(x.reshape(x.shape[0], -1), weight, bias).view(x.shape[0], *shape[1:])


def _rows(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    """Return `x` `[B, in]` times a matrix, plus the bias."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight.reshape(weight.shape[0], -1), bias)
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, weight)
    return product if bias is None else product + bias


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    query_is_column: bool,
    key_is_column: bool,
    value_is_column: bool,
    result_is_column: bool,
) -> Tensor:
    """`softmax(query @ key.T + mask) @ value` without ever holding all scores.

    Shapes: query `[B, H, Q, C]`, key and value `[B, H, K, C]`, mask broadcasts to `[B, H, Q, K]`, result as query.
    A tensor that "is column" has its last two axes the other way round.
    """
    query, key, value = (
        x.mT if is_column else x
        for x, is_column in ((query, query_is_column), (key, key_is_column), (value, value_is_column))
    )
    result = F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    return result.mT if result_is_column else result


def split_head_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with the softmax over the channel axis, as the Neural Engine likes it.

    Shapes: query `[B, C, H, Q]`, key `[B, K, H, C]`, value `[B, C, H, K]`, mask broadcasts to `[B, K, H, Q]`, result
    `[B, C, H, Q]`; H is mostly 1, a head having been split off.
    """
    query, value = query.permute(0, 2, 3, 1), value.permute(0, 2, 3, 1)
    if mask is not None:
        mask = mask.permute(0, 2, 3, 1)
    result = F.scaled_dot_product_attention(query, key.transpose(1, 2), value, mask, scale=1.0)
    return result.permute(0, 3, 1, 2)


def cached_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_update: Tensor,
    value_update: Tensor,
    here: Tensor,
    elsewhere: Tensor,
    mask: Tensor,
) -> Tensor:
    """Attention of one position to caches that were updated at it, without writing the updated caches.

    With `K' = K * elsewhere + k * here`, `q.K' = (q.K) * elsewhere + (q.k) * here`, and likewise for the values: the
    update moves from the whole cache to one row of scores.

    Shapes: query `[B, H, C, 1]`, caches `[B, H * C, 1, S]`, updates `[B, H * C, 1, 1]`, `here`, `elsewhere` and `mask`
    `[B or 1, 1, 1, S]`, result `[B, H, C, 1]`.
    """
    heads, channels = query.shape[1:3]
    column = (-1, heads, channels, 1)
    keys, values = (cache.view(-1, heads, channels, cache.shape[3]) for cache in (key_cache, value_cache))
    at_here = (query * key_update.reshape(column)).sum(dim=2, keepdim=True)
    scores = torch.addcmul(mask, torch.matmul(query.mT, keys), elsewhere).addcmul_(at_here, here)
    weights = torch.softmax(scores, dim=3)
    attended = torch.matmul(values, (weights * elsewhere).mT)
    return attended.addcmul_(value_update.reshape(column), (weights * here).sum(dim=3, keepdim=True))


def cached_attention_at(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_update: Tensor,
    value_update: Tensor,
    mask: Tensor,
    *,
    begin: Sequence[int],
) -> Tensor:
    """Attention of one position to caches that were updated at `begin[-1]`, without writing the updated caches.

    The content of the caches there is ignored: its score is replaced, and its weight goes to the update instead.

    Shapes: as in `cached_attention`; `begin` has an element for each axis of the caches.
    """
    heads, channels = query.shape[1:3]
    column = (1, heads, channels, 1)
    keys, values = (cache.view(1, heads, channels, -1) for cache in (key_cache, value_cache))
    here = begin[-1] % keys.shape[3]
    scores = torch.matmul(query.mT, keys)
    scores[..., here] = (query * key_update.reshape(column)).sum(dim=2)
    weights = torch.softmax(scores + mask, dim=3)
    at_here = weights[..., here : here + 1].clone()
    weights[..., here] = 0
    return torch.matmul(values, weights.mT).addcmul_(value_update.reshape(column), at_here)


def write_state_slice(
    state: StateBox,
    update: Tensor,
    *,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> tuple[()]:
    """Replace a slice of a state in place; bounds and masks as in `slice_update`."""
    if state.value.requires_grad:  # a run with gradients still needs what it wrote
        state.write(state.value.detach())
    slices = axis_slices(state.value, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    part = state.value[tuple(slices)]
    part.copy_(update.reshape(part.shape))
    return ()


def norm_scale(variance: Tensor, gamma: Tensor | None = None, *, epsilon: float = 1e-5) -> Tensor:
    """Return the factor of a batch norm, by channel."""
    scale = torch.rsqrt(variance + epsilon)
    return scale if gamma is None else scale * gamma


def norm_shift(mean: Tensor, scale: Tensor, beta: Tensor | None = None) -> Tensor:
    """Return the summand of a batch norm, by channel."""
    return -mean * scale if beta is None else beta - mean * scale
