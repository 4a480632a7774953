"""The report of a run from its rows. Failed examples are omitted from every figure, and listed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.datasets.dataset import Dataset
from whisperkit_tools.eval.metrics import open_asr
from whisperkit_tools.eval.metrics.alignment import word_start_distances, word_timestamp_error
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.qoi import quality_of_inference
from whisperkit_tools.eval.metrics.wer import repeated_ngrams, total, wer_interval
from whisperkit_tools.eval.runs.noise import no_speech_behaviour
from whisperkit_tools.eval.runs.tasks import EvaluateConfig
from whisperkit_tools.eval.runs.worker import CLEAN, NO_SPEECH, NOISE, STREAMING, Task
from whisperkit_tools.eval.schema import (
    Bucket,
    DatasetInfo,
    Failure,
    Metrics,
    NoisePoint,
    NoSpeech,
    OtherScore,
    ProblemInfo,
    ResultRow,
    RunReport,
    Speed,
    Streaming,
    StreamRow,
)
from whisperkit_tools.speech import Recording

_DURATION_EDGES_S = (0, 5, 10, 20, 30, 60, 300, 1800)
_REPEATED = 5


@dataclass(frozen=True, slots=True)
class Results:
    """All rows of a run in its order, the failed ones separately.

    Attributes:
        clean: Rows of the examples as they are.
        noise: Rows by condition, such as `white@10`.
        no_speech: Clips without speech with their rows.
        streams: Rows of the streaming simulation.
        failed: Failed rows of any part.
    """

    clean: tuple[ResultRow, ...]
    noise: Mapping[str, tuple[ResultRow, ...]]
    no_speech: tuple[tuple[Recording, ResultRow], ...]
    streams: tuple[StreamRow, ...]
    failed: tuple[ResultRow, ...]

    @classmethod
    def read(cls, parts: Mapping[str, Sequence[ResultRow]], planned: Sequence[Task]) -> "Results":
        """Assign the parts' rows to their tasks."""
        by_key = {(part, row.id): row for part, rows in parts.items() for row in rows}
        found = [(task, by_key[task.part, task.key]) for task in planned]
        good = [(task, row) for task, row in found if row.error is None]
        noise: dict[str, list[ResultRow]] = {}
        for task, row in good:
            if task.part == NOISE:
                noise.setdefault(task.condition, []).append(row)
        return cls(
            clean=tuple(row for task, row in good if task.part == CLEAN),
            noise={condition: tuple(rows) for condition, rows in noise.items()},
            no_speech=tuple((task.example, row) for task, row in good if task.part == NO_SPEECH),
            streams=tuple(row for task, row in good if task.part == STREAMING and isinstance(row, StreamRow)),
            failed=tuple(row for _, row in found if row.error is not None),
        )


def summarise(
    target: EvaluationTarget, dataset: Dataset, config: EvaluateConfig, description: Mapping[str, Any], results: Results
) -> RunReport:
    """Return the report of a run.

    Args:
        target: The evaluated model.
        dataset: The examples.
        config: The measurements.
        description: Content of `run.json`.
        results: All rows.
    """
    return RunReport(
        key=description["key"],
        name=target.name,
        bundle=target.bundle,
        backend=target.backend,
        dataset=_dataset_info(dataset, results),
        options={
            **config.keyed,
            **_normalizers(config, results),
            **{f"dataset_{name}": value for name, value in dataset.options.items()},
        },
        machine=description["machine"],
        versions=description["versions"],
        started=description["started"],
        finished=description["finished"],
        metrics=_metrics(dataset, config, results),
        speed=_speed(results.clean),
        noise=tuple(_noise_point(condition, rows) for condition, rows in results.noise.items()),
        streaming=_streaming(results.streams, config.hop_s),
        by_duration=_by_duration(results.clean),
        by_speaker=_by_speaker(results.clean),
        problems=tuple(ProblemInfo(problem.id, problem.kind, problem.message) for problem in dataset.problems),
        failures=tuple(Failure(row.id, row.error or "") for row in results.failed),
    )


def _normalizers(config: EvaluateConfig, results: Results) -> dict[str, str]:
    """Return the normaliser of each language with its version, because published figures move with them."""
    normalization = Normalization(config.normalizer)
    languages = sorted({row.language or "unknown" for row in results.clean})
    return {f"normalizer_{code}": normalization.described(None if code == "unknown" else code) for code in languages}


def _dataset_info(dataset: Dataset, results: Results) -> DatasetInfo:
    heard_s = sum(row.duration_s or 0.0 for row in results.clean)
    return DatasetInfo(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        source=dataset.source,
        examples=len(dataset.examples),
        audio_s=round(dataset.audio_s if dataset.audio_s is not None else heard_s, 3),
        language=dataset.language,
        ignored_segments=dataset.ignored_segments,
    )


def _wer(rows: Iterable[ResultRow]) -> float | None:
    return total(row.counts for row in rows).rate


def _metrics(dataset: Dataset, config: EvaluateConfig, results: Results) -> Metrics:
    rows = results.clean
    words = total(row.counts for row in rows)
    interval = None
    if rows:
        interval = wer_interval([row.errors for row in rows], [row.reference_words for row in rows], seed=config.seed)
    return Metrics(
        wer=words.rate,
        cer=_cer(rows),
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        reference_words=words.reference,
        wer_interval=interval,
        insertion_error_rate=words.insertion_rate,
        repeated_5grams=sum(repeated_ngrams(row.hypothesis_normalized, _REPEATED) for row in rows),
        no_speech=_no_speech(results.no_speech),
        word_timestamp_error=word_timestamp_error(_word_distances(dataset, rows)),
        other_scores=_other_scores(config, rows),
        empty_references=sum(not row.reference_words for row in rows),
        inserted_on_empty=sum(row.insertions for row in rows if not row.reference_words),
    )


def _other_scores(config: EvaluateConfig, rows: Sequence[ResultRow]) -> tuple[OtherScore, ...]:
    if config.scorer != open_asr.NAME:
        return ()
    found = total(open_asr.word_counts(row.reference, row.hypothesis, row.language) for row in rows)
    score = OtherScore(
        scorer=open_asr.NAME,
        version=open_asr.version(),
        wer=found.rate,
        substitutions=found.substitutions,
        deletions=found.deletions,
        insertions=found.insertions,
        reference_words=found.reference,
    )
    return (score,)


def _cer(rows: Iterable[ResultRow]) -> float | None:
    """Return the character error rate of all rows. A row's rate times its length restores its count."""
    lengths = [(row.cer, len(row.reference_normalized.strip())) for row in rows if row.cer is not None]
    length = sum(count for _, count in lengths)
    return sum(round(rate * count) for rate, count in lengths) / length if length else None


def _word_distances(dataset: Dataset, rows: Iterable[ResultRow]) -> list[float]:
    references = {example.id: example.words for example in dataset.examples if example.words}
    distances: list[float] = []
    for row in rows:
        if row.words and row.id in references:
            distances += word_start_distances(references[row.id], row.words)
    return distances


def _no_speech(rows: Sequence[tuple[Recording, ResultRow]]) -> NoSpeech | None:
    return no_speech_behaviour((clip, row.hypothesis_normalized) for clip, row in rows) if rows else None


def _speed(rows: Sequence[ResultRow]) -> Speed:
    """Return the figures of the times that the backend reports."""
    timings = [row.timings for row in rows if row.timings is not None]
    total_s = sum(timing.total_s for timing in timings)
    audio_s = sum(timing.audio_s for timing in timings)
    ratios = [timing.audio_s / timing.total_s for timing in timings if timing.total_s > 0]
    firsts = [timing.first_token_s for timing in timings if timing.first_token_s is not None]
    fallbacks = [timing.fallbacks for timing in timings if timing.fallbacks is not None]
    token_s = _per((it.decoder_s, it.tokens) for it in timings)
    return Speed(
        encoder_s=_per((it.encoder_s, it.windows) for it in timings),
        token_s=token_s,
        tokens_per_s=1 / token_s if token_s else None,
        first_token_s=statistics.median(firsts) if firsts else None,
        rtfx_corpus=audio_s / total_s if total_s > 0 else None,
        rtfx_median=statistics.median(ratios) if ratios else None,
        fallbacks=sum(fallbacks) if fallbacks else None,
        total_s=round(total_s, 6),
    )


def _per(measured: Iterable[tuple[float | None, int | None]]) -> float | None:
    """Return the time of one unit, over all pairs that have both time and count."""
    known = [(seconds, units) for seconds, units in measured if seconds is not None and units]
    units = sum(number for _, number in known)
    return sum(seconds for seconds, _ in known) / units if units else None


def _noise_point(condition: str, rows: Sequence[ResultRow]) -> NoisePoint:
    kind, _, snr_db = condition.partition("@")
    return NoisePoint(kind, float(snr_db), _wer(rows))


def _streaming(rows: Sequence[StreamRow], hop_s: float) -> Streaming | None:
    if not rows:
        return None
    streams = [row.stream for row in rows]
    shown = [word.hypothesis_latency_s for stream in streams for word in stream.words]
    confirmed = [word.confirmed_latency_s for stream in streams for word in stream.words]
    compute = [seconds for stream in streams for seconds in stream.compute_s]
    return Streaming(
        hop_s=hop_s,
        hypothesis_latency_s=_quantile(shown, 0.5),
        hypothesis_latency_p95_s=_quantile(shown, 0.95),
        confirmed_latency_s=_quantile(confirmed, 0.5),
        confirmed_latency_p95_s=_quantile(confirmed, 0.95),
        compute_s=statistics.fmean(compute) if compute else None,
        compute_p95_s=_quantile(compute, 0.95),
        is_real_time=all(stream.end_lag_s <= hop_s for stream in streams),
        wer=_wer(rows),
        hops=len(compute),
        examples=len(rows),
    )


def _quantile(values: Iterable[float], share: float) -> float | None:
    """Return the nearest rank, which is a measured value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _by_duration(rows: Sequence[ResultRow]) -> tuple[Bucket, ...]:
    buckets = []
    for low, high in zip(_DURATION_EDGES_S, (*_DURATION_EDGES_S[1:], math.inf), strict=True):
        inside = [row for row in rows if row.duration_s is not None and low <= row.duration_s < high]
        label = f"{low}-{high:g} s" if high < math.inf else f"{low} s and more"
        buckets += [_bucket(label, inside)] if inside else []
    return tuple(buckets)


def _by_speaker(rows: Sequence[ResultRow]) -> tuple[Bucket, ...]:
    speakers: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.speaker is not None:
            speakers.setdefault(row.speaker, []).append(row)
    return tuple(_bucket(speaker, speakers[speaker]) for speaker in sorted(speakers))


def _bucket(label: str, rows: Sequence[ResultRow]) -> Bucket:
    return Bucket(
        label=label,
        examples=len(rows),
        audio_s=round(sum(row.duration_s or 0.0 for row in rows), 3),
        reference_words=sum(row.reference_words for row in rows),
        wer=_wer(rows),
    )


def with_qoi(
    report: RunReport,
    rates: Mapping[str, float | None],
    reference: RunReport,
    reference_rates: Mapping[str, float | None],
) -> RunReport:
    """Return a report with the quality of inference against a reference run.

    Args:
        report: Report of the run.
        rates: Word error rate of each of its examples. None for one that failed or has no words.
        reference: Report of the reference run.
        reference_rates: Word error rates of that run.

    Raises:
        OptionsError: The two ran on different datasets, or have no example in common.
    """
    if report.dataset.fingerprint != reference.dataset.fingerprint:
        raise OptionsError(
            f"{option('reference')} {reference.name} ran on another dataset ({reference.dataset.name}, "
            f"{reference.dataset.examples} examples, not {report.dataset.name}, {report.dataset.examples}); "
            "run it on the same one with the same choice of examples"
        )
    both = [id for id, rate in rates.items() if rate is not None and reference_rates.get(id) is not None]
    if not both:
        raise OptionsError(f"no example was scored both in {report.name} and in the reference run {reference.name}")
    found = quality_of_inference({id: rates[id] or 0.0 for id in both}, {id: reference_rates[id] or 0.0 for id in both})
    metrics = replace(report.metrics, qoi=found.qoi, qoi_interval=found.interval, qoi_reference=reference.name)
    return replace(report, metrics=metrics)
