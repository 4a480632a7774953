"""Weights in ggml's block formats, with which whisper.cpp compresses: what any compression of this project has to beat.

A block is 32 neighbours along the input axis. It has a step in float16, and in the formats with an offset a minimum in
float16 too. As in whisper.cpp's `quantize`, only the matrices are rounded: linear weights and the token embedding.
Positions, biases and the two convolutions with a kernel of three stay as they are.

Source: ggml, `ggml-quants.c`, `quantize_row_q4_0_ref` and its siblings, and whisper.cpp, `examples/quantize`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.mil.tensor_spec import TensorSpec, is_float
from whisperkit_tools.quantization.compression import MIN_BLOB_ELEMENTS

BLOCK = 32
_PRODUCTS = {"conv", "linear", "matmul"}
_HALF_BYTES = 2
_ROWS_AT_ONCE = 1 << 12

Real = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A block format.

    Attributes:
        name: Its name in ggml.
        nbits: Bits of a code.
        has_offset: Whether a block stores its minimum. Otherwise its codes are symmetric around zero.
    """

    name: str
    nbits: int
    has_offset: bool

    @property
    def bits(self) -> float:
        """Bits an element, the block's step and minimum included."""
        return self.nbits + (2 if self.has_offset else 1) * 8 * _HALF_BYTES / BLOCK

    def nbytes(self, elements: int) -> int:
        """Return the bytes of a matrix of so many elements, a multiple of the block."""
        return int(elements * self.bits) // 8


BLOCK_FORMATS = {
    one.name: one
    for one in (
        BlockFormat("q8_0", 8, has_offset=False),
        BlockFormat("q5_1", 5, has_offset=True),
        BlockFormat("q5_0", 5, has_offset=False),
        BlockFormat("q4_1", 4, has_offset=True),
        BlockFormat("q4_0", 4, has_offset=False),
    )
}


def round_to_blocks(weight: NDArray[np.floating], wanted: BlockFormat) -> Real:
    """Return a matrix after a round trip through a block format.

    Args:
        weight: `[out, in]` or `[out, in, 1, 1]`. `in` is a multiple of 32.
        wanted: The format.

    Returns:
        Float32 of the same shape. A product of code and step is not always a float16.
    """
    rows = weight.reshape(weight.shape[0], -1)
    found = np.empty(rows.shape, np.float32)
    encode = _with_offset if wanted.has_offset else _to_extremes if wanted.nbits == 8 else _symmetric
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        blocks = rows[part].astype(np.float32).reshape(-1, BLOCK)
        found[part] = encode(blocks, wanted.nbits).reshape(-1, rows.shape[1])
    return found.reshape(weight.shape)


def _with_offset(blocks: Real, nbits: int) -> Real:
    """Round to `code * step + minimum`: q4_1 and q5_1."""
    least = blocks.min(1, keepdims=True)
    step = (blocks.max(1, keepdims=True) - least) / np.float32(2**nbits - 1)
    codes = np.minimum(np.trunc((blocks - least) * _inverse(step) + np.float32(0.5)), 2**nbits - 1)
    found: Real = codes.astype(np.float32) * _half(step) + _half(least)
    return found


def _symmetric(blocks: Real, nbits: int) -> Real:
    """Round to `code * step` with the largest magnitude at the lowest code: q4_0 and q5_0."""
    middle = np.float32(2 ** (nbits - 1))
    step = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1) / -middle
    codes = np.minimum(np.trunc(blocks * _inverse(step) + middle + np.float32(0.5)), 2 * middle - 1)
    found: Real = (codes - middle).astype(np.float32) * _half(step)
    return found


def _to_extremes(blocks: Real, nbits: int) -> Real:
    """Round to `code * step` with the largest magnitude at the highest code: q8_0."""
    step = np.abs(blocks).max(1, keepdims=True) / np.float32(2 ** (nbits - 1) - 1)
    scaled = blocks * _inverse(step)
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # C's roundf, away from zero
    found: Real = codes.astype(np.float32) * _half(step)
    return found


def _inverse(step: Real) -> Real:
    """Return `1 / step`, and 0 for an empty block."""
    return np.divide(np.float32(1), step, out=np.zeros_like(step), where=step != 0)


def _half(values: Real) -> Real:
    return values.astype(np.float16).astype(np.float32)


# --- bundles ---------------------------------------------------------------------------------------------------------


def matrices(graph: Graph) -> tuple[str, ...]:
    """Return the weights of a component that whisper.cpp stores in blocks.

    They are read by a product, have size 1 along every axis after the second, and rows of whole blocks.
    """
    multiplied = {spec.name for op in graph.operations if op.type in _PRODUCTS for spec in op.reads}
    return tuple(
        name
        for name, constant in graph.constants.items()
        if name in multiplied and constant.in_weights_file and _is_matrix(constant.spec)
    )


def column_scales(graph: Graph) -> dict[str, str]:
    """Return for each table that rows are looked up in the constant that the rows are multiplied with, by name.

    Conversion divides the columns of the token embedding by these powers of two, and cuts it into chunks of rows.
    """
    tables = _looked_up(graph)
    found: dict[str, str] = {}
    for op in graph.operations:
        names = [value.name for value in op.reads] if op.type == "mul" else []
        scales = [name for name in names if name in graph.constants]
        if scales:
            found |= {table: scales[0] for name in names for table in tables.get(name, ()) if table in graph.constants}
    return found


def _looked_up(graph: Graph) -> dict[str, list[str]]:
    """Return for each value that is a row of tables the tables that it may come from, by name."""
    found: dict[str, list[str]] = {}
    for op in graph.operations:
        if op.type == "gather":
            name = op.inputs["x"][0].name
            found[op.outputs[0].name] = found.get(name, [name])
        elif op.type == "concat" and all(value.name in found for value in op.inputs["values"]):
            found[op.outputs[0].name] = [name for value in op.inputs["values"] for name in found[value.name]]
    return found


def in_block_format(graph: Graph, name: str, wanted: BlockFormat) -> Real:
    """Return one of a program's `matrices` after a round trip through a format, float32.

    The format is applied to the checkpoint's weights, before conversion divided the columns of the token embedding.
    """
    value = graph.constants[name].value.astype(np.float32)
    scale = column_scales(graph).get(name)
    if scale is None:
        return round_to_blocks(value, wanted)
    factor = graph.constants[scale].value.astype(np.float32).reshape(1, -1)
    rounded: Real = round_to_blocks(value * factor, wanted) / factor
    return rounded


def _is_matrix(spec: TensorSpec) -> bool:
    shape = [axis or 0 for axis in spec.shape]
    return is_float(spec.dtype) and len(shape) >= 2 and math.prod(shape[2:]) == 1 and shape[1] % BLOCK == 0


def block_format_nbytes(graph: Graph, wanted: BlockFormat) -> int:
    """Return the bytes of a component's weights in a block format, everything but the matrices in float16.

    whisper.cpp itself keeps biases and positions in float32, which is a little more. Constants with equal elements are
    not counted, because the converter has added them: the means, variances and biases of operations without any.
    """
    blocks, scales = set(matrices(graph)), set(column_scales(graph).values())
    total = 0
    for name, constant in graph.constants.items():
        if name in scales:
            continue  # the converter added them
        if name in blocks:
            total += wanted.nbytes(constant.spec.size)
        elif is_float(constant.spec.dtype) and constant.spec.size >= MIN_BLOB_ELEMENTS and np.ptp(constant.value) > 0:
            total += _HALF_BYTES * constant.spec.size
    return total
