"""Decoding audio files: any format that libsndfile or FFmpeg reads, any rate and channel count, to 16 kHz mono.

Files are read in blocks, so an hour of 48 kHz stereo takes the memory of an hour of 16 kHz mono.
"""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools import limits
from whisperkit_tools.errors import AudioError
from whisperkit_tools.files import first_line
from whisperkit_tools.media import open_container
from whisperkit_tools.speech import AUDIO_EXTENSIONS, SAMPLE_RATE_HZ, Recording, Samples
from whisperkit_tools.transcribe.audio.mixing import Mixer
from whisperkit_tools.transcribe.audio.wav_repair import repaired

STDIN = "-"
_BLOCK_S = 30
_BLOCK_VALUES = 1 << 23  # of all channels together
_SAMPLE_BYTES = 4
_QUALITY = "HQ"
# A file that ends this much before its own header says was cut off.
_MISSING_TOLERANCE_S = 0.5
_MOST_FRAMES = 1 << 36  # what the header of a FLAC file can declare

Readable: TypeAlias = Path | io.BytesIO


@dataclass(frozen=True, slots=True)
class AudioInput:
    """One audio to transcribe.

    Attributes:
        name: As the user knows it.
        path: The file. None for standard input.
    """

    name: str
    path: Path | None

    @property
    def stem(self) -> str:
        """Name for an output file, without extension."""
        return "stdin" if self.path is None else self.path.stem


def find_inputs(arguments: Sequence[str]) -> list[AudioInput]:
    """Return the inputs of files, folders and `-`. Folders are searched through in the order of names.

    Raises:
        AudioError: Naming all that are missing, empty, or folders without audio.
    """
    inputs: list[AudioInput] = []
    problems: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            inputs.append(AudioInput("standard input", None))
        elif path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in AUDIO_EXTENSIONS and p.is_file()]
            inputs += [AudioInput(str(p), p) for p in found]
            if not found:
                problems.append(f"{path}: a folder without audio; looked for {', '.join(sorted(AUDIO_EXTENSIONS))}")
        elif not path.exists():
            problems.append(f"{path}: no such file or folder")
        else:
            inputs.append(AudioInput(str(path), path))
    problems += [problem for item in inputs if (problem := _obvious_problem(item))]
    if len([item for item in inputs if item.path is None]) > 1:
        problems.append("standard input was given more than once")
    if problems:
        raise AudioError(_listed(problems))
    return inputs


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} inputs cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)


def _obvious_problem(item: AudioInput) -> str | None:
    """Return what is wrong with a file as far as its header tells. None when nothing is."""
    if item.path is None:
        return None
    if item.path.stat().st_size == 0:
        return f"{item.name}: the file is empty"
    try:
        with _open(item.path, item.name) as reader:
            reader.check()
    except AudioError as error:
        return str(error)
    return None


def recordings_in(folder: str | Path) -> list[Recording]:
    """Find the audio of a folder, each with the transcript beside it.

    `a.wav` has its transcript in `a.txt`, UTF-8. Nothing is decoded yet: `recording.audio(load_audio)` does that.

    Args:
        folder: Searched through, subfolders included.

    Returns:
        The recordings in the order of their names. `text` is None where no transcript is beside the audio.

    Raises:
        AudioError: The folder is missing or has no audio, or files are empty, broken or not text. All are named.
    """
    root = Path(folder)
    if not root.is_dir():
        raise AudioError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'}")
    recordings, problems = list[Recording](), list[str]()
    for path in [item.path for item in find_inputs([str(root)]) if item.path is not None]:
        beside = path.with_suffix(".txt")
        try:
            text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else None
        except UnicodeDecodeError as error:
            problems.append(f"{beside}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
            continue
        recordings.append(Recording(path.relative_to(root).as_posix(), text, path))
    if problems:
        raise AudioError(_listed(problems))
    return recordings


def load_audio(
    source: AudioInput | str | Path, stdin: IO[bytes] | None = None, *, note: Callable[[str], None] | None = None
) -> Samples:
    """Decode one audio.

    Args:
        source: An input of `find_inputs`, or the path of an audio file.
        stdin: Read instead of the process's standard input.
        note: Told what was done about a header without a length, or about channels that cancel each other out.

    Returns:
        `[samples]`, float32, mono, 16 kHz: the mean of all channels, or the strongest one where they cancel out.

    Raises:
        AudioError: Missing, empty, broken, cut off, or with samples that are not finite.
    """
    item = source if isinstance(source, AudioInput) else _file_input(Path(source))
    readable: Readable
    if item.path is not None:
        readable = item.path
    else:
        data = (stdin or sys.stdin.buffer).read(limits.STDIN_BYTES + 1)
        if not data:
            raise AudioError(f"{item.name}: nothing came in")
        if len(data) > limits.STDIN_BYTES:
            raise AudioError(f"{item.name}: more than {limits.STDIN_BYTES >> 20} MB came in; write it to a file first")
        readable = io.BytesIO(data)
    with _open(readable, item.name) as reader:
        audio = _resampled(reader)
        if note is not None:
            for line in reader.notes:
                note(line)
    if audio.size == 0:
        raise AudioError(f"{item.name}: the file holds no audio samples")
    bad = int(np.count_nonzero(~np.isfinite(audio)))
    if bad:
        raise AudioError(f"{item.name}: {bad} samples are not numbers (NaN or infinite); export the file again")
    return audio


def _file_input(path: Path) -> AudioInput:
    """Return the input of one file.

    Raises:
        AudioError: There is no such file, or it is empty.
    """
    if not path.is_file():
        raise AudioError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty")
    return AudioInput(str(path), path)


def _resampled(reader: "_Reader") -> Samples:
    """Mix each block to mono and resample the stream of them."""
    found = bytearray()  # grows in place, where a list of blocks would need all of them twice
    for block in _blocks_at_16_khz(reader):
        found += np.asarray(block, dtype=np.float32).tobytes()
        if len(found) > limits.AUDIO_S * SAMPLE_RATE_HZ * _SAMPLE_BYTES:
            raise AudioError(f"{reader.name}: longer than {limits.AUDIO_S // 3600} hours; cut it into parts")
    return np.frombuffer(found, dtype=np.float32)


def _blocks_at_16_khz(reader: "_Reader") -> Iterator[Samples]:
    import soxr

    mixer = Mixer(reader.rate_hz)
    mono = mixer.mono(reader.blocks())
    if reader.rate_hz == SAMPLE_RATE_HZ:
        yield from mono
    else:
        stream = soxr.ResampleStream(reader.rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality=_QUALITY)
        for block in mono:
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
    if mixer.note:
        reader.notes.append(mixer.note)


class _Reader:
    """An open audio file that is read in blocks. A context manager.

    Attributes:
        rate_hz: The file's own rate.
        name: As the user knows it.
        notes: What the user should know about how it was read.
    """

    rate_hz: int
    name: str
    notes: list[str]

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise `AudioError` when the header alone tells that the file cannot be used."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Return float32 blocks `[n, channels]` at the file's own rate."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""


class _SoundFileReader(_Reader):
    """WAV, FLAC, OGG, MP3, AIFF and more, through libsndfile."""

    def __init__(self, source: Readable, name: str) -> None:
        import soundfile

        self.name = name
        repair = repaired(source)
        self.notes = [] if repair is None else [repair[1]]
        self._view = None if repair is None else repair[0]
        self._file = soundfile.SoundFile(source if self._view is None else self._view)
        if self._file.format == "FLAC" and not 0 < self._file.frames < _MOST_FRAMES:
            self._file.close()  # a stream of unknown length, which libsndfile does not read
            raise ValueError("the header declares no length")
        self.rate_hz = int(self._file.samplerate)

    def check(self) -> None:
        if self._file.frames == 0:
            raise AudioError(f"{self.name}: the file holds no audio samples")

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import soundfile

        read, declared = 0, int(self._file.frames)
        frames = max(1, min(_BLOCK_S * self.rate_hz, _BLOCK_VALUES // self._file.channels))
        try:
            while True:
                block = self._file.read(frames, dtype="float32", always_2d=True)
                if not len(block):
                    break
                read += len(block)
                yield block
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{self.name}: broken after {read / self.rate_hz:.1f} s ({error}); get the file again"
            ) from error
        if read < declared - _MISSING_TOLERANCE_S * self.rate_hz:
            raise AudioError(
                f"{self.name}: cut off: {declared / self.rate_hz:.1f} s are declared, "
                f"{read / self.rate_hz:.1f} s are there; get the file again"
            )

    def close(self) -> None:
        self._file.close()
        if self._view is not None:
            self._view.close()


class _AvReader(_Reader):
    """M4A, AAC, Opus, and the sound of videos, through FFmpeg."""

    def __init__(self, source: Readable, name: str) -> None:
        self.name = name
        self.notes = []
        self._container = open_container(source)
        if not self._container.streams.audio:
            self._container.close()
            raise AudioError(f"{name}: the file has no audio track")
        self._stream = self._container.streams.audio[0]
        # FFmpeg tells neither of a track that it has no decoder for.
        self.rate_hz = int(getattr(self._stream, "rate", None) or 0)
        channels = int(getattr(self._stream, "channels", None) or 0)
        if channels > limits.AUDIO_CHANNELS:
            self._container.close()
            raise AudioError(f"{name}: {channels} channels; the maximum is {limits.AUDIO_CHANNELS}")

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import av

        # Floats, the rate and the channels stay. In one plane: of eight planes and more PyAV reads beyond the last.
        resampler = av.AudioResampler(format="flt")
        read = 0
        try:
            for frame in self._container.decode(self._stream):
                for converted in resampler.resample(frame):
                    block = converted.to_ndarray().reshape(converted.samples, -1)
                    read += len(block)
                    yield block.astype(np.float32)
        except (av.FFmpegError, ValueError, AttributeError) as error:  # the latter where a header changes on the way
            reason = getattr(error, "strerror", None) or first_line(error)
            raise AudioError(
                f"{self.name}: broken after {read / self.rate_hz:.1f} s ({reason}); get the file again"
            ) from error
        declared_s = float(self._stream.duration * self._stream.time_base) if self._stream.duration else 0.0
        if read / self.rate_hz < declared_s - _MISSING_TOLERANCE_S:
            raise AudioError(
                f"{self.name}: cut off: {declared_s:.1f} s are declared, {read / self.rate_hz:.1f} s are there; "
                "get the file again"
            )

    def close(self) -> None:
        self._container.close()


def _open(source: Readable, name: str) -> _Reader:
    """Open with libsndfile, or else with FFmpeg.

    Raises:
        AudioError: Neither knows what it is.
    """
    import av
    import soundfile

    problem: Exception | None = None
    # libsndfile's MP3 decoder writes remarks to the terminal, so FFmpeg has the first try there.
    readers = (_AvReader, _SoundFileReader) if _looks_like_mp3(source) else (_SoundFileReader, _AvReader)
    for reader in readers:
        try:
            return _with_usable_rate(reader(source, name))
        except (soundfile.SoundFileError, av.FFmpegError, ValueError) as error:
            problem = problem or error
        if isinstance(source, io.BytesIO):
            source.seek(0)
    raise AudioError(f"{name}: not audio that can be decoded; expected one of wav, flac, mp3, m4a, ogg") from problem


def _with_usable_rate(reader: _Reader) -> _Reader:
    """Return a reader whose rate can be that of a recording. A few bytes at 1 Hz would be hours at 16 kHz.

    Raises:
        AudioError: The header declares another rate.
    """
    if limits.MIN_SAMPLE_RATE_HZ <= reader.rate_hz <= limits.MAX_SAMPLE_RATE_HZ:
        return reader
    reader.close()
    raise AudioError(
        f"{reader.name}: its header declares {reader.rate_hz} samples a second; {limits.MIN_SAMPLE_RATE_HZ} to "
        f"{limits.MAX_SAMPLE_RATE_HZ} are read; export the file again"
    )


def _looks_like_mp3(source: Readable) -> bool:
    """Whether the name or the first bytes (a tag, or the eleven set bits of a frame) say MP3."""
    if isinstance(source, Path):
        if source.suffix.lower() == ".mp3":
            return True
        with source.open("rb") as file:
            start = file.read(3)
    else:
        start = source.getvalue()[:3]
    return start == b"ID3" or (start[:1] == b"\xff" and start[1:2] >= b"\xe0")
