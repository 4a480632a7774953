"""Element types of values and how they are held."""

import numpy as np
import pytest
import torch

from whisperkit_tools.mil.protos import model_proto
from whisperkit_tools.mil.tensor_spec import (
    TensorSpec,
    bit_width,
    blob_type,
    dtype_name,
    is_float,
    mil_type,
    numpy_dtype,
    predicted_dtype,
    storage_dtype,
)

NAMES = {
    "BOOL": "bool", "FLOAT16": "float16", "FLOAT32": "float32", "FLOAT64": "float64",
    "INT4": "int4", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT1": "uint1", "UINT2": "uint2", "UINT3": "uint3", "UINT4": "uint4", "UINT6": "uint6",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_numbers_are_those_of_the_specification(theirs: str, ours: str) -> None:
    import sys

    model_proto()
    mil = next(module for name, module in sys.modules.items() if name.endswith("MIL_pb2"))
    assert mil_type(ours) == mil.DataType.Value(theirs)
    assert dtype_name(mil_type(ours)) == ours
    assert bit_width(ours) == int("".join(filter(str.isdigit, ours)) or 8)


def test_a_string_has_a_name_and_nothing_else() -> None:
    assert dtype_name(2) == "string"
    for function in (mil_type, bit_width, numpy_dtype, blob_type):
        with pytest.raises(ValueError, match="string is not the element type of a tensor"):
            function("string")


def test_unknown_types() -> None:
    with pytest.raises(ValueError, match="data type 99 is not known"):
        dtype_name(99)
    with pytest.raises(ValueError, match="a weights file cannot hold float64"):
        blob_type("float64")


def test_how_numpy_and_torch_hold_values() -> None:
    assert numpy_dtype("int4") == np.int8
    assert numpy_dtype("uint3") == np.uint8
    assert numpy_dtype("bool") == np.bool_
    assert storage_dtype("uint16", "float32") is torch.int32
    assert storage_dtype("uint32", "float16") is torch.int64
    assert storage_dtype("float64", "float16") is torch.float32
    assert storage_dtype("float16", "float32") is torch.float32
    assert storage_dtype("float16", "float16") is torch.float16
    assert predicted_dtype("float16", "float32") == np.float32
    assert predicted_dtype("float16", "float16") == np.float16
    assert predicted_dtype("int32", "float32") == np.int32
    assert is_float("float16")
    assert not is_float("int8")


def test_an_open_axis_counts_once() -> None:
    spec = TensorSpec("x", (2, None, 3), "float16")
    assert spec.size == 6
    assert str(spec) == "x: float16[2, ?, 3]"
