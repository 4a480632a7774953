"""Selection of speech for compression: for sensitivity, for held-out predictions, for palette tuning, for the gate.

The speech is the demo's recordings, which any Whisper understands, or a folder or dataset of the user's own. All
selected pieces are in memory. Recordings that no piece is selected from are not decoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from whisperkit_tools.compress.speech_source import open_speech
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError, option
from whisperkit_tools.progress import Progress
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Recording, Samples, samples_sha256
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.audio.vad import cut_in_pauses, detector

_SENTENCE = 0.15  # of a window
_JUDGES = 4  # every fourth sentence judges
_SPEEDS = (0.9, 1.1)
_MIN_S = 1.0
_SHARES = (1.0, 0.1, 0.4, 0.15, 0.2)  # of a window: maximum lengths of calibration pieces, in turn
_ROWS = 4  # rows of a dataset to fetch for each wanted piece, because some are too short


@dataclass(frozen=True, slots=True)
class SpeechPiece(Recording):
    """A decoded piece of a recording, or the whole of it.

    Attributes:
        source: Id of the recording.
        source_sha256: Digest of all of the recording's samples.
        start: First sample of the piece in the recording.
        stop: Sample after its last one.
    """

    source: str = ""
    source_sha256: str = ""
    start: int = 0
    stop: int = 0

    def overlaps(self, other: "SpeechPiece") -> bool:
        """Return whether two pieces share samples of a recording."""
        return self.source_sha256 == other.source_sha256 and self.start < other.stop and other.start < self.stop


_Cut: TypeAlias = Callable[[Recording], list[SpeechPiece]]


def samples_of(recording: Recording) -> Samples:
    """Return the samples `[n]` of a recording at 16 kHz."""
    return recording.audio(load_audio)


def recording_sha256(recording: Recording) -> str:
    """Return the digest of a recording's samples."""
    return samples_sha256(samples_of(recording))


# --- calibration and held-out speech ---------------------------------------------------------------------------------


def select_calibration(
    source: str | Path | None, windows: int, window_samples: int, progress: Progress | None = None
) -> list[SpeechPiece]:
    """Select pieces of at most a window, short and long in turn and cut in pauses, evenly from all of the audio.

    Weights matter differently where little is said and the rest of a window is silence. And half words raise doubts in
    the model that whole words do not.

    Args:
        source: A dataset as an evaluation takes it, or a folder with audio. None for the demo's long recordings.
        windows: Maximum number of pieces.
        window_samples: Samples of a window.
        progress: Told of downloads, and of examples that cannot be used.

    Raises:
        AudioError: There is no audio, or it is too short.
        OptionsError: There is no such dataset.
        DatasetError: The dataset cannot be found or read.
    """
    recordings = _calibration_recordings(source, windows, progress)
    pieces = _spread(recordings, windows, _in_turn(window_samples))
    if not pieces:
        raise AudioError(
            f"{option('calibration')}: {source}: the audio is shorter than {_MIN_S:g} s; name a folder with speech"
        )
    return pieces


def select_held_out(
    source: str | Path | None, windows: int, window_samples: int, taken: Sequence[SpeechPiece]
) -> list[SpeechPiece]:
    """Select pieces as `select_calibration` does, but of speech that was not taken.

    Recordings of other speakers come first, then other recordings, then other pieces of the same recordings. The
    speaker is the recording's, or else what its name has before the first dash.

    Args:
        source: The source of the pieces that were taken.
        windows: Maximum number of pieces.
        window_samples: Samples of a window.
        taken: The pieces that were taken.

    Returns:
        The pieces. No sample of them was taken. They are fewer than wanted where the source has no more speech.

    Raises:
        AudioError: There is no audio.
        OptionsError: There is no such dataset.
        DatasetError: The dataset cannot be found or read.
    """
    groups: tuple[list[Recording], ...] = ([], [], [])
    for recording in _calibration_recordings(source, windows + len(taken)):
        groups[_closeness(recording, taken)].append(recording)
    pieces = list[SpeechPiece]()
    for group in groups:
        pieces += _spread(group, windows - len(pieces), _in_turn(window_samples), taken)
    return pieces


def _closeness(recording: Recording, taken: Sequence[SpeechPiece]) -> int:
    """Return 2 for a recording that was taken, 1 for another one of a speaker who was, otherwise 0."""
    if any(piece.source == recording.id for piece in taken):
        return 2
    speaker = _speaker(recording)
    return int(speaker is not None and speaker in {piece.speaker for piece in taken})


def _calibration_recordings(
    source: str | Path | None, wanted: int, progress: Progress | None = None
) -> Sequence[Recording]:
    return demo_longform() if source is None else open_speech(source, "calibration", _ROWS * wanted, progress)


# --- tuning ----------------------------------------------------------------------------------------------------------


def select_sentences(source: str | Path | None, limit: int, window_samples: int) -> list[SpeechPiece]:
    """Select sentences for tuning, pieces of about a seventh of a window, evenly from all of the audio.

    Args:
        source: As for `select_calibration`.
        limit: Maximum number of sentences.
        window_samples: Samples of a window.
    """
    cut = partial(_cut_in_pauses, lengths=(int(window_samples * _SENTENCE),))
    return _spread(_calibration_recordings(source, limit), limit, cut)


def select_tuning(
    source: str | Path | None, limit: int, window_samples: int, steps: int
) -> tuple[list[SpeechPiece], list[SpeechPiece]]:
    """Select speech for tuning, which needs more of it than sensitivity.

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
    chosen = select_sentences(source, limit, window_samples)
    judging = chosen[::_JUDGES] if len(chosen) >= _JUDGES else []
    tuned_on = [piece for at, piece in enumerate(chosen) if not judging or at % _JUDGES]
    copies = [(piece, speed) for piece in tuned_on for speed in _SPEEDS]
    tuned_on += [_at_speed(*copies[at]) for at in _evenly(len(copies), max(0, steps - len(tuned_on)))]
    return tuned_on, judging


def _at_speed(piece: SpeechPiece, speed: float) -> SpeechPiece:
    """Return a piece played faster or slower, and so higher or lower."""
    import soxr

    played: Samples = soxr.resample(samples_of(piece), speed * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    return replace(piece, id=f"{piece.id}@{speed:g}", samples=played.astype(np.float32))


# --- the gate --------------------------------------------------------------------------------------------------------


def select_gate(
    source: str | Path | None,
    limit: int | None,
    languages: Sequence[str] | None,
    window_samples: int,
    progress: Progress | None = None,
) -> list[SpeechPiece]:
    """Select the examples of the gate.

    Args:
        source: A dataset as an evaluation takes it, or a folder of audio files, each with its transcript in a `.txt` of
            the same name beside it. Without that the uncompressed bundle's own transcript counts as true. None for
            the demo's recordings, including the long ones: where timestamps lead from window to window, a small loss
            of quality costs more words than in single sentences.
        limit: Maximum number of examples, taken evenly. None for all.
        languages: Codes that the model knows. The demo's recordings in others are omitted. None for all.
        window_samples: Samples of a window. A longer file without text counts as several examples.
        progress: Told of downloads, and of examples that cannot be used.

    Raises:
        AudioError: There is no audio.
        OptionsError: There is no such dataset.
        DatasetError: The dataset cannot be found or read.
    """
    if source is None:
        known = [*demo_utterances(), *demo_longform()]
        recordings: Sequence[Recording] = [item for item in known if languages is None or item.language in languages]
    else:
        recordings = open_speech(source, "gate_audio", limit, progress)
    found = _spread(recordings, limit, partial(_cut_in_windows, window_samples=window_samples))
    if not found:
        raise AudioError(
            f"{source or 'the demo'} has no example for the gate; name a folder with speech ({option('gate_audio')})"
        )
    return found


# --- cutting ---------------------------------------------------------------------------------------------------------


def _spread(
    recordings: Sequence[Recording], wanted: int | None, cut: _Cut, taken: Sequence[SpeechPiece] = ()
) -> list[SpeechPiece]:
    """Cut recordings, chosen evenly, until there are enough pieces, and choose evenly from these.

    Args:
        recordings: The recordings. As few as possible are decoded.
        wanted: Maximum number of pieces. None for all.
        cut: Cuts a recording.
        taken: Pieces whose samples are not to be used.
    """
    found, left = dict[int, list[SpeechPiece]](), list(range(len(recordings)))
    while left and (wanted is None or sum(map(len, found.values())) < wanted):
        missing = None if wanted is None else wanted - sum(map(len, found.values()))
        chosen = {left[at] for at in _evenly(len(left), missing)}
        found |= {at: _free(cut(recordings[at]), wanted, taken) for at in sorted(chosen)}
        left = [at for at in left if at not in chosen]
    pieces = [piece for at in sorted(found) for piece in found[at]]
    return [pieces[at] for at in _evenly(len(pieces), wanted)]


def _free(pieces: Sequence[SpeechPiece], wanted: int | None, taken: Sequence[SpeechPiece]) -> list[SpeechPiece]:
    """Choose evenly from a recording's pieces that were not taken, and copy them to release the rest."""
    free = [piece for piece in pieces if not any(piece.overlaps(other) for other in taken)]
    return [replace(free[at], samples=samples_of(free[at]).copy()) for at in _evenly(len(free), wanted)]


def _in_turn(window_samples: int) -> _Cut:
    return partial(_cut_in_pauses, lengths=tuple(int(window_samples * share) for share in _SHARES))


def _cut_in_pauses(recording: Recording, lengths: Sequence[int]) -> list[SpeechPiece]:
    """Cut a recording in its pauses into pieces of at most these lengths in turn."""
    samples = samples_of(recording)
    # Where the detector finds no speech the model itself has to judge.
    left = detector("energy").speech(samples) or [(0, len(samples))]
    spans, count = list[tuple[int, int]](), 0
    while left:
        start, stop = cut_in_pauses(samples, left, lengths[count % len(lengths)])[0]
        left = [(max(begin, stop), end) for begin, end in left if end > stop]
        spans.append((start, stop))
        count += 1
    return _without_text(recording, samples, spans)


def _cut_in_windows(recording: Recording, window_samples: int) -> list[SpeechPiece]:
    """Cut a recording without a text into consecutive windows. One with a text stays whole."""
    samples = samples_of(recording)
    if recording.text is None:
        starts = range(0, len(samples), window_samples)
        return _without_text(recording, samples, [(at, min(at + window_samples, len(samples))) for at in starts])
    whole = SpeechPiece(
        recording.id,
        recording.text,
        samples=samples,
        language=recording.language,
        speaker=_speaker(recording),
        source=recording.id,
        source_sha256=samples_sha256(samples),
        stop=len(samples),
    )
    return [whole]


def _without_text(recording: Recording, samples: Samples, spans: Sequence[tuple[int, int]]) -> list[SpeechPiece]:
    """Return pieces of a recording, without those that are too short."""
    digest, least = samples_sha256(samples), int(_MIN_S * SAMPLE_RATE_HZ)
    return [
        SpeechPiece(
            f"{recording.id}#{number}",
            samples=samples[start:stop],
            speaker=_speaker(recording),
            source=recording.id,
            source_sha256=digest,
            start=start,
            stop=stop,
        )
        for number, (start, stop) in enumerate(span for span in spans if span[1] - span[0] >= least)
    ]


def _speaker(recording: Recording) -> str | None:
    """Return a recording's speaker, or what its name has before the first dash, as in LibriSpeech."""
    before, dash, _ = PurePosixPath(recording.id).name.partition("-")
    return recording.speaker or (before if dash else None)


def _evenly(count: int, wanted: int | None) -> list[int]:
    """Return at most `wanted` of `count` indices, evenly distributed from the first to the last. None for all."""
    if wanted is None or count <= wanted:
        return list(range(count))
    return sorted({round(at) for at in np.linspace(0, count - 1, max(wanted, 0))})
