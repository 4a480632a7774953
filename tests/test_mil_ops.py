"""Each operation against coremltools' own value inference, or, where it has none, against NumPy, SciPy and torch."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.mil.graph import Constant, Graph, Metadata, Operation
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.quiet import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.registry import kernels
from whisperkit_tools.mil.specs import TensorSpec

METADATA = Metadata("", "", "", "", 9, "CoreML8", {})
RNG = np.random.default_rng(7)


def randn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def as_constant(name: str, value: Any) -> Constant:
    if isinstance(value, str):
        return Constant(TensorSpec(name, (), "string"), value)
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return Constant(TensorSpec(name, array.shape, str(array.dtype)), array)


def run(
    op_type: str,
    inputs: dict[str, Any],
    *,
    outputs: tuple[str, ...] = ("float32",),
    shapes: tuple[tuple[int | None, ...], ...] = ((None,),),
    **options: Any,
) -> Any:
    """Run one operation whose inputs are all constants; `outputs` and `shapes` are what it declares of its results."""
    constants: dict[str, Constant] = {}
    bound: dict[str, tuple[TensorSpec, ...]] = {}
    for parameter, value in inputs.items():
        values = value if isinstance(value, tuple) else (value,)
        named = [as_constant(f"{parameter}{index}", item) for index, item in enumerate(values)]
        constants.update((constant.spec.name, constant) for constant in named)
        bound[parameter] = tuple(constant.spec for constant in named)
    declared = zip(outputs, shapes if len(shapes) == len(outputs) else shapes * len(outputs), strict=True)
    specs = tuple(TensorSpec(f"out{index}", shape, dtype) for index, (dtype, shape) in enumerate(declared))
    operation = Operation(op_type, "op", bound, specs, 0)
    graph = Graph(Path("test"), "main", METADATA, {}, {}, {spec.name: spec for spec in specs}, constants, (operation,))
    results = [value.numpy() for value in Program(graph, **options).run().values()]
    return results[0] if len(results) == 1 else tuple(results)


def inferred(op_type: str, inputs: dict[str, Any], opset: str = "iOS17") -> Any:
    """What coremltools' value inference gives: an array, or a tuple of them."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    found: list[Any] = []

    def program() -> Any:
        # A copy: coremltools computes some in place.
        given = {key: list(value) if isinstance(value, tuple) else copy.copy(value) for key, value in inputs.items()}
        result = getattr(mb, op_type)(**given)
        found.append(result)
        return mb.identity(x=np.float32(0))

    with quiet_coremltools(), np.errstate(all="ignore"):
        mb.program(input_specs=[], opset_version=getattr(ct.target, opset))(program)
    variables = found[0] if isinstance(found[0], (list, tuple)) else (found[0],)
    values = tuple(variable.val for variable in variables)
    assert all(value is not None for value in values), f"{op_type} has no value inference"
    return values[0] if len(values) == 1 else values


def check_inferred(op_type: str, inputs: dict[str, Any], opset: str = "iOS17", tolerance: float = 1e-5) -> None:
    expected = inferred(op_type, inputs, opset)
    several = isinstance(expected, tuple)
    arrays = [np.asarray(value) for value in (expected if several else (expected,))]
    found = run(
        op_type,
        inputs,
        outputs=tuple(str(array.dtype) for array in arrays),
        shapes=tuple(array.shape for array in arrays),
    )
    for wanted, got in zip(arrays, found if several else (found,), strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


X = randn(2, 3, 4)
Y = randn(3, 1)
POSITIVE = np.abs(randn(2, 3)) + 0.1
UNIT = np.clip(randn(2, 5), -0.95, 0.95)
INTS = np.array([[5, -5, 7], [-7, 3, 4]], np.int32)
DIVISORS = np.array([[3, 3, -2], [2, -2, 4]], np.int32)
TRUTH = np.array([True, False, True, False])
OTHER = np.array([True, True, False, False])

INFERRED: list[tuple[str, dict[str, Any]]] = [
    *((op, {"x": X, "y": Y}) for op in ("add", "sub", "mul", "maximum", "minimum", "real_div", "floor_div", "mod")),
    *((op, {"x": INTS, "y": DIVISORS}) for op in ("add", "sub", "mul", "maximum", "floor_div", "mod")),
    *(
        (op, {"x": INTS, "y": np.abs(INTS)})
        for op in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ),
    *((op, {"x": TRUTH, "y": OTHER}) for op in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": TRUTH}),
    ("pow", {"x": POSITIVE, "y": np.float32(1.7)}),
    *((op, {"x": X}) for op in ("abs", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "sign", "sin", "sinh")),
    *((op, {"x": X}) for op in ("square", "tanh", "atan", "relu", "relu6", "sigmoid", "softplus")),
    *((op, {"x": UNIT}) for op in ("acos", "asin", "atanh", "tan")),
    ("sqrt", {"x": POSITIVE}),
    ("round", {"x": np.array([0.5, 1.5, 2.5, -0.5, 0.4], np.float32)}),
    ("log", {"x": POSITIVE}),
    ("log", {"x": np.array([0.0, 1.0], np.float32), "epsilon": np.float32(1e-3)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("inverse", {"x": POSITIVE, "epsilon": np.float32(0.25)}),
    ("inverse", {"x": POSITIVE}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.25)}),
    ("threshold", {"x": X, "alpha": np.float32(0.3)}),
    ("cast", {"x": np.array([-1.7, 0.0, 2.9], np.float32), "dtype": "int32"}),
    ("cast", {"x": np.array([-1.7, 0.0, 2.9], np.float32), "dtype": "bool"}),
    ("cast", {"x": INTS, "dtype": "fp32"}),
    ("elu", {"x": X, "alpha": np.float32(0.7)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.2)}),
    ("linear_activation", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(1.5)}),
    ("clamped_relu", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(0.4)}),
    ("scaled_tanh", {"x": X, "alpha": np.float32(0.2), "beta": np.float32(1.5)}),
    ("sigmoid_hard", {"x": X, "alpha": np.float32(0.3), "beta": np.float32(0.4)}),
    ("softsign", {"x": X}),
    ("thresholded_relu", {"x": X, "alpha": np.float32(0.1)}),
    ("prelu", {"x": randn(1, 3, 2, 2), "alpha": np.array([0.1, 0.2, 0.3], np.float32)}),
    ("softmax", {"x": X, "axis": 1}),
    *(("gelu", {"x": X, "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    ("matmul", {"x": X, "y": randn(4, 5)}),
    ("matmul", {"x": randn(2, 4, 3), "y": randn(5, 4), "transpose_x": True, "transpose_y": True}),
    ("linear", {"x": X, "weight": randn(5, 4), "bias": randn(5)}),
    ("linear", {"x": X, "weight": randn(5, 4)}),
    ("einsum", {"values": (randn(2, 3, 4, 5), randn(2, 5, 4, 6)), "equation": "nchw,nwhu->nchu"}),
    *(
        (f"reduce_{op}", {"x": POSITIVE, "axes": [1], "keep_dims": True})
        for op in ("sum", "mean", "max", "min", "prod")
    ),
    *((f"reduce_{op}", {"x": X, "axes": [0, -1], "keep_dims": False}) for op in ("sum", "mean", "max", "min")),
    *((f"reduce_{op}", {"x": POSITIVE, "axes": [0], "keep_dims": False}) for op in ("l1_norm", "l2_norm", "log_sum")),
    *((f"reduce_{op}", {"x": X, "axes": [1], "keep_dims": False}) for op in ("log_sum_exp", "sum_square")),
    ("reduce_sum", {"x": INTS, "axes": [0], "keep_dims": False}),
    ("reduce_argmax", {"x": X, "axis": 1, "keep_dims": True}),
    ("reduce_argmin", {"x": X, "axis": -1, "keep_dims": False}),
    ("reduce_argmin", {"x": X}),
    ("reshape", {"x": X, "shape": [3, -1]}),
    ("reshape", {"x": X, "shape": [0, 4, 3]}),
    ("transpose", {"x": X, "perm": [2, 0, 1]}),
    ("expand_dims", {"x": X, "axes": [0, -1]}),
    ("expand_dims", {"x": X, "axes": [1, 3]}),
    ("squeeze", {"x": randn(1, 3, 1), "axes": [0]}),
    ("squeeze", {"x": randn(1, 3, 1)}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("reverse", {"x": X, "axes": [0, 2]}),
    ("reverse", {"x": X}),
    ("slice_by_index", {"x": X, "begin": [0, 1, 0], "end": [2, 3, 4], "stride": [1, 1, 2]}),
    ("slice_by_index", {"x": X, "begin": [0, -2, 0], "end": [0, 0, -1], "end_mask": [True, True, False]}),
    ("slice_by_index", {"x": X, "begin": [0, -1, 3], "end": [2, -3, 0], "stride": [1, -1, -2]}),
    (
        "slice_by_index",
        {
            "x": X,
            "begin": [1, 0, 0],
            "end": [2, 0, 0],
            "squeeze_mask": [True, False, False],
            "begin_mask": [False, True, True],
            "end_mask": [False, True, True],
        },
    ),
    ("slice_by_size", {"x": X, "begin": [0, 1, 2], "size": [2, -1, 2]}),
    ("concat", {"values": (X, X + 1), "axis": 1}),
    ("stack", {"values": (X, X + 1), "axis": 1}),
    ("split", {"x": X, "axis": 2, "num_splits": 2}),
    ("split", {"x": X, "axis": 1, "split_sizes": [1, 2]}),
    ("tile", {"x": X, "reps": [1, 2, 3]}),
    ("pad", {"x": X, "pad": [0, 1, 2, 0], "mode": "constant", "constant_val": np.float32(3)}),
    ("pad", {"x": X, "pad": [1, 2, 0, 3], "mode": "reflect"}),
    ("pad", {"x": X, "pad": [1, 1, 0, 2], "mode": "replicate"}),
    ("select", {"cond": X > 0, "a": X, "b": X * 10}),
    ("fill", {"shape": [2, 3], "value": np.float32(1.5)}),
    ("fill_like", {"ref_tensor": X, "value": np.float32(1.5)}),
    ("range_1d", {"start": 2, "end": 11, "step": 3}),
    ("shape", {"x": X}),
    ("non_zero", {"x": np.array([[0, 1], [2, 0]], np.int32)}),
    ("band_part", {"x": randn(4, 5), "lower": 1, "upper": 2}),
    ("band_part", {"x": randn(4, 4), "lower": -1, "upper": 0}),
    ("cumsum", {"x": X, "axis": 1}),
    ("cumsum", {"x": X, "axis": 2, "reverse": True}),
    ("argsort", {"x": X, "axis": 1, "ascending": True}),
    ("argsort", {"x": X}),
    ("topk", {"x": X, "k": 2, "axis": 2}),
    ("topk", {"x": X, "k": 2, "axis": 1, "ascending": True}),
    ("identity", {"x": X}),
    ("gather", {"x": X, "indices": np.array([2, 0], np.int32), "axis": 1}),
    ("gather", {"x": X, "indices": np.array([[1, -1]], np.int32), "axis": -1}),
    ("gather", {"x": X, "indices": np.int32(1), "axis": 0}),
    ("gather", {"x": X, "indices": np.array([[0, 1], [2, 2]], np.int32), "axis": 1, "batch_dims": 1}),
    ("gather", {"x": X, "indices": np.array([0, 1], np.uint16), "axis": 0, "validate_indices": True}),
    ("gather_along_axis", {"x": X, "indices": RNG.integers(0, 3, (2, 5, 4)).astype(np.int32), "axis": 1}),
    (
        "scatter_along_axis",
        {"data": X, "indices": np.zeros((2, 1, 4), np.int32), "updates": randn(2, 1, 4), "axis": 1, "mode": "update"},
    ),
]


@pytest.mark.parametrize(("op_type", "inputs"), INFERRED, ids=[op for op, _ in INFERRED])
def test_operation_against_value_inference(op_type: str, inputs: dict[str, Any]) -> None:
    check_inferred(op_type, inputs)


def torch_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **options: Any) -> np.ndarray:
    function = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    tensors = [torch.from_numpy(x), torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)]
    return function(*tensors, **options).numpy()


IMAGE = randn(2, 4, 7, 9)
KERNEL = randn(6, 4, 3, 3)
BIAS = randn(6)
SMALL = randn(4, 3, 3, 3)
GAMMA, BETA, MEAN, VARIANCE = randn(4), randn(4), randn(4), np.abs(randn(4)) + 0.5
QUERY, KEY, VALUE = randn(2, 3, 5, 8), randn(2, 3, 6, 8), randn(2, 3, 6, 8)


def normalised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)


def along_channels(vector: np.ndarray) -> np.ndarray:
    return vector[None, :, None, None]


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def updated() -> np.ndarray:
    result = X.copy()
    result[:, 1:3, :2] = 0
    return result


EXPECTED: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
    (
        "conv",
        {"x": IMAGE, "weight": KERNEL, "bias": BIAS, "pad_type": "valid"},
        lambda: torch_conv(IMAGE, KERNEL, BIAS),
    ),
    (
        "conv",
        {
            "x": IMAGE,
            "weight": KERNEL,
            "pad_type": "custom",
            "pad": [1, 1, 2, 2],
            "strides": [2, 1],
            "dilations": [1, 2],
        },
        lambda: torch_conv(IMAGE, KERNEL, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    ),
    (
        "conv",
        {"x": IMAGE, "weight": KERNEL, "pad_type": "custom", "pad": [0, 1, 2, 0]},
        lambda: torch_conv(np.pad(IMAGE, ((0, 0), (0, 0), (0, 1), (2, 0))), KERNEL),
    ),
    (
        "conv",
        {"x": IMAGE, "weight": np.repeat(KERNEL[:1, :1], 8, 0), "pad_type": "same", "groups": 4},
        lambda: torch_conv(IMAGE, np.repeat(KERNEL[:1, :1], 8, 0), padding="same", groups=4),
    ),
    (
        "conv",
        {"x": IMAGE[..., :8], "weight": KERNEL[..., :2], "pad_type": "same_lower", "strides": [1, 1]},
        lambda: torch_conv(np.pad(IMAGE[..., :8], ((0, 0), (0, 0), (1, 1), (1, 0))), KERNEL[..., :2]),
    ),
    ("conv", {"x": IMAGE[:, :, 0], "weight": KERNEL[:, :, 0]}, lambda: torch_conv(IMAGE[:, :, 0], KERNEL[:, :, 0])),
    (
        "conv",
        {"x": IMAGE, "weight": KERNEL[..., :1, :1], "bias": BIAS},
        lambda: torch_conv(IMAGE, KERNEL[..., :1, :1], BIAS),
    ),
    (
        "conv_transpose",
        {"x": IMAGE, "weight": SMALL, "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1], "bias": BIAS[:3]},
        lambda: F.conv_transpose2d(*tensors(IMAGE, SMALL, BIAS[:3]), stride=2, padding=1).numpy(),
    ),
    (
        "conv_transpose",
        {"x": IMAGE, "weight": KERNEL[:4], "strides": [2, 2], "pad_type": "valid", "output_shape": [2, 4, 16, 20]},
        lambda: F.conv_transpose2d(*tensors(IMAGE, KERNEL[:4]), stride=2, output_padding=1).numpy(),
    ),
    (
        "conv_transpose",
        {"x": IMAGE, "weight": KERNEL[:4], "strides": [2, 2], "pad_type": "same"},
        lambda: F.conv_transpose2d(*tensors(IMAGE, KERNEL[:4]), stride=2).numpy()[:, :, :14, :18],
    ),
    (
        "max_pool",
        {"x": IMAGE, "kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 0, 0]},
        lambda: F.max_pool2d(torch.from_numpy(IMAGE), (3, 2), (2, 2), (1, 0)).numpy(),
    ),
    (
        "max_pool",
        {"x": IMAGE, "kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "valid", "ceil_mode": True},
        lambda: F.max_pool2d(torch.from_numpy(IMAGE), 2, 2, ceil_mode=True).numpy(),
    ),
    *(
        (
            "avg_pool",
            {
                "x": IMAGE,
                "kernel_sizes": [3, 3],
                "strides": [2, 2],
                "pad_type": "custom",
                "pad": [1, 1, 1, 1],
                "ceil_mode": ceil,
                "exclude_padding_from_average": exclude,
            },
            lambda ceil=ceil, exclude=exclude: F.avg_pool2d(
                torch.from_numpy(IMAGE), 3, 2, 1, ceil_mode=ceil, count_include_pad=not exclude
            ).numpy(),
        )
        for ceil in (False, True)
        for exclude in (False, True)
    ),
    (
        "l2_pool",
        {"x": IMAGE, "kernel_sizes": [2, 2], "strides": [1, 1], "pad_type": "valid"},
        lambda: F.lp_pool2d(torch.from_numpy(IMAGE), 2.0, 2, 1).numpy(),
    ),
    (
        "batch_norm",
        {"x": IMAGE, "mean": MEAN, "variance": VARIANCE, "gamma": GAMMA, "beta": BETA, "epsilon": 1e-3},
        lambda: F.batch_norm(*tensors(IMAGE, MEAN, VARIANCE, GAMMA, BETA), eps=1e-3).numpy(),
    ),
    (
        "batch_norm",
        {"x": IMAGE, "mean": MEAN, "variance": VARIANCE},
        lambda: F.batch_norm(*tensors(IMAGE, MEAN, VARIANCE)).numpy(),
    ),
    (
        "instance_norm",
        {"x": IMAGE, "gamma": GAMMA, "beta": BETA},
        lambda: normalised(IMAGE, (2, 3), 1e-5) * along_channels(GAMMA) + along_channels(BETA),
    ),
    (
        "layer_norm",
        {"x": IMAGE, "axes": [1], "gamma": GAMMA, "beta": BETA, "epsilon": 1e-3},
        lambda: normalised(IMAGE, (1,), 1e-3) * along_channels(GAMMA) + along_channels(BETA),
    ),
    ("layer_norm", {"x": IMAGE, "axes": [-1]}, lambda: normalised(IMAGE, (3,), 1e-5)),
    ("layer_norm", {"x": IMAGE, "axes": [1, 3]}, lambda: normalised(IMAGE, (1, 3), 1e-5)),
    ("layer_norm", {"x": IMAGE}, lambda: normalised(IMAGE, (0, 1, 2, 3), 1e-5)),
    (
        "l2_norm",
        {"x": IMAGE, "epsilon": 1e-3},
        lambda: IMAGE / np.sqrt((IMAGE**2).sum((1, 2, 3), keepdims=True) + 1e-3),
    ),
    (
        "local_response_norm",
        {"x": IMAGE, "size": 3, "alpha": 0.1, "beta": 0.6, "k": 1.5},
        lambda: F.local_response_norm(torch.from_numpy(IMAGE), 3, 0.1, 0.6, 1.5).numpy(),
    ),
    ("einsum", {"values": (QUERY, KEY), "equation": "bhqc,bhkc->bhqk"}, lambda: QUERY @ KEY.swapaxes(2, 3)),
    (
        "einsum",
        {"values": (QUERY.transpose(0, 3, 1, 2), KEY.transpose(0, 2, 1, 3)), "equation": "bchq,bkhc->bkhq"},
        lambda: np.einsum("bhqc,bhkc->bkhq", QUERY, KEY),
    ),
    (
        "scaled_dot_product_attention",
        {
            "query": QUERY,
            "key": KEY,
            "value": VALUE,
            "attn_mask": np.where(np.arange(6) < 4, 0, -1e4).astype(np.float32)[None],
        },
        lambda: scipy.special.softmax((QUERY @ KEY.swapaxes(2, 3) / math.sqrt(8))[..., :4], axis=-1) @ VALUE[:, :, :4],
    ),
    (
        "scaled_dot_product_attention",
        {"query": QUERY, "key": KEY, "value": VALUE, "attn_mask": (np.arange(6) < 4)[None]},
        lambda: scipy.special.softmax((QUERY @ KEY.swapaxes(2, 3) / math.sqrt(8))[..., :4], axis=-1) @ VALUE[:, :, :4],
    ),
    (
        "softplus_parametric",
        {"x": IMAGE, "alpha": GAMMA, "beta": BETA},
        lambda: along_channels(GAMMA) * np.log1p(np.exp(along_channels(BETA) * IMAGE)),
    ),
    ("silu", {"x": X}, lambda: X * scipy.special.expit(X)),
    (
        "prelu",
        {"x": X, "alpha": np.array([0.1, 0.2, 0.3], np.float32)},
        lambda: np.where(X > 0, X, X * np.array([0.1, 0.2, 0.3])[:, None]),
    ),
    ("concat", {"values": (X, X + 1), "axis": 1, "interleave": True}, lambda: np.stack([X, X + 1], 2).reshape(2, 6, 4)),
    ("cumsum", {"x": X, "axis": 2, "exclusive": True}, lambda: np.cumsum(X, 2) - X),
    ("cumsum", {"x": X, "axis": 1, "exclusive": True, "reverse": True}, lambda: np.cumsum(X[:, ::-1], 1)[:, ::-1] - X),
    ("one_hot", {"indices": np.array([0, 2], np.int32), "one_hot_vector_size": 3}, lambda: np.eye(3)[[0, 2]]),
    (
        "one_hot",
        {
            "indices": np.array([[0, 2]], np.int32),
            "one_hot_vector_size": 4,
            "axis": 1,
            "on_value": 2.0,
            "off_value": -1.0,
        },
        lambda: (np.eye(4) * 3 - 1)[[0, 2]].T[None],
    ),
    ("one_hot", {"indices": np.array([5, -1], np.int32), "one_hot_vector_size": 3}, lambda: np.zeros((2, 3))),
    ("gather_nd", {"x": X, "indices": np.array([[0, 1], [1, -1]], np.int32)}, lambda: X[[0, 1], [1, 2]]),
    (
        "gather_nd",
        {"x": X, "indices": np.array([[[0]], [[2]]], np.int32), "batch_dims": 1},
        lambda: np.stack([X[0, [0]], X[1, [2]]]),
    ),
    (
        "slice_update",
        {"x": X, "update": X[:, 1:3, :2] * 0, "begin": [0, 1, 0], "end": [0, 3, 2], "end_mask": [True, False, False]},
        updated,
    ),
    (
        "reshape_like",
        {
            "x": X,
            "ref_tensors": (randn(6, 2), randn(2, 4)),
            "begins": [0, 1],
            "ends": [1, 2],
            "end_masks": [False, False],
        },
        lambda: X.reshape(6, 4),
    ),
    (
        "depth_to_space",
        {"x": np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1), "block_size": 2},
        lambda: np.array([[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]),
    ),
    (
        "space_to_depth",
        {"x": np.array([[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]], np.float32), "block_size": 2},
        lambda: np.arange(8).reshape(1, 8, 1, 1),
    ),
    ("pixel_shuffle", {"x": IMAGE, "upscale_factor": 2}, lambda: F.pixel_shuffle(torch.from_numpy(IMAGE), 2).numpy()),
    (
        "pixel_unshuffle",
        {"x": IMAGE[..., :6, :8], "downscale_factor": 2},
        lambda: F.pixel_unshuffle(torch.from_numpy(IMAGE[..., :6, :8].copy()), 2).numpy(),
    ),
    (
        "sliding_windows",
        {"x": np.tile(np.arange(7, dtype=np.float32), (2, 1)), "axis": 1, "size": 3, "stride": 2},
        lambda: np.tile(np.array([[0, 1, 2], [2, 3, 4], [4, 5, 6]]), (2, 1, 1)),
    ),
    (
        "upsample_nearest_neighbor",
        {"x": IMAGE, "scale_factor_height": 2, "scale_factor_width": 3},
        lambda: IMAGE.repeat(2, 2).repeat(3, 3),
    ),
    (
        "upsample_bilinear",
        {"x": IMAGE, "scale_factor_height": 2, "scale_factor_width": 2, "align_corners": True},
        lambda: F.interpolate(torch.from_numpy(IMAGE), scale_factor=2, mode="bilinear", align_corners=True).numpy(),
    ),
    (
        "dequantize",
        {
            "input": np.array([[1, -2], [3, 4]], np.int8),
            "scale": np.array([0.5, 2], np.float32),
            "zero_point": np.array([1, 0], np.int8),
            "axis": 0,
        },
        lambda: np.array([[0, -1.5], [6, 8]]),
    ),
    (
        "quantize",
        {
            "input": np.array([[1, -200], [3, 5]], np.float32),
            "scale": np.float32(0.5),
            "zero_point": np.int8(1),
            "output_dtype": "int8",
        },
        lambda: np.array([[3, -128], [7, 11]]),
    ),
    ("real_div", {"x": INTS, "y": DIVISORS}, lambda: np.trunc(INTS / DIVISORS).astype(np.int32)),
    (
        "scatter",
        {
            "data": X,
            "indices": np.array([2, 0], np.int32),
            "updates": np.ones((2, 2, 4), np.float32),
            "axis": 1,
            "mode": "add",
        },
        lambda: X + np.array([1, 0, 1])[:, None],
    ),
    (
        "scatter",
        {
            "data": X,
            "indices": np.array([[1]], np.int32),
            "updates": np.full((2, 3, 1, 1), 9, np.float32),
            "axis": -1,
            "mode": "update",
        },
        lambda: np.where(np.arange(4) == 1, 9, X),
    ),
    *(
        (
            "scatter",
            {
                "data": X,
                "indices": np.array([1], np.int32),
                "updates": np.full((1, 3, 4), 0.5, np.float32),
                "axis": 0,
                "mode": mode,
            },
            lambda f=f: np.stack([X[0], f(X[1])]),
        )
        for mode, f in (
            ("sub", lambda x: x - 0.5),
            ("mul", lambda x: x * 0.5),
            ("div", lambda x: x / 0.5),
            ("max", lambda x: np.maximum(x, 0.5)),
            ("min", lambda x: np.minimum(x, 0.5)),
        )
    ),
    (
        "scatter_nd",
        {
            "data": X,
            "indices": np.array([[0, 1], [1, 2]], np.int32),
            "updates": np.ones((2, 4), np.float32),
            "mode": "add",
        },
        lambda: X + np.array([[0, 1, 0], [0, 0, 1]])[:, :, None],
    ),
    (
        "scatter_along_axis",
        {
            "data": X,
            "indices": np.full((2, 1, 4), -1, np.int32),
            "updates": np.ones((2, 1, 4), np.float32),
            "axis": 1,
            "mode": "add",
        },
        lambda: X + np.array([0, 0, 1])[:, None],
    ),
]


@pytest.mark.parametrize(("op_type", "inputs", "expected"), EXPECTED, ids=[op for op, _, _ in EXPECTED])
def test_operation_against_reference(op_type: str, inputs: dict[str, Any], expected: Callable[[], Any]) -> None:
    wanted = np.asarray(expected())
    if wanted.dtype == np.float64:
        wanted = wanted.astype(np.float32)
    found = run(op_type, inputs, outputs=(str(wanted.dtype),), shapes=(wanted.shape,))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_every_operation_is_tested() -> None:
    tested = {op for op, _ in INFERRED} | {op for op, _, _ in EXPECTED}
    elsewhere = {op for op in kernels() if op.startswith("constexpr_")}
    elsewhere |= {"read_state", "write_state", "coreml_update_state"}
    assert set(kernels()) - tested - elsewhere == set()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_slice_by_index_for_any_bounds(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    bounds = [
        (
            data.draw(st.integers(-size, size - 1)),
            data.draw(st.integers(-size, size)),
            data.draw(st.sampled_from([1, 2, 3, -1, -2])),
        )
        for size in shape
    ]
    masks = [[data.draw(st.booleans()) for _ in shape] for _ in range(2)]
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    slices = tuple(
        slice(None if no_begin else begin, None if no_end else end, step)
        for (begin, end, step), no_begin, no_end in zip(bounds, *masks, strict=True)
    )
    begin, end, stride = (list(column) for column in zip(*bounds, strict=True))
    inputs = {"x": x, "begin": begin, "end": end, "stride": stride, "begin_mask": masks[0], "end_mask": masks[1]}
    np.testing.assert_array_equal(run("slice_by_index", inputs), x[slices])


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_gather_for_any_axis(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
    size = shape[axis]
    flat = data.draw(st.lists(st.integers(-size, size - 1), min_size=math.prod(counts), max_size=math.prod(counts)))
    indices = np.array(flat, np.int32).reshape(counts)
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(run("gather", {"x": x, "indices": indices, "axis": axis}), np.take(x, indices, axis))


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_padding_for_any_axes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    padded = data.draw(st.integers(1, len(shape)))
    mode = data.draw(st.sampled_from(["constant", "reflect", "replicate"]))
    pairs = [(0, 0)] * (len(shape) - padded)
    pairs += [(data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))) for size in shape[-padded:]]
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    expected = np.pad(x, pairs, mode={"replicate": "edge"}.get(mode, mode))
    flat = [amount for pair in pairs[-padded:] for amount in pair]
    np.testing.assert_array_equal(run("pad", {"x": x, "pad": flat, "mode": mode}), expected)


@given(
    batch=st.integers(1, 2), channels=st.integers(1, 5), out=st.integers(1, 4), length=st.integers(1, 12),
    kernel=st.integers(1, 4), stride=st.integers(1, 3), before=st.integers(0, 2), after=st.integers(0, 2),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_sequence_convolution_for_any_shape(
    batch: int, channels: int, out: int, length: int, kernel: int, stride: int, before: int, after: int
) -> None:
    if length + before + after < kernel:
        return
    x, weight = randn(batch, channels, 1, length), randn(out, channels, 1, kernel)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))
    expected = np.stack(
        [
            [
                sum(scipy.signal.correlate(padded[b, c, 0], weight[o, c, 0], "valid") for c in range(channels))[
                    ::stride
                ]
                for o in range(out)
            ]
            for b in range(batch)
        ]
    )[:, :, None]
    inputs = {"x": x, "weight": weight, "strides": [1, stride], "pad_type": "custom", "pad": [0, 0, before, after]}
    found = run("conv", inputs, shapes=(expected.shape,))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@given(rank=st.integers(1, 4), data=st.data(), name=st.sampled_from(["sum", "mean", "max", "min"]))
@settings(deadline=None, max_examples=40)
def test_reductions_for_any_axes(rank: int, data: st.DataObject, name: str) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    axes = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=1)))
    signed = [axis - rank if data.draw(st.booleans()) else axis for axis in axes]
    keep = data.draw(st.booleans())
    x = randn(*shape)
    expected = getattr(np, name)(x, axis=tuple(axes), keepdims=keep)
    found = run(f"reduce_{name}", {"x": x, "axes": signed, "keep_dims": keep})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_float16_rounds_each_result_and_overflows() -> None:
    x = np.array([300.0, 1.0, 65504.0, 1e-4], np.float16)
    squared = run("square", {"x": x}, outputs=("float16",), precision="float16")
    assert squared.dtype == np.float16
    np.testing.assert_array_equal(squared, [np.inf, 1, np.inf, np.float16(np.float32(x[3]) ** 2)])
    np.testing.assert_array_equal(run("square", {"x": x}), np.float32(x) ** 2)


@pytest.mark.parametrize("op_type", ["add", "mul", "real_div", "maximum"])
def test_float16_is_the_rounded_float32_result(op_type: str) -> None:
    x, y = randn(64).astype(np.float16), randn(64).astype(np.float16)
    expected = run(op_type, {"x": x, "y": y}).astype(np.float16)
    np.testing.assert_array_equal(run(op_type, {"x": x, "y": y}, outputs=("float16",), precision="float16"), expected)


def test_a_float32_operation_stays_float32_in_float16_mode() -> None:
    x = np.array([1e6, 1e-9], np.float32)
    np.testing.assert_array_equal(run("square", {"x": x}, precision="float16"), x * x)


def test_a_failing_operation_is_named() -> None:
    with pytest.raises(RuntimeError, match="operation gather 'op' failed: index out of range"):
        run("gather", {"x": X, "indices": np.array([7], np.int32), "axis": 0})
