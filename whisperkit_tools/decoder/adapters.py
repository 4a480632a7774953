"""Tensor models made of other things: of an array model, of a function, and of another model's remembered results."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisperkit_tools.mil.backend import ArrayModel, TensorModel
from whisperkit_tools.mil.tensor_spec import TensorSpec


class ArrayModelAdapter:
    """A tensor model around anything with Core ML's `predict` on NumPy arrays."""

    def __init__(self, model: ArrayModel) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.states = model.states

    def make_state(self) -> Any:
        """Return fresh states, all zero."""
        return self._model.make_state()

    def run(self, inputs: Mapping[str, Tensor], /, *, state: Any = None) -> dict[str, Tensor]:
        """Predict. Tensors share their memory with the arrays handed over."""
        outputs = self._model.predict({name: value.numpy() for name, value in inputs.items()}, state)
        return {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}


class FunctionModel:
    """A tensor model around a function on tensors, such as the call of a PyTorch module."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
    ) -> None:
        """Take the function.

        Args:
            function: Tensors by input name to tensors by output name.
            inputs: Its inputs by name.
            outputs: Its outputs by name.
        """
        self._function = function
        self.inputs = inputs
        self.outputs = outputs
        self.states: Mapping[str, TensorSpec] = {}

    def make_state(self) -> None:
        """Return None, because a function has no states."""

    def run(self, inputs: Mapping[str, Tensor], /, *, state: Any = None) -> Mapping[str, Tensor]:
        """Call the function."""
        return self._function(inputs)


class MemoizedModel:
    """A stateless tensor model that remembers its results, and does not compute them again for equal inputs."""

    def __init__(self, model: TensorModel, capacity: int | None = None) -> None:
        """Take the model.

        Args:
            model: Without states.
            capacity: Number of results to remember, the oldest are dropped. None for all.
        """
        self._model, self._capacity = model, capacity
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.states = model.states
        self._known: OrderedDict[bytes, Mapping[str, Tensor]] = OrderedDict()

    def make_state(self) -> Any:
        """Return fresh states of the model."""
        return self._model.make_state()

    def clear(self) -> None:
        """Forget all results."""
        self._known.clear()

    def run(self, inputs: Mapping[str, Tensor], /, *, state: Any = None) -> Mapping[str, Tensor]:
        """Return the remembered results, the very same tensors, or compute them."""
        digest = hashlib.sha256()
        for name in sorted(inputs):
            digest.update(f"{name} {tuple(inputs[name].shape)} {inputs[name].dtype}\n".encode())
            digest.update(inputs[name].contiguous().cpu().numpy().tobytes())
        key = digest.digest()
        if key not in self._known:
            self._known[key] = self._model.run(inputs)
            if self._capacity is not None and len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return self._known[key]
