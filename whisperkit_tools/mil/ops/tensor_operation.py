"""Operations that join, fill, sort and pad tensors, and those that carry state."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import limited, operation


@operation("identity", moves_only=True)
def identity(x: Tensor) -> Tensor:
    """`x` itself."""
    return x


@operation("concat", moves_only=True)
def concat(*values: Tensor, axis: int, interleave: bool = False) -> Tensor:
    """The tensors one after another along `axis`, or, interleaved, their slices in turn."""
    if not interleave:
        return torch.cat(values, dim=axis)
    return torch.stack(values, dim=axis % values[0].ndim + 1).flatten(axis % values[0].ndim, axis % values[0].ndim + 1)


@operation("split", moves_only=True)
def split(
    x: Tensor, *, axis: int, num_splits: int | None = None, split_sizes: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    """`x` cut along `axis` into equal parts or parts of the given sizes."""
    if split_sizes is None:
        return torch.split(x, x.shape[axis] // (num_splits or 1), dim=axis)
    return torch.split(x, list(split_sizes), dim=axis)


@operation("stack", moves_only=True)
def stack(*values: Tensor, axis: int) -> Tensor:
    """The tensors along a new axis."""
    return torch.stack(values, dim=axis)


@operation("tile", moves_only=True)
def tile(x: Tensor, *, reps: Sequence[int]) -> Tensor:
    """`x` repeated `reps` times along each axis."""
    limited(x.numel(), *reps)
    return x.repeat(tuple(reps))


@operation("pad", moves_only=True)
def pad(x: Tensor, *, pad: Sequence[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`x` with `pad[2 * i]` elements before and `pad[2 * i + 1]` after the i-th of its last axes.

    The new elements are `constant_val`, or the tensor mirrored at its edge (`reflect`) or its edge (`replicate`).
    """
    pairs = [(pad[index], pad[index + 1]) for index in range(0, len(pad), 2)]
    padded = zip(x.shape[x.ndim - len(pairs) :], pairs, strict=True)
    limited(*x.shape[: x.ndim - len(pairs)], *(size + before + after for size, (before, after) in padded))
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pairs, start=x.ndim - len(pairs)):
        if before or after:
            size = x.shape[axis]
            places = torch.arange(-before, size + after, device=x.device)
            if mode == "reflect":
                places = (size - 1) - ((size - 1) - places.abs()).abs()
            x = x.index_select(axis, places.clamp(0, size - 1))
    return x


@operation("fill")
def fill(*, shape: Sequence[int], value: float = 0.0, out_dtype: torch.dtype, out_device: torch.device) -> Tensor:
    """A tensor full of `value`."""
    return torch.full(limited(*shape), value, dtype=out_dtype, device=out_device)


@operation("fill_like")
def fill_like(ref_tensor: Tensor, *, value: float = 0.0, out_dtype: torch.dtype) -> Tensor:
    """A tensor of the reference's shape full of `value`."""
    return torch.full_like(ref_tensor, value, dtype=out_dtype)


@operation("range_1d")
def range_1d(
    *, start: float = 0, end: float, step: float = 1, out_dtype: torch.dtype, out_device: torch.device
) -> Tensor:
    """`start`, `start + step`, ... up to but not including `end`."""
    limited(math.ceil((end - start) / step))
    return torch.arange(start, end, step, dtype=out_dtype, device=out_device)


@operation("shape")
def shape(x: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """The sizes of the axes of `x`."""
    return torch.tensor(x.shape, dtype=out_dtype, device=x.device)


@operation("one_hot")
def one_hot(
    indices: Tensor,
    *,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: float = 1,
    off_value: float = 0,
    out_dtype: torch.dtype,
) -> Tensor:
    """`on_value` at the index, `off_value` elsewhere, along a new axis; an index out of range gives no `on_value`."""
    limited(*indices.shape, one_hot_vector_size)
    places = torch.arange(one_hot_vector_size, device=indices.device)
    hit = indices.unsqueeze(-1) == places
    on = torch.tensor(on_value, dtype=out_dtype, device=indices.device)
    off = torch.tensor(off_value, dtype=out_dtype, device=indices.device)
    return torch.where(hit, on, off).movedim(-1, axis)


@operation("non_zero")
def non_zero(x: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """Places of the elements that are not zero, `[N, rank]`."""
    return torch.nonzero(x).to(out_dtype)


@operation("band_part")
def band_part(x: Tensor, *, lower: int = -1, upper: int = -1) -> Tensor:
    """The last two axes with only `lower` diagonals below and `upper` above the main one kept; -1 keeps all."""
    rows = torch.arange(x.shape[-2], device=x.device)[:, None]
    columns = torch.arange(x.shape[-1], device=x.device)[None, :]
    kept = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros_like(x))


@operation("cumsum")
def cumsum(
    x: Tensor, *, axis: int = 0, exclusive: bool = False, reverse: bool = False, out_dtype: torch.dtype
) -> Tensor:
    """Running sum along `axis`, from the end when `reverse`, without the element itself when `exclusive`."""
    ordered = x.flip(axis) if reverse else x
    total = torch.cumsum(ordered, dim=axis)
    if exclusive:
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return (total.flip(axis) if reverse else total).to(out_dtype)


@operation("argsort")
def argsort(x: Tensor, *, axis: int = -1, ascending: bool = False, out_dtype: torch.dtype) -> Tensor:
    """Indices that sort `x` along `axis`, by default from the largest."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(out_dtype)


@operation("topk")
def topk(
    x: Tensor,
    *,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    """The `k` largest elements along `axis` (smallest when `ascending`; all when `k` is -1) and their indices.

    They come sorted, which `sort=False` allows as well.
    """
    order = torch.argsort(x, dim=axis, descending=not ascending, stable=True)
    order = order.narrow(axis, 0, x.shape[axis] if k == -1 else k)
    values = torch.gather(x, axis, order)
    return (values, order.to(torch.int32)) if return_indices else (values,)


class StateBox:
    """A state of a stateful program: a place that holds a tensor which nobody else writes to."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def write(self, value: Tensor) -> None:
        """Take a copy of a tensor: the caller may change its own, and what was read before stays what it was."""
        self.value = value.clone(memory_format=torch.contiguous_format)


@operation("read_state", moves_only=True)
def read_state(input: StateBox) -> Tensor:
    """The state's present tensor."""
    return input.value


@operation("coreml_update_state", moves_only=True)
def coreml_update_state(state: StateBox, value: Tensor) -> Tensor:
    """Replace the state's tensor and return the new one."""
    state.write(value)
    return value


@operation("write_state", moves_only=True)
def write_state(input: StateBox, data: Tensor) -> tuple[()]:
    """Replace the state's tensor."""
    input.write(data)
    return ()
