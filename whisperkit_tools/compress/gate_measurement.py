"""The reference bundle's transcripts, as calibration windows and as the standard for compressed bundles."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import samples_of, select_tuning
from whisperkit_tools.compress.forced_transcript import is_greedy
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.adapters import MemoizedModel
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.errors import AudioError, BundleError, option
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import minimum_errors, word_counts
from whisperkit_tools.memory import release_memory
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.gate import GateExample
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber, load_tokenizer

_MAX_EMBEDS_BYTES = 256 << 20  # of a candidate's audio embeddings, which forcing and transcribing share
_CUT_RATIO, _CUT_TOKENS = 2, 16  # the reference's tokens times the one plus the other are where a transcript is cut
_UNSETTLED_WORDS = 4  # at the end of a cut transcript


@dataclass(frozen=True, slots=True)
class ReferenceTranscript:
    """A bundle's transcript of one recording.

    Attributes:
        window: The window to force on other bundles. None for a recording longer than a window.
        text: The transcript.
        tokens: Number of its tokens, not counting the end of the text.
    """

    window: SpeechWindow | None
    text: str
    tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether the window holds the transcript to its end."""
        return self.window is not None and self.window.predicted == self.tokens + 1


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
        self.models, self.forcing = load_models(bundle, self.mel)
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
            return ReferenceTranscript(None, found.text, len(found.tokens))
        special = self.transcriber.special
        prefix = [special.start_of_transcript]
        if special.is_multilingual and found.language is not None:
            prefix += [special.languages[found.language], special.tasks[found.task]]
        prefix.append(special.no_timestamps)
        tokens = (*prefix, *found.tokens, special.end_of_text)[: len(prefix) + self._max_tokens]
        window = SpeechWindow(mel_features(recording, self.models), tokens, len(prefix))
        return ReferenceTranscript(window, found.text, len(found.tokens))


# --- calibration and tuning ------------------------------------------------------------------------------------------


def calibration_windows(reference: ReferenceTranscriber, recordings: Sequence[Recording]) -> list[SpeechWindow]:
    """Return the windows of those recordings in which something is said.

    Raises:
        AudioError: Nothing is said in any.
    """
    windows = spoken_windows(reference, recordings)
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
    judges = spoken_windows(reference, judging)
    windows = judges + spoken_windows(reference, tuned_on)
    if len(windows) == len(judges):  # there is no speech to tune on
        return calibration_windows(reference, [*judging, *tuned_on]), []
    return windows, list(range(len(judges)))


def spoken_windows(reference: ReferenceTranscriber, recordings: Sequence[Recording]) -> list[SpeechWindow]:
    """Return the windows of those recordings in which something is said, transcribed by the reference."""
    found = [reference.transcribe(recording, whole=False) for recording in recordings]
    return [item.window for item in found if item is not None and item.window is not None]


# --- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ReferenceExample:
    recording: Recording
    transcript: ReferenceTranscript | None
    truth: str
    logits: Tensor | None
    words: int
    errors: int


class GateMeasurement:
    """The gate's examples with the reference's transcripts, and the measurement of compressed bundles against them.

    Attributes:
        count: Number of examples.
        without_text: Number of examples whose true text is unknown. The reference's transcript counts as true there.
        seconds_per_example: Mean time that the reference took to transcribe an example.
    """

    def __init__(
        self,
        reference: ReferenceTranscriber,
        recordings: Sequence[Recording],
        uncompressed: ReferenceTranscriber | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Transcribe every recording once with the reference.

        Args:
            reference: The bundle to compare with.
            recordings: The gate's examples.
            uncompressed: The bundle that the measured ones were compressed from, where it is not the reference.
            progress: Told how many examples are transcribed.

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
        self._examples: list[_ReferenceExample] = []
        self._loaded: LoadedCandidate | None = None
        started, progress = time.monotonic(), progress or SilentProgress()
        for number, recording in enumerate(recordings, start=1):
            self._examples.append(self._reference_example(reference, recording))
            progress.advance("gate transcripts", number, len(recordings))
        self.seconds_per_example = (time.monotonic() - started) / max(1, len(recordings))
        self.count = len(recordings)
        self.without_text = sum(recording.text is None for recording in recordings)

    def _reference_example(self, reference: ReferenceTranscriber, recording: Recording) -> _ReferenceExample:
        found = reference.transcribe(recording)
        text = found.text if found else ""
        logits = None
        if found is not None and found.window is not None:
            embeds = reference.models.encode(found.window.features)
            logits = reference.forcing.forward(found.window, embeds).logits
        truth = recording.text if recording.text is not None else text
        counts = word_counts(*self._normalization.pair(truth, text, recording.language))
        return _ReferenceExample(recording, found, truth, logits, counts.reference, counts.errors)

    def load(self, folder: Path) -> "LoadedCandidate":
        """Load the bundle in a folder. It stays loaded until `release`, or until another one is."""
        if self._loaded is None or self._loaded.folder != folder:
            self.release()
            self._loaded = LoadedCandidate(folder, self._examples, self._mel, self._normalization)
        return self._loaded

    def release(self) -> None:
        """Let go of the loaded bundle, so that there is memory for the next."""
        self._loaded = None
        release_memory()

    def measure(self, folder: Path) -> list[GateExample]:
        """Measure the bundle in a folder on every example, to the end. Callers with a gate stop where it is certain."""
        candidate = self.load(folder)
        examples = candidate.forced()
        for at, example in enumerate(examples):
            if not example.is_final:
                examples[at] = candidate.transcribed(at, example, whole=True)
        return examples


class LoadedCandidate:
    """A compressed bundle that is measured on the gate's examples.

    Attributes:
        folder: Its folder.
    """

    def __init__(
        self, folder: Path, examples: Sequence[_ReferenceExample], mel: TensorModel, normalization: Normalization
    ) -> None:
        """Load the bundle. `GateMeasurement.load` does this."""
        self.folder = folder
        self._examples, self._normalization = examples, normalization
        bundle = Bundle.open(folder)
        self._models, self._forcing = load_models(bundle, mel, remembered=_MAX_EMBEDS_BYTES)
        self._transcriber = Transcriber.from_models(self._models, bundle)

    def forced(self) -> list[GateExample]:
        """Force the reference's transcripts on the bundle, which takes seconds where transcribing takes minutes.

        An example on which the bundle is certain to write the reference's transcript is measured with that. The others
        are pending.
        """
        return [self._forced(example) for example in self._examples]

    def _forced(self, example: _ReferenceExample) -> GateExample:
        found = GateExample(example.recording.id, example.words, example.errors, None, 0, 0, 0.0)
        transcript = example.transcript
        if transcript is None or transcript.window is None or example.logits is None:
            return found
        window = transcript.window
        every_step = replace(window, first=1)
        embeds = self._models.encode(mel_features(example.recording, self._models))
        logits = self._forcing.forward(every_step, embeds).logits
        chosen, options = logits[window.first - 1 :], decoding_options(example.recording, self._transcriber)
        is_same = transcript.is_whole and is_greedy(
            logits, window.tokens, window.first, self._transcriber.special, options
        )
        return replace(
            found,
            errors=example.errors if is_same else None,
            tokens=window.predicted,
            agreeing=int((chosen.argmax(-1) == example.logits.argmax(-1)).sum()),
            divergence=float(divergence(example.logits, chosen).sum()),
        )

    def transcribed(self, at: int, forced: GateExample, *, whole: bool = False) -> GateExample:
        """Transcribe one example.

        Args:
            at: Index of the example.
            forced: What is known of it.
            whole: Transcribe to the end. Otherwise a transcript that is much longer than the reference's is cut where
                no continuation could make it as good. Candidates that repeat themselves are cut.
        """
        example = self._examples[at]
        options = decoding_options(example.recording, self._transcriber)
        samples = samples_of(example.recording)
        limit = _CUT_RATIO * (example.transcript.tokens if example.transcript else 0) + _CUT_TOKENS
        if not whole and not options.timestamps:
            found = self._transcriber.transcribe(samples, replace(options, max_new_tokens=limit))
            if len(found.tokens) >= limit:
                errors = self._minimum_errors(example, found.text)
                if errors > example.errors:
                    return replace(forced, errors=errors, is_cut=True)
                found = self._transcriber.transcribe(samples, options)
        else:
            found = self._transcriber.transcribe(samples, options)
        counts = word_counts(*self._normalization.pair(example.truth, found.text, example.recording.language))
        return replace(forced, errors=counts.errors, is_cut=False)

    def _minimum_errors(self, example: _ReferenceExample, begun: str) -> int:
        """Return the fewest word errors of any text that begins with a cut transcript.

        What is normalised may depend on words that follow, as in "twenty five" and in brackets.
        """
        if any(bracket in begun for bracket in "([<{"):
            return 0
        settled = " ".join(begun.split()[:-_UNSETTLED_WORDS])
        reference, words = self._normalization.pair(example.truth, settled, example.recording.language)
        return minimum_errors(reference.split(), words.split())


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


def mel_features(recording: Recording, models: Models) -> Tensor:
    """Return the mel features of a recording of at most a window, padded with silence."""
    samples, padded = samples_of(recording), np.zeros(models.sizes.n_samples, np.float32)
    padded[: len(samples)] = samples
    return models.features(padded)


def load_models(bundle: Bundle, mel: TensorModel, remembered: int = 0) -> tuple[Models, TeacherForcing]:
    """Load a bundle's models, prefill included, but with the given spectrogram, which compression does not change.

    Args:
        bundle: The bundle.
        mel: The spectrogram.
        remembered: Bytes of audio embeddings to remember. Those of the last window are remembered in any case.
    """
    encoder, decoder = (bundle.package(name).program() for name in MODEL_COMPONENTS)
    prefill = bundle.package(contract.PREFILL).program() if bundle.has(contract.PREFILL) else None
    shape = [axis or 1 for axis in encoder.outputs[contract.EMBEDS].shape]
    capacity = max(1, remembered // (4 * math.prod(shape)))
    return Models(mel, MemoizedModel(encoder, capacity=capacity), decoder, prefill=prefill), TeacherForcing(decoder)
