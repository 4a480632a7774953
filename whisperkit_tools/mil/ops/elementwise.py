"""Elementwise arithmetic, comparison, logic and functions of one argument, with NumPy's broadcasting."""

from collections.abc import Callable

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation, register_functions

UNARY: dict[str, Callable[..., Tensor]] = {
    "logical_not": torch.logical_not,  # `not x`
    "abs": torch.abs,  # `|x|`
    "acos": torch.acos,  # inverse cosine
    "asin": torch.asin,  # inverse sine
    "atan": torch.atan,  # inverse tangent
    "atanh": torch.atanh,  # inverse hyperbolic tangent
    "ceil": torch.ceil,  # the smallest integer not below `x`
    "cos": torch.cos,  # cosine
    "cosh": torch.cosh,  # hyperbolic cosine
    "erf": torch.erf,  # Gauss error function
    "exp": torch.exp,  # `e ** x`
    "exp2": torch.exp2,  # `2 ** x`
    "floor": torch.floor,  # the largest integer not above `x`
    "round": torch.round,  # the nearest integer, halves to even
    "sign": torch.sign,  # -1, 0 or 1
    "sin": torch.sin,  # sine
    "sinh": torch.sinh,  # hyperbolic sine
    "sqrt": torch.sqrt,  # square root
    "square": torch.square,  # `x * x`
    "tan": torch.tan,  # tangent
    "tanh": torch.tanh,  # hyperbolic tangent
}
BINARY: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,  # `x + y`
    "sub": torch.sub,  # `x - y`
    "mul": torch.mul,  # `x * y`
    "floor_div": torch.floor_divide,  # `floor(x / y)`
    "mod": torch.remainder,  # `x - y * floor(x / y)`, which has the sign of `y`
    "pow": torch.pow,  # `x ** y`
    "maximum": torch.maximum,  # the larger of `x` and `y`
    "minimum": torch.minimum,  # the smaller of `x` and `y`
    "equal": torch.eq,  # `x == y`
    "not_equal": torch.ne,  # `x != y`
    "greater": torch.gt,  # `x > y`
    "greater_equal": torch.ge,  # `x >= y`
    "less": torch.lt,  # `x < y`
    "less_equal": torch.le,  # `x <= y`
    "logical_and": torch.logical_and,  # `x and y`
    "logical_or": torch.logical_or,  # `x or y`
    "logical_xor": torch.logical_xor,  # either `x` or `y`, not both
}
register_functions(UNARY, "x")
register_functions(BINARY, "x", "y")


@operation("real_div")
def real_div(x: Tensor, y: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """`x / y`; between integers the quotient is cut to an integer."""
    quotient = torch.true_divide(x, y)
    return quotient if out_dtype.is_floating_point else quotient.to(out_dtype)


@operation("select", moves_only=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where `cond` holds, else `b`."""
    return torch.where(cond.bool(), a, b)


@operation("cast")
def cast(x: Tensor, *, dtype: str, out_dtype: torch.dtype) -> Tensor:
    """`x` as another type; float to integer cuts towards zero, and in float32 mode a cast to float16 keeps float32."""
    return x != 0 if dtype == "bool" else x.to(out_dtype)


@operation("clip")
def clip(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`x` held between `alpha` and `beta`."""
    return torch.clamp(x, alpha, beta)


@operation("inverse")
def inverse(x: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """`1 / (x + epsilon)`."""
    return torch.reciprocal(x + epsilon)


@operation("log")
def log(x: Tensor, *, epsilon: float = 1e-45) -> Tensor:
    """`log(x + epsilon)`."""
    return torch.log(x + epsilon)


@operation("rsqrt")
def rsqrt(x: Tensor, *, epsilon: float = 1e-12) -> Tensor:
    """`1 / sqrt(x + epsilon)`."""
    return torch.rsqrt(x + epsilon)


@operation("threshold")
def threshold(x: Tensor, *, alpha: float) -> Tensor:
    """`max(x, alpha)`."""
    return torch.clamp_min(x, alpha)
