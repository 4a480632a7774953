"""Sessions over a stateful decoder: the caches are its states, and the audio is projected into them once per window."""

from collections.abc import Mapping

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.session import CacheColumns, CacheSession, DecoderSession, fixed_axis
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.tensor_spec import TensorSpec


class StatefulDecoder:
    """The two functions of a stateful TextDecoder.

    Attributes:
        step: Decodes one token.
        window: Projects a window's audio embeddings into states.
        inputs: The inputs of both functions and the states, by name.
        outputs: The outputs of a step by name.
    """

    def __init__(self, step: TensorModel, window: TensorModel) -> None:
        self.step = step
        self.window = window
        self.inputs: Mapping[str, TensorSpec] = {**window.inputs, **step.inputs, **step.states}
        self.outputs: Mapping[str, TensorSpec] = step.outputs


class StatefulSession(DecoderSession):
    """A session whose caches are states of the decoder."""

    def __init__(
        self, decoder: StatefulDecoder, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Make fresh states.

        Args:
            decoder: Both functions of a stateful TextDecoder.
            device: Device of the tensors handed in.
            dtype: Type of the floating-point tensors handed in.

        Raises:
            BundleError: The caches' shape is open.
        """
        super().__init__(fixed_axis(decoder.inputs[contract.KEY_CACHE], 3), device, dtype)
        self._decoder = decoder
        self._state = decoder.step.make_state()

    def begin(self, embeds: Tensor) -> None:
        """Start a window. The same embeddings object is projected only once."""
        if embeds is not self._embeds:
            with torch.no_grad():
                self._decoder.window.run({contract.EMBEDS: embeds}, state=self._state)
            self._embeds = embeds

    def fill(self, columns: CacheColumns | None, count: int) -> None:
        """Take the first `count` positions from `columns`, if there are any, instead of decoding their tokens."""
        if columns is None:
            return
        for name, taken in zip(contract.TEXT_STATES, (columns.keys, columns.values), strict=True):
            held = self._state.read_state(name)
            held[..., :count] = taken[..., :count].cpu().numpy()
            self._state.write_state(name, held)

    def rewind(self, position: int) -> None:
        """Do nothing. The mask hides what is after the current position, and steps overwrite it."""

    def columns(self, start: int, stop: int) -> CacheColumns:
        """Return a copy of what is cached at the positions from `start` to before `stop`."""
        keys, values = (
            torch.from_numpy(self._state.read_state(name)[..., start:stop].copy()) for name in contract.TEXT_STATES
        )
        return CacheColumns(keys, values)

    def _run(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        at = self._step_inputs.step(position)
        inputs = {
            contract.INPUT_IDS: ids,
            contract.CACHE_LENGTH: at[contract.CACHE_LENGTH],
            contract.PADDING_MASK: at[contract.PADDING_MASK],
        }
        return self._decoder.step.run(inputs, state=self._state)


def new_session(
    decoder: TensorModel | StatefulDecoder,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DecoderSession:
    """Return a session for either form of decoder.

    Args:
        decoder: TextDecoder, or both functions of a stateful one.
        device: Device of the tensors handed in.
        dtype: Type of the floating-point tensors handed in.

    Raises:
        BundleError: The caches' shape is open.
    """
    if isinstance(decoder, StatefulDecoder):
        return StatefulSession(decoder, device=device, dtype=dtype)
    return CacheSession(decoder, device=device, dtype=dtype)
