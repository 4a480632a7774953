"""The states of a stateful program, with the interface of coremltools' `MLState`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.mil.ops.tensor_operation import StateBox
from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec, predicted_dtype, storage_dtype


class ProgramState(Mapping[str, StateBox]):
    """Fresh states, all zero, by name; made by `Program.make_state`.

    Another function of the same package takes it when it declares the same states, which is how one function reads what
    another has written.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], precision: Precision, device: torch.device) -> None:
        self.specs = dict(specs)
        self.precision: Precision = precision
        self._boxes = {
            name: StateBox(
                torch.zeros(
                    [axis or 1 for axis in spec.shape], dtype=storage_dtype(spec.dtype, precision), device=device
                )
            )
            for name, spec in specs.items()
        }

    def __getitem__(self, name: str) -> StateBox:
        return self._boxes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._boxes)

    def __len__(self) -> int:
        return len(self._boxes)

    def read_state(self, name: str) -> NDArray[Any]:
        """Return a copy of a state, as `predict` returns outputs: float32 for float16 in float32 mode.

        Raises:
            ValueError: There is no such state.
        """
        value = self._box(name).value
        dtype = predicted_dtype(self.specs[name].dtype, self.precision)
        return np.array(value.detach().cpu().numpy(), dtype=dtype, order="C")

    def write_state(self, name: str, value: NDArray[Any] | Tensor) -> None:
        """Set a state.

        Args:
            name: Its name.
            value: An array of its shape.

        Raises:
            ValueError: There is no such state, or its shape is another.
        """
        box = self._box(name)
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        if tensor.shape != box.value.shape:
            raise ValueError(f"state {name!r} has shape {list(box.value.shape)}, got {list(tensor.shape)}")
        box.write(tensor.to(box.value.device, box.value.dtype))

    def _box(self, name: str) -> StateBox:
        if name not in self._boxes:
            raise ValueError(f"there is no state {name!r}; there are {', '.join(self._boxes) or 'none'}")
        return self._boxes[name]
