"""The evidence for a prefill: the distance of its caches from those of other speech, and the transcripts it changes.

Every figure has two null tests. All-zero caches, and Gaussian ones with the table's own mean and deviation, must do
clearly worse. Where they do not, the model does not look at these caches on this audio. Then the measurement is
inconclusive, and the prefill is left out. Their word error rates are of transcripts cut at the length of the ones
without a prefill, on as many clips as the verdict took.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.context_prefill import ForcedTokens
from whisperkit_tools.contract import PREFILL, prefill_interface
from whisperkit_tools.conversion.contract_check import package_problems
from whisperkit_tools.conversion.prefill.audio import SEED, PrefillAudio, held_out_windows
from whisperkit_tools.conversion.prefill.comparison import PrefillComparison
from whisperkit_tools.conversion.prefill.table import (
    TASKS,
    PrefillTable,
    encode,
    forced_caches,
    forced_tokens,
    language_codes,
)
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import BundleError, ConversionError
from whisperkit_tools.eval.metrics.normalize import BasicTextNormalizer
from whisperkit_tools.eval.metrics.wer import word_error_rate
from whisperkit_tools.manifest import PrefillEvidenceRecord
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.signals import peak_to_error_db
from whisperkit_tools.speech import Recording

NULLS = ("zeros", "gaussian")
_NULL_ADJECTIVES = {"zeros": "all-zero", "gaussian": "Gaussian"}
NULL_CLIPS = 48
MIN_NULL_DB = 6.0  # twice the error
MIN_NULL_SHARE = 0.1  # of the clips: a null test must change this many more transcripts than the prefill
ENGLISH = "en"
_BEYOND = 2  # the end of the text, and one more token
PAIRS_IN_A_LINE = 8
MIN_OVER_ZEROS_DB = 3.0  # of an existing bundle's table
MAX_OFF_RECORD_DB = 1.0


@dataclass(frozen=True, slots=True)
class NullTest:
    """The effect of caches without meaning.

    Attributes:
        psnr_db: Median over languages and tasks.
        clips: Clips that were transcribed with them. 0 when nothing was transcribed.
        changed: Number of their transcripts that they change.
        changed_by_prefill: Number of the same transcripts that the prefill changes.
        wer: Percent, on these clips. None without any.
    """

    psnr_db: float
    clips: int
    changed: int
    changed_by_prefill: int
    wer: float | None

    def is_worse_than(self, psnr_db: float) -> bool:
        """Return whether it does clearly worse than a table of that median PSNR."""
        more = self.changed - self.changed_by_prefill
        shown = more > MIN_NULL_SHARE * self.clips or not self.clips
        return self.psnr_db <= psnr_db - MIN_NULL_DB and shown


@dataclass(frozen=True, slots=True)
class PrefillEvidence:
    """The measurements of a prefill.

    Attributes:
        psnr_db: By language and task, the table's caches against those of held-out speech. The lesser of keys and
            values, errors pooled over windows.
        held_out_windows: Number of windows of speech that `psnr_db` was measured on.
        held_out_from: Whose those are: `demo` or `recordings`.
        clips: Utterances transcribed with and without.
        judged_on: Whose they are: `demo` or `recordings`.
        changed: Number of utterances whose transcript changes.
        wer_without: Percent. None when nothing was transcribed.
        wer_with: Percent.
        nulls: The null tests by name.
        max_wer_delta: Maximum number of points by which the WER may rise.
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
        """The null tests that do about as well as the prefill."""
        middle = median(self.all_psnr_db)
        return tuple(name for name, null in self.nulls.items() if not null.is_worse_than(middle))

    @property
    def inconclusive(self) -> str:
        """Why the measurement shows nothing, or empty."""
        if not self.alike:
            return self.gap
        names = " and ".join(_NULL_ADJECTIVES[name] for name in self.alike)
        return f"{names} caches do about as well, so this measurement is inconclusive"

    def lines(self) -> list[str]:
        """Return the evidence in words, a line for each measurement."""
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
        lines.append(f"null    {self.inconclusive or 'all-zero and Gaussian caches do clearly worse'}")
        each = (f"{name} {'/'.join(f'{value:.1f}' for value in x.values())}" for name, x in self.psnr_db.items())
        return lines + [f"dB      {line}" for line in _rows(list(each))]

    def recorded(self) -> PrefillEvidenceRecord:
        """Return the section of the manifest."""
        delta = None if self.wer_delta is None else round(self.wer_delta, 4)
        found = {**asdict(self), "wer_delta": delta, "means_nothing": self.inconclusive}
        return PrefillEvidenceRecord.from_json(found, "the prefill's evidence")


def _rows(items: Sequence[str]) -> list[str]:
    """Return lines of `PAIRS_IN_A_LINE` items each."""
    starts = range(0, len(items), PAIRS_IN_A_LINE)
    return ["  ".join(items[at : at + PAIRS_IN_A_LINE]) for at in starts]


def gather_evidence(
    checkpoint: Checkpoint,
    bundle: Path,
    table: PrefillTable,
    audio: PrefillAudio,
    max_wer_delta: float,
) -> PrefillEvidence:
    """Measure a prefill that is in place.

    Args:
        checkpoint: The bundle's source.
        bundle: The folder with its packages and configs. It needs no manifest yet.
        table: The package's table, see `read_table`.
        audio: The audio of the measurement.
        max_wer_delta: Maximum number of points by which the WER may rise.
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
    measured = _transcribe(bundle, clips, tables) if clips else _Measured([], {})
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
        gap="" if clips else "the demo speaks none of the model's languages, so the effect of the prefill is unknown",
    )


def _in_languages(clips: Sequence[Recording], known: set[str]) -> list[Recording]:
    return [clip for clip in clips if clip.language is None or clip.language in known]


# --- caches ---------------------------------------------------------------------------------------------------------


def read_table(package: Path, forced: ForcedTokens, precision: Precision = "float32") -> PrefillTable:
    """Run a package for every language and task, and reassemble its table."""
    program = Program.load(package, precision=precision)
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    for language, task in pairs(forced):
        numbers = {contract.TASK: task, contract.LANGUAGE: language}
        outputs = program.run({name: torch.tensor([number], dtype=torch.int32) for name, number in numbers.items()})
        for position, node in enumerate(forced.path(language, task)):
            keys[node] = outputs[contract.KEY_PREFILL][0, :, 0, position].float()
            values[node] = outputs[contract.VALUE_PREFILL][0, :, 0, position].float()
    nodes = range(len(forced.tokens))
    return PrefillTable(
        forced, torch.stack([keys[node] for node in nodes]), torch.stack([values[node] for node in nodes])
    )


def pairs(forced: ForcedTokens) -> list[tuple[int, int]]:
    """Return all pairs of a language's id and a task's number. There is one for an English-only model."""
    if not forced.languages:
        return [(forced.start, 0)]
    return [(language, task) for language in forced.languages for task in range(len(forced.tasks))]


def null_tables(table: PrefillTable) -> dict[str, PrefillTable]:
    """Return caches without meaning: zeros, and Gaussian ones with the table's mean and deviation."""
    generator = torch.Generator().manual_seed(SEED)
    noise = [
        torch.randn(part.shape, generator=generator) * part.std() + part.mean() for part in (table.keys, table.values)
    ]
    zeros = torch.zeros_like(table.keys)
    return {"zeros": PrefillTable(table.forced, zeros, zeros), "gaussian": PrefillTable(table.forced, *noise)}


def similarity(
    checkpoint: Checkpoint, tables: Mapping[str, PrefillTable], embeds: Sequence[Tensor]
) -> dict[str, dict[tuple[int, int], float]]:
    """Return the PSNR of tables' caches against those of windows, for each language and task.

    Args:
        checkpoint: The checkpoint.
        tables: By name, of the same tokens.
        embeds: Audio embeddings of each window, `[1, D, 1, 1500]`.

    Returns:
        By name of the table and by language id and task: `20 log10(max |cache| / rmse)` in dB, errors pooled over
        windows. The lesser of keys and values.
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
    """Return the lesser of the keys' and the values' PSNR over the nodes of a path."""
    nodes = list(path)
    rmse = (errors[:, nodes].sum(dim=1) / (count * len(nodes))).sqrt()
    highest = peak[:, nodes].amax(dim=1)
    return min(peak_to_error_db(float(top), float(error)) for top, error in zip(highest, rmse, strict=True))


# --- transcripts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """Clips with their texts by name of the prefill and place of the clip. Null tests have texts of some clips only."""

    clips: list[Recording]
    texts: dict[str, dict[int, str]]

    def changed(self, name: str, among: Collection[int] | None = None) -> int:
        without = self.texts.get("without", {})
        found = self.texts.get(name, {})
        return sum(found[at] != without[at] for at in found if among is None or at in among)

    def wer(self, name: str) -> float | None:
        found = self.texts.get(name)
        if found is None:
            return None
        return percent_wer([self.clips[at].text or "" for at in found], list(found.values()))

    def null(self, name: str, psnr_db: float) -> NullTest:
        heard = self.texts.get(name, {})
        changed, by_prefill = self.changed(name), self.changed("prefill", heard)
        return NullTest(round(psnr_db, 2), len(heard), changed, by_prefill, self.wer(name))


def _transcribe(bundle: Path, clips: list[Recording], tables: Mapping[str, PrefillTable]) -> _Measured:
    """Transcribe all clips without and with the prefill, and some, of all languages, with the null tests' caches.

    A null test ends as soon as it has changed so many transcripts that the others cannot alter its verdict. Its caches
    can make a model go on without end, so a transcript is cut once it is longer than the one without a prefill, from
    which it then differs.
    """
    step = max(1, len(clips) // NULL_CLIPS)
    some = clips[::step][:NULL_CLIPS]
    ordered = [*some, *(clip for clip in clips if all(clip is not other for other in some))]
    comparison = PrefillComparison(bundle)
    without = dict(comparison.transcripts(ordered, None))
    measured = _Measured(
        ordered, {"without": {at: found.text for at, found in sorted(without.items(), key=itemgetter(0))}}
    )
    found = comparison.transcripts(ordered, tables["prefill"])
    measured.texts["prefill"] = {at: one.text for at, one in sorted(found, key=itemgetter(0))}
    certain = MIN_NULL_SHARE * len(some) + measured.changed("prefill", range(len(some)))
    limits = [len(without[at].tokens) + _BEYOND for at in range(len(some))]
    for name in NULLS:
        texts = measured.texts.setdefault(name, {})
        for at, transcript in comparison.transcripts(some, tables[name], limits):
            texts[at] = transcript.text
            if measured.changed(name) > certain:
                break
    return measured


def percent_wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the WER of the corpus after Whisper's basic normaliser, in percent, rounded to four digits."""
    return round(100 * word_error_rate(references, hypotheses, BasicTextNormalizer()), 4)


# --- an existing bundle ---------------------------------------------------------------------------------------------


def prefill_contract_problems(bundle: Bundle, dims: ModelDimensions) -> list[str]:
    """Return the differences of an existing bundle's prefill from the runtime's contract and from its manifest."""
    recorded = bundle.manifest.prefill
    if not bundle.has(PREFILL):
        return [f"{PREFILL} is missing, but recorded as included"] if recorded and recorded.included else []
    try:
        forced = forced_tokens(bundle.read_json("generation_config.json"))
        return package_problems(PREFILL, bundle.package(PREFILL).path, prefill_interface(dims, forced.length))
    except (BundleError, ConversionError) as error:
        return [str(error)]
    except Exception as error:  # protobuf and coremltools raise many kinds for a damaged model file
        return [f"{PREFILL}: cannot be read ({type(error).__name__}: {error})"]


def prefill_problems(bundle: Bundle, checkpoint: Checkpoint) -> list[str]:
    """Return where the caches of an existing bundle's table do not stand for those of speech as well as recorded.

    The table itself is not estimated again, because it may come from audio that only its maker has. But the caches of
    other speech can be computed by anyone.
    """
    generation = checkpoint.generation_config
    table = read_table(bundle.package(PREFILL).path, forced_tokens(generation))
    tables = {"prefill": table, "zeros": null_tables(table)["zeros"]}
    found = similarity(checkpoint, tables, encode(checkpoint, held_out_windows()))
    evidence = bundle.manifest.prefill.evidence if bundle.manifest.prefill else None
    recorded = evidence.psnr_db if evidence and evidence.held_out_from == "demo" else {}
    codes = language_codes(generation)
    problems = []
    for (language, task), value in found["prefill"].items():
        code, name = codes.get(language, ENGLISH), TASKS[task]
        zeros, claimed = found["zeros"][language, task], recorded.get(code, {}).get(name)
        if not value >= zeros + MIN_OVER_ZEROS_DB:
            problems.append(f"{PREFILL}: {code} {name} has {value:.1f} dB on speech, zeros have {zeros:.1f} dB")
        elif claimed is not None and abs(value - claimed) > MAX_OFF_RECORD_DB:
            problems.append(f"{PREFILL}: {code} {name} has {value:.1f} dB on speech, recorded are {claimed:.1f} dB")
    return problems
