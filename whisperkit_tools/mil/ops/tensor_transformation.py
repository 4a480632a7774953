"""Operations that change a tensor's shape or take a part of it, without touching its elements."""

import builtins
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


@operation("reshape", moves_only=True)
def reshape(x: Tensor, *, shape: Sequence[int]) -> Tensor:
    """`x` in another shape; -1 stands for what is left, 0 for the size of that axis in `x`."""
    if 0 in shape and x.numel():
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(tuple(shape))


@operation("reshape_like", moves_only=True)
def reshape_like(
    x: Tensor, *ref_tensors: Tensor, begins: Sequence[int], ends: Sequence[int], end_masks: Sequence[bool]
) -> Tensor:
    """`x` in the shape made of the axes `begins[i]:ends[i]` of each reference, up to its end where `end_masks[i]`."""
    sizes: list[int] = []
    for reference, begin, end, whole in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes.extend(reference.shape[begin : None if whole else end])
    return x.reshape(sizes)


@operation("transpose", moves_only=True)
def transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    """The axes of `x` in the order `perm`."""
    return x.permute(tuple(perm))


@operation("expand_dims", moves_only=True)
def expand_dims(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """`x` with axes of size 1 at the places `axes` of the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operation("squeeze", moves_only=True)
def squeeze(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """`x` without the axes `axes`, which have size 1; without all such axes when None."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operation("flatten2d", moves_only=True)
def flatten2d(x: Tensor, *, axis: int = 1) -> Tensor:
    """`x` as a matrix: the axes before `axis`, and the others."""
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, x.numel() // rows if rows else 0)


@operation("reverse", moves_only=True)
def reverse(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """`x` backwards along `axes`, or along all of them."""
    return torch.flip(x, list(range(x.ndim)) if axes is None else list(axes))


def axis_slices(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    masks: tuple[Sequence[bool] | None, Sequence[bool] | None, Sequence[bool] | None],
) -> list[builtins.slice]:
    """Return a Python slice for each axis; a squeezed axis gives its one element."""
    begin_mask, end_mask, squeeze_mask = (mask or (False,) * x.ndim for mask in masks)
    slices = []
    for axis in range(x.ndim):
        start = None if begin_mask[axis] else begin[axis]
        stop = None if end_mask[axis] else end[axis]
        step = stride[axis] if stride else 1
        if squeeze_mask[axis]:
            start, step = start or 0, 1
            stop = start + 1 or None
        slices.append(builtins.slice(start, stop, step))
    return slices


@operation("slice_by_index", moves_only=True)
def slice_by_index(
    x: Tensor,
    *,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """`x[begin:end:stride]` on each axis with Python's meaning; masks drop a bound or the whole axis."""
    slices = axis_slices(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask))
    for axis, part in enumerate(slices):
        if part.step is not None and part.step < 0:  # torch has no negative steps
            chosen = list(range(*part.indices(x.shape[axis])))
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.long, device=x.device))
            slices[axis] = builtins.slice(None)
    result = x[tuple(slices)]
    if squeeze_mask and any(squeeze_mask):
        result = result.squeeze(tuple(axis for axis, gone in enumerate(squeeze_mask) if gone))
    return result


@operation("slice_by_size", moves_only=True)
def slice_by_size(x: Tensor, *, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """`size` elements of each axis from `begin`; -1 takes the rest."""
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        start = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


@operation("slice_update", moves_only=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    *,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """`x` with the part that `slice_by_index` would give replaced by `update`."""
    slices = tuple(axis_slices(x, begin, end, stride, (begin_mask, end_mask, squeeze_mask)))
    result = x.clone()
    result[slices] = update.reshape(result[slices].shape)
    return result


@operation("sliding_windows", moves_only=True)
def sliding_windows(x: Tensor, *, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows of `size` along `axis`, which becomes two axes: window and place in it."""
    return x.unfold(axis, size, stride).movedim(-1, axis % x.ndim + 1)


@operation("depth_to_space", moves_only=True)
def depth_to_space(x: Tensor, *, block_size: int) -> Tensor:
    """`[B, C * b * b, H, W]` to `[B, C, H * b, W * b]`, the block's place varying slowest along the channels."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, block_size, block_size, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, channels // block_size**2, height * block_size, width * block_size)


@operation("space_to_depth", moves_only=True)
def space_to_depth(x: Tensor, *, block_size: int) -> Tensor:
    """`[B, C, H * b, W * b]` to `[B, C * b * b, H, W]`, the inverse of `depth_to_space`."""
    batch, channels, height, width = x.shape
    rows, columns = height // block_size, width // block_size
    blocks = x.reshape(batch, channels, rows, block_size, columns, block_size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * block_size**2, rows, columns)


@operation("pixel_shuffle", moves_only=True)
def pixel_shuffle(x: Tensor, *, upscale_factor: int) -> Tensor:
    """`[B, C * f * f, H, W]` to `[B, C, H * f, W * f]`, the channel varying slowest."""
    return F.pixel_shuffle(x, upscale_factor)


@operation("pixel_unshuffle", moves_only=True)
def pixel_unshuffle(x: Tensor, *, downscale_factor: int) -> Tensor:
    """`[B, C, H * f, W * f]` to `[B, C * f * f, H, W]`."""
    return F.pixel_unshuffle(x, downscale_factor)
