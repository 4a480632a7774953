"""Decoding sessions: the text decoder with its caches, one token in and the next token's logits out.

A session is what decoding loops work with. `CacheSession` hands the caches in as inputs, `stateful.StatefulSession`
leaves them to the decoder as states. Anything else that gives the same logits for the same steps can be a session too:
one may compute ahead of the steps that it is asked for, and one may share a decoder with other sessions, because all
that belongs to one transcript lies in the session.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.step_inputs import StepInputs
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.tensor_spec import TensorSpec


@dataclass(frozen=True, slots=True)
class CacheColumns:
    """Consecutive positions of the caches.

    Attributes:
        keys: `[1, D * L, 1, n]`, all layers along the channels.
        values: `[1, D * L, 1, n]`.
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        """Return the number of positions."""
        return int(self.keys.shape[3])


class DecoderStep(NamedTuple):
    """Result of one step, float32 on the CPU.

    Attributes:
        logits: `[V]`, of the next token.
        alignment: `[n_audio_ctx]`, the attention of the alignment heads while this token was read. None where the
            decoder does not return it.
        tolerance: Difference of two logits below which a choice between them may differ from the one after `step`. 0
            where the logits are those of `step`.
    """

    logits: Tensor
    alignment: Tensor | None
    tolerance: float = 0.0


class StepRequest(NamedTuple):
    """A token to decode: its id, and the number of tokens before it."""

    token: int
    position: int


Result = TypeVar("Result")
Steps: TypeAlias = Generator[StepRequest, DecoderStep, Result]
"""Work that asks for decoder steps. Whoever runs it decides whether others' steps are decoded along with its own."""


class DecoderSession(ABC):
    """One transcript after the other through a decoder.

    Attributes:
        length: Positions of the caches.
        steps: Decoder steps so far. Callers may set it to zero.
        computes_ahead: Whether `read` and `step_ahead` do more than single steps.
    """

    computes_ahead: ClassVar[bool] = False

    def __init__(self, length: int, device: torch.device | str, dtype: torch.dtype) -> None:
        """Make the tables of masks and positions.

        Args:
            length: Positions of the caches.
            device: Device of the tensors handed in.
            dtype: Type of the floating-point tensors handed in.
        """
        self.length = length
        self.steps = 0
        self._device = device
        self._step_inputs = StepInputs(length, device, dtype)
        self._embeds = torch.empty(0)

    @abstractmethod
    def begin(self, embeds: Tensor) -> None:
        """Start a window with empty caches.

        Args:
            embeds: Its audio embeddings, `[1, D, 1, n_audio_ctx]`. What depends on them alone is computed once for the
                same object.
        """

    @abstractmethod
    def fill(self, columns: CacheColumns | None, count: int) -> None:
        """Take the first `count` positions from `columns`, if there are any, instead of decoding their tokens."""

    @abstractmethod
    def rewind(self, position: int) -> None:
        """Forget what was cached at `position` and after it."""

    @abstractmethod
    def columns(self, start: int, stop: int) -> CacheColumns:
        """Return a copy of what is cached at the positions from `start` to before `stop`."""

    @abstractmethod
    def _run(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        """Run the decoder on one token `[1]`, and cache its keys and values."""

    def outputs(self, token: int, position: int) -> Mapping[str, Tensor]:
        """Decode one token, and return the decoder's own outputs by name.

        Args:
            token: Its id.
            position: Number of tokens before it.
        """
        with torch.no_grad():
            found = self._run(torch.tensor([token], dtype=torch.int32, device=self._device), position)
        self.steps += 1
        return found

    def read(self, tokens: Sequence[int], start: int = 0) -> Iterator[DecoderStep]:
        """Decode given tokens.

        Args:
            tokens: All ids from position 0 on.
            start: Number of those that are cached already.

        Yields:
            The step of each of the others.
        """
        for position, token in enumerate(tokens[start:], start=start):
            yield self.step(token, position)

    def step_ahead(
        self, token: int, position: int, generated: Sequence[int], expect: Callable[[Tensor, Sequence[int]], int | None]
    ) -> DecoderStep:
        """Decode one token where the next one will be the likeliest. A session may compute ahead.

        Args:
            token: Its id.
            position: Number of tokens before it.
            generated: The ids of the answer so far, `token` included.
            expect: Chooses a token from logits `[V]` and the ids of the answer before it. None where the answer ends.
        """
        return self.step(token, position)

    def step(self, token: int, position: int) -> DecoderStep:
        """Decode one token.

        Args:
            token: Its id.
            position: Number of tokens before it.
        """
        outputs = self.outputs(token, position)
        alignment = outputs.get(contract.ALIGNMENT)
        return DecoderStep(
            outputs[contract.LOGITS].reshape(-1).float().cpu(),
            None if alignment is None else alignment.reshape(-1).float().cpu(),
        )

    def perform(self, steps: Steps[Result]) -> Result:
        """Decode all steps that some work asks for, and return its result."""
        try:
            request = next(steps)
            while True:
                request = steps.send(self.step(*request))
        except StopIteration as finished:
            result: Result = finished.value
            return result


class CacheSession(DecoderSession):
    """A session that hands the caches in as inputs, the runtime's own form."""

    def __init__(
        self, decoder: TensorModel, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Make empty caches.

        Args:
            decoder: TextDecoder with fixed shapes.
            device: Device of the tensors handed in.
            dtype: Type of the floating-point tensors handed in.

        Raises:
            BundleError: The caches' shape is open.
        """
        spec = decoder.inputs[contract.KEY_CACHE]
        shape = [fixed_axis(spec, axis) for axis in range(4)]  # [1, D * L, 1, S]
        super().__init__(shape[3], device, dtype)
        self._decoder = decoder
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)

    def begin(self, embeds: Tensor) -> None:
        """Start a window with empty caches."""
        # The same object goes in at every step: the executor then projects it to keys and values only once.
        self._embeds = embeds
        self.rewind(0)

    def fill(self, columns: CacheColumns | None, count: int) -> None:
        """Take the first `count` positions from `columns`, if there are any, instead of decoding their tokens."""
        if columns is None:
            return
        self._keys[..., :count] = columns.keys[..., :count]
        self._values[..., :count] = columns.values[..., :count]

    def rewind(self, position: int) -> None:
        """Forget what was cached at `position` and after it."""
        self._keys[..., position:] = 0
        self._values[..., position:] = 0

    def columns(self, start: int, stop: int) -> CacheColumns:
        """Return a copy of what is cached at the positions from `start` to before `stop`."""
        return CacheColumns(self._keys[..., start:stop].clone(), self._values[..., start:stop].clone())

    def run_several(
        self, decoder: TensorModel, tokens: Sequence[int], position: int, kept: int
    ) -> Mapping[str, Tensor]:
        """Run a decoder of several tokens on the caches, and cache what it adds.

        Args:
            decoder: TextDecoderVerify of the same model.
            tokens: As many ids as it takes.
            position: Number of tokens before them.
            kept: How many of the tokens are cached.

        Returns:
            Its outputs by name.
        """
        rows = slice(position, position + len(tokens))
        inputs = {name: rows_of.squeeze(1) for name, rows_of in self._step_inputs.batch(rows, self.length).items()}
        outputs = decoder.run(
            {
                contract.INPUT_IDS: torch.tensor(tokens, dtype=torch.int32, device=self._device),
                contract.KEY_CACHE: self._keys,
                contract.VALUE_CACHE: self._values,
                contract.EMBEDS: self._embeds,
                **inputs,
            }
        )
        self.steps += 1
        added = slice(position, position + kept)
        self._keys[..., added] = outputs[contract.KEY_UPDATES][..., :kept]
        self._values[..., added] = outputs[contract.VALUE_UPDATES][..., :kept]
        return outputs

    def _run(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        outputs = self._decoder.run(
            {
                contract.INPUT_IDS: ids,
                contract.KEY_CACHE: self._keys,
                contract.VALUE_CACHE: self._values,
                contract.EMBEDS: self._embeds,
                **self._step_inputs.step(position),
            }
        )
        self._keys[..., position : position + 1] = outputs[contract.KEY_UPDATES]
        self._values[..., position : position + 1] = outputs[contract.VALUE_UPDATES]
        return outputs


def fixed_axis(spec: TensorSpec, axis: int) -> int:
    """Return the size of one axis.

    Raises:
        BundleError: The axis is open or missing.
    """
    size = spec.shape[axis] if -len(spec.shape) <= axis < len(spec.shape) else None
    if size is None:
        raise BundleError(f"{spec} has no fixed size at axis {axis}; the runtime needs one, convert the model again")
    return size
