"""Elementwise arithmetic, comparison, logic and functions of one argument, with NumPy's broadcasting."""

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import operation


@operation("add")
def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`."""
    return torch.add(x, y)


@operation("sub")
def sub(x: Tensor, y: Tensor) -> Tensor:
    """`x - y`."""
    return torch.sub(x, y)


@operation("mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    """`x * y`."""
    return torch.mul(x, y)


@operation("real_div")
def real_div(x: Tensor, y: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """`x / y`; between integers the quotient is cut to an integer."""
    quotient = torch.true_divide(x, y)
    return quotient if out_dtype.is_floating_point else quotient.to(out_dtype)


@operation("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """`floor(x / y)`."""
    return torch.floor_divide(x, y)


@operation("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """`x - y * floor(x / y)`, which has the sign of `y`."""
    return torch.remainder(x, y)


@operation("pow")
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """`x ** y`."""
    return torch.pow(x, y)


@operation("maximum")
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger of `x` and `y`."""
    return torch.maximum(x, y)


@operation("minimum")
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of `x` and `y`."""
    return torch.minimum(x, y)


@operation("equal")
def equal(x: Tensor, y: Tensor) -> Tensor:
    """`x == y`."""
    return torch.eq(x, y)


@operation("not_equal")
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x != y`."""
    return torch.ne(x, y)


@operation("greater")
def greater(x: Tensor, y: Tensor) -> Tensor:
    """`x > y`."""
    return torch.gt(x, y)


@operation("greater_equal")
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x >= y`."""
    return torch.ge(x, y)


@operation("less")
def less(x: Tensor, y: Tensor) -> Tensor:
    """`x < y`."""
    return torch.lt(x, y)


@operation("less_equal")
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """`x <= y`."""
    return torch.le(x, y)


@operation("logical_and")
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """`x and y`."""
    return torch.logical_and(x, y)


@operation("logical_or")
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """`x or y`."""
    return torch.logical_or(x, y)


@operation("logical_xor")
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Either `x` or `y`, not both."""
    return torch.logical_xor(x, y)


@operation("logical_not")
def logical_not(x: Tensor) -> Tensor:
    """`not x`."""
    return torch.logical_not(x)


@operation("select", moves_only=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where `cond` holds, else `b`."""
    return torch.where(cond.bool(), a, b)


@operation("cast")
def cast(x: Tensor, *, dtype: str, out_dtype: torch.dtype) -> Tensor:
    """`x` as another type; float to integer cuts towards zero, and in float32 mode a cast to float16 keeps float32."""
    return x != 0 if dtype == "bool" else x.to(out_dtype)


@operation("abs")
def abs_(x: Tensor) -> Tensor:
    """`|x|`."""
    return torch.abs(x)


@operation("acos")
def acos(x: Tensor) -> Tensor:
    """Inverse cosine."""
    return torch.acos(x)


@operation("asin")
def asin(x: Tensor) -> Tensor:
    """Inverse sine."""
    return torch.asin(x)


@operation("atan")
def atan(x: Tensor) -> Tensor:
    """Inverse tangent."""
    return torch.atan(x)


@operation("atanh")
def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent."""
    return torch.atanh(x)


@operation("ceil")
def ceil(x: Tensor) -> Tensor:
    """The smallest integer not below `x`."""
    return torch.ceil(x)


@operation("clip")
def clip(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """`x` held between `alpha` and `beta`."""
    return torch.clamp(x, alpha, beta)


@operation("cos")
def cos(x: Tensor) -> Tensor:
    """Cosine."""
    return torch.cos(x)


@operation("cosh")
def cosh(x: Tensor) -> Tensor:
    """Hyperbolic cosine."""
    return torch.cosh(x)


@operation("erf")
def erf(x: Tensor) -> Tensor:
    """Gauss error function."""
    return torch.erf(x)


@operation("exp")
def exp(x: Tensor) -> Tensor:
    """`e ** x`."""
    return torch.exp(x)


@operation("exp2")
def exp2(x: Tensor) -> Tensor:
    """`2 ** x`."""
    return torch.exp2(x)


@operation("floor")
def floor(x: Tensor) -> Tensor:
    """The largest integer not above `x`."""
    return torch.floor(x)


@operation("inverse")
def inverse(x: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """`1 / (x + epsilon)`."""
    return torch.reciprocal(x + epsilon)


@operation("log")
def log(x: Tensor, *, epsilon: float = 1e-45) -> Tensor:
    """`log(x + epsilon)`."""
    return torch.log(x + epsilon)


@operation("round")
def round_(x: Tensor) -> Tensor:
    """The nearest integer, halves to even."""
    return torch.round(x)


@operation("rsqrt")
def rsqrt(x: Tensor, *, epsilon: float = 1e-12) -> Tensor:
    """`1 / sqrt(x + epsilon)`."""
    return torch.rsqrt(x + epsilon)


@operation("sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1."""
    return torch.sign(x)


@operation("sin")
def sin(x: Tensor) -> Tensor:
    """Sine."""
    return torch.sin(x)


@operation("sinh")
def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine."""
    return torch.sinh(x)


@operation("sqrt")
def sqrt(x: Tensor) -> Tensor:
    """Square root."""
    return torch.sqrt(x)


@operation("square")
def square(x: Tensor) -> Tensor:
    """`x * x`."""
    return torch.square(x)


@operation("tan")
def tan(x: Tensor) -> Tensor:
    """Tangent."""
    return torch.tan(x)


@operation("tanh")
def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@operation("threshold")
def threshold(x: Tensor, *, alpha: float) -> Tensor:
    """`max(x, alpha)`."""
    return torch.clamp_min(x, alpha)
