"""Running a schedule call after call, with what earlier runs have computed."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from whisperkit_tools.mil.schedule import Schedule, Values, execute

ConstantsKey: TypeAlias = tuple[tuple[int, int], ...]


class Executor:
    """Runs a schedule without gradients and caches results between runs.

    It caches the values that depend on constants alone, until a parameter changes, and those that depend on tracked
    inputs alone, until one of these inputs is another tensor or was changed in place. An input counts as unchanged when
    it is the same tensor object at the same version. Torch counts every change through a tensor, but not one through
    memory that the tensor shares with a NumPy array, nor one inside `torch.inference_mode`. A tensor made in that mode
    has no version and always counts as changed.

    Attributes:
        schedule: What is run.
        executed: Number of operations that the last run executed.
        cached: The cached results of the last run, by slot.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.executed = 0
        self.cached: dict[int, Any] = {}
        self._folded: Values | None = None
        self._constants_key: ConstantsKey = ()
        self._constants: Mapping[str, Tensor] = {}  # kept alive so that id() stays unique
        self._seen: dict[str, tuple[Tensor, int]] = {}

    def forget(self) -> None:
        """Drop everything that is kept from earlier runs."""
        self._folded = None
        self._constants = {}
        self._seen = {}
        self.cached = {}

    def run(
        self,
        inputs: Mapping[str, Tensor],
        states: Mapping[str, Any],
        constants: Callable[[], Mapping[str, Tensor]],
        constants_key: ConstantsKey,
    ) -> list[Tensor]:
        """Run the schedule.

        Args:
            inputs: All inputs, as tensors of the types in which the schedule holds them.
            states: All states.
            constants: Returns the stored constants by name.
            constants_key: Identity and version of each parameter.

        Returns:
            The outputs in the schedule's order. None of them shares memory with what is cached.
        """
        schedule, slots = self.schedule, self.schedule.slots
        values = self.folded(constants, constants_key).copy()
        for name, tensor in inputs.items():
            values[slots[name]] = tensor
        for name, state in states.items():
            values[slots[name]] = state
        calls = schedule.calls(self._changed(inputs))
        for slot, value in self.cached.items():
            values[slot] = value
        self.cached = {}
        execute(calls, values)
        self.executed = len(calls)
        self._remember(inputs, values)
        lent = schedule.lent_outputs
        return [values[slot].clone() if slot in lent else values[slot] for slot in schedule.output_slots]

    def folded(self, constants: Callable[[], Mapping[str, Tensor]], constants_key: ConstantsKey) -> Values:
        """Return slots that hold the constants and what depends on them alone, as far as the other calls read it.

        The same object comes back until a parameter changes.

        Args:
            constants: Returns the stored constants by name.
            constants_key: Identity and version of each parameter.
        """
        if self._folded is None or constants_key != self._constants_key:
            self.forget()
            self._constants = constants()
            self._folded = self.schedule.fold_constants(self._constants)
            self._constants_key = constants_key
        return self._folded

    def _changed(self, inputs: Mapping[str, Tensor]) -> list[str]:
        """Return the tracked inputs that are not what they were in the last run."""
        changed = []
        for name in self.schedule.tracked:
            tensor, seen = inputs[name], self._seen.get(name)
            if seen is None or seen[0] is not tensor or tensor.is_inference() or seen[1] != tensor._version:
                changed.append(name)
        self._seen = {}  # until the run has succeeded nothing is known
        return changed

    def _remember(self, inputs: Mapping[str, Tensor], values: Values) -> None:
        self.cached = {slot: values[slot] for slot in self.schedule.cached}
        self._seen = {
            name: (inputs[name], inputs[name]._version)
            for name in self.schedule.tracked
            if not inputs[name].is_inference()
        }
