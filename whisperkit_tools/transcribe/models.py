"""The bundle's three components as the decoding loop sees them, whatever runs them.

A component maps named tensors to named tensors. `mil.Program` is one; `NumpyComponent` makes one of anything with
Core ML's `predict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.backend import Backend
from whisperkit_tools.mil.specs import TensorSpec

MASKED = -10000.0  # the runtime's own value: finite in float16, and zero after the softmax


class Component(Protocol):
    """Something that runs one package."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Declared inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Declared outputs by name."""
        ...

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Compute the outputs from the inputs."""
        ...


class NumpyComponent:
    """A component around a `predict` on numpy arrays, such as Core ML's."""

    def __init__(self, model: Backend) -> None:
        self._model = model
        self.inputs = model.inputs
        self.outputs = model.outputs

    def run(self, inputs: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Predict; tensors share their memory with the arrays handed over."""
        outputs = self._model.predict({name: value.numpy() for name, value in inputs.items()})
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
    """

    n_samples: int
    n_mels: int
    n_frames: int
    n_audio_ctx: int
    vocab_size: int
    kv_length: int
    has_alignment: bool

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
        decoder: Component,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take the components.

        Args:
            mel: MelSpectrogram.
            encoder: AudioEncoder.
            decoder: TextDecoder.
            device: Where their tensors live.
            dtype: Of the floating-point tensors handed in, except for `audio`.

        Raises:
            BundleError: They do not belong together.
        """
        self._mel, self._encoder, self._decoder = mel, encoder, decoder
        self.device = torch.device(device)
        self.dtype = dtype
        self.sizes = _sizes(mel, encoder, decoder)

    def features(self, audio: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        """Mel features `[1, n_mels, 1, n_frames]` of one window of `n_samples` float32 samples."""
        with torch.no_grad():
            outputs = self._mel.run({"audio": torch.from_numpy(audio).to(self.device)})
        return outputs["melspectrogram_features"].to(self.dtype)

    def encode(self, features: Tensor) -> Tensor:
        """Audio embeddings `[1, D, 1, n_audio_ctx]` of one window's features."""
        with torch.no_grad():
            outputs = self._encoder.run({"melspectrogram_features": features.to(self.device, self.dtype)})
        return outputs["encoder_output_embeds"].to(self.dtype)

    def new_session(self) -> "DecoderSession":
        """Buffers for decoding, to be used for window after window."""
        return DecoderSession(self._decoder, self.sizes, self.device, self.dtype)


class DecoderSession:
    """The decoder with its caches: one token in, the next one's logits out.

    All masks are rows of two tables made once, so a step makes no tensor but those of the token and its position.
    """

    def __init__(self, decoder: Component, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self._decoder = decoder
        length = sizes.kv_length
        shape = [_axis(decoder.inputs["key_cache"], axis) for axis in range(4)]
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        update = torch.eye(length, device=device, dtype=dtype)
        padding = torch.full((length, length), MASKED, device=device, dtype=dtype).triu(1)
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
            outputs = self._decoder.run(
                {
                    "input_ids": torch.tensor([token], dtype=torch.int32, device=self.device),
                    "cache_length": self._positions[position],
                    "key_cache": self._keys,
                    "value_cache": self._values,
                    "kv_cache_update_mask": self._update_masks[position],
                    "encoder_output_embeds": self._embeds,
                    "decoder_key_padding_mask": self._padding_masks[position],
                }
            )
            self._keys[..., position : position + 1] = outputs["key_cache_updates"]
            self._values[..., position : position + 1] = outputs["value_cache_updates"]
        self.steps += 1
        alignment = outputs.get("alignment_heads_weights")
        logits = outputs["logits"].reshape(-1).float().cpu()
        return logits, None if alignment is None else alignment.reshape(-1).float().cpu()


def _sizes(mel: Component, encoder: Component, decoder: Component) -> Sizes:
    """Read the sizes from the declared shapes, as the on-device runtime does."""
    missing = [
        f"{component} {direction} {name}"
        for component, direction, declared, names in (
            ("MelSpectrogram", "input", mel.inputs, ("audio",)),
            ("MelSpectrogram", "output", mel.outputs, ("melspectrogram_features",)),
            ("AudioEncoder", "input", encoder.inputs, ("melspectrogram_features",)),
            ("AudioEncoder", "output", encoder.outputs, ("encoder_output_embeds",)),
            ("TextDecoder", "input", decoder.inputs, ("key_cache", "value_cache", "encoder_output_embeds")),
            ("TextDecoder", "output", decoder.outputs, ("logits", "key_cache_updates", "value_cache_updates")),
        )
        for name in names
        if name not in declared
    ]
    if missing:
        raise BundleError(
            f"the packages lack {'; '.join(missing)}; they were not made for this runtime, convert the model again"
        )
    features, taken = mel.outputs["melspectrogram_features"].shape, encoder.inputs["melspectrogram_features"].shape
    embeds, read = encoder.outputs["encoder_output_embeds"].shape, decoder.inputs["encoder_output_embeds"].shape
    for what, made, wanted in (("mel features", features, taken), ("audio embeddings", embeds, read)):
        if tuple(made) != tuple(wanted):
            raise BundleError(
                f"the packages do not belong together: {what} are made as {list(made)} and read as {list(wanted)}"
            )
    return Sizes(
        n_samples=_axis(mel.inputs["audio"], 0),
        n_mels=_axis(mel.outputs["melspectrogram_features"], 1),
        n_frames=_axis(mel.outputs["melspectrogram_features"], 3),
        n_audio_ctx=_axis(encoder.outputs["encoder_output_embeds"], 3),
        vocab_size=_axis(decoder.outputs["logits"], -1),
        kv_length=_axis(decoder.inputs["key_cache"], 3),
        has_alignment="alignment_heads_weights" in decoder.outputs,
    )


def _axis(spec: TensorSpec, axis: int) -> int:
    """Size of one axis, which the runtime needs to be fixed."""
    size = spec.shape[axis] if -len(spec.shape) <= axis < len(spec.shape) else None
    if size is None:
        raise BundleError(f"{spec} has no fixed size at axis {axis}; the runtime needs one, convert the model again")
    return size
