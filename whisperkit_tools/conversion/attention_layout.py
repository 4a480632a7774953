"""How the components are laid out: the options, their check, and what the manifest records of them."""

from dataclasses import dataclass

from whisperkit_tools import contract
from whisperkit_tools.compile_hints.attention import (
    DEFAULT_CHUNK_SIZE,
    AttentionImplementation,
    attention,
    works_in_chunks,
)
from whisperkit_tools.errors import ConversionError

PLAIN = "cat"
LEAST_LOGITS = 512  # a hundred products for the largest vocabulary, beyond which nothing is gained
TURBO_ENCODER = "split-heads-q"
# A decoder step has one query: there is nothing to chunk, a head's scores would have a last axis of size 1, which is
# padded 32-fold, and `split-heads` would transpose all keys of the audio at every token.
TURBO_DECODER = "cat"


@dataclass(frozen=True, slots=True)
class Layout:
    """What the compiler gets to see of the same computation.

    Attributes:
        audio_encoder: Name of the encoder's, see `attention_names`.
        text_decoder: Name of the decoder's.
        chunk_size: Positions in a chunk, for each of the two that works in chunks; None when neither does.
        logits_chunk_size: Most logits that one product gives, or None for all at once.
    """

    audio_encoder: str = PLAIN
    text_decoder: str = PLAIN
    chunk_size: int | None = None
    logits_chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Fill in the default size and check.

        Raises:
            ConversionError: A name is unknown, or the size makes no sense for these implementations.
        """
        chunked = [name for name in (self.audio_encoder, self.text_decoder) if works_in_chunks(name)]
        if chunked and self.chunk_size is None:
            object.__setattr__(self, "chunk_size", DEFAULT_CHUNK_SIZE)
        try:
            for component in (contract.ENCODER, contract.DECODER):
                self.implementation(component)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        if self.chunk_size is not None and not chunked:
            raise ConversionError(
                f"--attention-chunk-size is {self.chunk_size}, but neither {self.audio_encoder!r} for the encoder nor "
                f"{self.text_decoder!r} for the decoder works in chunks; leave it out, or choose split-heads-q or "
                "split-kv"
            )
        if self.logits_chunk_size is not None and self.logits_chunk_size < LEAST_LOGITS:
            raise ConversionError(
                f"--logits-chunk-size is {self.logits_chunk_size}, expected at least {LEAST_LOGITS}; 16384 is the "
                "width that older Neural Engines hold"
            )

    def implementation(self, component: str) -> AttentionImplementation:
        """Return the implementation of `AudioEncoder` or `TextDecoder`."""
        name = self.audio_encoder if component == contract.ENCODER else self.text_decoder
        return attention(name, self.chunk_size if works_in_chunks(name) else None)

    def check_length(self, n_audio_ctx: int) -> None:
        """Refuse a chunk that holds the whole audio.

        Raises:
            ConversionError: There would be one chunk only.
        """
        if self.chunk_size is not None and self.chunk_size >= max(n_audio_ctx, DEFAULT_CHUNK_SIZE + 1):
            raise ConversionError(
                f"--attention-chunk-size is {self.chunk_size}, which leaves the audio's {n_audio_ctx} positions in one "
                f"piece; allowed are multiples of 32 below {n_audio_ctx}"
            )
