"""WAV files of streams and of recorders that never finished them: all audio up to the end of the file is read."""

import io
import struct

import numpy as np
import pytest
import soundfile

from whisperkit_tools.errors import AudioError
from whisperkit_tools.transcribe.audio.load import AudioInput, find_inputs, load_audio
from whisperkit_tools.transcribe.audio.wav_repair import repaired

RATE = 16_000
SAMPLES = (3000 * np.random.default_rng(0).standard_normal(RATE)).astype("<i2")
PCM = SAMPLES.tobytes()
FMT = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
INFO = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf61.7.100\0\0"


def data(size, body=PCM):
    return b"data" + struct.pack("<I", size) + body


def riff(*parts, size=None, kind=b"RIFF"):
    content = b"WAVE" + b"".join(parts)
    return kind + struct.pack("<I", len(content) if size is None else size) + content


def ds64(size):
    return b"ds64" + struct.pack("<IQQQI", 28, min(size + 72, 0xFFFFFFFFFFFFFFFF), size, 0, 0)


HALF = len(PCM) // 2
WRONG = {
    "a stream of FFmpeg": riff(FMT, INFO, data(0xFFFFFFFF), size=0xFFFFFFFF),
    "never finished": riff(FMT, data(0), size=0),
    "the largest signed size": riff(FMT, data(0x7FFFFFFF), size=0x7FFFFFFF),
    "the size of a header too much": riff(FMT, data(0xFFFFFFFF - 36), size=0xFFFFFFFF),
    "an older length": riff(FMT, data(HALF), size=HALF + 36),
    "too long": riff(FMT, data(2 * len(PCM)), size=2 * len(PCM) + 36),
    "two pieces": riff(FMT, data(HALF, PCM[:HALF]), INFO, data(HALF, PCM[HALF:])),
    "RF64, never finished": riff(ds64(0), FMT, data(0xFFFFFFFF), size=0xFFFFFFFF, kind=b"RF64"),
    "RF64, a stream": riff(ds64(0xFFFFFFFFFFFFFFFF), FMT, data(0xFFFFFFFF), size=0xFFFFFFFF, kind=b"RF64"),
}
RIGHT = {
    "plain": riff(FMT, data(len(PCM))),
    "text before": riff(FMT, INFO, data(len(PCM))),
    "text after": riff(FMT, data(len(PCM)), INFO),
    "no RIFF size": riff(FMT, data(len(PCM)), size=0),
    "padding after": riff(FMT, data(len(PCM)), b"\0" * 100),
    "a tag after": riff(FMT, data(len(PCM)), b"TAG" + b"x" * 125),
    "RF64": riff(ds64(len(PCM)), FMT, data(0xFFFFFFFF), size=0xFFFFFFFF, kind=b"RF64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_all_of_the_audio_is_read_with_a_note(tmp_path, name):
    path = tmp_path / "a.wav"
    path.write_bytes(WRONG[name])
    find_inputs([str(path)])
    for source, stdin in ((path, None), (AudioInput("standard input", None), io.BytesIO(WRONG[name]))):
        notes = []
        found = load_audio(source, stdin, note=notes.append)
        np.testing.assert_array_equal(np.round(found * 32768), SAMPLES)
        assert len(notes) == 1


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_header_is_left_alone(tmp_path, name):
    path = tmp_path / "a.wav"
    path.write_bytes(RIGHT[name])
    assert repaired(path) is None
    np.testing.assert_array_equal(np.round(load_audio(path) * 32768), SAMPLES)


def test_a_file_without_audio_stays_one(tmp_path):
    for name, content in (("a.wav", riff(FMT, data(0, b""))), ("b.wav", riff(FMT, data(0, b""), INFO))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match="holds no audio samples"):
            load_audio(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", riff(data(0)), b"OggS" + PCM, riff(FMT)[:30]])
def test_other_content_is_left_alone(content):
    assert repaired(io.BytesIO(content)) is None


def test_a_piece_of_more_than_four_gigabytes_gets_a_header_that_can_tell_it(tmp_path):
    path = tmp_path / "a.wav"
    with path.open("wb") as file:  # sparse
        file.write(riff(FMT, data(0xFFFFFFFF, b""), size=0xFFFFFFFF))
        file.truncate(file.tell() + (1 << 32) + 2 * RATE)
    view, _ = repaired(path)
    with view, soundfile.SoundFile(view) as opened:
        assert opened.frames == (1 << 31) + RATE


def test_a_stream_of_flac_has_no_length(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, SAMPLES, RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # the number of samples
    path.write_bytes(content)
    np.testing.assert_allclose(load_audio(path) * 32768, SAMPLES, atol=1e-3)
