"""Compressed weights, made dense by operations on constants like any other, so that gradients reach palettes.

The forms of iOS 16 hold packed bits and the shape; those of iOS 18 hold an element a value, and scales, palettes and
offsets by block. Core ML materialises the result in its declared type, and the schedule rounds it to that in either
precision.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation
from whisperkit_tools.mil.weights_file import unpack_bits


def unpack(packed: Tensor, width: int, count: int) -> Tensor:
    """Unpack `count` unsigned integers of `width` bits, least significant bit first, from bytes; result uint8."""
    return torch.from_numpy(unpack_bits(packed.cpu().numpy(), width, count)).to(packed.device)


def _spread(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat each element of `blocks` over its block of a tensor of `shape`."""
    for axis, size in enumerate(shape):
        if blocks.shape[axis] not in (1, size):
            blocks = blocks.repeat_interleave(size // blocks.shape[axis], dim=axis)
    return blocks


@operation("constexpr_cast")
def constexpr_cast(source_val: Tensor, *, output_dtype: str, out_dtype: torch.dtype) -> Tensor:
    """A constant in another type."""
    return source_val.to(out_dtype)


@operation("constexpr_affine_dequantize")
def constexpr_affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, *, axis: int) -> Tensor:
    """`scale * (quantized_data - zero_point)`, both scalars or vectors along `axis`."""
    shape = [1] * quantized_data.ndim
    shape[axis] = -1
    offset, factor = (part.reshape(shape) if part.ndim else part for part in (zero_point, scale))
    return factor * (quantized_data.to(scale.dtype) - offset.to(scale.dtype))


@operation("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """`scale * (data - offset)`, each scale and offset for a block of `data`."""
    values = data.to(scale.dtype)
    if offset is not None:
        values = values - _spread(offset, data.shape).to(scale.dtype)
    return _spread(scale, data.shape) * values


@operation("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, *, shape: Sequence[int] | None = None, vector_axis: int | None = None
) -> Tensor:
    """The palette's entries in place of their indices.

    Args:
        indices: With `shape` (iOS 16) packed bytes, else (iOS 18) one index an element, `[I...]`.
        lut: `[P]` (iOS 16), or `[G..., P, V]`: a palette of P vectors for each of the blocks G of the indices.
        shape: Shape of the result (iOS 16).
        vector_axis: The axis along which the V elements of an entry lie, when V > 1.
    """
    if shape is not None:
        width = int(math.log2(lut.shape[0]))
        flat = unpack(indices, width, math.prod(shape))
        return lut.index_select(0, flat.to(torch.int32)).reshape(tuple(shape))
    return look_up(indices, lut, vector_axis)


def look_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Return the entries of `indices` `[I...]` in the palettes `[G..., P, V]` of their blocks.

    Args:
        indices: One index an element, or V elements.
        lut: For each of the blocks G of the indices a palette of P vectors of V elements.
        vector_axis: The axis along which the V elements of an entry lie, when V > 1.
    """
    vector = lut.shape[-1]
    rows = entry_rows(indices, lut.shape)
    found = lut.reshape(-1, vector).index_select(0, rows.reshape(-1)).reshape(*indices.shape, vector)
    if vector == 1:
        return found.squeeze(-1)
    axis = (vector_axis or 0) % indices.ndim
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def entry_rows(indices: Tensor, lut_shape: Sequence[int]) -> Tensor:
    """Return the rows of the indices' entries when the palettes `[G..., P, V]` are joined to `[G * P, V]`."""
    *blocks, entries, _ = lut_shape
    rows = indices.to(torch.int32)
    if math.prod(blocks) > 1:
        first = torch.arange(0, math.prod(blocks) * entries, entries, dtype=torch.int32, device=indices.device)
        rows = rows + _spread(first.reshape(blocks), indices.shape)
    return rows


def palette_to_dense(
    indices: Tensor,
    lut: Tensor,
    vector_axis: int,
    scale: Tensor | None = None,
    outliers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the float16 weight that a palette with scales and outliers stands for.

    Products with scales and sums with outliers are computed in float32 and rounded to float16. This is the one place
    of that rule: what is written, what is tuned and what is read back agree to the bit.

    Args:
        indices: See `look_up`.
        lut: float16, see `look_up`.
        vector_axis: See `look_up`.
        scale: float16, broadcasts to the weight.
        outliers: Row-major positions in the weight, and the float16 values that are added there.
    """
    dense = look_up(indices, lut, vector_axis)
    if scale is not None:
        dense = (dense.float() * scale.float()).half()
    if outliers is not None:
        positions, values = outliers
        flat = dense.reshape(-1)
        flat[positions] = (flat[positions].float() + values.float()).half()
        dense = flat.reshape(dense.shape)
    return dense


@operation("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, *, shape: Sequence[int] | None = None) -> Tensor:
    """The values in row-major order where the mask is set, zero elsewhere; with `shape` the mask is packed bits."""
    if shape is not None:
        mask = unpack(mask, 1, math.prod(shape)).reshape(tuple(shape))
    zeros = torch.zeros(mask.shape, dtype=nonzero_data.dtype, device=nonzero_data.device)
    return zeros.masked_scatter(mask.bool(), nonzero_data)


@operation("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, *, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the palette's entries for the indices that it keeps, to be made dense by a second operation."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense = look_up(indices, lut, vector_axis)
    mask = indices_mask
    if dense.shape != mask.shape:
        axis = (vector_axis or 0) % mask.ndim
        mask = mask.repeat_interleave(lut.shape[-1], dim=axis)
    return mask, dense.masked_select(mask.bool())


@operation("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and `scale * (data - offset)` of the elements that it keeps."""
    data = constexpr_sparse_to_dense(nonzero_data, data_mask)
    dense = constexpr_blockwise_shift_scale(data, scale, offset)
    return data_mask, dense.masked_select(data_mask.bool())
