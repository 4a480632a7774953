"""The manifest `wkt.json` of a bundle: its source, how it was made, and size and sha256 of every file.

Every part is optional. Bundles of other tools have no manifest, and those of earlier versions lack some keys. A
manifest that was read is written exactly as it was: what was absent stays absent, and unknown keys are kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from whisperkit_tools.compression_records import CompressionRecord
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import content_files, content_sha256, read_json_object, sha256, write_json
from whisperkit_tools.records import Record

MANIFEST = "wkt.json"
MANIFEST_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRecord(Record):
    """The program that made a bundle."""

    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord(Record):
    """The checkpoint that a bundle was converted from.

    Attributes:
        name: What the user passed: `demo`, an alias, a Hub id or a folder.
        org: The organisation on the Hub.
        model: The model's name without it.
        revision: Commit on the Hub, or None for a local checkpoint.
        license: As the checkpoint states it.
        sha256: Digest of each weight file by its name.
        format: Form in which the checkpoint was stored, such as `Hugging Face` or `ggml (q5_0)`; empty where an earlier
            version did not record it.
    """

    name: str = ""
    org: str = ""
    model: str = ""
    revision: str | None = None
    license: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    format: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the content of the section. A format that is not known is omitted."""
        written = super(SourceRecord, self).to_json()
        return {key: value for key, value in written.items() if key != "format" or value or key in (self.keys or ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRecord(Record):
    """Options and findings of the conversion; None where an earlier version did not record them.

    Attributes:
        deployment_target: The oldest system that loads the packages.
        kv_length: Positions of the decoder's caches.
        word_timestamps: Whether the decoder returns the weights of its alignment heads.
        alignment_heads: Pairs of layer and head.
        turbo: Whether the bundle has the layout for latency.
        stateful: Whether the decoder's caches are states.
        audio_encoder_attention: Name of the encoder's attention.
        text_decoder_attention: Name of the decoder's attention.
        attention_chunk_size: Positions in a chunk of an attention that works in chunks.
        logits_chunk_size: Maximum number of logits in one product.
        compiled: Whether the bundle has `.mlmodelc` folders.
        verified: Whether the packages were run and compared with the checkpoint.
        notes: Notes for the user.
    """

    deployment_target: str | None = None
    kv_length: int | None = None
    word_timestamps: bool = True
    alignment_heads: tuple[tuple[int, ...], ...] = ()
    turbo: bool = False
    stateful: bool = False
    audio_encoder_attention: str | None = None
    text_decoder_attention: str | None = None
    attention_chunk_size: int | None = None
    logits_chunk_size: int | None = None
    compiled: bool = False
    verified: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationRecord(Record):
    """The decoder on several tokens at once, against single steps.

    Attributes:
        tokens: Number of tokens in a call.
        difference: Largest change that was found in the difference of two logits, by `float32` and `float16`.
        tolerance: Difference of two logits below which a choice is repeated by single steps, likewise.
    """

    tokens: int = 0
    difference: Mapping[str, float] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRecord(Record):
    """Agreement of the packages with the checkpoint.

    Attributes:
        gate: Minimum PSNR in dB by `float32_db` and `float16_db`.
        psnr_db: PSNR in dB by component, by `float32` and `float16`, by output.
    """

    gate: Mapping[str, float] = field(default_factory=dict)
    psnr_db: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NullTestRecord(Record):
    """Effect of meaningless caches in place of the prefill's.

    Attributes:
        psnr_db: Their PSNR in dB on held-out speech.
        clips: Number of transcripts.
        changed: Number of transcripts that they change.
        changed_by_prefill: Number of transcripts that the prefill changes.
        wer: Word error rate with them in percent.
    """

    psnr_db: float | None = None
    clips: int = 0
    changed: int = 0
    changed_by_prefill: int = 0
    wer: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillEvidenceRecord(Record):
    """Measurements of a prefill.

    Attributes:
        psnr_db: PSNR in dB of the caches on held-out speech, by language, by task.
        held_out_windows: Number of windows of it.
        held_out_from: Whose speech: `demo` or `recordings`.
        clips: Number of transcripts.
        judged_on: Whose recordings were transcribed.
        changed: Number of transcripts that the prefill changes.
        wer_without: Word error rate without the prefill in percent; None where nothing was transcribed.
        wer_with: The same with it.
        nulls: Null tests by name.
        max_wer_delta: Maximum of `wer_delta`.
        gap: Why nothing was transcribed, or empty.
        wer_delta: Rise of the word error rate in percentage points.
        means_nothing: Why the figures are inconclusive, or empty.
    """

    psnr_db: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    held_out_windows: int = 0
    held_out_from: str = ""
    clips: int = 0
    judged_on: str = ""
    changed: int = 0
    wer_without: float | None = None
    wer_with: float | None = None
    nulls: Mapping[str, NullTestRecord] = field(default_factory=dict)
    max_wer_delta: float | None = None
    gap: str = ""
    wer_delta: float | None = None
    means_nothing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillRecord(Record):
    """The table of caches after the forced tokens.

    Attributes:
        included: Whether the bundle has it.
        reason: Why not, or what limits it; empty without a reservation.
        tokens: Number of forced tokens, 0 where they could not be determined.
        languages: Number of languages, 0 for an English-only model.
        tasks: Number of tasks.
        source: Kind of audio that the caches are a mean over: `speech` or `silence`.
        audio: Whose audio: `demo` or `recordings`.
        windows: Number of windows of it.
        seed: Random seed.
        evidence: Measurements, or None without verification.
    """

    included: bool = False
    reason: str = ""
    tokens: int = 0
    languages: int = 0
    tasks: int = 0
    source: str = field(default="", metadata={"key": "from"})
    audio: str = ""
    windows: int = 0
    seed: int = 0
    evidence: PrefillEvidenceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord(Record):
    """A file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """The content of `wkt.json`.

    Attributes:
        format: Version of the format.
        created: ISO 8601 UTC time at which the manifest was written; empty without a manifest.
        variant: Name of the variant.
        tool: The program that made the bundle.
        libraries: Version of each library.
        python: Version of Python.
        source: The checkpoint, if it is known.
        dimensions: The architecture, if it is known.
        conversion: How the checkpoint was converted, if it was.
        parity: Agreement with the checkpoint.
        prefill: The table of caches after the forced tokens, if one was asked for.
        speculation: The decoder on several tokens at once, if the bundle has it.
        compression: How the bundle was compressed, if it was.
        files: Size and digest of every other file, by its path with forward slashes.
    """

    format: int = MANIFEST_FORMAT
    created: str = ""
    variant: str = ""
    tool: ToolRecord | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    source: SourceRecord | None = None
    dimensions: ModelDimensions | None = None
    conversion: ConversionRecord | None = None
    parity: ParityRecord | None = None
    prefill: PrefillRecord | None = None
    speculation: SpeculationRecord | None = None
    compression: CompressionRecord | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Read the content of a manifest.

        Args:
            value: The parsed JSON.
            where: The file, for messages.

        Raises:
            BundleError: Not an object, a newer format, or a value of another type than its field.
        """
        found = value.get("format", MANIFEST_FORMAT) if isinstance(value, dict) else MANIFEST_FORMAT
        if not isinstance(found, int) or found > MANIFEST_FORMAT:
            raise BundleError(
                f"{where} has format {found!r}, this version of wkt reads up to {MANIFEST_FORMAT}; update "
                "whisperkit-tools"
            )
        return super(Manifest, cls).from_json(value, where)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file. Parts that do not apply are omitted."""
        written = super(Manifest, self).to_json()
        return {key: value for key, value in written.items() if value is not None or key in (self.keys or ())}

    @property
    def is_empty(self) -> bool:
        """Whether the bundle has no manifest."""
        return self == NO_MANIFEST

    def content_sha256(self) -> str:
        """Return one digest over all recorded files. Evaluation reports and registries name a bundle by it."""
        return content_sha256({name: record.sha256 for name, record in self.files.items()})


_OF_THE_FOLDER = ("format", "created", "files")
NO_MANIFEST = Manifest(keys=())


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, or return an empty one where there is none.

    Raises:
        BundleError: It is damaged, or has a newer format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return NO_MANIFEST
    value = read_json_object(path)
    return Manifest.from_json({"format": None, **value}, str(path))


def write_manifest(folder: Path, content: Manifest, *, clock: Callable[[], datetime] | None = None) -> None:
    """Write `wkt.json` over the files of a folder.

    Args:
        folder: The filled folder.
        content: What to record. Format, time and files are set anew.
        clock: Returns the time to record; the current time in UTC when None.
    """
    now = clock() if clock else datetime.now(UTC)
    recorded = {key: value for key, value in content.to_json().items() if key not in _OF_THE_FOLDER}
    manifest = {
        "format": MANIFEST_FORMAT,
        "created": now.isoformat(timespec="microseconds"),
        **recorded,
        "files": {path.relative_to(folder).as_posix(): _describe(path) for path in content_files(folder, MANIFEST)},
    }
    write_json(folder / MANIFEST, manifest)


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "size_bytes": path.stat().st_size}
