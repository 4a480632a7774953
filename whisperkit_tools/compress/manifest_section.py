"""What a compressed bundle says of its making, and the way back from it to the bundle it was made from."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.config import Made, PalettizeConfig
from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import sha256
from whisperkit_tools.manifest import MANIFEST, CompressionRecord, GateRecord, OriginalRecord, TuningRecord
from whisperkit_tools.progress import Progress
from whisperkit_tools.quantization.search import Trial


def compression_record(
    bundle: Bundle, made: Made, trials: Sequence[Trial], config: PalettizeConfig, target: Path, *, rejected: bool,
    calibration: str,
) -> CompressionRecord:  # fmt: skip
    """Return the manifest's section on the compression of a bundle at `target`.

    Args:
        bundle: The uncompressed bundle.
        made: The chosen candidate.
        trials: The search path.
        config: Settings of the compression.
        target: The compressed bundle's folder.
        rejected: Whether the gate rejected it.
        calibration: Key of the sensitivity cache.
    """
    measured, original = made.measured, bundle.path.resolve()
    recorded = original / MANIFEST
    return CompressionRecord(
        original=OriginalRecord(
            name=bundle.name,
            path=os.path.relpath(original, target.resolve()),
            sha256=sha256(recorded) if recorded.is_file() else None,
        ),
        recipe=made.plan.recipe.to_json(),
        allocation_gap=made.plan.gap,
        predicted_nbytes=made.plan.nbytes,
        nbytes=measured.nbytes,
        psnr_db=dict(measured.psnr_db),
        tuning=None if measured.tuning is None else TuningRecord(
            steps=config.tune_steps, kl_before=measured.tuning[0], kl_after=measured.tuning[1],
        ),
        gate=GateRecord.from_json({**asdict(config.gate), **asdict(made.verdict)}, "the gate"),
        path=tuple(describe(trial) for trial in trials),
        rejected=rejected,
        calibration=calibration,
    )  # fmt: skip


def original_of(bundle: Bundle, progress: Progress) -> Bundle:
    """The bundle itself, or the one it was compressed from.

    Raises:
        BundleError: It was compressed, and what it was made from is gone or changed.
    """
    recorded = bundle.manifest.compression.original if bundle.manifest.compression else None
    if recorded is None:
        return bundle
    place = bundle.path / recorded.path
    way_out = "pass the uncompressed bundle, or convert the model again"
    if not (place / MANIFEST).is_file():
        raise BundleError(f"{bundle.path} is compressed already, and its original is not at {place}; {way_out}")
    if sha256(place / MANIFEST) != recorded.sha256:
        raise BundleError(f"{bundle.path} is compressed already, and {place} is no longer its original; {way_out}")
    progress.note(f"{bundle.name} is compressed already; working from its original {place.resolve().name}")
    return Bundle.open(place)


def describe(trial: Trial) -> str:
    """A trial in one line."""
    verdict = trial.verdict
    return (
        f"{trial.nbytes / 1e6:9.3f} MB  KL {verdict.kl_divergence.value:.5f}  QoI {verdict.qoi.value:6.2f} % "
        f"({verdict.qoi.low:.1f} to {verdict.qoi.high:.1f})  WER {verdict.wer.value:.2f} % "
        f"({verdict.wer_delta.value:+.2f})  tokens {verdict.token_agreement.value:.2f} %  "
        f"{'pass' if verdict.passed else 'fail'}"
    )
