"""Selection of speech for compression: for sensitivity, for palette tuning, and for the gate.

The speech is the demo's recordings, which any Whisper understands, or a folder or dataset of the user's own. All
selected recordings are in memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError, option
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Recording, Samples, samples_sha256
from whisperkit_tools.transcribe.audio.load import load_audio, recordings_in
from whisperkit_tools.transcribe.audio.vad import cut_in_pauses, detector

_SENTENCE = 0.15  # of a window
_JUDGES = 4  # every fourth sentence judges
_SPEEDS = (0.9, 1.1)
_MIN_S = 1.0
_SHARES = (1.0, 0.1, 0.4, 0.15, 0.2)  # of a window: maximum lengths of calibration pieces, in turn


def samples_of(recording: Recording) -> Samples:
    """Return the samples `[n]` of a recording at 16 kHz."""
    return recording.audio(load_audio)


def recording_sha256(recording: Recording) -> str:
    """Return the digest of a recording's samples."""
    return samples_sha256(samples_of(recording))


def select_calibration(source: str | Path | None, windows: int, window_samples: int) -> list[Recording]:
    """Select pieces of at most a window, short and long in turn and cut in pauses, evenly from all of the audio.

    Weights matter differently where little is said and the rest of a window is silence. And half words raise doubts in
    the model that whole words do not.

    Args:
        source: A folder with audio, or a dataset as an evaluation takes it. None for the demo's long recordings.
        windows: Maximum number of pieces.
        window_samples: Samples of a window.

    Raises:
        AudioError: There is no audio, or it is too short.
        OptionsError: There is no such dataset.
    """
    lengths = tuple(int(window_samples * share) for share in _SHARES)
    pieces = [piece for recording in _recordings(source, windows) for piece in _cut_in_pauses(recording, lengths)]
    if not pieces:
        raise AudioError(f"{source}: the audio is shorter than {_MIN_S:g} s; name a folder with speech")
    return [pieces[at] for at in _evenly(len(pieces), windows)]


def select_tuning(
    source: str | Path | None, limit: int, window_samples: int, steps: int
) -> tuple[list[Recording], list[Recording]]:
    """Select sentences for tuning, which needs more speech than sensitivity: pieces of about a seventh of a window.

    The sentences to tune on also occur a little slower and faster, so that palettes fit speech and not these
    recordings.

    Args:
        source: As for `select_calibration`.
        limit: Maximum number of sentences at their own speed, taken evenly.
        window_samples: Samples of a window.
        steps: Number of tuning steps, which is the maximum number of sentences to tune on.

    Returns:
        The sentences to tune on, and the sentences that judge: every fourth, or none where there are fewer than four.
    """
    length = int(window_samples * _SENTENCE)
    pieces = [piece for recording in _recordings(source, limit) for piece in _cut_in_pauses(recording, (length,))]
    chosen = [pieces[at] for at in _evenly(len(pieces), limit)]
    judging = chosen[::_JUDGES] if len(chosen) >= _JUDGES else []
    tuned_on = [piece for at, piece in enumerate(chosen) if not judging or at % _JUDGES]
    copies = [_at_speed(piece, speed) for piece in tuned_on for speed in _SPEEDS]
    tuned_on += [copies[at] for at in _evenly(len(copies), max(0, steps - len(tuned_on)))]
    return tuned_on, judging


def select_gate(
    source: str | Path | None, limit: int | None, languages: Sequence[str] | None, window_samples: int
) -> list[Recording]:
    """Select the examples of the gate.

    Args:
        source: A folder of audio files, each with its transcript in a `.txt` of the same name beside it. Without that
            the uncompressed bundle's own transcript counts as true. Or a dataset as an evaluation takes it. None for
            the demo's recordings, including the long ones: where timestamps lead from window to window, a small loss
            of quality costs more words than in single sentences.
        limit: Maximum number of examples, taken evenly. None for all.
        languages: Codes that the model knows. The demo's recordings in others are omitted. None for all.
        window_samples: Samples of a window. A longer file without text counts as several examples.

    Raises:
        AudioError: There is no audio.
        OptionsError: There is no such dataset.
    """
    if source is None:
        known = [*demo_utterances(), *demo_longform()]
        found = [_decoded(item) for item in known if languages is None or item.language in languages]
    elif Path(source).is_dir():
        in_folder = recordings_in(source)
        found = [_decoded(part) for item in in_folder for part in _in_windows(item, window_samples)]
    else:
        found = [_decoded(item) for item in _dataset(source, limit)]
    if not found:
        raise AudioError(
            f"{source or 'the demo'} has no example for the gate; name a folder with speech ({option('gate_audio')})"
        )
    return [found[at] for at in _evenly(len(found), limit or len(found))]


def _recordings(source: str | Path | None, limit: int) -> Sequence[Recording]:
    if source is None:
        return demo_longform()
    return recordings_in(source) if Path(source).is_dir() else _dataset(source, limit)


def _dataset(source: str | Path, limit: int | None) -> Sequence[Recording]:
    return open_dataset(str(source), DatasetOptions(limit=limit, skip_bad=True)).examples


def _decoded(recording: Recording) -> Recording:
    return Recording(recording.id, recording.text, samples=samples_of(recording), language=recording.language)


def _at_speed(recording: Recording, speed: float) -> Recording:
    """Return a recording played faster or slower, and so higher or lower."""
    import soxr

    played: Samples = soxr.resample(samples_of(recording), speed * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    name = f"{recording.id}@{speed:g}"
    return Recording(name, samples=played.astype(np.float32), language=recording.language)


def _in_windows(recording: Recording, window_samples: int) -> list[Recording]:
    """Cut a recording without a text into consecutive windows. One with a text stays whole."""
    if recording.text is not None:
        return [recording]
    samples, least = samples_of(recording), int(_MIN_S * SAMPLE_RATE_HZ)
    pieces = [samples[start : start + window_samples] for start in range(0, len(samples), window_samples)]
    return [Recording(f"{recording.id}#{at}", samples=piece) for at, piece in enumerate(pieces) if len(piece) >= least]


def _cut_in_pauses(recording: Recording, lengths: Sequence[int]) -> list[Recording]:
    """Cut a recording in its pauses into pieces of at most these lengths in turn."""
    samples = samples_of(recording)
    # Where the detector finds no speech the model itself has to judge.
    left = detector("energy").speech(samples) or [(0, len(samples))]
    least, pieces, count = int(_MIN_S * SAMPLE_RATE_HZ), list[Recording](), 0
    while left:
        start, stop = cut_in_pauses(samples, left, lengths[count % len(lengths)])[0]
        left = [(max(begin, stop), end) for begin, end in left if end > stop]
        if stop - start >= least:
            pieces.append(Recording(f"{recording.id}#{len(pieces)}", samples=samples[start:stop]))
        count += 1
    return pieces


def _evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` indices, evenly distributed from the first to the last."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, wanted)})
