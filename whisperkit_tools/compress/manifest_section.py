"""The manifest section of a compressed bundle, and finding its uncompressed original."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.candidate_store import JudgedCandidate
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.measured_sizes import FormatComparison
from whisperkit_tools.compression_records import (
    ComparisonRecord,
    CompressionRecord,
    GateRecord,
    OriginalRecord,
    SettingsRecord,
    TuningRecord,
)
from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import sha256
from whisperkit_tools.manifest import MANIFEST
from whisperkit_tools.paths import expanded
from whisperkit_tools.progress import Progress
from whisperkit_tools.quantization.search import SearchTrial, decision


def compression_record(
    bundle: Bundle,
    chosen: JudgedCandidate,
    trials: Sequence[SearchTrial],
    config: PalettizeConfig,
    target: Path,
    *,
    rejected: bool,
    calibration: str,
    overlap: int,
    compared: FormatComparison | None = None,
) -> CompressionRecord:
    """Return the manifest's section on the compression of a bundle at `target`.

    Args:
        bundle: The uncompressed bundle.
        chosen: The chosen candidate.
        trials: All trials of the search.
        config: The settings.
        target: Folder of the compressed bundle.
        rejected: Whether the gate rejected it.
        calibration: Name of the sensitivity cache.
        overlap: Number of gate examples from recordings that were used for calibration or tuning.
        compared: The comparison with block formats. None without one.
    """
    measured, planned, original = chosen.measured, chosen.plan, bundle.path.resolve()
    recorded = original / MANIFEST
    tuning = None
    if measured.tuning is not None:
        before, after = measured.tuning
        tuning = TuningRecord(steps=config.tune_steps, kl_before=before, kl_after=after)
    return CompressionRecord(
        original=OriginalRecord(
            name=bundle.name,
            path=os.path.relpath(original, target.resolve()),
            sha256=sha256(recorded) if recorded.is_file() else None,
        ),
        recipe=planned.recipe.to_json(),
        allocation_gap=planned.gap,
        predicted_nbytes=planned.nbytes,
        nbytes=measured.nbytes,
        psnr_db=dict(measured.psnr_db),
        tuning=tuning,
        gate=GateRecord.from_json(
            {**asdict(config.gate), **asdict(decision(chosen.trial)), "overlap": overlap}, "the gate"
        ),
        path=tuple(describe(trial) for trial in trials),
        rejected=rejected,
        calibration=calibration,
        settings=_settings(config),
        comparison=None if compared is None else ComparisonRecord.from_json(asdict(compared), "the comparison"),
    )


def _settings(config: PalettizeConfig) -> SettingsRecord:
    target, allowed, gate = config.target, config.allowed, config.gate
    return SettingsRecord(
        bits=target.nbits if target else None,
        target_bits=target.target_bits if target else None,
        target_size=target.target_bytes if target else None,
        max_kl=target.max_kl if target else None,
        recipe=target.recipe.name if target and target.recipe else None,
        allowed_nbits=allowed.nbits or (),
        group_size=allowed.group_size,
        allow=allowed.forms,
        keep=allowed.keep,
        tune_palettes=config.tune_steps,
        qoi_min=gate.qoi_min,
        wer_delta_max=gate.wer_delta_max,
        confident=gate.confident,
        calibration=_name(config.calibration),
        gate_audio=_name(config.gate_audio),
        allow_overlap=config.allow_overlap,
        reference=_name(config.reference),
        gate_examples=config.gate_examples,
        windows=config.windows,
        trials=config.search.trials,
        seed=config.seed,
    )


def _name(source: str | Path | None) -> str | None:
    """Return what the manifest, which is published, tells of a source: a dataset's name, or a folder's without path."""
    if source is None:
        return None
    folder = expanded(source)
    return folder.resolve().name if folder.is_dir() else str(source)


def original_of(bundle: Bundle, progress: Progress) -> Bundle:
    """Return the bundle itself, or the one it was compressed from.

    Raises:
        BundleError: It was compressed, and its original is gone or changed.
    """
    recorded = bundle.manifest.compression.original if bundle.manifest.compression else None
    if recorded is None:
        return bundle
    place = bundle.path / recorded.path
    advice = "pass the uncompressed bundle, or convert the model again"
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{bundle.path} is compressed already, and its original is not at {place}; {advice}")
    if sha256(place / MANIFEST) != recorded.sha256:
        raise BundleError(f"{bundle.path} is compressed already, and {place} is no longer its original; {advice}")
    progress.note(f"{bundle.name} is compressed already; working from its original {place.resolve().name}")
    return Bundle.open(place)


def describe(trial: SearchTrial) -> str:
    """Return a trial in one line."""
    verdict = trial.verdict
    size = f"{trial.nbytes / 1e6:9.3f} MB  KL {trial.kl_divergence:.5f}"
    if verdict is None:
        return f"{size}  not transcribed"
    if verdict.qoi is None or verdict.wer is None or verdict.wer_delta is None:
        return f"{size}  fail: {'; '.join(verdict.shortfalls)}"
    return (
        f"{size}  QoI {verdict.qoi.value:6.2f} % "
        f"({verdict.qoi.low:.1f} to {verdict.qoi.high:.1f})  WER {verdict.wer.value:.2f} % "
        f"({verdict.wer_delta.value:+.2f})  tokens {verdict.token_agreement.value:.2f} %  "
        f"{'pass' if verdict.passed else 'fail'}"
    )
