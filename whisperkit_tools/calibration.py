"""Speech for compression: windows on which sensitivity is measured, and examples by which the gate judges.

Both come from the demo's recordings, which any Whisper understands, or from a folder of the user's own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.bundle import PACKAGES, Bundle
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError
from whisperkit_tools.eval.normalize import Normalization
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.gate import Example
from whisperkit_tools.quantization.teacher import TeacherForcing, Window, divergence
from whisperkit_tools.transcribe.audio import SAMPLE_RATE_HZ, find_inputs, load_audio
from whisperkit_tools.transcribe.models import Models
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

FloatArray = NDArray[np.float32]
_LEAST_S = 1.0
_SHARES = (1.0, 0.1, 0.4, 0.15)  # of a window: the lengths of calibration speech in turn


@dataclass(frozen=True, slots=True)
class Clip:
    """One stretch of audio that fits a window.

    Attributes:
        name: For messages.
        audio: Samples at 16 kHz.
        text: What is said, or None when nobody wrote it down.
        language: Its code, or None to detect it.
    """

    name: str
    audio: FloatArray
    text: str | None = None
    language: str | None = None

    @property
    def sha256(self) -> str:
        """Of the samples."""
        return hashlib.sha256(np.ascontiguousarray(self.audio).tobytes()).hexdigest()


def calibration_clips(folder: Path | None, windows: int, window_samples: int) -> list[Clip]:
    """Stretches of at most a window, short and long in turn, taken evenly from all of the audio.

    Weights matter differently where little is said and the rest of a window is silence.

    Args:
        folder: Where the audio is; None for the demo's long recordings.
        windows: At most so many.
        window_samples: Samples of a window.

    Raises:
        AudioError: There is no audio, or it is too short.
    """
    paths = [item.path for item in demo_longform()] if folder is None else _audio_files(folder)
    lengths = tuple(int(window_samples * share) for share in _SHARES)
    clips = [clip for path in paths for clip in _cut(path, lengths)]
    if not clips:
        raise AudioError(f"{folder}: the audio is shorter than {_LEAST_S:g} s; name a folder with speech")
    return [clips[at] for at in _evenly(len(clips), windows)]


def gate_clips(folder: Path | None, limit: int | None, languages: Sequence[str], window_samples: int) -> list[Clip]:
    """The examples of the gate.

    Args:
        folder: Audio files, each with what is said in a `.txt` of the same name beside it; without that the
            uncompressed bundle's own transcript is taken for true. None for the demo's utterances.
        limit: At most so many, taken evenly; None for all.
        languages: Codes that the model knows; the demo's utterances in others are left out.
        window_samples: Samples of a window; a longer file counts as several examples, and has no text.

    Raises:
        AudioError: There is no audio.
    """
    if folder is None:
        chosen = [item for item in demo_utterances() if item.language in languages]
        clips = [Clip(item.id, _load(item.path), item.text, item.language) for item in chosen]
    else:
        clips = [clip for path in _audio_files(folder) for clip in _with_text(path, _cut(path, (window_samples,)))]
    if not clips:
        raise AudioError(f"{folder or 'the demo'} holds no example for the gate; name a folder with --gate-audio")
    return [clips[at] for at in _evenly(len(clips), limit or len(clips))]


def _with_text(path: Path, clips: list[Clip]) -> list[Clip]:
    text = path.with_suffix(".txt")
    if len(clips) != 1 or not text.is_file():
        return clips
    return [Clip(path.name, clips[0].audio, text.read_text(encoding="utf-8").strip())]


def _audio_files(folder: Path) -> list[Path]:
    return [item.path for item in find_inputs([str(folder)]) if item.path is not None]


def _load(path: Path) -> FloatArray:
    return load_audio(find_inputs([str(path)])[0])


def _cut(path: Path, lengths: Sequence[int]) -> list[Clip]:
    """Cut audio into consecutive pieces of these lengths in turn."""
    audio = _load(path)
    least, start = int(_LEAST_S * SAMPLE_RATE_HZ), 0
    pieces: list[FloatArray] = []
    while start < len(audio):
        stop = start + lengths[len(pieces) % len(lengths)]
        pieces.append(audio[start:stop])
        start = stop
    return [Clip(f"{path.name}#{at}", piece) for at, piece in enumerate(pieces) if len(piece) >= least]


def _evenly(count: int, wanted: int) -> list[int]:
    if count <= wanted:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, wanted)})


@dataclass(frozen=True, slots=True)
class Heard:
    """What a bundle makes of one clip: the window to force on others, and the text."""

    window: Window
    text: str


class Listener:
    """The uncompressed bundle, listening."""

    def __init__(self, bundle: Bundle, max_tokens: int) -> None:
        """Load the bundle.

        Args:
            bundle: The uncompressed bundle.
            max_tokens: Most predicted tokens that count of one window.
        """
        self.models, self.forcing = _load_bundle(bundle)
        self.transcriber = Transcriber.from_models(self.models, bundle)
        self._max_tokens = max_tokens

    def hear(self, clip: Clip) -> Heard | None:
        """Transcribe a clip; None where nothing is said."""
        found = self.transcriber.transcribe(clip.audio, _options(clip))
        if not found.tokens:
            return None
        special = self.transcriber.special
        prefix = [special.start_of_transcript]
        if special.is_multilingual:
            prefix += [special.languages[found.language], special.tasks[found.task]]
        prefix.append(special.no_timestamps)
        tokens = (*prefix, *found.tokens, special.end_of_text)[: len(prefix) + self._max_tokens]
        return Heard(Window(self.features(clip), tokens, len(prefix)), found.text)

    def features(self, clip: Clip) -> Tensor:
        """Mel features of a clip, filled up with silence."""
        samples = np.zeros(self.models.sizes.n_samples, np.float32)
        samples[: len(clip.audio)] = clip.audio
        return self.models.features(samples)


def calibration_windows(listener: Listener, clips: Sequence[Clip]) -> list[Window]:
    """The windows of those clips in which something is said.

    Raises:
        AudioError: Nothing is said in any.
    """
    heard = [listener.hear(clip) for clip in clips]
    windows = [item.window for item in heard if item is not None]
    if not windows:
        raise AudioError(
            f"the calibration audio holds no speech: the bundle hears nothing in any of {len(clips)} windows; "
            "name a folder with speech (--calibration DIR)"
        )
    return windows


def _options(clip: Clip) -> TranscribeOptions:
    return TranscribeOptions(language=clip.language, timestamps=False)


@dataclass(frozen=True, slots=True)
class _Reference:
    clip: Clip
    heard: Heard | None
    truth: str
    logits: Tensor | None


class Examination:
    """Measures compressed bundles against the uncompressed one on the gate's clips; what the gate calls."""

    def __init__(self, listener: Listener, clips: Sequence[Clip]) -> None:
        """Hear every clip once.

        Args:
            listener: The uncompressed bundle.
            clips: The gate's examples.
        """
        self._normalization = Normalization()
        self._references = [self._refer(listener, clip) for clip in clips]
        self.without_text = sum(clip.text is None for clip in clips)

    def _refer(self, listener: Listener, clip: Clip) -> _Reference:
        heard = listener.hear(clip)
        text = heard.text if heard else ""
        logits = None
        if heard is not None:
            logits = listener.forcing.forward(heard.window, listener.models.encode(heard.window.features)).logits
        return _Reference(clip, heard, clip.text if clip.text is not None else text, logits)

    def measure(self, folder: Path) -> list[Example]:
        """Transcribe every clip with the bundle in a folder, and force the reference's transcripts on it."""
        bundle = Bundle.open(folder)
        models, forcing = _load_bundle(bundle)
        transcriber = Transcriber.from_models(models, bundle)
        return [self._example(reference, models, forcing, transcriber) for reference in self._references]

    def _example(
        self, reference: _Reference, models: Models, forcing: TeacherForcing, transcriber: Transcriber
    ) -> Example:
        found = transcriber.transcribe(reference.clip.audio, _options(reference.clip)).text
        before = reference.heard.text if reference.heard else ""
        words, reference_errors = self._errors(reference, before)
        _, errors = self._errors(reference, found)
        tokens, agreeing, total = 0, 0, 0.0
        if reference.heard is not None and reference.logits is not None:
            window = reference.heard.window
            logits = forcing.forward(window, models.encode(window.features)).logits
            tokens = window.predicted
            agreeing = int((logits.argmax(-1) == reference.logits.argmax(-1)).sum())
            total = float(divergence(reference.logits, logits).sum())
        return Example(reference.clip.name, words, reference_errors, errors, tokens, agreeing, total)

    def _errors(self, reference: _Reference, text: str) -> tuple[int, int]:
        """Words of the truth, and errors; where nothing is said every word heard is one."""
        import jiwer

        truth, found = self._normalization.pair(reference.truth, text, reference.clip.language)
        if not truth.strip():
            return 0, len(found.split())
        measured = jiwer.process_words(truth, found)
        count = len(truth.split())
        return count, int(measured.substitutions + measured.deletions + measured.insertions)


def _load_bundle(bundle: Bundle) -> tuple[Models, TeacherForcing]:
    mel, encoder, decoder = (Program.load(bundle.package(name)) for name in PACKAGES)
    return Models(mel, encoder, decoder), TeacherForcing(decoder)
