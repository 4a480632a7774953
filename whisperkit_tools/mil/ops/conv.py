"""Convolutions along one to three axes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


def spatial_padding(
    sizes: Sequence[int],
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pad_type: str,
    pad: Sequence[int],
) -> list[tuple[int, int]]:
    """Return the padding before and after each spatial axis.

    Args:
        sizes: Sizes of the spatial axes.
        kernel: Sizes of the kernel.
        strides: Steps of the kernel.
        dilations: Distances between the kernel's elements.
        pad_type: `valid` (none), `custom` (`pad`), `same` or `same_lower` (so that the output has `ceil(size / stride)`
            elements, an odd one falling after or before).
        pad: Before and after each axis, in turn.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        return [(pad[2 * axis], pad[2 * axis + 1]) for axis in range(len(sizes))]
    result = []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        smaller = total // 2
        result.append((smaller, total - smaller) if pad_type == "same" else (total - smaller, smaller))
    return result


def pad_spatial(x: Tensor, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes of `x` with `value`; no copy when there is nothing to pad."""
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@operation("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] = (),
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve `x` `[B, in, ...]` with `weight` `[out, in / groups, ...]`."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    padding = spatial_padding(
        x.shape[2:], weight.shape[2:], strides=strides, dilations=dilations, pad_type=pad_type, pad=pad
    )
    symmetric = [before for before, _ in padding]
    if any(before != after for before, after in padding):
        x, symmetric = pad_spatial(x, padding), [0] * rank
    function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, bias, stride=strides, padding=symmetric, dilation=dilations, groups=groups)


@operation("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pad: Sequence[int] = (),
    output_shape: Sequence[int] | None = None,
    pad_type: str = "valid",
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The transposed convolution of `x` `[B, in, ...]` with `weight` `[in, out / groups, ...]`.

    Padding is cut off the result; `output_shape` fixes its size where the stride leaves that open.
    """
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    function: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    whole = function(x, weight, None, stride=strides, dilation=dilations, groups=groups)
    for axis in range(rank):
        size = whole.shape[axis + 2]
        if pad_type == "custom":
            before, length = pad[2 * axis], size - pad[2 * axis] - pad[2 * axis + 1]
        elif pad_type in ("same", "same_lower"):
            length = x.shape[axis + 2] * strides[axis]
            excess = max(size - length, 0)
            before = excess // 2 if pad_type == "same" else excess - excess // 2
        else:
            before, length = 0, size
        if output_shape is not None:
            length = output_shape[axis + 2]
        whole = _crop(whole, axis + 2, before, length)
    return whole if bias is None else whole + bias.reshape(1, -1, *(1,) * rank)


def _crop(x: Tensor, axis: int, start: int, length: int) -> Tensor:
    """Take `length` elements of `axis` from `start`, with zeros where `x` has none."""
    missing = start + length - x.shape[axis]
    if missing > 0:
        shape: list[Any] = list(x.shape)
        shape[axis] = missing
        x = torch.cat([x, x.new_zeros(shape)], dim=axis)
    return x.narrow(axis, start, length)
