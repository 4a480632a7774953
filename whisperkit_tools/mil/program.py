"""An ML Program as a PyTorch module."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.batched_program import BatchedProgram, LaneInputs
from whisperkit_tools.mil.executor import ConstantsKey, Executor
from whisperkit_tools.mil.fusion import fuse
from whisperkit_tools.mil.graph import Constant, Graph, Metadata, Operation, read_graph
from whisperkit_tools.mil.inputs import InputConverter
from whisperkit_tools.mil.kernels import Node, bind
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule, Values
from whisperkit_tools.mil.size_check import check_sizes, damage_reported
from whisperkit_tools.mil.states import ProgramState
from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec, is_float, predicted_dtype, storage_dtype


class Program(nn.Module):
    """One function of an ML Program, run on PyTorch.

    Its parameters are the program's floating-point constants, under their names in the program (see `parameter_name`),
    frozen until `requires_grad_` says otherwise; palettes and scales of compressed weights are parameters too. Other
    constants are buffers. Changing a parameter in place or loading a state dict is noticed at the next run; changing
    `parameter.data` is not, call `forget` after it. A program keeps results between calls, so threads need one each.

    Attributes:
        inputs: The inputs by name.
        outputs: The outputs by name.
        operations: The operations in the order of the program, constants not among them.
        metadata: What the package says about itself.
        precision: `float32` or `float16`, see `load`.

    Example:
        >>> import numpy as np
        >>> import whisperkit_tools as wkt
        >>> mel = wkt.Program.load("bundles/acme_whisper-demo/MelSpectrogram.mlpackage")
        >>> mel.predict({"audio": np.zeros(480_000, np.float32)})["melspectrogram_features"].shape
        (1, 80, 1, 3000)
    """

    def __init__(self, graph: Graph, precision: Precision = "float32", device: str | torch.device = "cpu") -> None:
        """Build the module from a graph; `load` does this from a package.

        Raises:
            UnsupportedOperationError: The program has operations without a kernel.
        """
        super().__init__()
        _check_precision(precision)
        self.precision: Precision = precision
        self.path = graph.path
        self.function = graph.function
        self.inputs: dict[str, TensorSpec] = graph.inputs
        self.outputs: dict[str, TensorSpec] = graph.outputs
        self.operations: tuple[Operation, ...] = graph.operations
        self.metadata: Metadata = graph.metadata
        self.states: dict[str, TensorSpec] = graph.states
        nodes = bind(graph)
        check_sizes(graph.path, nodes, self._specs(graph))
        self._encoded: dict[str, str] = {}
        for name in _tensors_read(nodes, graph):
            self._add_constant(name, graph.constants[name])
        self._nodes = nodes
        self._stored = {**graph.inputs, **{name: graph.constants[name].spec for name in self._encoded}}
        self._converter = InputConverter(graph.inputs, precision)
        self.to(device)  # makes the schedules, too

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        precision: Precision = "float32",
        device: str | torch.device = "cpu",
        function: str | None = None,
    ) -> "Program":
        """Load an `.mlpackage`.

        Args:
            path: The package folder.
            precision: `float32` computes in float32 on the weights as stored; what the program declares as float16 is
                float32 too, and casts between the two change nothing, except that compressed weights are made dense
                in their declared type. `float16` rounds the result of every operation
                that the program declares as float16, beyond its range to infinity; products and sums inside one
                operation are in float32.
            device: Where to compute: `cpu`, `cuda` or `mps`.
            function: The function of a package with several. None for the one that Core ML runs by default.

        Raises:
            BundleError: The package is missing, damaged, not an ML Program, or has no such function.
            UnsupportedOperationError: It holds operations that are not supported; the message names all of them.
        """
        _check_precision(precision)
        graph = read_graph(path, function)
        with damage_reported(graph.path):
            return cls(graph, precision, device)

    @staticmethod
    def _specs(graph: Graph) -> dict[str, TensorSpec]:
        constants = {name: constant.spec for name, constant in graph.constants.items()}
        return {**graph.inputs, **graph.states, **constants}

    def _add_constant(self, name: str, constant: Constant) -> None:
        """Register a constant as a parameter (floating point, at least one axis) or as a buffer."""
        if constant.spec.dtype == "string":
            raise BundleError(f"{self.path}: constant {name!r} is a string where a tensor is needed")
        encoded = self._encode(name)
        self._encoded[name] = encoded
        # float16 constants are held as float32, which is exact, in either precision: kernels compute in float32.
        tensor = _tensor(constant.value, storage_dtype(constant.spec.dtype, "float32"))
        is_weight = is_float(constant.spec.dtype) and (constant.spec.shape or ":" in name)
        if is_weight:
            self.register_parameter(encoded, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(encoded, tensor, persistent=False)

    def _encode(self, name: str) -> str:
        """Return a name that a module accepts, percent-encoded where torch or a member of the module is in the way."""
        encoded = name.replace("%", "%25").replace(".", "%2E")  # torch forbids dots
        is_taken = hasattr(self, encoded) or hasattr(type(self), encoded)
        return f"%{ord(encoded[0]):02X}{encoded[1:]}" if is_taken else encoded

    @staticmethod
    def constant_name(parameter_name: str) -> str:
        """Return the program's name of a parameter or buffer."""
        return unquote(parameter_name)

    def parameter_name(self, constant_name: str) -> str:
        """Return the name under which the module holds a constant: the same, unless torch forbids it.

        Raises:
            KeyError: The program has no such constant, or reads it as a setting and not as a tensor.
        """
        return self._encoded[constant_name]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the program."""
        return {
            name: cast(nn.Parameter, self._parameters[encoded])
            for name, encoded in self._encoded.items()
            if encoded in self._parameters
        }

    @property
    def device(self) -> torch.device:
        """The device on which the module computes."""
        return self._device

    def _prepare(self) -> None:
        """Make the schedules: the program as it stands, and, for float32, with operations fused."""
        tensors = [*self._parameters.values(), *self._buffers.values()]
        self._device = next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))
        target = ExecutionTarget(self.precision, self._device)
        self._schedule = Schedule(self._nodes, self.inputs, self.outputs, self.states, self._encoded, target)
        fast = self._schedule
        if self.precision == "float32":
            fused = fuse(self._nodes, self.outputs, self._stored)
            fast = Schedule(fused, self.inputs, self.outputs, self.states, self._encoded, target)
        self._executor = Executor(fast)
        self._named: tuple[Values, Mapping[str, Tensor]] | None = None
        self._batch: LaneInputs | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> "Program":
        """Follow a move to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Omit, for a copy or a pickle, what is made from the rest."""
        made = ("_schedule", "_executor", "_named", "_batch")
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the schedules anew."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()

    @property
    def schedule(self) -> Schedule:
        """The program as it stands, one call for each operation, which is what runs with gradients."""
        return self._schedule

    @property
    def executor(self) -> Executor:
        """The executor of runs without gradients, operations fused in float32 mode."""
        return self._executor

    @property
    def executed_operations(self) -> int:
        """Number of operations that the last run without gradients executed; fewer when inputs did not change."""
        return self._executor.executed

    def forget(self) -> None:
        """Drop everything that is kept from earlier runs."""
        self._executor.forget()
        self._converter.forget()
        self._named = self._batch = None

    def make_state(self) -> ProgramState:
        """Return fresh states, all zero; a program without states accepts the empty ones that it returns."""
        return ProgramState(self.states, self.precision, self._device)

    def forward(
        self, inputs: Mapping[str, Tensor] | None = None, /, *, state: ProgramState | None = None, **tensors: Tensor
    ) -> dict[str, Tensor]:
        """Run the program; the same as `run`."""
        return self.run(inputs, state=state, **tensors)

    def run(
        self, inputs: Mapping[str, Tensor] | None = None, /, *, state: ProgramState | None = None, **tensors: Tensor
    ) -> dict[str, Tensor]:
        """Run the program on tensors.

        When gradients are enabled and a parameter or an input needs them, the program runs as it stands and autograd
        goes through it. Otherwise operations are fused, and what depends only on tensors that are the same objects as
        in the last run, and not changed since, is not computed again.

        Args:
            inputs: Tensors by input name; they may also be given as keywords.
            state: From `make_state` of this program, or of another function with the same states.
            tensors: More inputs, by name.

        Returns:
            The outputs by name: float32 for what the program declares as float16 in float32 mode, else as declared.

        Raises:
            ValueError: Inputs are missing, unknown, or of the wrong shape; all of them are named.
        """
        given = self._converter.tensors({**(inputs or {}), **tensors}, self._device)
        states = self._states(state)
        if torch.is_grad_enabled() and any(
            t.requires_grad for t in (*given.values(), *self._parameters.values()) if t is not None
        ):
            return self._schedule.run({**self.constants(), **given, **states})
        with torch.no_grad():
            results = self._executor.run(given, states, self.constants, self._constants_key())
        return dict(zip(self.outputs, results, strict=True))

    def batched(
        self,
        capacity: int,
        rewrite: Callable[[list[Node]], list[Node]] | None = None,
        *,
        inputs: Mapping[str, TensorSpec] | None = None,
        outputs: Mapping[str, TensorSpec] | None = None,
    ) -> BatchedProgram:
        """Return the program for several inputs at once, each in a lane of its own, on these weights.

        Args:
            capacity: Number of lanes.
            rewrite: Changes the calls, operations fused in float32 mode, before they are rewritten for lanes.
            inputs: The inputs of the changed calls. None for the program's.
            outputs: The values to return of the changed calls. None for the program's outputs.

        Raises:
            ValueError: The program has states.
        """
        if self.states:
            raise ValueError(f"{self.path.name}: a program with states runs on one input at a time")
        schedule = self._executor.schedule
        nodes = schedule.varying()
        return BatchedProgram(
            rewrite(nodes) if rewrite else nodes,
            self.inputs if inputs is None else inputs,
            self.outputs if outputs is None else outputs,
            schedule.target,
            self._folded,
            capacity,
        )

    def _folded(self) -> Mapping[str, Tensor]:
        """Return what calls read of the constants and of what depends on them alone, by name."""
        with torch.no_grad():
            values = self._executor.folded(self.constants, self._constants_key())
        if self._named is None or self._named[0] is not values:
            slots, read = self._executor.schedule.slots, self._executor.schedule.constant_results
            self._named = values, {name: values[slot] for name, slot in slots.items() if slot in read}
        return self._named[1]

    def run_batch(self, inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run the program on several inputs at once, without gradients.

        Weights are read once for all of them. What depends only on tensors that are the same objects as at the same
        place of the last batch, and not changed since, is not computed again.

        Args:
            inputs: For each of them tensors by input name.

        Returns:
            For each of them the outputs by name, as `run` returns them.

        Raises:
            ValueError: The program has states, or inputs are missing, unknown, or of the wrong shape.
        """
        given = [self._converter.tensors(one, self._device) for one in inputs]
        if not given:
            return []
        if self._batch is None or self._batch.program.capacity < len(given):
            self._batch = LaneInputs(self.batched(len(given)))
        with torch.no_grad():
            return self._batch.run(given)

    def predict(self, data: Mapping[str, Any] | list[Mapping[str, Any]], state: ProgramState | None = None) -> Any:
        """Run the program on NumPy arrays, as coremltools' `MLModel.predict` does.

        Args:
            data: Arrays (or what NumPy makes arrays of) by input name, or a list of such dictionaries. A float is
                rounded to float16 on the way in only in float16 mode.
            state: From `make_state` of this program, or of another function with the same states.

        Returns:
            Arrays by output name, of the declared types, except that in float32 mode a float16 output is float32 (not
            rounded). For a list, a list.

        Raises:
            ValueError: Inputs are missing, unknown, or of the wrong shape or kind; all of them are named.
        """
        if isinstance(data, list):
            return [self.predict(item, state) for item in data]
        given = self._converter.arrays(data, self._device, self._executor.schedule.tracked)
        with torch.no_grad():
            results = self._executor.run(given, self._states(state), self.constants, self._constants_key())
        return {
            name: _array(tensor, spec, self.precision)
            for (name, spec), tensor in zip(self.outputs.items(), results, strict=True)
        }

    def _states(self, state: ProgramState | None) -> ProgramState:
        given = {} if state is None else state.specs
        if state is None and not self.states:
            return self.make_state()
        if set(given) != set(self.states):
            raise ValueError(f"the program has the states {sorted(self.states)}, got {sorted(given)}; use make_state()")
        if state is None or {name: spec.shape for name, spec in given.items()} != {
            name: spec.shape for name, spec in self.states.items()
        }:
            raise ValueError("the states have other shapes than this program's; use make_state()")
        if state.precision != self.precision:
            raise ValueError(f"the states are held in {state.precision}, the program computes in {self.precision}")
        return state

    def constants(self) -> dict[str, Tensor]:
        """Return the present parameters and buffers by their names in the program."""
        return {
            name: cast(Tensor, self._parameters[key] if key in self._parameters else self._buffers[key])
            for name, key in self._encoded.items()
        }

    def _constants_key(self) -> ConstantsKey:
        """Return a key that differs after a parameter was replaced or changed."""
        return tuple([(id(p), 0 if p is None or p.is_inference() else p._version) for p in self._parameters.values()])

    def extra_repr(self) -> str:
        """Describe the program in one line."""
        return f"{self.path.name}, {len(self.operations)} operations, {self.precision}"


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "float16"):
        raise ValueError(f"precision is {precision!r}, expected 'float32' or 'float16'")


def _tensors_read(nodes: list[Node], graph: Graph) -> list[str]:
    """Return the constants that are used as tensors (or given out), in the order of their first use."""
    names = [name for node in nodes for name in node.reads] + list(graph.outputs)
    return [name for name in dict.fromkeys(names) if name in graph.constants]


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """Return a tensor of `dtype` that shares its memory with nobody but possibly `array`."""
    if array.dtype in (np.uint16, np.uint32, np.uint64):  # torch cannot convert these
        array = array.astype(str(dtype).removeprefix("torch."))
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(dtype)


def _array(tensor: Tensor, spec: TensorSpec, precision: Precision) -> NDArray[Any]:
    """Return a copy of `tensor` as an array in the type that `predict` promises."""
    dtype = predicted_dtype(spec.dtype, precision)
    return np.array(tensor.detach().cpu().numpy(), dtype=dtype, order="C")
