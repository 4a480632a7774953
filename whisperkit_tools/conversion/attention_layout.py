"""The layout of the components: options, their check, and the record in the manifest."""

from dataclasses import dataclass

from whisperkit_tools import contract
from whisperkit_tools.compile_hints.attention import (
    DEFAULT_CHUNK_SIZE,
    AttentionImplementation,
    attention,
    works_in_chunks,
)
from whisperkit_tools.errors import OptionsError, option

PLAIN = "cat"
MIN_LOGITS = 512  # a hundred products for the largest vocabulary, beyond which nothing is gained
TURBO_ENCODER = "split-heads-q"
# A decoder step has one query: there is nothing to chunk, a head's scores would have a last axis of size 1, which is
# padded 32-fold, and `split-heads` would transpose all keys of the audio at every token.
TURBO_DECODER = "cat"


@dataclass(frozen=True, slots=True)
class Layout:
    """The form in which the compiler sees the same computation.

    Attributes:
        audio_encoder: Name of the encoder's attention, see `contract.ATTENTION_NAMES`.
        text_decoder: Name of the decoder's attention.
        given_chunk_size: Positions in a chunk, or None for the default.
        logits_chunk_size: Maximum number of logits that one product gives, or None for all at once.
    """

    audio_encoder: str = PLAIN
    text_decoder: str = PLAIN
    given_chunk_size: int | None = None
    logits_chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A name is unknown, or the size makes no sense for these implementations.
        """
        fields = {contract.ENCODER: "audio_encoder_attention", contract.DECODER: "text_decoder_attention"}
        for component, name in fields.items():
            try:
                self.implementation(component)
            except ValueError as error:
                raise OptionsError(f"{option(name)}: {error}") from error
        if self.given_chunk_size is not None and not self._works_in_chunks:
            raise OptionsError(
                f"{option('attention_chunk_size')} is {self.given_chunk_size}, but neither {self.audio_encoder!r} for "
                f"the encoder nor {self.text_decoder!r} for the decoder works in chunks; omit it, or choose "
                "split-heads-q or split-kv"
            )
        if self.logits_chunk_size is not None and self.logits_chunk_size < MIN_LOGITS:
            raise OptionsError(
                f"{option('logits_chunk_size')} is {self.logits_chunk_size}, expected at least {MIN_LOGITS}; 16384 is "
                "the width that older Neural Engines hold"
            )

    @property
    def _works_in_chunks(self) -> bool:
        return works_in_chunks(self.audio_encoder) or works_in_chunks(self.text_decoder)

    @property
    def chunk_size(self) -> int | None:
        """Positions in a chunk, for each of the two that works in chunks. None when neither does."""
        if not self._works_in_chunks:
            return None
        return DEFAULT_CHUNK_SIZE if self.given_chunk_size is None else self.given_chunk_size

    def implementation(self, component: str) -> AttentionImplementation:
        """Return the implementation of `AudioEncoder` or `TextDecoder`."""
        name = self.audio_encoder if component == contract.ENCODER else self.text_decoder
        return attention(name, self.chunk_size if works_in_chunks(name) else None)

    def check_length(self, n_audio_ctx: int) -> None:
        """Refuse a chunk that holds the whole audio.

        Raises:
            OptionsError: There would be one chunk only.
        """
        if self.chunk_size is not None and self.chunk_size >= max(n_audio_ctx, DEFAULT_CHUNK_SIZE + 1):
            raise OptionsError(
                f"{option('attention_chunk_size')} is {self.chunk_size}, which leaves the audio's {n_audio_ctx} "
                f"positions in one piece; allowed are multiples of 32 below {n_audio_ctx}"
            )
