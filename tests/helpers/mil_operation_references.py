"""Operations without value inference in coremltools: inputs, and the results of NumPy, SciPy or torch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from helpers.mil_operations import DIVISORS, INTS, X, randn


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
