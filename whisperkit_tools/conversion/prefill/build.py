"""The prefill in a conversion: its options, its package, and the gate that lets it stay."""

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
from whisperkit_tools.conversion.prefill.audio import SEED, SOURCES, PrefillAudio, decoded, demo_audio, own_audio
from whisperkit_tools.conversion.prefill.evidence import PrefillEvidence, gather_evidence, read_table
from whisperkit_tools.conversion.prefill.table import PrefillTable, encode, estimate, forced_tokens
from whisperkit_tools.errors import ConversionError, OptionsError, QualityGateError, option
from whisperkit_tools.manifest import PrefillRecord
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.progress import Progress
from whisperkit_tools.signals import psnr_db
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import load_audio, recordings_in

DEFAULT_MAX_WER_DELTA = 0.2
Export = Callable[[torch.nn.Module, PackageInterface, Path], None]
"""Writes a module as a package, and checks its contract."""


@dataclass(frozen=True, slots=True)
class PrefillOptions:
    """How the prefill is made, and what it must show.

    Attributes:
        source: The audio of the mean: `speech`, `noise` or `mixed`.
        audio: The user's own speech, as a folder or as recordings. None for the demo's. In a folder, `a.wav` has its
            transcript in `a.txt`.
        max_wer_delta: Maximum number of points by which the WER may rise. Above it, the prefill is left out.
        strict: Whether a prefill that is left out, or whose effect could not be measured, fails the conversion.
        required: Whether a model that can have no prefill fails the conversion. Otherwise it does without.
    """

    source: str = "speech"
    audio: Path | str | tuple[Recording, ...] | None = None
    max_wer_delta: float = DEFAULT_MAX_WER_DELTA
    strict: bool = False
    required: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: Values are unknown, out of range, or contradict each other. All are named.
        """
        source, audio, delta = option("prefill_from"), option("prefill_audio"), option("prefill_max_wer_delta")
        problems = []
        if self.source not in SOURCES:
            problems.append(f"{source} is {self.source!r}, known are {', '.join(SOURCES)}")
        if self.source == "noise" and self.audio:
            problems.append(f"{source} is 'noise', which takes no {audio}; omit one of the two")
        if not (np.isfinite(self.max_wer_delta) and self.max_wer_delta >= 0):
            problems.append(f"{delta} is {self.max_wer_delta}, expected points of WER, 0 or more")
        if isinstance(self.audio, str | Path) and not Path(self.audio).is_dir():
            what = "is not a folder" if Path(self.audio).exists() else "does not exist"
            problems.append(f"{audio} is {self.audio}, which {what}; name a folder with speech")
        if problems:
            raise OptionsError("; ".join(problems))

    def check_verified(self, verify: bool) -> None:
        """Refuse `strict` without verification.

        Raises:
            OptionsError: The evidence that `strict` needs would not be gathered.
        """
        if self.strict and not verify:
            raise OptionsError(
                f"{option('strict')} asks for the evidence that {option('verify', False)} skips; omit one of the two"
            )

    def recordings(self) -> tuple[Recording, ...]:
        """Return the user's own recordings, decoded.

        Raises:
            AudioError: The folder has no audio, or a file is broken.
        """
        if self.audio is None:
            return ()
        found = recordings_in(self.audio) if isinstance(self.audio, str | Path) else self.audio
        return tuple(decoded(item, load_audio) for item in found)


@dataclass(frozen=True, slots=True)
class PrefillOutcome:
    """The outcome for the prefill.

    Attributes:
        included: Whether the bundle has it.
        reason: Why not, or what to know. May be empty.
        forced: Tokens, languages and tasks that it holds. None when there can be none.
        source: The source of the mean.
        own_audio: Whether that was the user's speech.
        windows: Number of windows of it.
        evidence: The measurements. None without verification.
        parity: The package against the table it was made from. None without verification.
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
        """Return the outcome in words, for the user."""
        if self.forced is None:
            return [f"prefill left out: {self.reason}"]
        what = f"{self.forced.length} tokens, mean over {self.windows} windows ({self.source})"
        lines = [f"prefill {'included' if self.included else 'left out'}: {what}"]
        lines += [f"  {line}" for line in self.evidence.lines()] if self.evidence else []
        return lines + ([f"  {self.reason}"] if self.reason else [])


class PrefillStage:
    """Makes the package and judges it."""

    def __init__(self, checkpoint: Checkpoint, options: PrefillOptions, *, verify: bool, progress: Progress) -> None:
        """Prepare, before anything is computed.

        Raises:
            OptionsError: `strict` is set without `verify`.
            ConversionError: There can be no prefill, and it is required.
            AudioError: The user's recordings cannot be read.
        """
        options.check_verified(verify)
        self.checkpoint, self.options, self.verify, self.progress = checkpoint, options, verify, progress
        self.forced: ForcedTokens | None = None
        self.impossible = ""
        try:
            self.forced = forced_tokens(checkpoint.generation_config)
        except ConversionError as error:
            if options.required or options.strict:
                raise ConversionError(f"{error.message}, or omit the prefill ({option('prefill', False)})") from error
            self.impossible = str(error)
        self.recordings = options.recordings() if self.forced else ()

    def run(self, folder: Path, export: Export) -> PrefillOutcome:
        """Add the package to a folder that holds all but the manifest, and remove it again unless it holds up.

        Raises:
            QualityGateError: With `strict`, when it is left out or its effect could not be measured.
        """
        if self.forced is None:
            return PrefillOutcome(False, self.impossible)
        source = self.options.source
        audio = own_audio(source, self.recordings) if self.recordings else demo_audio(source)
        path = folder / f"{PREFILL}.mlpackage"
        with self.progress.stage(PREFILL, "estimate"):
            table = estimate(self.checkpoint, self.forced, encode(self.checkpoint, audio.windows))
        with self.progress.stage(PREFILL, "export"):
            export(table.module(), prefill_interface(self.checkpoint.dims, self.forced.length), path)
        outcome = self._judged(folder, path, table, audio)
        if self.options.strict and (not outcome.included or outcome.reason):
            raise QualityGateError("\n".join(outcome.lines()))
        if not outcome.included:
            for made in folder.glob(f"{PREFILL}.*"):
                shutil.rmtree(made)
        return outcome

    def _judged(self, folder: Path, path: Path, table: PrefillTable, audio: PrefillAudio) -> PrefillOutcome:
        evidence, parity, included = None, None, True
        reason = "its effect was not measured, because verification was skipped"
        if self.verify:
            with self.progress.stage(PREFILL, "verify: package"):
                parity, read = package_parity(path, table)
            with self.progress.stage(PREFILL, "verify: speech"):
                evidence = gather_evidence(self.checkpoint, folder, read, audio, self.options.max_wer_delta)
            included, reason = not (evidence.is_harmful or evidence.alike), _reason(evidence)
        return PrefillOutcome(
            included=included,
            reason=reason,
            forced=table.forced,
            source=self.options.source,
            own_audio=bool(self.recordings),
            windows=len(audio.windows),
            evidence=evidence,
            parity=parity,
        )


def _reason(evidence: PrefillEvidence) -> str:
    """Return why the prefill is left out, or what to know. It is recorded, so it names no option of a command."""
    if evidence.is_harmful:
        return (
            f"the WER rises by {evidence.wer_delta:.2f} points, more than {evidence.max_wer_delta:g}; choose another "
            "source or other speech for the prefill, or raise the limit of its WER"
        )
    if evidence.alike:
        return f"{evidence.inconclusive}; make the prefill from speech that the model understands"
    return evidence.inconclusive


def package_parity(path: Path, table: PrefillTable) -> tuple[ComponentParity, PrefillTable]:
    """Compare a package's look-ups with the table it was made from. Also return its table as read in float32."""
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
