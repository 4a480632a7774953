"""Speech for compression: clips on which sensitivity is measured and palettes are tuned, and those of the gate.

Both come from the demo's recordings, which any Whisper understands, or from a folder of the user's own.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Recording
from whisperkit_tools.transcribe.audio.load import find_inputs, load_audio
from whisperkit_tools.transcribe.audio.vad import cut_in_pauses, detector

FloatArray = NDArray[np.float32]
_SENTENCE = 0.15  # of a window
_JUDGES = 4
_SPEEDS = (0.9, 1.1)
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
        paths = [item.path for item in demo_longform() if item.path] if source is None else _audio_files(Path(source))
        yield from ((path.name, _load(path)) for path in paths)
    else:
        yield from ((item.id, item.audio(_load)) for item in _examples(source, windows))


def _examples(source: str | Path, limit: int | None) -> Sequence[Recording]:
    return open_dataset(str(source), DatasetOptions(limit=limit, skip_bad=True)).examples


def gate_clips(
    source: str | Path | None, limit: int | None, languages: Sequence[str] | None, window_samples: int
) -> list[Clip]:
    """The examples of the gate.

    Args:
        source: A folder of audio files, each with what is said in a `.txt` of the same name beside it; without that the
            uncompressed bundle's own transcript is taken for true. Or a dataset as `wkt evaluate` takes it. None for
            the demo's recordings, the long ones too: where timestamps lead from window to window, a small loss of
            quality costs more words than in single sentences.
        limit: At most so many, taken evenly; None for all.
        languages: Codes that the model knows; the demo's recordings in others are left out. None for all.
        window_samples: Samples of a window; a longer file without text counts as several examples.

    Raises:
        AudioError: There is no audio.
        DatasetError: There is no such dataset.
    """
    if source is None:
        chosen = [
            item for item in [*demo_utterances(), *demo_longform()] if languages is None or item.language in languages
        ]
        clips = [Clip(item.id, item.audio(_load), item.text, item.language) for item in chosen]
    elif Path(source).is_dir():
        paths = _audio_files(Path(source))
        clips = [clip for path in paths for clip in _with_text(path, window_samples)]
    else:
        clips = [Clip(i.id, i.audio(_load), i.text, i.language) for i in _examples(source, limit)]
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
