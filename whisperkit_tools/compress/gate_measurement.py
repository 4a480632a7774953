"""The reference bundle's transcripts, as calibration windows and as the standard for compressed bundles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import samples_of, select_tuning
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.adapters import MemoizedModel
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.errors import AudioError, BundleError, option
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import word_counts
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.quantization.gate import GateExample
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber, load_tokenizer


@dataclass(frozen=True, slots=True)
class ReferenceTranscript:
    """A bundle's transcript of one recording.

    Attributes:
        window: The window to force on other bundles. None for a recording longer than a window.
        text: The transcript.
    """

    window: SpeechWindow | None
    text: str


class ReferenceTranscriber:
    """A reference bundle that transcribes recordings.

    Attributes:
        mel: Its spectrogram, which remembers the features that it has computed.
        models: Its models.
        forcing: Its decoder under teacher forcing.
        transcriber: Its transcriber.
    """

    def __init__(self, bundle: Bundle, max_tokens: int, mel: TensorModel | None = None) -> None:
        """Load the bundle.

        Args:
            bundle: The bundle.
            max_tokens: Maximum number of predicted tokens that count per window.
            mel: The spectrogram of another transcriber that knows the features of the same recordings.
        """
        self.mel = mel or MemoizedModel(bundle.package(contract.MEL).program())
        self.models, self.forcing = _load_bundle(bundle, self.mel)
        self.transcriber = Transcriber.from_models(self.models, bundle)
        self._max_tokens = max_tokens

    def transcribe(self, recording: Recording, *, whole: bool = True) -> ReferenceTranscript | None:
        """Transcribe a recording. Return None where nothing is said.

        Args:
            recording: The recording.
            whole: Transcribe to the end. Otherwise stop at the maximum number of tokens, which a window needs.
        """
        samples = samples_of(recording)
        options = decoding_options(recording, self.transcriber)
        if not whole:
            options = replace(options, max_new_tokens=self._max_tokens)
        found = self.transcriber.transcribe(samples, options)
        if not found.tokens:
            return None
        if len(samples) > self.models.sizes.n_samples:
            return ReferenceTranscript(None, found.text)
        special = self.transcriber.special
        prefix = [special.start_of_transcript]
        if special.is_multilingual and found.language is not None:
            prefix += [special.languages[found.language], special.tasks[found.task]]
        prefix.append(special.no_timestamps)
        tokens = (*prefix, *found.tokens, special.end_of_text)[: len(prefix) + self._max_tokens]
        return ReferenceTranscript(SpeechWindow(_features(recording, self.models), tokens, len(prefix)), found.text)


# --- calibration and tuning ------------------------------------------------------------------------------------------


def calibration_windows(reference: ReferenceTranscriber, recordings: Sequence[Recording]) -> list[SpeechWindow]:
    """Return the windows of those recordings in which something is said.

    Raises:
        AudioError: Nothing is said in any.
    """
    windows = _windows(reference, recordings)
    if not windows:
        raise AudioError(
            f"the calibration audio has no speech: the bundle transcribes nothing in any of {len(recordings)} windows; "
            f"name a folder with speech ({option('calibration')})"
        )
    return windows


def tuning_windows(
    reference: ReferenceTranscriber, source: str | Path | None, limit: int, steps: int
) -> tuple[list[SpeechWindow], list[int]]:
    """Return the windows of the sentences that `select_tuning` selects, and the indices of those that judge.

    Raises:
        AudioError: Nothing is said in any.
    """
    tuned_on, judging = select_tuning(source, limit, reference.models.sizes.n_samples, steps)
    judges = _windows(reference, judging)
    windows = judges + _windows(reference, tuned_on)
    if len(windows) == len(judges):  # there is no speech to tune on
        return calibration_windows(reference, [*judging, *tuned_on]), []
    return windows, list(range(len(judges)))


def _windows(reference: ReferenceTranscriber, recordings: Sequence[Recording]) -> list[SpeechWindow]:
    found = [reference.transcribe(recording, whole=False) for recording in recordings]
    return [item.window for item in found if item is not None and item.window is not None]


# --- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ReferenceExample:
    recording: Recording
    transcript: ReferenceTranscript | None
    truth: str
    logits: Tensor | None


class GateMeasurement:
    """Measurement of compressed bundles against the reference on the gate's examples.

    Attributes:
        without_text: Number of examples whose true text is unknown. The reference's transcript counts as true there.
    """

    def __init__(
        self,
        reference: ReferenceTranscriber,
        recordings: Sequence[Recording],
        uncompressed: ReferenceTranscriber | None = None,
    ) -> None:
        """Transcribe every recording once with the reference.

        Args:
            reference: The bundle to compare with.
            recordings: The gate's examples.
            uncompressed: The bundle that the measured ones were compressed from, where it is not the reference.

        Raises:
            BundleError: The two have different sizes, so that their features and tokens do not correspond.
        """
        measured = uncompressed or reference
        if differing := [
            f"{field} {getattr(measured.models.sizes, field)}, the reference {getattr(reference.models.sizes, field)}"
            for field in ("vocab_size", "n_frames", "n_samples")
            if getattr(measured.models.sizes, field) != getattr(reference.models.sizes, field)
        ]:
            raise BundleError(
                f"the bundles cannot be compared: it has {'; '.join(differing)}; name another {option('reference')}"
            )
        self._normalization = Normalization()
        self._mel = measured.mel
        self._examples = [_reference_example(reference, recording) for recording in recordings]
        self.without_text = sum(recording.text is None for recording in recordings)

    def measure(self, folder: Path) -> list[GateExample]:
        """Transcribe every example with the bundle in a folder, and force the reference's transcripts on it."""
        bundle = Bundle.open(folder)
        models, forcing = _load_bundle(bundle, self._mel)
        transcriber = Transcriber.from_models(models, bundle)
        return [self._measure(example, models, forcing, transcriber) for example in self._examples]

    def _measure(
        self, example: _ReferenceExample, models: Models, forcing: TeacherForcing, transcriber: Transcriber
    ) -> GateExample:
        recording, transcript = example.recording, example.transcript
        found = transcriber.transcribe(samples_of(recording), decoding_options(recording, transcriber)).text
        words, reference_errors = self._errors(example, transcript.text if transcript else "")
        _, errors = self._errors(example, found)
        tokens, agreeing, total = 0, 0, 0.0
        window = transcript.window if transcript else None
        if window is not None and example.logits is not None:
            logits = forcing.forward(window, models.encode(_features(recording, models))).logits
            tokens = window.predicted
            agreeing = int((logits.argmax(-1) == example.logits.argmax(-1)).sum())
            total = float(divergence(example.logits, logits).sum())
        return GateExample(recording.id, words, reference_errors, errors, tokens, agreeing, total)

    def _errors(self, example: _ReferenceExample, text: str) -> tuple[int, int]:
        """Return the words of the truth and the word errors, normalised for the language, as in evaluations.

        Where nothing is said every transcribed word is an error.
        """
        counts = word_counts(*self._normalization.pair(example.truth, text, example.recording.language))
        return counts.reference, counts.errors


def _reference_example(reference: ReferenceTranscriber, recording: Recording) -> _ReferenceExample:
    found = reference.transcribe(recording)
    text = found.text if found else ""
    logits = None
    if found is not None and found.window is not None:
        embeds = reference.models.encode(found.window.features)
        logits = reference.forcing.forward(found.window, embeds).logits
    return _ReferenceExample(recording, found, recording.text if recording.text is not None else text, logits)


# --- bundles ---------------------------------------------------------------------------------------------------------


def known_languages(bundle: Bundle) -> tuple[str, ...]:
    """Return the codes of the languages that a bundle's model knows. No model is loaded."""
    vocab_size = bundle.package(contract.DECODER).graph().outputs[contract.LOGITS].shape[-1]
    positions = bundle.package(contract.ENCODER).graph().outputs[contract.EMBEDS].shape[-1]
    tokenizer = load_tokenizer(bundle, vocab_size=vocab_size or 0, n_audio_ctx=positions or 0)
    return ("en", *tokenizer.special.languages)


def decoding_options(recording: Recording, transcriber: Transcriber) -> TranscribeOptions:
    """Return how a recording is transcribed for calibration and the gate.

    Greedy: equal logits give equal words, and a candidate that only repeats itself costs no five more attempts.
    """
    is_long = len(samples_of(recording)) > transcriber.models.sizes.n_samples
    language = recording.language if transcriber.special.is_multilingual else None  # other models take none
    return TranscribeOptions(language=language, timestamps=is_long, temperatures=(0.0,))


def _features(recording: Recording, models: Models) -> Tensor:
    """Return the mel features of a recording of at most a window, padded with silence."""
    samples, padded = samples_of(recording), np.zeros(models.sizes.n_samples, np.float32)
    padded[: len(samples)] = samples
    return models.features(padded)


def _load_bundle(bundle: Bundle, mel: TensorModel) -> tuple[Models, TeacherForcing]:
    """Load a bundle's models, prefill included, but with the given spectrogram, which compression does not change."""
    encoder, decoder = (bundle.package(name).program() for name in MODEL_COMPONENTS)
    prefill = bundle.package(contract.PREFILL).program() if bundle.has(contract.PREFILL) else None
    return Models(mel, MemoizedModel(encoder, capacity=1), decoder, prefill=prefill), TeacherForcing(decoder)
