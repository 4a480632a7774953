"""Quantized activations (iOS 17)."""

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


def _along(vector: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Shape a scalar or a vector so that it broadcasts along `axis` of `x`."""
    if vector.ndim == 0 or axis is None:
        return vector
    shape = [1] * x.ndim
    shape[axis] = -1
    return vector.reshape(shape)


@operation("quantize")
def quantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int | None = None, output_dtype: str
) -> Tensor:
    """`clip(round(input / scale) + zero_point)` as int8 or uint8."""
    dtype = torch.int8 if output_dtype == "int8" else torch.uint8
    limits = torch.iinfo(dtype)
    steps = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis)
    return steps.clamp(limits.min, limits.max).to(dtype)


@operation("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int | None = None) -> Tensor:
    """`scale * (input - zero_point)`."""
    values = input.to(scale.dtype)
    if zero_point is not None:
        values = values - _along(zero_point, input, axis).to(scale.dtype)
    return values * _along(scale, input, axis)
