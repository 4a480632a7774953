"""The section of a bundle's manifest on its compression: what was asked for, what was made, and what the gate found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whisperkit_tools.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRecord(Record):
    """The uncompressed bundle of a compressed one.

    Attributes:
        name: Its name.
        path: Its folder, relative to the compressed bundle.
        sha256: Digest of its manifest, or None where it has none.
    """

    name: str = ""
    path: str = ""
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRecord(Record):
    """Tuning of the palettes.

    Attributes:
        steps: Number of steps.
        kl_before: Mean divergence on the calibration speech before it, nats a token.
        kl_after: The same after it.
    """

    steps: int | None = None
    kl_before: float | None = None
    kl_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFigureRecord(Record):
    """A figure of the quality gate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord(Record):
    """Limits and figures of the quality gate.

    Attributes:
        qoi_min: Minimum QoI in percent.
        wer_delta_max: Maximum rise of the word error rate in percentage points.
        max_kl: Maximum mean KL divergence in nats a token; None for any.
        confident: Whether the pessimistic end of each interval is judged.
        seed: Seed of the bootstrap.
        examples: Number of examples.
        stopped_after: Number of examples after which it was certain that the gate stays closed; None where all were
            measured.
        qoi: Percentage of examples that are no worse; None where the gate was not measured to the end.
        wer: Word error rate of the compressed bundle in percent; None likewise.
        reference_wer: That of the uncompressed one.
        wer_delta: Their difference in percentage points; None likewise.
        kl_divergence: Mean divergence in nats a token.
        token_agreement: Percentage of tokens.
        shortfalls: One line for each limit that is missed; None where the gate was not measured.
        overlap: Number of examples from recordings that were used for calibration or tuning; None where an earlier
            version did not record it.
    """

    qoi_min: float | None = None
    wer_delta_max: float | None = None
    max_kl: float | None = None
    confident: bool = False
    seed: int = 0
    examples: int = 0
    stopped_after: int | None = None
    qoi: GateFigureRecord | None = None
    wer: GateFigureRecord | None = None
    reference_wer: GateFigureRecord | None = None
    wer_delta: GateFigureRecord | None = None
    kl_divergence: GateFigureRecord | None = None
    token_agreement: GateFigureRecord | None = None
    shortfalls: tuple[str, ...] | None = None
    overlap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsRecord(Record):
    """Options of `wkt palettize` that decide about its result, under their names; None where an option was not given.

    Attributes:
        bits: The same width for all weights.
        target_bits: Average bits per element.
        target_size: Bytes of encoder and decoder.
        max_kl: Maximum divergence in nats a token.
        recipe: Name of the recipe file, whose content `recipe` of the compression has.
        allowed_nbits: Allowed bit widths; empty for the usual ones.
        group_size: Channels that share a palette.
        allow: Further forms that the plan may use.
        keep: Patterns of weights that stay float16.
        tune_palettes: Steps of tuning.
        qoi_min: Minimum QoI in percent.
        wer_delta_max: Maximum rise of the word error rate in percentage points.
        confident: Whether the pessimistic end of each interval is judged.
        calibration: Dataset, or name of the folder, with the calibration speech; None for the demo's.
        gate_audio: The same for the gate's examples.
        allow_overlap: Whether the two may have recordings in common.
        reference: Name of the bundle that the gate compares with; None for the uncompressed one.
        gate_examples: Maximum number of gate examples.
        windows: Maximum number of calibration windows.
        trials: Maximum number of candidates.
        seed: Random seed.
    """

    bits: int | None = None
    target_bits: float | None = None
    target_size: int | None = None
    max_kl: float | None = None
    recipe: str | None = None
    allowed_nbits: tuple[int, ...] = ()
    group_size: int | None = None
    allow: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    tune_palettes: int = 0
    qoi_min: float | None = None
    wer_delta_max: float | None = None
    confident: bool = False
    calibration: str | None = None
    gate_audio: str | None = None
    allow_overlap: bool = False
    reference: str | None = None
    gate_examples: int | None = None
    windows: int | None = None
    trials: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSizeRecord(Record):
    """Size and divergence of one way to store the weights.

    Attributes:
        name: A block format of ggml, the one whose size a plan has, or empty for the bundle itself.
        nbytes: Bytes of encoder and decoder.
        kl: Measured divergence from the uncompressed bundle, nats a token.
        predicted_kl: The plan's prediction of it; None where nothing predicts it.
    """

    name: str = ""
    nbytes: int = 0
    kl: float | None = None
    predicted_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord(Record):
    """Comparison with ggml's block formats on the same speech.

    Attributes:
        windows: Number of utterances.
        tokens: Number of their tokens.
        chosen: The bundle.
        block_formats: The formats, the largest first.
        plans: Plans of at most the formats' sizes, untuned.
    """

    windows: int = 0
    tokens: int = 0
    chosen: ComparedSizeRecord | None = None
    block_formats: tuple[ComparedSizeRecord, ...] = ()
    plans: tuple[ComparedSizeRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionRecord(Record):
    """Compression of a bundle.

    Attributes:
        original: The uncompressed bundle.
        recipe: Settings of each weight.
        allocation_gap: Upper bound of the allocation's relative distance from the optimum.
        predicted_nbytes: Bytes of encoder and decoder as planned.
        nbytes: The same as written.
        psnr_db: PSNR in dB of each written package against the intended weights.
        tuning: Tuning of the palettes; None without tuning.
        gate: The quality gate.
        path: The candidates that were tried, one line each.
        rejected: Whether the gate rejected the bundle.
        calibration: Key of the calibration's sensitivity cache.
        settings: The options; None where an earlier version did not record them.
        comparison: Comparison with ggml's block formats; None without one.
    """

    original: OriginalRecord | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    allocation_gap: float | None = None
    predicted_nbytes: int | None = None
    nbytes: int | None = None
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    tuning: TuningRecord | None = None
    gate: GateRecord | None = None
    path: tuple[str, ...] = ()
    rejected: bool = False
    calibration: str | None = None
    settings: SettingsRecord | None = None
    comparison: ComparisonRecord | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object. A comparison that was not made is omitted."""
        written = super(CompressionRecord, self).to_json()
        if self.comparison is None and "comparison" not in (self.keys or ()):
            written.pop("comparison", None)
        return written
