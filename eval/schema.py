"""The files of a run: `results.jsonl` with one `ResultRow` a line, and `report.json` with one `Report`.

`ResultRow` is the only form of a row in memory. `schema_version` grows when a field changes its meaning or disappears.
Readers ignore unknown fields, so that fields can be added. Rates are fractions (0.05 is 5 %), times are seconds, sizes
are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.backends.base import BackendInfo, BundleInfo
from whisperkit_tools.eval.metrics.alignment import PIECE_TYPES, AlignmentPiece, WordTimestampError
from whisperkit_tools.eval.metrics.wer import Counts
from whisperkit_tools.eval.typed_json import from_json
from whisperkit_tools.files import read_json_value
from whisperkit_tools.speech import Transcription, Word

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
RESULTS_FILE = "results.jsonl"
REPORT_FILE = "report.json"
SHORT_KEY = 8  # digits of a run's key in folder names and messages


@dataclass(frozen=True, slots=True)
class RowTimings:
    """Wall times of one example in seconds. None is what a backend does not report.

    Attributes:
        audio_s: Length of the audio.
        total_s: From audio samples to text.
        mel_s: In the mel spectrogram.
        encoder_s: In the audio encoder.
        decoder_s: In the decoding loop.
        first_token_s: From audio samples to the first token of text.
        tokens: Generated and kept tokens.
        windows: Encoded windows.
        fallbacks: Attempts that were discarded for a higher temperature.
    """

    audio_s: float
    total_s: float
    mel_s: float | None = None
    encoder_s: float | None = None
    decoder_s: float | None = None
    first_token_s: float | None = None
    tokens: int | None = None
    windows: int | None = None
    fallbacks: int | None = None

    @classmethod
    def of(cls, heard: Transcription) -> "RowTimings":
        """Return the times that a transcription reports."""
        times = heard.timings
        return cls(
            audio_s=heard.audio_duration_s,
            total_s=times.total_s,
            mel_s=times.mel_s,
            encoder_s=times.encoder_s,
            decoder_s=times.decoder_s,
            first_token_s=times.time_to_first_token_s,
            tokens=times.tokens,
            windows=times.windows,
            fallbacks=times.fallbacks,
        )


@dataclass(frozen=True, slots=True)
class RowSegment:
    """A segment of a hypothesis with its times in seconds from the start of the audio."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The result of one example.

    Attributes:
        id: Unique within the dataset.
        index: Place in the dataset, from 0.
        audio: Path of the audio file. None when it has none.
        duration_s: Length of the audio.
        language: The declared language, else the detected one.
        speaker: None when unknown.
        reference: The dataset's reference.
        hypothesis: The backend's text. Empty for a failed example.
        reference_normalized: The reference as scored.
        hypothesis_normalized: The hypothesis as scored.
        wer: Word error rate. None for a failed example, or for one without reference words.
        cer: Character error rate. None in the same cases.
        hits: Number of equal words.
        substitutions: Number of substituted words.
        deletions: Number of deleted words.
        insertions: Number of inserted words.
        reference_words: Number of words of the normalised reference.
        alignment: Alignment of the words.
        error: Reason of the failure. None when the example did not fail.
        timings: None for a failed example.
        segments: Phrases with times.
        words: Words with times, where they were requested.
    """

    id: str
    index: int
    audio: str | None
    duration_s: float | None
    language: str | None
    speaker: str | None
    reference: str
    hypothesis: str = ""
    reference_normalized: str = ""
    hypothesis_normalized: str = ""
    wer: float | None = None
    cer: float | None = None
    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_words: int = 0
    alignment: tuple[AlignmentPiece, ...] = ()
    error: str | None = None
    timings: RowTimings | None = None
    segments: tuple[RowSegment, ...] = ()
    words: tuple[Word, ...] = ()

    @property
    def counts(self) -> Counts:
        """The word edits."""
        return Counts(self.hits, self.substitutions, self.deletions, self.insertions)

    @property
    def errors(self) -> int:
        """The number of word errors."""
        return self.counts.errors


@dataclass(frozen=True, slots=True)
class StreamedWord:
    """A confirmed word. Latencies are seconds from its end in the audio until it is shown."""

    text: str
    end_s: float
    hypothesis_latency_s: float
    confirmed_latency_s: float


@dataclass(frozen=True, slots=True)
class Stream:
    """One audio as it would have been transcribed live.

    Attributes:
        text: All confirmed text.
        words: The confirmed words.
        compute_s: Computing time of each hop.
        duration_s: Length of the audio.
        end_lag_s: From the audio's end to the last confirmed word.
        has_word_times: Whether the backend reported word times. Otherwise they are spread over its segments.
    """

    text: str
    words: tuple[StreamedWord, ...]
    compute_s: tuple[float, ...]
    duration_s: float
    end_lag_s: float
    has_word_times: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRow(ResultRow):
    """The result of one simulated live transcription: a row of `streaming.jsonl`."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The transcribed dataset.

    Attributes:
        name: The dataset's name.
        fingerprint: Digest over ids, references and audio.
        source: Path or address.
        examples: Number of examples.
        audio_s: Length of all audio together.
        language: The one language of all examples. None when there are several or it is unknown.
        ignored_segments: Parts of references that are marked not to be scored.
    """

    name: str
    fingerprint: str
    source: str
    examples: int
    audio_s: float
    language: str | None = None
    ignored_segments: int = 0


@dataclass(frozen=True, slots=True)
class NoSpeechClip:
    """A clip without speech and the text that was transcribed. `kind` is `silence`, `white_noise` or the like."""

    kind: str
    duration_s: float
    hypothesis: str
    words: int


@dataclass(frozen=True, slots=True)
class NoSpeech:
    """Behaviour on clips without speech, where every transcribed word is a hallucination."""

    clips: int
    clips_with_text: int
    words: int
    details: tuple[NoSpeechClip, ...] = ()


@dataclass(frozen=True, slots=True)
class OtherScore:
    """Word errors of the corpus by a second scorer, whose figures are not comparable with the plain ones.

    Attributes:
        scorer: Name of the scorer.
        version: Version of its rules.
        wer: Word errors per reference word. None without reference words.
        substitutions: Number of substituted words.
        deletions: Number of deleted words.
        insertions: Number of inserted words.
        reference_words: Number of words of all references as it normalises them.
    """

    scorer: str
    version: str
    wer: float | None
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Quality over the corpus.

    Attributes:
        wer: Word errors per reference word. None when nothing could be scored.
        cer: Character errors per reference character.
        substitutions: Number of substituted words.
        deletions: Number of deleted words.
        insertions: Number of inserted words.
        reference_words: Number of words of all normalised references.
        wer_interval: 95 % bootstrap interval over examples.
        qoi: Fraction of examples that are no worse than the reference run's. None without a reference run.
        qoi_interval: 95 % Wilson or bootstrap interval.
        qoi_reference: Name of the reference run.
        insertion_error_rate: Insertions per reference word.
        repeated_5grams: Repeated 5-grams of all hypotheses, as hallucination tends to repeat.
        no_speech: None when it was not measured.
        word_timestamp_error: None without word times on both sides.
        other_scores: The corpus as other scorers count it.
        empty_references: Number of examples without a reference word, such as silence.
        inserted_on_empty: Number of words transcribed on those examples.
    """

    wer: float | None
    cer: float | None
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    wer_interval: tuple[float, float] | None = None
    qoi: float | None = None
    qoi_interval: tuple[float, float] | None = None
    qoi_reference: str | None = None
    insertion_error_rate: float | None = None
    repeated_5grams: int = 0
    no_speech: NoSpeech | None = None
    word_timestamp_error: WordTimestampError | None = None
    other_scores: tuple[OtherScore, ...] = ()
    empty_references: int = 0
    inserted_on_empty: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of the examples that did not fail. None is what the backend does not report.

    Attributes:
        encoder_s: Mean encoder time of one window.
        token_s: Mean decoding time of one token.
        tokens_per_s: Its inverse.
        first_token_s: Median time from audio to the first token.
        rtfx_corpus: Seconds of audio per second of computing, over all examples together.
        rtfx_median: Median of the ratios of the examples.
        fallbacks: Attempts that were discarded for a higher temperature.
        total_s: Computing time of all examples together.
    """

    encoder_s: float | None
    token_s: float | None
    tokens_per_s: float | None
    first_token_s: float | None
    rtfx_corpus: float | None
    rtfx_median: float | None
    fallbacks: int | None
    total_s: float


@dataclass(frozen=True, slots=True)
class NoisePoint:
    """Word error rate with noise of one kind mixed in at one signal-to-noise ratio."""

    kind: str
    snr_db: float
    wer: float | None


@dataclass(frozen=True, slots=True)
class Streaming:
    """The simulated live transcription of all examples. Latencies run from a word's end in the audio until it is shown.

    Attributes:
        hop_s: Seconds of new audio before the model runs again.
        hypothesis_latency_s: Median until a word first appears in the hypothesis.
        hypothesis_latency_p95_s: 95th percentile.
        confirmed_latency_s: Median until a word is confirmed and will not change.
        confirmed_latency_p95_s: 95th percentile.
        compute_s: Mean computing time of one hop.
        compute_p95_s: 95th percentile.
        is_real_time: Whether the backend kept up: never behind by more than a hop at the end of an example.
        wer: Word error rate of the confirmed text.
        hops: Calls of the backend.
        examples: Number of streamed examples.
    """

    hop_s: float
    hypothesis_latency_s: float | None
    hypothesis_latency_p95_s: float | None
    confirmed_latency_s: float | None
    confirmed_latency_p95_s: float | None
    compute_s: float | None
    compute_p95_s: float | None
    is_real_time: bool
    wer: float | None
    hops: int
    examples: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """Word error rate of a part of the examples, such as a speaker or a range of durations."""

    label: str
    examples: int
    audio_s: float
    reference_words: int
    wer: float | None


@dataclass(frozen=True, slots=True)
class ProblemInfo:
    """An example of the dataset that was skipped."""

    id: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An example that could not be transcribed."""

    id: str
    error: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """One bundle or model on one dataset.

    Attributes:
        key: Digest of bundle, backend, dataset and options. Equal keys are the same run.
        name: Unique within a report.
        bundle: None for a model that is not a bundle.
        backend: The engine that ran the model.
        dataset: The transcribed dataset.
        options: Options that change the result.
        machine: The machine of the run.
        versions: Versions of wkt and the libraries.
        started: ISO 8601 UTC.
        finished: ISO 8601 UTC.
        metrics: Quality.
        speed: Times.
        noise: Robustness curve.
        streaming: Live transcription. None when it was not simulated.
        by_duration: Word error rate by length of the audio.
        by_speaker: Word error rate by speaker.
        problems: Examples that were skipped.
        failures: Examples that failed.
    """

    key: str
    name: str
    bundle: BundleInfo | None
    backend: BackendInfo
    dataset: DatasetInfo
    options: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    started: str
    finished: str
    metrics: Metrics
    speed: Speed
    noise: tuple[NoisePoint, ...] = ()
    streaming: Streaming | None = None
    by_duration: tuple[Bucket, ...] = ()
    by_speaker: tuple[Bucket, ...] = ()
    problems: tuple[ProblemInfo, ...] = ()
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """`report.json`: one run, or several with their comparisons."""

    runs: tuple[RunReport, ...]
    comparisons: tuple[Mapping[str, Any], ...] = field(default=())
    schema_version: int = SCHEMA_VERSION


def read_row(value: Any, where: str) -> ResultRow:
    """Return a row from parsed JSON: a `StreamRow` where it has a stream.

    Args:
        value: Parsed JSON.
        where: Names the row in error messages.

    Raises:
        DatasetError: A field is missing or has another type.
    """
    if not isinstance(value, dict):
        raise DatasetError(f"{where} holds a JSON {type(value).__name__}, expected an object")
    # The general decoder takes seconds for the alignments of a run.
    pieces = value.get("alignment") or []
    if not isinstance(pieces, list):
        raise DatasetError(f"{where}: alignment is {repr(pieces)[:80]}, expected a list")
    kind = StreamRow if "stream" in value else ResultRow
    row = from_json(kind, {**value, "alignment": []}, where)
    return replace(row, alignment=tuple(_read_piece(piece, where) for piece in pieces))


def _read_piece(value: Any, where: str) -> AlignmentPiece:
    try:
        kind, reference, hypothesis = str(value["type"]), tuple(value["reference"]), tuple(value["hypothesis"])
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{where}: a piece of the alignment lacks type, reference or hypothesis") from error
    if kind not in PIECE_TYPES or not all(isinstance(word, str) for word in (*reference, *hypothesis)):
        allowed = ", ".join(sorted(PIECE_TYPES))
        raise DatasetError(
            f"{where}: a piece of the alignment has type {kind!r} (allowed: {allowed}) or a word that is not text"
        )
    return AlignmentPiece(kind, reference, hypothesis)


def read_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        DatasetError: Not readable, not a report, or of a newer schema.
    """
    try:
        value = read_json_value(path, DatasetError, "run `wkt evaluate` again")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; pass the folder of a run that `wkt evaluate` made") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema_version {version!r}, this version of wkt reads up to {SCHEMA_VERSION}; "
            "update whisperkit-tools, or run `wkt evaluate` again"
        )
    return from_json(Report, value, str(path))
