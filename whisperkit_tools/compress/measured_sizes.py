"""Measured sizes: the results of a comparison with ggml's block formats."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MeasuredSize:
    """Size and divergence of one way to store the weights.

    Attributes:
        name: A block format, the one whose size a plan has, or empty for the bundle itself.
        nbytes: Bytes of encoder and decoder.
        kl: Measured divergence from the uncompressed bundle, nats a token.
        predicted_kl: The plan's prediction of it. None where nothing predicts it.
    """

    name: str
    nbytes: int
    kl: float
    predicted_kl: float | None = None


@dataclass(frozen=True, slots=True)
class FormatComparison:
    """Measured divergence of a bundle, of the block formats, and of untuned plans at their sizes.

    Attributes:
        windows: Number of utterances.
        tokens: Number of their tokens.
        chosen: The bundle, tuned if it was.
        block_formats: ggml's formats, the largest first.
        plans: Plans of at most the formats' sizes, as far as there are any.
    """

    windows: int
    tokens: int
    chosen: MeasuredSize
    block_formats: tuple[MeasuredSize, ...]
    plans: tuple[MeasuredSize, ...]


def describe_size(one: MeasuredSize) -> str:
    """Return size and divergence in one line."""
    name = f"ggml {one.name}" if one.name else "this bundle"
    return f"{one.nbytes / 1e6:9.3f} MB  KL {one.kl:.5f}  {name}"
