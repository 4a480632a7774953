"""Running a plan call after call, remembering what the next call need not compute again."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from whisperkit_tools.mil.schedule import Plan, Values, execute

ConstantsKey: TypeAlias = tuple[tuple[int, int], ...]


class Executor:
    """Runs a plan without gradients and keeps results between runs.

    It holds: the values that depend on constants alone, until a parameter changes; and those that depend on watched
    inputs alone, until one of these inputs is another tensor or was changed in place. An input counts as unchanged when
    it is the same tensor object at the same version. Torch counts every change through a tensor, but not one through
    memory that the tensor shares with a NumPy array, nor one inside `torch.inference_mode`; a tensor made in
    that mode has no version and always counts as changed.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.executed = 0
        """Number of operations the last run executed."""
        self._template: Values | None = None
        self._constants_key: ConstantsKey = ()
        self._constants: Mapping[str, Tensor] = {}  # held, so that no other tensor can get the identity of one of them
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._kept: list[tuple[int, Any]] = []

    def forget(self) -> None:
        """Drop everything kept from earlier runs."""
        self._template = None
        self._constants = {}
        self._seen.clear()
        self._kept.clear()

    def run(
        self,
        inputs: Mapping[str, Tensor],
        states: Mapping[str, Any],
        constants: Callable[[], Mapping[str, Tensor]],
        constants_key: ConstantsKey,
    ) -> list[Tensor]:
        """Run the plan.

        Args:
            inputs: All inputs, as tensors of the types in which the plan holds them.
            states: All states.
            constants: Gives the stored constants by name.
            constants_key: Identity and version of each parameter.

        Returns:
            The outputs in the plan's order. None of them shares memory with what is kept.
        """
        if self._template is None or constants_key != self._constants_key:
            self.forget()
            self._constants = constants()
            self._template = self._fold(self._constants)
            self._constants_key = constants_key
        plan, places = self.plan, self.plan.places
        values = self._template.copy()
        for name, tensor in inputs.items():
            values[places[name]] = tensor
        for name, state in states.items():
            values[places[name]] = state
        calls = plan.calls(self._changed(inputs))
        for place, value in self._kept:
            values[place] = value
        self._kept = []
        execute(calls, values)
        self.executed = len(calls)
        self._remember(inputs, values)
        return [values[place].clone() if place in plan.shared else values[place] for place in plan.output_places]

    def _fold(self, constants: Mapping[str, Tensor]) -> Values:
        """Return a list of values with the constants and what depends on them alone, as far as other calls read it."""
        plan = self.plan
        values = plan.empty_values()
        for name, tensor in constants.items():
            values[plan.places[name]] = tensor
        execute(plan.folding(), values)
        needed = plan.constants_needed()
        return [value if place in needed else None for place, value in enumerate(values)]

    def _changed(self, inputs: Mapping[str, Tensor]) -> int:
        """Return the watched inputs that are not what they were in the last run, as bits."""
        changed = 0
        for name, bit in self.plan.watched.items():
            tensor = inputs[name]
            seen = self._seen.get(name)
            if seen is None or seen[0] is not tensor or tensor.is_inference() or seen[1] != tensor._version:
                changed |= bit
        self._seen = {}  # until the run has succeeded nothing is known
        return changed

    def _remember(self, inputs: Mapping[str, Tensor], values: Values) -> None:
        self._kept = [(place, values[place]) for place in self.plan.kept]
        self._seen = {
            name: (inputs[name], inputs[name]._version) for name in self.plan.watched if not inputs[name].is_inference()
        }
