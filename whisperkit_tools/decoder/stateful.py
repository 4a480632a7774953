"""Decoding over a stateful bundle: the caches are states, and the audio is projected into them once for each window."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.prefill_lookup import PrefilledCaches
from whisperkit_tools.decoder.session import Component, DecoderSession, Sizes
from whisperkit_tools.mil.tensor_spec import TensorSpec


class StateHolder(Protocol):
    """What coremltools' `MLState` and the executor's have in common."""

    def read_state(self, name: str) -> Any:
        """Return a copy of a state as an array."""
        ...

    def write_state(self, name: str, value: Any) -> None:
        """Set a state from an array."""
        ...


class StatefulComponent(Component, Protocol):
    """A function of a stateful package."""

    @property
    def states(self) -> Mapping[str, TensorSpec]:
        """Declared states by name."""
        ...

    def make_state(self) -> Any:
        """Return fresh states, all zero."""
        ...

    def run(self, inputs: Mapping[str, Tensor], /, *, state: Any = None) -> Mapping[str, Tensor]:
        """Compute the outputs from inputs and states."""
        ...


class StatefulDecoder:
    """The two functions of a stateful TextDecoder, with the inputs and outputs of both and the states among them."""

    def __init__(self, step: StatefulComponent, window: StatefulComponent) -> None:
        self.step = step
        self.window = window
        self.inputs: Mapping[str, TensorSpec] = {**window.inputs, **step.inputs, **step.states}
        self.outputs: Mapping[str, TensorSpec] = step.outputs


class StatefulSession(DecoderSession):
    """As `DecoderSession`, the caches being states of the decoder."""

    needed_outputs: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, decoder: StatefulDecoder, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(decoder, sizes, device, dtype)
        self._functions = decoder
        self._state: StateHolder = decoder.step.make_state()

    def begin(self, embeds: Tensor) -> None:
        """Start a window; the same embeddings object is projected only once."""
        if embeds is not self._embeds:
            with torch.no_grad():
                self._functions.window.run({contract.EMBEDS: embeds}, state=self._state)
            self._embeds = embeds

    def fill(self, caches: PrefilledCaches | None, count: int) -> None:
        """Take the first `count` positions from a table, if there is one, instead of decoding their tokens."""
        if caches is None:
            return
        for name, columns in zip(contract.TEXT_STATES, (caches.keys, caches.values), strict=True):
            held = self._state.read_state(name)
            held[..., :count] = columns[..., :count].cpu().numpy()
            self._state.write_state(name, held)

    def rewind(self, position: int) -> None:
        """Nothing: the mask hides what lies behind the current position, and it is overwritten when it is reached."""

    def _decode(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        inputs = {
            contract.INPUT_IDS: ids,
            contract.CACHE_LENGTH: self._positions[position],
            contract.PADDING_MASK: self._padding_masks[position],
        }
        return self._functions.step.run(inputs, state=self._state)
