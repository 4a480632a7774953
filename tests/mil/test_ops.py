"""Each operation against coremltools' own value inference, or, where it has none, against NumPy, SciPy and torch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.special
from helpers.mil_operation_references import EXPECTED
from helpers.mil_operations import DIVISORS, INTS, RNG, X, check_inferred, randn, run
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.mil.kernels import kernels

Y = randn(3, 1)
POSITIVE = np.abs(randn(2, 3)) + 0.1
UNIT = np.clip(randn(2, 5), -0.95, 0.95)
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
