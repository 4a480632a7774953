"""Speech for compression: windows on which sensitivity is measured, and examples by which the gate judges.

Both come from the demo's recordings, which any Whisper understands, or from a folder of the user's own.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.demo import DemoLongform, DemoUtterance, demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError, BundleError
from whisperkit_tools.eval.datasets import DatasetOptions, open_dataset
from whisperkit_tools.eval.examples import Example as DatasetExample
from whisperkit_tools.eval.normalize import Normalization
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.gate import Example
from whisperkit_tools.quantization.teacher import COMPONENTS, TeacherForcing, Window, divergence
from whisperkit_tools.transcribe.audio import SAMPLE_RATE_HZ, find_inputs, load_audio
from whisperkit_tools.transcribe.models import Component, Models
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber
from whisperkit_tools.transcribe.vad import cut_in_pauses, detector

FloatArray = NDArray[np.float32]
_SENTENCE = 0.15  # of a window
_JUDGES = 4
_SPEEDS = (0.9, 1.1)
PREFILL = "TextDecoderContextPrefill"
_LEAST_S = 1.0
_SHARES = (1.0, 0.1, 0.4, 0.15, 0.2)  # of a window: the most that calibration windows hold in turn


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of audio; longer than a window only among the gate's examples, and then with a text.

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


def calibration_clips(source: str | Path | None, windows: int, window_samples: int) -> list[Clip]:
    """Stretches of at most a window, short and long in turn and cut in pauses, taken evenly from all of the audio.

    Weights matter differently where little is said and the rest of a window is silence, and half words are heard with
    doubts that whole ones do not raise.

    Args:
        source: A folder with audio, or a dataset as `wkt evaluate` takes it; None for the demo's long recordings.
        windows: At most so many.
        window_samples: Samples of a window.

    Raises:
        AudioError: There is no audio, or it is too short.
        DatasetError: There is no such dataset.
    """
    lengths = tuple(int(window_samples * share) for share in _SHARES)
    clips = [clip for name, audio in _recordings(source, windows) for clip in _cut_in_pauses(name, audio, lengths)]
    if not clips:
        raise AudioError(f"{source}: the audio is shorter than {_LEAST_S:g} s; name a folder with speech")
    return [clips[at] for at in _evenly(len(clips), windows)]


def tuning_clips(
    source: str | Path | None, limit: int, window_samples: int, steps: int
) -> tuple[list[Clip], list[Clip]]:
    """Sentences for tuning, which takes in more speech than sensitivity needs: stretches of a sixth of a window.

    Those that are tuned on come again a little slower and faster, so that palettes fit speech and not these recordings.

    Args:
        source: As for `calibration_clips`.
        limit: At most so many at their own speed, taken evenly.
        window_samples: Samples of a window.
        steps: At most so many that are tuned on, for more are never heard.

    Returns:
        Those to tune on, and those that judge: every fourth, or none where there are fewer.
    """
    length = int(window_samples * _SENTENCE)
    clips = [clip for name, audio in _recordings(source, limit) for clip in _cut_in_pauses(name, audio, (length,))]
    chosen = [clips[at] for at in _evenly(len(clips), limit)]
    judging = chosen[::_JUDGES] if len(chosen) >= _JUDGES else []
    tuned_on = [clip for at, clip in enumerate(chosen) if not judging or at % _JUDGES]
    copies = [_at_speed(clip, speed) for clip in tuned_on for speed in _SPEEDS]
    tuned_on += [copies[at] for at in _evenly(len(copies), max(0, steps - len(tuned_on)))]
    return tuned_on, judging


def _at_speed(clip: Clip, speed: float) -> Clip:
    """Play a clip faster or slower, and so higher or lower."""
    import soxr

    played: FloatArray = soxr.resample(clip.audio, speed * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    return Clip(f"{clip.name}@{speed:g}", played.astype(np.float32), language=clip.language)


def _recordings(source: str | Path | None, windows: int) -> Iterator[tuple[str, FloatArray]]:
    if source is None or Path(source).is_dir():
        paths = [item.path for item in demo_longform()] if source is None else _audio_files(Path(source))
        yield from ((path.name, _load(path)) for path in paths)
    else:
        yield from ((item.id, item.samples(_load)) for item in _examples(source, windows))


def _examples(source: str | Path, limit: int | None) -> Sequence[DatasetExample]:
    return open_dataset(str(source), DatasetOptions(limit=limit, skip_bad=True)).examples


def gate_clips(
    source: str | Path | None, limit: int | None, languages: Sequence[str], window_samples: int
) -> list[Clip]:
    """The examples of the gate.

    Args:
        source: A folder of audio files, each with what is said in a `.txt` of the same name beside it; without that the
            uncompressed bundle's own transcript is taken for true. Or a dataset as `wkt evaluate` takes it. None for
            the demo's recordings, the long ones too: where timestamps lead from window to window, a small loss of
            quality costs more words than in single sentences.
        limit: At most so many, taken evenly; None for all.
        languages: Codes that the model knows; the demo's recordings in others are left out.
        window_samples: Samples of a window; a longer file without text counts as several examples.

    Raises:
        AudioError: There is no audio.
        DatasetError: There is no such dataset.
    """
    if source is None:
        recordings: list[DemoUtterance | DemoLongform] = [*demo_utterances(), *demo_longform()]
        chosen = [item for item in recordings if item.language in languages]
        clips = [Clip(item.id, _load(item.path), item.text, item.language) for item in chosen]
    elif Path(source).is_dir():
        paths = _audio_files(Path(source))
        clips = [clip for path in paths for clip in _with_text(path, window_samples)]
    else:
        clips = [Clip(i.id, i.samples(_load), i.reference, i.language) for i in _examples(source, limit)]
    if not clips:
        raise AudioError(f"{source or 'the demo'} holds no example for the gate; name a folder with --gate-audio")
    return [clips[at] for at in _evenly(len(clips), limit or len(clips))]


def _with_text(path: Path, window_samples: int) -> list[Clip]:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return _cut(path, (window_samples,))
    return [Clip(path.name, _load(path), text.read_text(encoding="utf-8").strip())]


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


def _cut_in_pauses(name: str, audio: FloatArray, lengths: Sequence[int]) -> list[Clip]:
    """Cut audio in its pauses into pieces of at most these lengths in turn."""
    # Where no pauses are to be found the model itself has to judge.
    left = detector("energy").speech(audio) or [(0, len(audio))]
    least, clips, count = int(_LEAST_S * SAMPLE_RATE_HZ), list[Clip](), 0
    while left:
        start, stop = cut_in_pauses(audio, left, lengths[count % len(lengths)])[0]
        left = [(max(begin, stop), end) for begin, end in left if end > stop]
        if stop - start >= least:
            clips.append(Clip(f"{name}#{len(clips)}", audio[start:stop]))
        count += 1
    return clips


def _evenly(count: int, wanted: int) -> list[int]:
    if count <= wanted:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, wanted)})


@dataclass(frozen=True, slots=True)
class Heard:
    """What a bundle makes of one clip: the window to force on others (None of a longer clip), and the text."""

    window: Window | None
    text: str


class Listener:
    """The uncompressed bundle, listening."""

    def __init__(self, bundle: Bundle, max_tokens: int) -> None:
        """Load the bundle.

        Args:
            bundle: The uncompressed bundle.
            max_tokens: Most predicted tokens that count of one window.
        """
        self.mel = _Remembering(Program.load(bundle.package("MelSpectrogram")))
        self.models, self.forcing = _load_bundle(bundle, self.mel)
        self.transcriber = Transcriber.from_models(self.models, bundle)
        self._max_tokens = max_tokens

    def hear(self, clip: Clip) -> Heard | None:
        """Transcribe a clip; None where nothing is said."""
        found = self.transcriber.transcribe(clip.audio, _options(clip, self.models))
        if not found.tokens:
            return None
        if len(clip.audio) > self.models.sizes.n_samples:
            return Heard(None, found.text)
        special = self.transcriber.special
        prefix = [special.start_of_transcript]
        if special.is_multilingual:
            prefix += [special.languages[found.language], special.tasks[found.task]]
        prefix.append(special.no_timestamps)
        tokens = (*prefix, *found.tokens, special.end_of_text)[: len(prefix) + self._max_tokens]
        return Heard(Window(self.features(clip), tokens, len(prefix)), found.text)

    def features(self, clip: Clip) -> Tensor:
        """Mel features of a clip, filled up with silence."""
        return _features(clip, self.models)


def calibration_windows(listener: Listener, clips: Sequence[Clip]) -> list[Window]:
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
) -> tuple[list[Window], list[int]]:
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


def _heard(listener: Listener, clips: Sequence[Clip]) -> list[Window]:
    heard = [listener.hear(clip) for clip in clips]
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
        """Words of the truth, and errors; where nothing is said every word heard is one."""
        import jiwer

        truth, found = self._normalization.pair(reference.truth, text, reference.clip.language)
        if not truth.strip():
            return 0, len(found.split())
        measured = jiwer.process_words(truth, found)
        count = len(truth.split())
        return count, int(measured.substitutions + measured.deletions + measured.insertions)


def _features(clip: Clip, models: Models) -> Tensor:
    samples = np.zeros(models.sizes.n_samples, np.float32)
    samples[: len(clip.audio)] = clip.audio
    return models.features(samples)


class _Remembering:
    """A component that computes the same as another, but not again what it has just computed."""

    def __init__(self, component: Component, most: int | None = None) -> None:
        """Remember the results of the `most` last inputs; of all when None."""
        self.inputs, self.outputs = component.inputs, component.outputs
        self._component, self._most = component, most
        self._known: OrderedDict[bytes, Mapping[str, Tensor]] = OrderedDict()

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Compute, or remember."""
        digest = hashlib.sha256()
        for value in inputs.values():
            digest.update(value.contiguous().numpy().tobytes())
        key = digest.digest()
        if key not in self._known:
            self._known[key] = self._component.run(inputs)
            if self._most is not None and len(self._known) > self._most:
                self._known.popitem(last=False)
        return self._known[key]


def _load_bundle(bundle: Bundle, mel: Component) -> tuple[Models, TeacherForcing]:
    """A bundle's models, its prefill too, but for the spectrogram, which compression leaves as it is."""
    encoder, decoder = (Program.load(bundle.package(name)) for name in COMPONENTS)
    prefill = Program.load(bundle.package(PREFILL)) if bundle.has(PREFILL) else None
    return Models(mel, _Remembering(encoder, most=1), decoder, prefill=prefill), TeacherForcing(decoder)
