"""Pooling over windows of one to three axes."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation
from whisperkit_tools.mil.ops.conv import pad_spatial, spatial_padding


def _padding(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], pad_type: str, pad: Sequence[int], ceil_mode: bool
) -> list[tuple[int, int]]:
    """Return the padding of each axis, enlarged at the end so that `ceil_mode` needs no special case."""
    sizes = x.shape[2:]
    padding = spatial_padding(sizes, kernel, strides=strides, dilations=(1,) * len(sizes), pad_type=pad_type, pad=pad)
    if not ceil_mode:
        return padding
    enlarged = []
    for size, extent, stride, (before, after) in zip(sizes, kernel, strides, padding, strict=True):
        rest = (size + before + after - extent) % stride
        windows_start = size + before + after - extent - rest + stride
        grow = rest > 0 and windows_start < size + before  # the last window has to touch the data
        enlarged.append((before, after + stride - rest if grow else after))
    return enlarged


@operation("max_pool")
def max_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str,
    pad: Sequence[int] = (),
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of `x` `[B, C, ...]`."""
    strides = strides or (1,) * len(kernel_sizes)
    padding = _padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    function: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel_sizes) - 1]
    return function(pad_spatial(x, padding, -torch.inf), kernel_sizes, stride=strides)


@operation("avg_pool")
def avg_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str,
    pad: Sequence[int] = (),
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window of `x` `[B, C, ...]`, with or without counting the padding."""
    strides = strides or (1,) * len(kernel_sizes)
    function: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel_sizes) - 1]
    padding = _padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = function(pad_spatial(x, padding), kernel_sizes, stride=strides)
    counted = torch.ones_like(x[:1, :1])
    if not exclude_padding_from_average:  # what ceil_mode adds is never counted
        declared = _padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode=False)
        counted = pad_spatial(counted, declared, 1.0)
        padding = [(0, after - said) for (_, after), (_, said) in zip(padding, declared, strict=True)]
    return mean / function(pad_spatial(counted, padding), kernel_sizes, stride=strides)


@operation("l2_pool")
def l2_pool(
    x: Tensor,
    *,
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str,
    pad: Sequence[int] = (),
    ceil_mode: bool = False,
) -> Tensor:
    """The Euclidean norm of each window of `x` `[B, C, ...]`."""
    strides = strides or (1,) * len(kernel_sizes)
    padding = _padding(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    function: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel_sizes) - 1]
    window = 1
    for extent in kernel_sizes:
        window *= extent
    return torch.sqrt(function(pad_spatial(x * x, padding), kernel_sizes, stride=strides) * window)
