"""The sizes that fix a Whisper's architecture."""

from dataclasses import dataclass, fields

from whisperkit_tools import limits

SAMPLES_PER_FRAME = 160  # 10 ms at 16 kHz


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDimensions:
    """The whole architecture of a Whisper in eleven integers.

    Attributes:
        n_mels: Mel bins of the input features (80, or 128 since large-v3).
        n_audio_ctx: Encoder positions, one for every two mel frames (1500 for 30 seconds).
        d_model: Channels of the residual stream.
        encoder_layers: Encoder blocks.
        encoder_attention_heads: Heads of each encoder attention.
        encoder_ffn_dim: Channels of the encoder's feed-forward layers.
        decoder_layers: Decoder blocks.
        decoder_attention_heads: Heads of each decoder attention.
        decoder_ffn_dim: Channels of the decoder's feed-forward layers.
        n_text_ctx: Decoder positions (448).
        vocab_size: Rows of the tied token embedding.
    """

    n_mels: int
    n_audio_ctx: int = 1500
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    n_text_ctx: int = 448
    vocab_size: int

    def __post_init__(self) -> None:
        """Check all sizes at once.

        Raises:
            ValueError: A size is not a positive integer, or the heads do not divide the channels.
        """
        problems = [
            f"{field.name} is {repr(value)[:80]}, expected a positive integer up to {_limit(field.name)}"
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), bool)
            or not isinstance(value, int)
            or not 1 <= value <= _limit(field.name)
        ]
        if not problems:
            problems = [
                f"{name} is {heads}, which does not divide d_model {self.d_model}"
                for name, heads in (
                    ("encoder_attention_heads", self.encoder_attention_heads),
                    ("decoder_attention_heads", self.decoder_attention_heads),
                )
                if self.d_model % heads
            ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def n_frames(self) -> int:
        """Mel frames of one window (3000 for 30 seconds)."""
        return 2 * self.n_audio_ctx

    @property
    def n_samples(self) -> int:
        """Samples of one window at 16 kHz (480000 for 30 seconds)."""
        return self.n_frames * SAMPLES_PER_FRAME


def _limit(name: str) -> int:
    """Return the maximum of a size, far above that of any Whisper."""
    return limits.MODEL_LAYERS if name.endswith("_layers") else limits.MODEL_SIZE
