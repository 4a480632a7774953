"""Activation functions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import operation, register_functions

UNARY: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu,  # `max(x, 0)`
    "relu6": F.relu6,  # `min(max(x, 0), 6)`
    "sigmoid": torch.sigmoid,  # `1 / (1 + e ** -x)`
    "silu": F.silu,  # `x * sigmoid(x)`
    "softplus": F.softplus,  # `log(1 + e ** x)`
    "softsign": F.softsign,  # `x / (1 + |x|)`
}
register_functions(UNARY, "x")


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """Shape `vector` `[C]` so that it broadcasts along axis 1 of `x` `[B, C, ...]`."""
    return vector.reshape(1, -1, *(1,) * (x.ndim - 2))


@operation("gelu")
def gelu(x: Tensor, *, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, `x * Phi(x)`, exact or by the tanh or the sigmoid approximation."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operation("clamped_relu")
def clamped_relu(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`min(x if x >= 0 else alpha * x, beta)`."""
    return torch.clamp_max(torch.where(x >= 0, x, alpha * x), beta)


@operation("elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x if x > 0 else alpha * (e ** x - 1)`."""
    return torch.where(x > 0, x, alpha * torch.expm1(x))


@operation("leaky_relu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """`x if x >= 0 else alpha * x`."""
    return F.leaky_relu(x, alpha)


@operation("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x if x >= 0 else alpha * x`, `alpha` `[C]` along axis 1."""
    return torch.where(x >= 0, x, _per_channel(alpha, x) * x)


@operation("linear_activation")
def linear_activation(x: Tensor, *, alpha: float, beta: float = 0.0) -> Tensor:
    """`alpha * x + beta`."""
    return alpha * x + beta


@operation("scaled_tanh")
def scaled_tanh(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """`alpha * tanh(beta * x)`."""
    return alpha * torch.tanh(beta * x)


@operation("sigmoid_hard")
def sigmoid_hard(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """`alpha * x + beta` held between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operation("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha * log(1 + e ** (beta * x))`, both `[C]` along axis 1."""
    return _per_channel(alpha, x) * F.softplus(_per_channel(beta, x) * x)


@operation("thresholded_relu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """`x if x >= alpha else 0`."""
    return torch.where(x >= alpha, x, torch.zeros_like(x))


@operation("softmax")
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """`e ** x` divided by its sum along `axis`."""
    return torch.softmax(x, dim=axis)
