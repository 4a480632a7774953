"""Counts of what the operations of an ML Program compute and move, exact and from shapes, without reading weights.

Conventions: a multiply-accumulate is two FLOPs, as in `torch.utils.flop_counter`, which counts nothing else; beyond
that an elementwise operation is one FLOP an element (activations too: the engine has them as tables), a bias one,
a softmax five and a layer norm seven. Moving data is none.
"""

import math
from dataclasses import dataclass, replace

from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.operations import Work, work_of
from whisperkit_tools.mil.tensor_spec import TensorSpec, bit_width, is_float

PER_ELEMENT = {"softmax": 5, "layer_norm": 7, "instance_norm": 7, "batch_norm": 2, "l2_norm": 3}
GATHERS = frozenset({"gather", "gather_along_axis", "gather_nd"})


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that an operation streams.

    Attributes:
        name: Its name in the program.
        form: `dense`, `lut`, `sparse`, `int8` or `blockwise`.
        dense_bytes: When expanded to the type that it is computed in.
        stored_bytes: As it stands in the package.
    """

    name: str
    form: str
    dense_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class OperationCount:
    """Counts of one operation.

    Attributes:
        operation: The operation.
        macs: Multiply-accumulates.
        flops: All floating-point operations, `2 * macs` among them.
        weights: The constants that it streams.
        counted: False where no count is known for operations of this type; `flops` is then 0.
    """

    operation: Operation
    macs: int
    flops: int
    weights: tuple[Weight, ...]
    counted: bool = True


def tensor_bytes(spec: TensorSpec) -> int:
    """Return the bytes of a tensor; an axis of open size counts once."""
    return 0 if spec.dtype == "string" else (spec.size * bit_width(spec.dtype) + 7) // 8


def count_program(graph: Graph) -> tuple[OperationCount, ...]:
    """Count each operation of a program; those that expand compressed weights are part of the weight, not listed."""
    weights = program_weights(graph)
    return tuple(
        _count(operation, graph, weights)
        for operation in graph.operations
        if not operation.type.startswith("constexpr_")
    )


def program_weights(graph: Graph) -> dict[str, Weight]:
    """Return all float constants and all compressed weights, by the name under which operations use them."""
    found = {
        name: Weight(name, "dense", size := tensor_bytes(constant.spec), size)
        for name, constant in graph.constants.items()
        if is_float(constant.spec.dtype)
    }
    for operation in graph.operations:
        if operation.type.startswith("constexpr_"):
            parts = [(spec, found.get(spec.name)) for spec in operation.reads]
            stored = sum(part.stored_bytes if part else tensor_bytes(spec) for spec, part in parts)
            form = _form(operation, {part.form for _, part in parts if part})
            for output in operation.outputs:
                found[output.name] = Weight(output.name, form, tensor_bytes(output), stored)
    return found


def used_weights(graph: Graph) -> dict[str, Weight]:
    """Return the weights that operations use, each once and whole; operations that expand weights do not count."""
    weights = program_weights(graph)
    names = {
        spec.name
        for operation in graph.operations
        if not operation.type.startswith("constexpr_")
        for spec in operation.reads
    }
    return {name: weight for name, weight in weights.items() if name in names}


def _form(operation: Operation, parts: set[str]) -> str:
    """Name the compression of a weight that `operation` expands from parts of these forms."""
    if "sparse" in operation.type or "sparse" in parts:
        return "sparse"
    if "lut" in operation.type or "lut" in parts:
        return "lut"
    if operation.type == "constexpr_blockwise_shift_scale":
        data, scale = operation.inputs["data"][0], operation.inputs["scale"][0]
        blocks = [size for size, whole in zip(scale.shape, data.shape, strict=True) if size not in (1, whole)]
        per_channel = not blocks and sum(size != 1 for size in scale.shape) <= 1
        return "int8" if per_channel and bit_width(data.dtype) == 8 else "blockwise"
    return "int8" if operation.type == "constexpr_affine_dequantize" else "dense"


def _count(operation: Operation, graph: Graph, weights: dict[str, Weight]) -> OperationCount:
    used = tuple(weights[spec.name] for spec in operation.reads if spec.name in weights)
    if operation.type in GATHERS:
        # A look-up streams the rows that it takes, not the table.
        rows = sum(tensor_bytes(output) for output in operation.outputs)
        used = tuple(replace(weight, dense_bytes=rows, stored_bytes=rows) for weight in used)
    macs = _macs(operation, graph)
    if macs is not None:
        return OperationCount(operation, macs, 2 * macs + _extra_flops(operation), used)
    flops = _plain_flops(operation, graph)
    return OperationCount(operation, 0, flops or 0, used, counted=flops is not None)


def _macs(operation: Operation, graph: Graph) -> int | None:
    """Return the multiply-accumulates of a product, None for other operations."""
    kind, inputs, out = operation.type, operation.inputs, operation.outputs
    if kind == "conv":
        return out[0].size * math.prod(_sizes(inputs["weight"][0])[1:])
    if kind == "conv_transpose":
        return inputs["x"][0].size * math.prod(_sizes(inputs["weight"][0])[1:])
    if kind == "linear":
        return out[0].size * _sizes(inputs["weight"][0])[-1]
    if kind == "matmul":
        axis = -2 if _flag(operation, graph, "transpose_x") else -1
        shape = _sizes(inputs["x"][0])
        return out[0].size * (shape[axis] if len(shape) > 1 else shape[0])
    if kind == "einsum":
        return _einsum_macs(str(graph.constants[inputs["equation"][0].name].value), inputs["values"])
    if kind == "scaled_dot_product_attention":
        query, key, value = (_sizes(inputs[name][0]) for name in ("query", "key", "value"))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return None


def _extra_flops(operation: Operation) -> int:
    """Return the FLOPs of a product besides its multiply-accumulates: bias, activation, softmax."""
    size = operation.outputs[0].size
    if operation.type == "scaled_dot_product_attention":
        query, key = (_sizes(operation.inputs[name][0]) for name in ("query", "key"))
        return PER_ELEMENT["softmax"] * math.prod(query[:-1]) * key[-2]
    return size * ("bias" in operation.inputs)


def _einsum_macs(equation: str, values: tuple[TensorSpec, ...]) -> int:
    """Return the product of the sizes of all axes named in a two-operand equation."""
    sizes: dict[str, int] = {}
    for letters, spec in zip(equation.replace(" ", "").partition("->")[0].split(","), values, strict=True):
        for letter, size in zip(letters, _sizes(spec), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _plain_flops(operation: Operation, graph: Graph) -> int | None:
    """Return the FLOPs of an operation that is not a product, None where no count is known."""
    kind, work = operation.type, work_of(operation.type)
    size = sum(output.size for output in operation.outputs)
    if work is Work.ELEMENTWISE:
        return size
    if work is Work.REDUCTION:
        return operation.inputs["x"][0].size
    if work is Work.NORMALIZATION:
        scaled = ("gamma" in operation.inputs) + ("beta" in operation.inputs) if kind == "layer_norm" else 0
        return size * (PER_ELEMENT[kind] + scaled)
    if work is Work.POOLING:
        return size * math.prod(int(axis) for axis in graph.constants[operation.inputs["kernel_sizes"][0].name].value)
    return 0 if work is Work.MOVEMENT else None


def _flag(operation: Operation, graph: Graph, name: str) -> bool:
    """Return a boolean parameter, False when it is absent."""
    return name in operation.inputs and bool(graph.constants[operation.inputs[name][0].name].value)


def transposed_operands(operation: Operation, graph: Graph) -> list[TensorSpec]:
    """Return the operands that a matrix product takes transposed."""
    if operation.type != "matmul":
        return []
    return [operation.inputs[side][0] for side in ("x", "y") if _flag(operation, graph, f"transpose_{side}")]


def touches_last_axis(operation: Operation, graph: Graph) -> bool:
    """Whether a transpose or reshape moves elements along the last axis, so that memory is copied."""
    if operation.type not in ("reshape", "transpose", "flatten2d", "reshape_like"):
        return False
    before, after = _sizes(operation.inputs["x"][0]), _sizes(operation.outputs[0])
    if operation.type == "transpose":
        perm = [int(axis) % len(before) for axis in graph.constants[operation.inputs["perm"][0].name].value]
        return perm[-1] != len(before) - 1 and _order(perm, before) != sorted(_order(perm, before))
    return bool(before and after) and before[-1] != after[-1]


def _order(perm: list[int], shape: tuple[int, ...]) -> list[int]:
    """Return the axes in their new order without those of size 1, because moving those moves no element."""
    return [axis for axis in perm if shape[axis] != 1]


def is_view(operation: Operation, graph: Graph) -> bool:
    """Whether the outputs are parts of the input, in place: nothing is computed or moved."""
    kind = operation.type
    if kind in ("identity", "expand_dims", "squeeze", "read_state"):
        return True
    if kind in ("reshape", "transpose", "flatten2d", "reshape_like"):
        return not touches_last_axis(operation, graph)
    if kind in ("split", "slice_by_index", "slice_by_size"):
        source = _sizes(operation.inputs["x"][0])
        return bool(source) and all(_sizes(out)[-1:] == source[-1:] for out in operation.outputs)
    return False


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(axis or 1 for axis in spec.shape)
