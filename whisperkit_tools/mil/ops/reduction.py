"""Reductions along axes; without `axes`, along all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


def _dims(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else list(axes)


@operation("reduce_sum")
def reduce_sum(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The sum."""
    if out_dtype.is_floating_point:
        return torch.sum(x, dim=_dims(x, axes), keepdim=keep_dims)
    return torch.sum(x, dim=_dims(x, axes), keepdim=keep_dims, dtype=out_dtype)


@operation("reduce_mean")
def reduce_mean(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The mean; of integers, cut to an integer."""
    if out_dtype.is_floating_point:
        return torch.mean(x, dim=_dims(x, axes), keepdim=keep_dims)
    return torch.mean(x.double(), dim=_dims(x, axes), keepdim=keep_dims).to(out_dtype)


@operation("reduce_max")
def reduce_max(x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The largest element."""
    return torch.amax(x, dim=_dims(x, axes), keepdim=keep_dims)


@operation("reduce_min")
def reduce_min(x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False) -> Tensor:
    """The smallest element."""
    return torch.amin(x, dim=_dims(x, axes), keepdim=keep_dims)


@operation("reduce_prod")
def reduce_prod(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The product."""
    for dim in sorted((axis % x.ndim for axis in _dims(x, axes)), reverse=True):
        x = torch.prod(x, dim=dim, keepdim=keep_dims)
    return x.to(out_dtype)


@operation("reduce_l1_norm")
def reduce_l1_norm(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The sum of absolute values."""
    return torch.sum(torch.abs(x), dim=_dims(x, axes), keepdim=keep_dims).to(out_dtype)


@operation("reduce_l2_norm")
def reduce_l2_norm(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The square root of the sum of squares."""
    return torch.sqrt(torch.sum(x * x, dim=_dims(x, axes), keepdim=keep_dims)).to(out_dtype)


@operation("reduce_sum_square")
def reduce_sum_square(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The sum of squares."""
    return torch.sum(x * x, dim=_dims(x, axes), keepdim=keep_dims).to(out_dtype)


@operation("reduce_log_sum")
def reduce_log_sum(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The logarithm of the sum."""
    return torch.log(torch.sum(x, dim=_dims(x, axes), keepdim=keep_dims)).to(out_dtype)


@operation("reduce_log_sum_exp")
def reduce_log_sum_exp(
    x: Tensor, *, axes: Sequence[int] | None = None, keep_dims: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """The logarithm of the sum of exponentials."""
    values = x if x.is_floating_point() else x.float()
    return torch.logsumexp(values, dim=_dims(x, axes), keepdim=keep_dims).to(out_dtype)


@operation("reduce_argmax")
def reduce_argmax(x: Tensor, *, axis: int = -1, keep_dims: bool = False, out_dtype: torch.dtype) -> Tensor:
    """The index of the largest element."""
    return torch.argmax(x, dim=axis, keepdim=keep_dims).to(out_dtype)


@operation("reduce_argmin")
def reduce_argmin(x: Tensor, *, axis: int = -1, keep_dims: bool = False, out_dtype: torch.dtype) -> Tensor:
    """The index of the smallest element."""
    return torch.argmin(x, dim=axis, keepdim=keep_dims).to(out_dtype)
