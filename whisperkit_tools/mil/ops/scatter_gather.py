"""Taking elements from indexed places and putting them there. Negative indices count from the end."""

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


def _places(indices: Tensor, size: int) -> Tensor:
    """Return `indices` as int64, those below zero counted from the end of an axis of `size`."""
    places = indices.long()
    return torch.where(places < 0, places + size, places)


def _strides(shape: torch.Size) -> list[int]:
    """Return how many elements apart neighbours along each axis are, in row-major order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


@operation("gather", moves_only=True)
def gather(x: Tensor, indices: Tensor, *, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """The slices of `x` along `axis` at `indices`, whose axes take the place of `axis`.

    The first `batch_dims` axes are common to both. An index out of range raises in either mode of validation; Core ML
    leaves the result undefined without it.
    """
    axis %= x.ndim
    if batch_dims:
        batches = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
        parts = torch.stack([gather(part, places, axis=axis - batch_dims) for part, places in batches])
        return parts.reshape(x.shape[:batch_dims] + parts.shape[1:])
    places = _places(indices, x.shape[axis])
    return x.index_select(axis, places.reshape(-1)).reshape(x.shape[:axis] + places.shape + x.shape[axis + 1 :])


@operation("gather_along_axis", moves_only=True)
def gather_along_axis(x: Tensor, indices: Tensor, *, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """For each place of `indices` the element of `x` at that place, with `axis` replaced by the index."""
    return torch.take_along_dim(x, _places(indices, x.shape[axis]), dim=axis)


def _tuple_places(shape: torch.Size, indices: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """Turn `indices` `[batch..., ..., K]` into one index tensor an axis, batch axes first."""
    depth = indices.shape[-1]
    named = [_places(indices[..., k], shape[batch_dims + k]) for k in range(depth)]
    batch = []
    for axis in range(batch_dims):
        sizes = [1] * (indices.ndim - 1)
        sizes[axis] = shape[axis]
        batch.append(torch.arange(shape[axis], device=indices.device).reshape(sizes))
    return (*batch, *named)


@operation("gather_nd", moves_only=True)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """`x[batch, indices[..., 0], indices[..., 1], ...]`: the last axis of `indices` names a place or a slice of `x`."""
    return x[_tuple_places(x.shape, indices, batch_dims)]


def _scatter_flat(data: Tensor, places: Tensor, updates: Tensor, mode: str) -> Tensor:
    """Combine `updates` with the elements of `data` at the flat `places`, which have the shape of `updates`."""
    flat, where, what = data.reshape(-1), places.reshape(-1), updates.to(data.dtype).reshape(-1)
    if mode == "update":
        return flat.scatter(0, where, what).reshape(data.shape)
    if mode == "sub":
        mode, what = "add", -what
    if mode == "div":
        mode, what = "mul", 1 / what
    reduction = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[mode]
    return flat.scatter_reduce(0, where, what, reduction).reshape(data.shape)


@operation("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with its slices along `axis` at `indices` combined with `updates` by `mode`."""
    axis %= data.ndim
    places = _places(indices, data.shape[axis])
    flat = torch.zeros((), dtype=torch.long, device=data.device)
    strides = _strides(data.shape)
    for at in range(data.ndim):  # the axes of `updates`: data's, with those of `indices` in place of `axis`
        along = places if at == axis else torch.arange(data.shape[at], device=data.device)
        after = data.ndim - at - 1 + (places.ndim - 1 if at < axis else 0)
        flat = flat + (along * strides[at]).reshape(*along.shape, *(1,) * after)
    return _scatter_flat(data, flat.expand(updates.shape), updates, mode)


@operation("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    *,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with the elements that `gather_along_axis` would give combined with `updates` by `mode`."""
    axis %= data.ndim
    strides = _strides(data.shape)
    flat = _places(indices, data.shape[axis]) * strides[axis]
    for at in range(data.ndim):
        if at != axis:
            along = torch.arange(indices.shape[at], device=data.device) * strides[at]
            flat = flat + along.reshape(-1, *(1,) * (data.ndim - at - 1))
    return _scatter_flat(data, flat, updates, mode)


@operation("scatter_nd")
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, *, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """`data` with the elements or slices that `gather_nd` would give combined with `updates` by `mode`."""
    named = _tuple_places(data.shape, indices, 0)
    strides = _strides(data.shape)
    flat = sum((place * stride for place, stride in zip(named, strides, strict=False)), torch.zeros_like(named[0]))
    rest = data.shape[len(named) :]
    inner = torch.arange(rest.numel(), device=data.device).reshape(rest)
    return _scatter_flat(data, flat.reshape(*flat.shape, *(1,) * len(rest)) + inner, updates, mode)
