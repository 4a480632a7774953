"""Arrays and tensors on their way into a program."""

import warnings

import numpy as np
import pytest
import torch

from whisperkit_tools.mil.inputs import InputConverter, tensor_view
from whisperkit_tools.mil.tensor_spec import TensorSpec

CPU = torch.device("cpu")


@pytest.fixture
def converter() -> InputConverter:
    specs = (TensorSpec("x", (2, None), "float16"), TensorSpec("n", (1,), "int32"))
    return InputConverter({spec.name: spec for spec in specs}, "float32")


@pytest.mark.parametrize("writeable", [True, False])
def test_a_view_shares_memory_and_says_nothing(writeable: bool) -> None:
    array = np.arange(6.0).reshape(2, 3)
    base = array.view()
    array.flags.writeable = writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tensor_view(array)
    base[0, 1] = 7
    assert found.tolist() == [[0, 7, 2], [3, 4, 5]]


def test_a_view_of_read_only_memory_outlives_the_array() -> None:
    array = np.full(1000, 3.0)
    array.flags.writeable = False
    found = tensor_view(array)
    del array
    assert found.sum() == 3000


def test_views_of_reversed_and_empty_arrays() -> None:
    assert tensor_view(np.arange(3)[::-1]).tolist() == [2, 1, 0]
    empty = np.zeros((0, 2))
    empty.flags.writeable = False
    assert tensor_view(empty).shape == (0, 2)


def test_equal_content_of_a_tracked_input_is_the_same_tensor(converter: InputConverter) -> None:
    given = {"x": np.ones((2, 3), np.float32), "n": [4]}
    first = converter.arrays(given, CPU, {"x"})
    again = converter.arrays({**given, "x": given["x"].copy()}, CPU, {"x"})
    assert again["x"] is first["x"]
    given["x"][1, 2] = np.nan
    changed = converter.arrays(given, CPU, {"x"})["x"]
    assert changed is not first["x"]
    assert converter.arrays(given, CPU, {"x"})["x"] is changed  # NaN is the same bits
    converter.forget()
    assert converter.arrays(given, CPU, {"x"})["x"] is not changed
    assert converter.arrays(given, CPU, ())["x"].data_ptr() == given["x"].ctypes.data


def test_tensors_of_the_right_type_are_passed_on(converter: InputConverter) -> None:
    given = {"x": torch.ones(2, 5), "n": torch.tensor([1], dtype=torch.int64)}
    found = converter.tensors(given, CPU)
    assert found["x"] is given["x"]
    assert found["n"].dtype is torch.int32


def test_all_problems_are_named(converter: InputConverter) -> None:
    message = (
        r"'x' has shape \[3, 1\], expected \[2, any\]; 'n' is missing; 'm' is not an input\. "
        r"The inputs are x: float16\[2, \?\], n: int32\[1\]"
    )
    with pytest.raises(ValueError, match=message):
        converter.tensors({"x": torch.ones(3, 1), "m": torch.ones(1)}, CPU)
