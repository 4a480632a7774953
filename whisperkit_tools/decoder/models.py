"""The packages of a bundle as transcription sees them: audio to features, to embeddings, to decoding sessions."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whisperkit_tools import contract, limits
from whisperkit_tools.decoder.lanes import DecoderLanes
from whisperkit_tools.decoder.prefill_lookup import PrefillLookup
from whisperkit_tools.decoder.session import CacheSession, DecoderSession, fixed_axis
from whisperkit_tools.decoder.speculative import DraftSession, SpeculativeSession, Verifier
from whisperkit_tools.decoder.stateful import StatefulDecoder, new_session
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.program import Program
from whisperkit_tools.speech import Samples

_CACHE_UPDATES = (contract.KEY_UPDATES, contract.VALUE_UPDATES)


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes that the declared shapes of the packages tell.

    Attributes:
        n_samples: Samples of a window (480000).
        n_mels: Mel bins.
        n_frames: Mel frames of a window (3000).
        n_audio_ctx: Encoder positions of a window (1500).
        vocab_size: Logits.
        kv_length: Positions of the caches.
        has_alignment: Whether the decoder returns `alignment_heads_weights`.
        cache_channels: Channels of the caches, all layers together.
    """

    n_samples: int
    n_mels: int
    n_frames: int
    n_audio_ctx: int
    vocab_size: int
    kv_length: int
    has_alignment: bool
    cache_channels: int

    @property
    def lane_bytes(self) -> int:
        """Bytes of a transcript's caches, and of the keys and values of its audio, in float32."""
        return 2 * 4 * self.cache_channels * (self.kv_length + self.n_audio_ctx)

    @property
    def hop_length(self) -> int:
        """Samples of a mel frame."""
        return self.n_samples // self.n_frames

    @property
    def frames_per_position(self) -> int:
        """Mel frames of an encoder position, which is also one step between timestamps."""
        return self.n_frames // self.n_audio_ctx


@dataclass(frozen=True)
class Models:
    """Loaded packages that belong together. `dataclasses.replace` makes the same with other parts.

    Attributes:
        mel: MelSpectrogram.
        encoder: AudioEncoder.
        decoder: TextDecoder, or both functions of a stateful one.
        prefill: TextDecoderContextPrefill. None where the bundle has none, or where it is not to be used.
        device: Device of their tensors.
        dtype: Type of the floating-point tensors handed in, except for the audio.

    Raises:
        BundleError: They do not belong together.
    """

    mel: TensorModel
    encoder: TensorModel
    decoder: TensorModel | StatefulDecoder
    prefill: TensorModel | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check that the packages belong together, and make the prefill's lookup.

        Raises:
            BundleError: They do not.
        """
        _check_names(self)
        _check_shapes(self)
        _check_sizes(self.sizes)
        _ = self.prefill_lookup

    @cached_property
    def sizes(self) -> ModelSizes:
        """The sizes in the declared shapes, read as the on-device runtime reads them."""
        mel, encoder, decoder = self.mel, self.encoder, self.decoder
        return ModelSizes(
            n_samples=fixed_axis(mel.inputs[contract.AUDIO], 0),
            n_mels=fixed_axis(mel.outputs[contract.FEATURES], 1),
            n_frames=fixed_axis(mel.outputs[contract.FEATURES], 3),
            n_audio_ctx=fixed_axis(encoder.outputs[contract.EMBEDS], 3),
            vocab_size=fixed_axis(decoder.outputs[contract.LOGITS], -1),
            kv_length=fixed_axis(decoder.inputs[contract.KEY_CACHE], 3),
            has_alignment=contract.ALIGNMENT in decoder.outputs,
            cache_channels=fixed_axis(decoder.inputs[contract.KEY_CACHE], 1),
        )

    @cached_property
    def prefill_lookup(self) -> PrefillLookup | None:
        """Lookup of the caches after the forced tokens. None without a prefill."""
        if self.prefill is None:
            return None
        return PrefillLookup(self.prefill, self.sizes.cache_channels, device=self.device, dtype=self.dtype)

    def features(self, audio: Samples) -> Tensor:
        """Return mel features `[1, n_mels, 1, n_frames]` of one window of `n_samples` samples."""
        with torch.no_grad():
            outputs = self.mel.run({contract.AUDIO: torch.from_numpy(audio).to(self.device)})
        return outputs[contract.FEATURES].to(self.dtype)

    def encode(self, features: Tensor) -> Tensor:
        """Return audio embeddings `[1, D, 1, n_audio_ctx]` of one window's features `[1, n_mels, 1, n_frames]`."""
        with torch.no_grad():
            outputs = self.encoder.run({contract.FEATURES: features.to(self.device, self.dtype)})
        return outputs[contract.EMBEDS].to(self.dtype)

    def new_session(self) -> DecoderSession:
        """Return a session with caches of its own, for window after window."""
        return new_session(self.decoder, device=self.device, dtype=self.dtype)

    @property
    def takes_batches(self) -> bool:
        """Whether the decoder can decode several transcripts at once. A stateful one and Core ML cannot."""
        return isinstance(self.decoder, Program)

    def new_lanes(self, count: int) -> DecoderLanes:
        """Return caches for several transcripts at once.

        Args:
            count: Number of transcripts.

        Raises:
            ValueError: This decoder decodes one transcript at a time.
            RuntimeError: There is not enough memory.
        """
        if not isinstance(self.decoder, Program):
            raise ValueError("this decoder decodes one transcript at a time")
        return DecoderLanes(self.decoder, count, self.dtype)


@dataclass(frozen=True)
class DraftedModels(Models):
    """Models with a draft that writes ahead, see `speculative`.

    Attributes:
        verifier: TextDecoderVerify.
        tolerance: Difference of two logits below which its choices are repeated by single steps.
        draft: The draft's models. Its encoder is this one's where both have the same.
        draft_verifier: The draft's own TextDecoderVerify, which reads long prompts. None where it has none.

    Raises:
        BundleError: The packages, or the model and its draft, do not belong together.
    """

    verifier: TensorModel | None = None
    tolerance: float = 0.0
    draft: Models | None = None
    draft_verifier: TensorModel | None = None

    def __post_init__(self) -> None:
        """Check that the draft hears and writes what the model does."""
        super().__post_init__()
        object.__setattr__(self, "_heard", {})
        mine, draft = self.sizes, self._draft.sizes
        pairs = {
            "mel bins": (mine.n_mels, draft.n_mels),
            "tokens": (mine.vocab_size, draft.vocab_size),
            "audio positions": (mine.n_audio_ctx, draft.n_audio_ctx),
        }
        wrong = [f"{own} {what}, the draft {other}" for what, (own, other) in pairs.items() if own != other]
        if wrong:
            raise BundleError(f"the draft does not fit the model, which has {'; '.join(wrong)}")

    @property
    def _draft(self) -> Models:
        if self.draft is None or self.verifier is None:
            raise ValueError("a draft needs its models and the large model's verifier")
        return self.draft

    @property
    def shares_encoder(self) -> bool:
        """Whether the draft reads this model's audio embeddings."""
        return self._draft.encoder is self.encoder

    def encode(self, features: Tensor) -> Tensor:
        """Return audio embeddings, and remember which features they belong to, for a draft with its own encoder."""
        embeds = super().encode(features)
        if not self.shares_encoder:
            heard: dict[str, Tensor] = self.__dict__["_heard"]
            heard.clear()
            heard.update(features=features, embeds=embeds)
        return embeds

    def draft_embeds(self, embeds: Tensor) -> Tensor:
        """Return the draft's audio embeddings of the window that `encode` heard last.

        Args:
            embeds: What `encode` returned for it.
        """
        if self.shares_encoder:
            return embeds
        heard: dict[str, Tensor] = self.__dict__["_heard"]
        if heard.get("embeds") is not embeds:
            raise ValueError("a draft with its own encoder needs embeddings that `encode` made last")
        return self._draft.encode(heard["features"])

    def new_session(self) -> DecoderSession:
        """Return a session that computes ahead what the draft expects."""
        draft = self._draft
        session, draft_session = super().new_session(), draft.new_session()
        if not (isinstance(session, CacheSession) and isinstance(draft_session, CacheSession)) or not self.verifier:
            raise BundleError("a draft needs decoders with their caches as inputs, not as states; convert again")
        reader = None if self.draft_verifier is None else Verifier(self.draft_verifier, draft_session)
        verifier = Verifier(self.verifier, session, self.tolerance)
        return SpeculativeSession(session, verifier, DraftSession(draft_session, reader), embeds=self.draft_embeds)


def _check_names(models: Models) -> None:
    """Raise `BundleError` naming all inputs and outputs that are missing."""
    mel, encoder, decoder = models.mel, models.encoder, models.decoder
    updates = () if isinstance(decoder, StatefulDecoder) else _CACHE_UPDATES
    caches = (contract.KEY_CACHE, contract.VALUE_CACHE)
    missing = [
        f"{component} {direction} {name}"
        for component, direction, declared, names in (
            (contract.MEL, "input", mel.inputs, (contract.AUDIO,)),
            (contract.MEL, "output", mel.outputs, (contract.FEATURES,)),
            (contract.ENCODER, "input", encoder.inputs, (contract.FEATURES,)),
            (contract.ENCODER, "output", encoder.outputs, (contract.EMBEDS,)),
            (contract.DECODER, "input", decoder.inputs, (*caches, contract.EMBEDS)),
            (contract.DECODER, "output", decoder.outputs, (contract.LOGITS, *updates)),
        )
        for name in names
        if name not in declared
    ]
    if missing:
        raise BundleError(
            f"the packages lack {'; '.join(missing)}; they were not made for this runtime, convert the model again"
        )


def _check_sizes(sizes: ModelSizes) -> None:
    """Raise `BundleError` where a size cannot be that of a Whisper: it would divide by zero or fill the memory."""
    counts = {"n_samples": sizes.n_samples, "n_frames": sizes.n_frames, "n_audio_ctx": sizes.n_audio_ctx}
    wrong = [f"{name} is {value}" for name, value in counts.items() if not 0 < value <= limits.WINDOW_SAMPLES]
    if wrong or not sizes.n_samples >= sizes.n_frames >= sizes.n_audio_ctx:
        listed = ", ".join(wrong) or ", ".join(f"{name} {value}" for name, value in counts.items())
        raise BundleError(f"the packages declare sizes that no Whisper has: {listed}; convert the model again")


def _check_shapes(models: Models) -> None:
    """Raise `BundleError` where one package makes another shape than the next one reads."""
    features, embeds = contract.FEATURES, contract.EMBEDS
    pairs = (
        ("mel features", models.mel.outputs[features].shape, models.encoder.inputs[features].shape),
        ("audio embeddings", models.encoder.outputs[embeds].shape, models.decoder.inputs[embeds].shape),
    )
    for what, made, wanted in pairs:
        if tuple(made) != tuple(wanted):
            raise BundleError(
                f"the packages do not belong together: {what} are made as {list(made)} and read as {list(wanted)}"
            )
