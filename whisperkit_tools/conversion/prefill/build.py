"""The prefill's part of a conversion: what is asked for, the package, and whether the evidence lets it stay."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from whisperkit_tools import contract
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.context_prefill import ForcedTokens
from whisperkit_tools.contract import PREFILL, PackageInterface, prefill_interface
from whisperkit_tools.conversion.parity import ComponentParity
from whisperkit_tools.conversion.prefill.audio import SEED, SOURCES, PrefillAudio, demo_audio, own_audio
from whisperkit_tools.conversion.prefill.evidence import PrefillEvidence, Transcripts, gather_evidence, read_table
from whisperkit_tools.conversion.prefill.table import PrefillTable, encode, estimate, forced_tokens
from whisperkit_tools.errors import ConversionError, QualityGateError
from whisperkit_tools.manifest import PrefillRecord
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.progress import Progress
from whisperkit_tools.signals import psnr_db
from whisperkit_tools.speech import Recording

DEFAULT_MAX_WER_DELTA = 0.2
Export = Callable[[torch.nn.Module, PackageInterface, Path], None]
"""Writes a module as a package, and checks its contract."""


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """How the prefill is made, and what it must show.

    Attributes:
        source: What the mean is taken over: `speech`, `noise` or `mixed`.
        recordings: The user's own speech; the demo's when empty.
        transcripts: Transcribes with a bundle's packages, for the evidence; None leaves the transcripts unmeasured.
        max_wer_delta: The most points by which the WER may rise, or the prefill is left out.
        strict: Whether a prefill that is left out, or whose effect could not be measured, fails the conversion.
        required: Whether a model that can have no prefill fails the conversion; otherwise it does without.
    """

    source: str = "speech"
    recordings: tuple[Recording, ...] = ()
    transcripts: Transcripts | None = None
    max_wer_delta: float = DEFAULT_MAX_WER_DELTA
    strict: bool = False
    required: bool = True

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConversionError: Values are unknown, out of range, or do not fit each other; all are named.
        """
        problems = []
        if self.source not in SOURCES:
            problems.append(f"--prefill-from is {self.source!r}, known are {', '.join(SOURCES)}")
        if self.source == "noise" and self.recordings:
            problems.append("--prefill-from is 'noise', which takes no --prefill-audio; leave one of the two out")
        if not (np.isfinite(self.max_wer_delta) and self.max_wer_delta >= 0):
            problems.append(f"--prefill-max-wer-delta is {self.max_wer_delta}, expected points of WER, 0 or more")
        if problems:
            raise ConversionError("; ".join(problems))

    def audio(self) -> PrefillAudio:
        """What the mean is taken over, and what it is judged on."""
        return own_audio(self.source, self.recordings) if self.recordings else demo_audio(self.source)


@dataclass(frozen=True, slots=True)
class PrefillOutcome:
    """What became of the prefill.

    Attributes:
        included: Whether the bundle has it.
        reason: Why not, or what to know; may be empty.
        forced: Tokens, languages and tasks that it holds; None when there can be none.
        source: What the mean was taken over.
        own_audio: Whether that was the user's speech.
        windows: How many windows of it.
        evidence: What was measured; None without verification.
        parity: The package against the table it was made from; None without verification.
    """

    included: bool
    reason: str
    forced: ForcedTokens | None = None
    source: str = ""
    own_audio: bool = False
    windows: int = 0
    evidence: PrefillEvidence | None = None
    parity: ComponentParity | None = None

    def recorded(self) -> PrefillRecord:
        """Return the section of the manifest."""
        forced = self.forced
        return PrefillRecord(
            included=self.included,
            reason=self.reason,
            tokens=forced.length if forced else 0,
            languages=len(forced.languages) if forced else 0,
            tasks=len(forced.tasks) if forced else 0,
            source=self.source,
            audio="recordings" if self.own_audio else "demo",
            windows=self.windows,
            seed=SEED,
            evidence=self.evidence.recorded() if self.evidence else None,
        )

    def lines(self) -> list[str]:
        """The outcome in words, for the user."""
        if self.forced is None:
            return [f"prefill left out: {self.reason}"]
        what = f"{self.forced.length} tokens, mean over {self.windows} windows ({self.source})"
        lines = [f"prefill {'included' if self.included else 'left out'}: {what}"]
        lines += [f"  {line}" for line in self.evidence.lines()] if self.evidence else []
        return lines + ([f"  {self.reason}"] if self.reason else [])


class PrefillStage:
    """Makes the package and judges it."""

    def __init__(self, checkpoint: Checkpoint, config: PrefillConfig, *, verify: bool, progress: Progress) -> None:
        """Prepare, before anything is computed.

        Raises:
            ConversionError: There can be no prefill, and it was asked for by name; or `strict` without `verify`.
        """
        if config.strict and not verify:
            raise ConversionError("--strict asks for the evidence that --no-verify skips; leave one of them out")
        self.checkpoint, self.config, self.verify, self.progress = checkpoint, config, verify, progress
        self.forced: ForcedTokens | None = None
        self.impossible = ""
        try:
            self.forced = forced_tokens(checkpoint.generation_config)
        except ConversionError as error:
            if config.required or config.strict:
                raise
            self.impossible = str(error)

    def run(self, folder: Path, export: Export) -> PrefillOutcome:
        """Add the package to a folder that holds all else but the manifest; take it away again unless it holds up.

        Raises:
            QualityGateError: With `strict`, when it is left out or what it changes could not be measured.
        """
        if self.forced is None:
            return PrefillOutcome(False, self.impossible)
        audio = self.config.audio()
        path = folder / f"{PREFILL}.mlpackage"
        with self.progress.stage(PREFILL, "estimate"):
            table = estimate(self.checkpoint, self.forced, encode(self.checkpoint, audio.windows))
        with self.progress.stage(PREFILL, "export"):
            export(table.module(), prefill_interface(self.checkpoint.dims, self.forced.length), path)
        outcome = self._judged(folder, path, table, audio)
        if self.config.strict and (not outcome.included or outcome.reason):
            raise QualityGateError("\n".join(outcome.lines()))
        if not outcome.included:
            for made in folder.glob(f"{PREFILL}.*"):
                shutil.rmtree(made)
        return outcome

    def _judged(self, folder: Path, path: Path, table: PrefillTable, audio: PrefillAudio) -> PrefillOutcome:
        evidence, parity, included = None, None, True
        reason = "what it changes was not measured (--no-verify)"
        if self.verify:
            with self.progress.stage(PREFILL, "verify: package"):
                parity, read = package_parity(path, table)
            with self.progress.stage(PREFILL, "verify: speech"):
                evidence = gather_evidence(
                    self.checkpoint, folder, read, audio, self.config.transcripts, self.config.max_wer_delta
                )
            included, reason = not (evidence.is_harmful or evidence.alike), _reason(evidence)
        return PrefillOutcome(
            included=included,
            reason=reason,
            forced=table.forced,
            source=self.config.source,
            own_audio=bool(self.config.recordings),
            windows=len(audio.windows),
            evidence=evidence,
            parity=parity,
        )


def _reason(evidence: PrefillEvidence) -> str:
    if evidence.is_harmful:
        return (
            f"the WER rises by {evidence.wer_delta:.2f} points, more than {evidence.max_wer_delta:g}; try other "
            "--prefill-from or --prefill-audio, or raise --prefill-max-wer-delta"
        )
    if evidence.alike:
        return f"{evidence.emptiness}; hand in speech that the model understands with --prefill-audio"
    return evidence.emptiness


def package_parity(path: Path, table: PrefillTable) -> tuple[ComponentParity, PrefillTable]:
    """Compare a package's look-ups with the table it was made from; also return what it gives in float32."""
    precisions: tuple[Precision, ...] = ("float32", "float16")
    found = {precision: read_table(path, table.forced, precision) for precision in precisions}
    figures = {
        precision: {
            name: psnr_db(expected.half().numpy(), given.numpy())
            for name, expected, given in (
                (contract.KEY_PREFILL, table.keys, read.keys),
                (contract.VALUE_PREFILL, table.values, read.values),
            )
        }
        for precision, read in found.items()
    }
    return ComponentParity(PREFILL, figures["float32"], figures["float16"]), found["float32"]
