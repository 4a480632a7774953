"""Normalisations."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


@operation("layer_norm")
def layer_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise over `axes` (all when None), then scale and shift; `gamma` and `beta` have the shape of those axes."""
    dims = tuple(axis % x.ndim for axis in (range(x.ndim) if axes is None else axes))
    last = tuple(range(x.ndim - len(dims), x.ndim))
    shape = [x.shape[dim] for dim in dims]
    if dims == last:
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    # Torch normalises trailing axes only. The views cost nothing, and what is channels-last in memory stays so.
    return F.layer_norm(x.movedim(dims, last), shape, gamma, beta, epsilon).movedim(last, dims)


@operation("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
) -> Tensor:
    """`(x - mean) / sqrt(variance + epsilon) * gamma + beta`, all `[C]` along axis 1."""
    scale = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


@operation("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, *, epsilon: float = 1e-5
) -> Tensor:
    """Normalise each channel of each instance of `x` `[B, C, ...]`, then scale and shift."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@operation("l2_norm")
def l2_norm(x: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """`x / sqrt(sum(x ** 2) + epsilon)`, summed over the last three axes."""
    return x * torch.rsqrt((x * x).sum(dim=(-3, -2, -1), keepdim=True) + epsilon)


@operation("local_response_norm")
def local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """`x / (k + alpha / size * sum(x ** 2)) ** beta`, summed over `size` neighbouring channels."""
    return F.local_response_norm(x, size, alpha=alpha, beta=beta, k=k)
