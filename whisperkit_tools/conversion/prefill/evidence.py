"""What a prefill costs: how near its caches come to those of other speech, and which transcripts it changes.

Two null tests stand beside every figure. Caches of zeros, and Gaussian ones of the table's own mean and deviation, must
do clearly worse; where they do not, the model does not look at these caches on this audio, nothing is shown, and the
prefill is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.context_prefill import ForcedTokens
from whisperkit_tools.conversion.prefill.audio import SEED, PrefillAudio
from whisperkit_tools.conversion.prefill.table import TASKS, PrefillTable, encode, forced_caches, language_codes
from whisperkit_tools.eval.metrics.normalize import BasicTextNormalizer
from whisperkit_tools.eval.metrics.wer import word_error_rate
from whisperkit_tools.manifest import PrefillEvidenceRecord
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.signals import peak_to_error_db
from whisperkit_tools.speech import Recording

Lookup: TypeAlias = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Language id and task to keys and values, each `[1, D * L, 1, n]`."""
Transcripts: TypeAlias = Callable[[Path, Sequence[Recording], Mapping[str, Lookup | None]], Mapping[str, Sequence[str]]]
"""Text of each clip by a bundle's packages, with each of several prefills (None for without)."""

NULLS = ("zeros", "gaussian")
NULL_CLIPS = 48
LEAST_NULL_DB = 6.0  # half the error
LEAST_NULL_SHARE = 0.1  # of the clips: so many more transcripts a null test must change
ENGLISH = "en"
PAIRS_IN_A_LINE = 8


@dataclass(frozen=True, slots=True)
class NullTest:
    """What caches without meaning do.

    Attributes:
        psnr_db: Median over languages and tasks.
        clips: Clips that were transcribed with them; 0 when nothing was transcribed.
        changed: How many of their transcripts they change.
        changed_by_prefill: How many of the same the prefill changes.
        wer: Percent, on these clips; None without any.
    """

    psnr_db: float
    clips: int
    changed: int
    changed_by_prefill: int
    wer: float | None

    def is_worse_than(self, psnr_db: float) -> bool:
        """Whether it does clearly worse than a table of that median PSNR."""
        more = self.changed - self.changed_by_prefill
        shown = more > LEAST_NULL_SHARE * self.clips or not self.clips
        return self.psnr_db <= psnr_db - LEAST_NULL_DB and shown


@dataclass(frozen=True, slots=True)
class PrefillEvidence:
    """What was measured of a prefill.

    Attributes:
        psnr_db: By language and task: the table's caches against those of held-out speech; the lesser of keys and
            values, errors pooled over windows.
        held_out_windows: Windows of speech behind `psnr_db`.
        held_out_from: Whose those are: `demo` or `recordings`.
        clips: Utterances transcribed with and without.
        judged_on: Whose they are: `demo` or `recordings`.
        changed: Utterances whose transcript changes.
        wer_without: Percent; None when nothing was transcribed.
        wer_with: Percent.
        nulls: The null tests by name.
        max_wer_delta: The most points by which the WER may rise.
        gap: Why nothing was transcribed, or empty.
    """

    psnr_db: dict[str, dict[str, float]]
    held_out_windows: int
    held_out_from: str
    clips: int
    judged_on: str
    changed: int
    wer_without: float | None
    wer_with: float | None
    nulls: dict[str, NullTest]
    max_wer_delta: float
    gap: str = ""

    @property
    def all_psnr_db(self) -> list[float]:
        """Figures of all pairs of language and task."""
        return [value for tasks in self.psnr_db.values() for value in tasks.values()]

    @property
    def wer_delta(self) -> float | None:
        """Points by which the WER rises with the prefill."""
        if self.wer_with is None or self.wer_without is None:
            return None
        return self.wer_with - self.wer_without

    @property
    def is_harmful(self) -> bool:
        """Whether the WER rises by more than is allowed."""
        return self.wer_delta is not None and not self.wer_delta <= self.max_wer_delta + 1e-9

    @property
    def alike(self) -> tuple[str, ...]:
        """The null tests that do not clearly worse."""
        middle = median(self.all_psnr_db)
        return tuple(name for name, null in self.nulls.items() if not null.is_worse_than(middle))

    @property
    def emptiness(self) -> str:
        """Why the figures mean nothing; empty when they mean something."""
        if not self.alike:
            return self.gap
        return f"caches of {' and '.join(self.alike)} do not clearly worse, so the figures mean nothing"

    def lines(self) -> list[str]:
        """The evidence in words, a line for each measurement."""
        figures = sorted((value, language, task) for language, x in self.psnr_db.items() for task, value in x.items())
        lowest = figures[0]
        lines = [
            f"caches  {len(figures)} pair{'s' if len(figures) > 1 else ''} of language and task against "
            f"{self.held_out_windows} windows of held-out speech: median {median(self.all_psnr_db):.1f} dB, "
            f"least {lowest[0]:.1f} dB ({lowest[1]} {lowest[2]}); "
            + ", ".join(f"{name} {null.psnr_db:.1f} dB" for name, null in self.nulls.items())
        ]
        if self.wer_with is not None:
            lines.append(
                f"text    {self.changed} of {self.clips} transcripts change, WER {self.wer_without:.2f} % without, "
                f"{self.wer_with:.2f} % with ({self.wer_delta:+.2f} points, allowed {self.max_wer_delta:+.2f}); "
                + ", ".join(
                    f"{name} {null.changed} of {null.clips} change, WER {null.wer:.2f} %"
                    for name, null in self.nulls.items()
                )
            )
        lines.append(f"null    {self.emptiness or 'zeros and Gaussian caches do clearly worse'}")
        each = (f"{name} {'/'.join(f'{value:.1f}' for value in x.values())}" for name, x in self.psnr_db.items())
        return lines + [f"dB      {line}" for line in _rows(list(each))]

    def recorded(self) -> PrefillEvidenceRecord:
        """Return the section of the manifest."""
        delta = None if self.wer_delta is None else round(self.wer_delta, 4)
        found = {**asdict(self), "wer_delta": delta, "means_nothing": self.emptiness}
        return PrefillEvidenceRecord.from_json(found, "the prefill's evidence")


def _rows(items: Sequence[str]) -> list[str]:
    """Lines of `PAIRS_IN_A_LINE` items each."""
    starts = range(0, len(items), PAIRS_IN_A_LINE)
    return ["  ".join(items[at : at + PAIRS_IN_A_LINE]) for at in starts]


def gather_evidence(
    checkpoint: Checkpoint,
    bundle: Path,
    table: PrefillTable,
    audio: PrefillAudio,
    transcripts: Transcripts | None,
    max_wer_delta: float,
) -> PrefillEvidence:
    """Measure a prefill that is in place.

    Args:
        checkpoint: What the bundle was made from.
        bundle: The folder with its packages and configs; it needs no manifest yet.
        table: The package's table, see `read_table`.
        audio: What to measure on.
        transcripts: Transcribes with the bundle's packages; None where that cannot be had.
        max_wer_delta: The most points by which the WER may rise.
    """
    tables = {"prefill": table, **null_tables(table)}
    similar = similarity(checkpoint, tables, encode(checkpoint, audio.held_out))
    codes = language_codes(checkpoint.generation_config)
    names = {pair: (codes.get(pair[0], ENGLISH), TASKS[pair[1]]) for pair in similar["prefill"]}
    psnr_db: dict[str, dict[str, float]] = {language: {} for language, _ in names.values()}
    for pair, value in similar["prefill"].items():
        psnr_db[names[pair][0]][names[pair][1]] = round(value, 2)
    middle = {name: median(similar[name].values()) for name in NULLS}
    clips = _in_languages(audio.clips, set(codes.values()) or {ENGLISH})
    gap = _gap(clips, transcripts)
    measured = _Measured([], {}) if gap or transcripts is None else _transcribe(bundle, clips, tables, transcripts)
    return PrefillEvidence(
        psnr_db=psnr_db,
        held_out_windows=len(audio.held_out),
        held_out_from=audio.held_out_from,
        clips=len(measured.clips),
        judged_on=audio.judged_on,
        changed=measured.changed("prefill"),
        wer_without=measured.wer("without"),
        wer_with=measured.wer("prefill"),
        nulls={name: measured.null(name, middle[name]) for name in NULLS},
        max_wer_delta=max_wer_delta,
        gap=gap,
    )


def _in_languages(clips: Sequence[Recording], known: set[str]) -> list[Recording]:
    return [clip for clip in clips if clip.language is None or clip.language in known]


def _gap(clips: Sequence[Recording], transcripts: Transcripts | None) -> str:
    """Say why nothing can be transcribed, or nothing."""
    if transcripts is None:
        return "nothing was transcribed, so what the prefill changes is not known"
    return "" if clips else "the demo speaks none of the model's languages, so what the prefill changes is not known"


# --- caches ---------------------------------------------------------------------------------------------------------


def read_table(package: Path, forced: ForcedTokens, precision: Precision = "float32") -> PrefillTable:
    """Run a package for every language and task, and put its answers together again."""
    program = Program.load(package, precision=precision)
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    for language, task in pairs(forced):
        inputs = {"task": torch.tensor([task], dtype=torch.int32)}
        outputs = program.run({**inputs, "language": torch.tensor([language], dtype=torch.int32)})
        for position, node in enumerate(forced.path(language, task)):
            keys[node] = outputs[contract.KEY_PREFILL][0, :, 0, position].float()
            values[node] = outputs[contract.VALUE_PREFILL][0, :, 0, position].float()
    nodes = range(len(forced.tokens))
    return PrefillTable(
        forced, torch.stack([keys[node] for node in nodes]), torch.stack([values[node] for node in nodes])
    )


def pairs(forced: ForcedTokens) -> list[tuple[int, int]]:
    """All pairs of a language's id and a task's number; one for an English-only model."""
    if not forced.languages:
        return [(forced.start, 0)]
    return [(language, task) for language in forced.languages for task in range(len(forced.tasks))]


def null_tables(table: PrefillTable) -> dict[str, PrefillTable]:
    """Caches without meaning: zeros, and Gaussian ones with mean and deviation of the table's keys and values."""
    generator = torch.Generator().manual_seed(SEED)
    noise = [
        torch.randn(part.shape, generator=generator) * part.std() + part.mean() for part in (table.keys, table.values)
    ]
    zeros = torch.zeros_like(table.keys)
    return {"zeros": PrefillTable(table.forced, zeros, zeros), "gaussian": PrefillTable(table.forced, *noise)}


def similarity(
    checkpoint: Checkpoint, tables: Mapping[str, PrefillTable], embeds: Sequence[Tensor]
) -> dict[str, dict[tuple[int, int], float]]:
    """PSNR of tables' caches against those of windows, for each language and task.

    Args:
        checkpoint: The checkpoint.
        tables: By name, of the same tokens.
        embeds: Audio embeddings of each window, `[1, D, 1, 1500]`.

    Returns:
        By name of the table and by language id and task: `20 log10(max |cache| / rmse)` in dB, errors pooled over
        windows; the lesser of keys and values.
    """
    forced = next(iter(tables.values())).forced
    width = checkpoint.dims.d_model
    nodes = len(forced.tokens)
    errors = {name: torch.zeros(2, nodes, dtype=torch.float64) for name in tables}
    peak = torch.zeros(2, nodes)
    for layer, *caches in forced_caches(checkpoint, forced, embeds):
        channels = slice(layer * width, (layer + 1) * width)
        for kind, found in enumerate(caches):
            peak[kind] = torch.maximum(peak[kind], found.abs().amax(dim=1))
            for name, table in tables.items():
                ours = (table.keys, table.values)[kind][:, channels]
                errors[name][kind] += (ours - found).double().square().sum(dim=1)
    count = len(embeds) * width * checkpoint.dims.decoder_layers
    return {
        name: {pair: _psnr_db(peak, of_table, count, forced.path(*pair)) for pair in pairs(forced)}
        for name, of_table in errors.items()
    }


def _psnr_db(peak: Tensor, errors: Tensor, count: int, path: tuple[int, ...]) -> float:
    """Lesser of the keys' and the values' PSNR over the nodes of a path."""
    nodes = list(path)
    rmse = (errors[:, nodes].sum(dim=1) / (count * len(nodes))).sqrt()
    highest = peak[:, nodes].amax(dim=1)
    return min(peak_to_error_db(float(top), float(error)) for top, error in zip(highest, rmse, strict=True))


# --- transcripts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """Clips with their texts by name of the prefill; null tests have texts of the first clips only."""

    clips: list[Recording]
    texts: dict[str, list[str]]

    def changed(self, name: str, count: int | None = None) -> int:
        pairs = list(zip(self.texts.get("without", []), self.texts.get(name, []), strict=False))
        return sum(before != after for before, after in pairs[:count])

    def wer(self, name: str) -> float | None:
        found = self.texts.get(name)
        return None if found is None else percent_wer([clip.text or "" for clip in self.clips[: len(found)]], found)

    def null(self, name: str, psnr_db: float) -> NullTest:
        count = len(self.texts.get(name, ()))
        changed, by_prefill = self.changed(name), self.changed("prefill", count)
        return NullTest(round(psnr_db, 2), count, changed, by_prefill, self.wer(name))


def _transcribe(
    bundle: Path, clips: list[Recording], tables: Mapping[str, PrefillTable], transcripts: Transcripts
) -> _Measured:
    """Transcribe all clips without and with the prefill, and some, of all languages, with the null tests' caches."""
    step = max(1, len(clips) // NULL_CLIPS)
    some = clips[::step][:NULL_CLIPS]
    ordered = [*some, *(clip for clip in clips if all(clip is not other for other in some))]
    first = transcripts(bundle, some, {"without": None, **{name: lookup(table) for name, table in tables.items()}})
    rest = transcripts(bundle, ordered[len(some) :], {"without": None, "prefill": lookup(tables["prefill"])})
    return _Measured(ordered, {name: [*texts, *rest.get(name, ())] for name, texts in first.items()})


def lookup(table: PrefillTable) -> Lookup:
    """The table as a function."""

    def find(language: int, task: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        path = list(table.forced.path(language, task))
        keys, values = (part[path].t()[None, :, None].contiguous().numpy() for part in (table.keys, table.values))
        return keys, values

    return find


def percent_wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """WER of the corpus after Whisper's basic normaliser, in percent, rounded to four digits."""
    return round(100 * word_error_rate(references, hypotheses, BasicTextNormalizer()), 4)
