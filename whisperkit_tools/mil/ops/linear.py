"""Matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


@operation("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: `[..., in]` with `weight` `[out, in]` to `[..., out]`."""
    return F.linear(x, weight, bias)


@operation("matmul")
def matmul(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """`x @ y` over the last two axes; a vector is never transposed."""
    if transpose_x and x.ndim > 1:
        x = x.mT
    if transpose_y and y.ndim > 1:
        y = y.mT
    return torch.matmul(x, y)


@operation("einsum")
def einsum(*values: Tensor, equation: str) -> Tensor:
    """Einstein summation, such as `bchq,bkhc->bkhq`."""
    return torch.einsum(equation, *values)


@operation("scaled_dot_product_attention")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """`softmax(query @ key.T / sqrt(C) + attn_mask) @ value`; a boolean mask keeps where it is true.

    Shapes: query `[..., Q, C]`, key `[..., K, C]`, value `[..., K, V]`, mask `[..., Q, K]`, result `[..., Q, V]`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
