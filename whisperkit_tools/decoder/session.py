"""The bundle's three components as the decoding loop sees them, whatever runs them.

A component maps named tensors to named tensors. `mil.Program` is one; `NumpyComponent` makes one of anything with
Core ML's `predict`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.prefill_lookup import ContextPrefill, PrefilledCaches
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.backend import ArrayModel
from whisperkit_tools.mil.tensor_spec import TensorSpec


class Interface(Protocol):
    """What a package takes and gives."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Declared inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Declared outputs by name."""
        ...


class Component(Interface, Protocol):
    """Something that runs one package."""

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Compute the outputs from the inputs."""
        ...


class NumpyComponent:
    """A component around a `predict` on numpy arrays, such as Core ML's."""

    def __init__(self, model: ArrayModel) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.states = model.states

    def make_state(self) -> Any:
        """Return fresh states, all zero."""
        return self._model.make_state()

    def run(self, inputs: Mapping[str, Tensor], /, *, state: Any = None) -> dict[str, Tensor]:
        """Predict; tensors share their memory with the arrays handed over."""
        outputs = self._model.predict({name: value.numpy() for name, value in inputs.items()}, state)
        return {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the shapes of the packages say.

    Attributes:
        n_samples: Samples of a window (480000).
        n_mels: Mel bins.
        n_frames: Mel frames of a window (3000).
        n_audio_ctx: Encoder positions of a window (1500).
        vocab_size: Logits.
        kv_length: Positions of the caches.
        has_alignment: Whether the decoder gives `alignment_heads_weights`.
        cache_channels: Channels of the caches, of all layers together.
    """

    n_samples: int
    n_mels: int
    n_frames: int
    n_audio_ctx: int
    vocab_size: int
    kv_length: int
    has_alignment: bool
    cache_channels: int = 0

    @property
    def hop_length(self) -> int:
        """Samples of a mel frame."""
        return self.n_samples // self.n_frames

    @property
    def frames_per_position(self) -> int:
        """Mel frames of an encoder position, which is also one step between timestamps."""
        return self.n_frames // self.n_audio_ctx


class Models:
    """The three components together."""

    def __init__(
        self,
        mel: Component,
        encoder: Component,
        decoder: Interface,
        *,
        prefill: Component | None = None,
        session: "SessionType | None" = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take the components.

        Args:
            mel: MelSpectrogram.
            encoder: AudioEncoder.
            decoder: TextDecoder.
            prefill: TextDecoderContextPrefill, where the bundle has one.
            session: How the decoder is run; `DecoderSession` for the runtime's form.
            device: Where their tensors live.
            dtype: Of the floating-point tensors handed in, except for `audio`.

        Raises:
            BundleError: They do not belong together.
        """
        self._mel, self._encoder, self._decoder = mel, encoder, decoder
        self.device = torch.device(device)
        self.dtype = dtype
        self._session: SessionType = session or DecoderSession
        self.sizes = _sizes(mel, encoder, decoder, self._session.needed_outputs)
        self.prefill: ContextPrefill | None = None
        if prefill is not None:
            self.prefill = ContextPrefill(prefill, self.sizes.cache_channels, self.device, dtype)

    def features(self, audio: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        """Mel features `[1, n_mels, 1, n_frames]` of one window of `n_samples` float32 samples."""
        with torch.no_grad():
            outputs = self._mel.run({"audio": torch.from_numpy(audio).to(self.device)})
        return outputs[contract.FEATURES].to(self.dtype)

    def encode(self, features: Tensor) -> Tensor:
        """Audio embeddings `[1, D, 1, n_audio_ctx]` of one window's features."""
        with torch.no_grad():
            outputs = self._encoder.run({contract.FEATURES: features.to(self.device, self.dtype)})
        return outputs[contract.EMBEDS].to(self.dtype)

    def wrap_audio_side(self, wrap: Callable[[Component], Component]) -> None:
        """Put something around MelSpectrogram and AudioEncoder, such as a memory of what they gave."""
        self._mel, self._encoder = wrap(self._mel), wrap(self._encoder)

    def new_session(self) -> "DecoderSession":
        """Buffers for decoding, to be used for window after window."""
        return self._session(self._decoder, self.sizes, self.device, self.dtype)


class DecoderSession:
    """The decoder with its caches: one token in, the next one's logits out.

    All masks are rows of two tables made once, so a step makes no tensor but those of the token and its position.
    """

    needed_outputs: ClassVar[tuple[str, ...]] = ("logits", contract.KEY_UPDATES, contract.VALUE_UPDATES)

    def __init__(self, decoder: Any, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self._decoder = decoder
        length = sizes.kv_length
        if contract.KEY_UPDATES in self.needed_outputs:
            shape = [_axis(decoder.inputs[contract.KEY_CACHE], axis) for axis in range(4)]
            self._keys = torch.zeros(shape, device=device, dtype=dtype)
            self._values = torch.zeros(shape, device=device, dtype=dtype)
        update = torch.eye(length, device=device, dtype=dtype)
        padding = torch.full((length, length), contract.MASKED, device=device, dtype=dtype).triu(1)
        positions = torch.arange(length, device=device, dtype=torch.int32)
        # Cut once: a row is then an object that is ready to be handed in.
        self._update_masks, self._padding_masks, self._positions = (
            [table[i : i + 1] for i in range(length)] for table in (update, padding, positions)
        )
        self._embeds = torch.empty(0)
        self.device = device
        self.steps = 0

    def begin(self, embeds: Tensor) -> None:
        """Start a window from its audio embeddings, with empty caches."""
        # The same object goes in at every step: the executor then projects it to keys and values only once.
        self._embeds = embeds
        self.rewind(0)

    def fill(self, caches: PrefilledCaches | None, count: int) -> None:
        """Take the first `count` positions from a table, if there is one, instead of decoding their tokens."""
        if caches is None:
            return
        self._keys[..., :count] = caches.keys[..., :count]
        self._values[..., :count] = caches.values[..., :count]

    def rewind(self, position: int) -> None:
        """Forget what was cached at `position` and after it."""
        self._keys[..., position:] = 0
        self._values[..., position:] = 0

    def step(self, token: int, position: int) -> tuple[Tensor, Tensor | None]:
        """Decode one token.

        Args:
            token: Its id.
            position: Number of tokens before it.

        Returns:
            Logits `[V]` of the next token, and this token's `alignment_heads_weights` `[n_audio_ctx]` where the
            decoder gives them; float32, on the CPU.
        """
        with torch.no_grad():
            outputs = self._decode(torch.tensor([token], dtype=torch.int32, device=self.device), position)
        self.steps += 1
        alignment = outputs.get(contract.ALIGNMENT)
        logits = outputs["logits"].reshape(-1).float().cpu()
        return logits, None if alignment is None else alignment.reshape(-1).float().cpu()

    def _decode(self, ids: Tensor, position: int) -> Mapping[str, Tensor]:
        """Run the decoder on one token and keep its keys and values."""
        outputs: Mapping[str, Tensor] = self._decoder.run(
            {
                contract.INPUT_IDS: ids,
                contract.CACHE_LENGTH: self._positions[position],
                contract.KEY_CACHE: self._keys,
                contract.VALUE_CACHE: self._values,
                contract.UPDATE_MASK: self._update_masks[position],
                contract.EMBEDS: self._embeds,
                contract.PADDING_MASK: self._padding_masks[position],
            }
        )
        self._keys[..., position : position + 1] = outputs[contract.KEY_UPDATES]
        self._values[..., position : position + 1] = outputs[contract.VALUE_UPDATES]
        return outputs


SessionType: TypeAlias = type[DecoderSession]


def _sizes(mel: Interface, encoder: Interface, decoder: Interface, needed_outputs: tuple[str, ...]) -> Sizes:
    """Read the sizes from the declared shapes, as the on-device runtime does."""
    missing = [
        f"{component} {direction} {name}"
        for component, direction, declared, names in (
            (contract.MEL, "input", mel.inputs, ("audio",)),
            (contract.MEL, "output", mel.outputs, (contract.FEATURES,)),
            (contract.ENCODER, "input", encoder.inputs, (contract.FEATURES,)),
            (contract.ENCODER, "output", encoder.outputs, (contract.EMBEDS,)),
            (contract.DECODER, "input", decoder.inputs, (contract.KEY_CACHE, contract.VALUE_CACHE, contract.EMBEDS)),
            (contract.DECODER, "output", decoder.outputs, needed_outputs),
        )
        for name in names
        if name not in declared
    ]
    if missing:
        raise BundleError(
            f"the packages lack {'; '.join(missing)}; they were not made for this runtime, convert the model again"
        )
    features, taken = mel.outputs[contract.FEATURES].shape, encoder.inputs[contract.FEATURES].shape
    embeds, read = encoder.outputs[contract.EMBEDS].shape, decoder.inputs[contract.EMBEDS].shape
    for what, made, wanted in (("mel features", features, taken), ("audio embeddings", embeds, read)):
        if tuple(made) != tuple(wanted):
            raise BundleError(
                f"the packages do not belong together: {what} are made as {list(made)} and read as {list(wanted)}"
            )
    return Sizes(
        n_samples=_axis(mel.inputs["audio"], 0),
        n_mels=_axis(mel.outputs[contract.FEATURES], 1),
        n_frames=_axis(mel.outputs[contract.FEATURES], 3),
        n_audio_ctx=_axis(encoder.outputs[contract.EMBEDS], 3),
        vocab_size=_axis(decoder.outputs["logits"], -1),
        kv_length=_axis(decoder.inputs[contract.KEY_CACHE], 3),
        has_alignment=contract.ALIGNMENT in decoder.outputs,
        cache_channels=_axis(decoder.inputs[contract.KEY_CACHE], 1),
    )


def _axis(spec: TensorSpec, axis: int) -> int:
    """Size of one axis, which the runtime needs to be fixed."""
    size = spec.shape[axis] if -len(spec.shape) <= axis < len(spec.shape) else None
    if size is None:
        raise BundleError(f"{spec} has no fixed size at axis {axis}; the runtime needs one, convert the model again")
    return size
