"""What the uncompressed bundle makes of clips, as calibration windows, and how compressed ones do in comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import Clip, tuning_clips
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.adapters import MemoizedModel
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.errors import AudioError, BundleError
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import word_counts
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.quantization.gate import Example
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber


@dataclass(frozen=True, slots=True)
class Heard:
    """What a bundle makes of one clip: the window to force on others (None of a longer clip), and the text."""

    window: SpeechWindow | None
    text: str


class Listener:
    """The uncompressed bundle, listening."""

    def __init__(self, bundle: Bundle, max_tokens: int, mel: TensorModel | None = None) -> None:
        """Load the bundle.

        Args:
            bundle: The uncompressed bundle.
            max_tokens: Most predicted tokens that count of one window.
            mel: Its spectrogram, where another listener has loaded it already and knows features of the same clips.
        """
        self.mel = mel or MemoizedModel(bundle.package(contract.MEL).program())
        self.models, self.forcing = _load_bundle(bundle, self.mel)
        self.transcriber = Transcriber.from_models(self.models, bundle)
        self._max_tokens = max_tokens

    def hear(self, clip: Clip, *, whole: bool = True) -> Heard | None:
        """Transcribe a clip; None where nothing is said.

        Args:
            clip: The clip.
            whole: To the end; otherwise no further than tokens count, which is all that a window needs.
        """
        options = _options(clip, self.models)
        if not whole:
            options = replace(options, max_new_tokens=self._max_tokens)
        found = self.transcriber.transcribe(clip.audio, options)
        if not found.tokens:
            return None
        if len(clip.audio) > self.models.sizes.n_samples:
            return Heard(None, found.text)
        special = self.transcriber.special
        prefix = [special.start_of_transcript]
        if special.is_multilingual and found.language is not None:
            prefix += [special.languages[found.language], special.tasks[found.task]]
        prefix.append(special.no_timestamps)
        tokens = (*prefix, *found.tokens, special.end_of_text)[: len(prefix) + self._max_tokens]
        return Heard(SpeechWindow(self.features(clip), tokens, len(prefix)), found.text)

    def features(self, clip: Clip) -> Tensor:
        """Mel features of a clip, filled up with silence."""
        return _features(clip, self.models)


def calibration_windows(listener: Listener, clips: Sequence[Clip]) -> list[SpeechWindow]:
    """The windows of those clips in which something is said.

    Raises:
        AudioError: Nothing is said in any.
    """
    windows = _heard(listener, clips)
    if not windows:
        raise AudioError(
            f"the calibration audio holds no speech: the bundle hears nothing in any of {len(clips)} windows; "
            "name a folder with speech (--calibration DIR)"
        )
    return windows


def tuning_windows(
    listener: Listener, source: str | Path | None, limit: int, steps: int
) -> tuple[list[SpeechWindow], list[int]]:
    """The windows for tuning as `tuning_clips` has them, and the indices of those that judge.

    Raises:
        AudioError: Nothing is said in any.
    """
    tuned_on, judging = tuning_clips(source, limit, listener.models.sizes.n_samples, steps)
    judges = _heard(listener, judging)
    windows = judges + _heard(listener, tuned_on)
    if len(windows) == len(judges):  # what is tuned on holds no speech
        return calibration_windows(listener, [*judging, *tuned_on]), []
    return windows, list(range(len(judges)))


def _heard(listener: Listener, clips: Sequence[Clip]) -> list[SpeechWindow]:
    heard = [listener.hear(clip, whole=False) for clip in clips]
    return [item.window for item in heard if item is not None and item.window is not None]


def _options(clip: Clip, models: Models) -> TranscribeOptions:
    # Greedy: the same words from the same logits, and a candidate that only stammers costs no five more attempts.
    is_long = len(clip.audio) > models.sizes.n_samples
    return TranscribeOptions(language=clip.language, timestamps=is_long, temperatures=(0.0,))


@dataclass(frozen=True, slots=True)
class _Reference:
    clip: Clip
    heard: Heard | None
    truth: str
    logits: Tensor | None


class Examination:
    """Measures compressed bundles against the uncompressed one on the gate's clips; what the gate calls."""

    def __init__(self, listener: Listener, clips: Sequence[Clip], compressed_from: Listener | None = None) -> None:
        """Hear every clip once.

        Args:
            listener: The bundle to compare with.
            clips: The gate's examples.
            compressed_from: The uncompressed bundle, where that is another one.

        Raises:
            BundleError: The two do not have the same sizes, so that their features and tokens mean different things.
        """
        measured = compressed_from or listener
        if differing := [
            f"{field} {getattr(measured.models.sizes, field)}, the reference {getattr(listener.models.sizes, field)}"
            for field in ("vocab_size", "n_frames", "n_samples")
            if getattr(measured.models.sizes, field) != getattr(listener.models.sizes, field)
        ]:
            raise BundleError(
                f"the bundles cannot be compared: it has {'; '.join(differing)}; name another --reference"
            )
        self._normalization = Normalization()
        self._mel = measured.mel
        self._references = [self._refer(listener, clip) for clip in clips]
        self.without_text = sum(clip.text is None for clip in clips)

    def _refer(self, listener: Listener, clip: Clip) -> _Reference:
        heard = listener.hear(clip)
        text = heard.text if heard else ""
        logits = None
        if heard is not None and heard.window is not None:
            logits = listener.forcing.forward(heard.window, listener.models.encode(heard.window.features)).logits
        return _Reference(clip, heard, clip.text if clip.text is not None else text, logits)

    def measure(self, folder: Path) -> list[Example]:
        """Transcribe every clip with the bundle in a folder, and force the reference's transcripts on it."""
        bundle = Bundle.open(folder)
        models, forcing = _load_bundle(bundle, self._mel)
        transcriber = Transcriber.from_models(models, bundle)
        return [self._example(reference, models, forcing, transcriber) for reference in self._references]

    def _example(
        self, reference: _Reference, models: Models, forcing: TeacherForcing, transcriber: Transcriber
    ) -> Example:
        found = transcriber.transcribe(reference.clip.audio, _options(reference.clip, models)).text
        before = reference.heard.text if reference.heard else ""
        words, reference_errors = self._errors(reference, before)
        _, errors = self._errors(reference, found)
        tokens, agreeing, total = 0, 0, 0.0
        window = reference.heard.window if reference.heard else None
        if window is not None and reference.logits is not None:
            features = _features(reference.clip, models)
            logits = forcing.forward(window, models.encode(features)).logits
            tokens = window.predicted
            agreeing = int((logits.argmax(-1) == reference.logits.argmax(-1)).sum())
            total = float(divergence(reference.logits, logits).sum())
        return Example(reference.clip.name, words, reference_errors, errors, tokens, agreeing, total)

    def _errors(self, reference: _Reference, text: str) -> tuple[int, int]:
        """Words of the truth, and word errors, after the normaliser of the clip's language, as in evaluations.

        Where nothing is said every word heard is an error.
        """
        counts = word_counts(*self._normalization.pair(reference.truth, text, reference.clip.language))
        return counts.reference, counts.errors


def _features(clip: Clip, models: Models) -> Tensor:
    samples = np.zeros(models.sizes.n_samples, np.float32)
    samples[: len(clip.audio)] = clip.audio
    return models.features(samples)


def _load_bundle(bundle: Bundle, mel: TensorModel) -> tuple[Models, TeacherForcing]:
    """A bundle's models, its prefill too, but for the spectrogram, which compression leaves as it is."""
    encoder, decoder = (bundle.package(name).program() for name in MODEL_COMPONENTS)
    prefill = bundle.package(contract.PREFILL).program() if bundle.has(contract.PREFILL) else None
    return Models(mel, MemoizedModel(encoder, capacity=1), decoder, prefill=prefill), TeacherForcing(decoder)
