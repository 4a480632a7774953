"""Audio files of all kinds to 16 kHz mono, and what is wrong with those that are not."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import fftconvolve

from whisperkit_tools import limits
from whisperkit_tools.errors import AudioError
from whisperkit_tools.transcribe.audio.load import AudioInput, find_inputs, load_audio, recordings_in

SECONDS = 1.5


def tone(rate, channels=1):
    time = np.arange(int(SECONDS * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 440 * time)] * channels, axis=1)


def encode(path, codec, rate, channels=1):
    """Encode a tone with FFmpeg."""
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        samples = np.ascontiguousarray(tone(rate, channels).T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write(path, rate, channels=1, **options):
    soundfile.write(path, tone(rate, channels), rate, **options)
    return path


def load(path):
    return load_audio(AudioInput(str(path), path))


def assert_is_the_tone(audio, *, slack=0.0):
    assert audio.dtype == np.float32
    assert len(audio) / 16_000 == pytest.approx(SECONDS, abs=0.002 + slack)
    inner = audio[4000:20_000]
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert spectrum.argmax() * 16_000 / len(inner) == pytest.approx(440, abs=2)
    assert inner.std() == pytest.approx(0.3 / np.sqrt(2), rel=0.07)  # a lossy codec may take a little


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 8])
def test_wav_of_any_rate_and_channel_count(tmp_path, rate, channels):
    assert_is_the_tone(load(write(tmp_path / "a.wav", rate, channels)))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_of_any_sample_type(tmp_path, subtype):
    assert_is_the_tone(load(write(tmp_path / "a.wav", 16_000, subtype=subtype)))


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.aiff"])
def test_formats_of_libsndfile(tmp_path, name):
    assert_is_the_tone(load(write(tmp_path / name, 44_100, 2)))


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.mp3", "libmp3lame"), ("a.opus", "libopus")])
def test_formats_of_ffmpeg(tmp_path, name, codec):
    assert_is_the_tone(load(encode(tmp_path / name, codec, 48_000, 2)), slack=0.1)


def test_channels_are_averaged(tmp_path):
    left = tone(16_000)
    soundfile.write(tmp_path / "a.wav", np.hstack([left, np.zeros_like(left)]), 16_000, subtype="FLOAT")
    assert np.allclose(load(tmp_path / "a.wav"), left[:, 0] / 2, atol=1e-6)


def test_reading_in_blocks_is_the_same_as_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("whisperkit_tools.transcribe.audio.load._BLOCK_S", 1, raising=True)
    path = write(tmp_path / "a.wav", 44_100, subtype="FLOAT")
    whole = soxr.resample(tone(44_100)[:, 0].astype(np.float32), 44_100, 16_000)
    assert np.abs(load(path) - whole).max() < 1e-5


@pytest.mark.parametrize(("name", "codec"), [("a.wav", None), ("a.m4a", "aac"), ("a.mp3", "libmp3lame")])
def test_standard_input(tmp_path, name, codec):
    path = tmp_path / name
    _ = write(path, 44_100) if codec is None else encode(path, codec, 44_100)
    (item,) = find_inputs(["-"])
    assert_is_the_tone(load_audio(item, io.BytesIO(path.read_bytes())), slack=0.1)


def test_nothing_on_standard_input():
    with pytest.raises(AudioError, match="standard input: nothing came in"):
        load_audio(AudioInput("standard input", None), io.BytesIO(b""))


def test_a_tenth_of_a_second_is_enough(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16_000)[:1600], 16_000)
    assert load(tmp_path / "a.wav").shape == (1600,)


def test_a_folder_gives_its_audio_by_name(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.WAV", "a.flac", "deep/c.ogg"):
        write(tmp_path / name, 16_000, format={"W": "WAV", "f": "FLAC", "o": "OGG"}[name.rpartition(".")[2][0]])
    (tmp_path / "notes.txt").write_text("not audio")
    assert [item.stem for item in find_inputs([str(tmp_path)])] == ["a", "b", "c"]


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


BAD = {
    "missing.wav": (lambda path: None, "no such file"),
    "empty.wav": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.wav": (lambda path: path.write_text("hello"), "not audio that can be decoded"),
    "none.wav": (lambda path: soundfile.write(path, np.zeros(0), 16_000), "no audio samples"),
    "folder": (lambda path: path.mkdir(), "a folder without audio"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_inputs_are_found_before_the_work(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(AudioError, match=message) as error:
        find_inputs([str(tmp_path / name)])
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_all_bad_inputs_are_named_together(tmp_path):
    for name, (make, _) in BAD.items():
        make(tmp_path / name)
    good = write(tmp_path / "good.wav", 16_000)
    with pytest.raises(AudioError) as error:
        find_inputs([str(good), *(str(tmp_path / name) for name in BAD)])
    assert str(error.value).startswith("5 inputs cannot be used")
    assert all(name in str(error.value) and message in str(error.value) for name, (_, message) in BAD.items())
    assert "good.wav" not in str(error.value)


def test_samples_that_are_not_numbers(tmp_path):
    samples = tone(16_000)[:, 0]
    samples[[5, 7]] = np.nan, np.inf
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="2 samples are not numbers"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.flac", None)])
def test_a_file_that_was_cut_off(tmp_path, capfd, name, codec):
    path = tmp_path / name
    _ = write(path, 44_100) if codec is None else encode(path, codec, 44_100)
    with pytest.raises(AudioError, match=r"cut off|broken after|not audio"):
        load(cut(path, 0.4))
    assert capfd.readouterr() == ("", "")


def test_a_file_broken_in_the_middle(tmp_path, capfd):
    path = encode(tmp_path / "a.mp3", "libmp3lame", 44_100)
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, 2 * len(data) // 3)
    data[middle] = np.random.default_rng(0).bytes(middle.stop - middle.start)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"broken after|cut off"):
        load(path)
    assert capfd.readouterr() == ("", "")


def test_a_video_without_sound(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no audio track"):
        find_inputs([str(path)])


def test_real_files_of_every_format(shared):
    for item in find_inputs([str(shared / "audio" / "clips")]):
        audio = load_audio(item)
        assert len(audio) > 16_000
        assert 0.01 < np.abs(audio).max() < 1.5


def test_m4a_and_flac_of_the_same_speech_agree(shared):
    clips = shared / "audio" / "clips"
    one, two = load(clips / "jfk.flac"), load(clips / "jfk_441khz.m4a")
    length = min(len(one), len(two))
    correlation = fftconvolve(one[:length], two[:length][::-1], "same")
    assert correlation.max() / np.sqrt((one**2).sum() * (two**2).sum()) > 0.98


def test_a_folder_of_recordings_has_each_transcript_beside_its_audio(tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("b.wav", "a.flac", "more/c.wav"):
        write(tmp_path / name, 16_000)
    (tmp_path / "a.txt").write_text(" What was said.\n", encoding="utf-8")
    (tmp_path / "more" / "c.txt").write_text("Qué dice", encoding="utf-8")
    found = recordings_in(tmp_path)
    assert [(item.id, item.text) for item in found] == [
        ("a.flac", "What was said."),
        ("b.wav", None),
        ("more/c.wav", "Qué dice"),
    ]
    assert_is_the_tone(found[2].audio(load_audio))


def test_folders_that_hold_no_recordings(tmp_path):
    with pytest.raises(AudioError, match="no such folder"):
        recordings_in(tmp_path / "missing")
    file = write(tmp_path / "a.wav", 16_000)
    with pytest.raises(AudioError, match="is not a folder"):
        recordings_in(file)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"caf\xe9")
    write(tmp_path / "b.wav", 16_000)
    with pytest.raises(AudioError, match=r"(?s)a\.txt: is not UTF-8 text .* at byte 3.*b\.txt"):
        recordings_in(tmp_path)


def test_a_path_is_audio_too(tmp_path):
    assert_is_the_tone(load_audio(write(tmp_path / "a.wav", 16_000)))
    with pytest.raises(AudioError, match="no such file"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is not a file"):
        load_audio(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="the file is empty"):
        load_audio(str(tmp_path / "empty.wav"))


@pytest.mark.parametrize("channels", [3, 7, 8, 9, 33, 255])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le"])
def test_any_number_of_channels_through_ffmpeg(tmp_path, channels, codec):
    """FFmpeg's plane pointers end after eight channels, so a reader of planes crashes the process."""
    path = tmp_path / "a.nut"  # a container that libsndfile does not read
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16_000, layout=f"{channels} channels")
        kind = "s16" if codec == "pcm_s16le" else "flt"
        samples = tone(16_000, channels).astype(np.float32)
        packed = (samples * 32767).astype(np.int16) if kind == "s16" else samples
        frame = av.AudioFrame(format=kind, layout=f"{channels} channels", samples=len(packed))
        frame.planes[0].update(packed.tobytes())
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if channels > limits.AUDIO_CHANNELS:
        with pytest.raises(AudioError, match="255 channels; the maximum is 64"):
            load(path)
    else:
        assert_is_the_tone(load(path))


def wav_with(tmp_path, at, value, size=4):
    """A WAV file with one field of its header replaced."""
    content = bytearray(write(tmp_path / "a.wav", 16_000).read_bytes())
    content[at : at + size] = value.to_bytes(size, "little")
    (tmp_path / "a.wav").write_bytes(content)
    return tmp_path / "a.wav"


@pytest.mark.parametrize("rate", [1, 100, 999, 768_001, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, rate):
    with pytest.raises(AudioError, match="samples a second; 1000 to 768000 are read"):
        load(wav_with(tmp_path, 24, rate))


def test_a_recording_beyond_the_longest_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "AUDIO_S", 1)
    with pytest.raises(AudioError, match="cut it into parts"):
        load(write(tmp_path / "a.wav", 16_000))
    monkeypatch.setattr(limits, "AUDIO_S", 2)
    assert_is_the_tone(load(tmp_path / "a.wav"))


def test_standard_input_has_an_end(monkeypatch):
    monkeypatch.setattr(limits, "STDIN_BYTES", 1000)
    with pytest.raises(AudioError, match="more than 0 MB came in"):
        load_audio(AudioInput("standard input", None), io.BytesIO(bytes(1001)))


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile b.wav\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nb.wav\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.m3u8", "a.mp3"])
def test_a_file_never_makes_ffmpeg_open_another(tmp_path, content, name):
    write(tmp_path / "b.wav", 16_000)
    (tmp_path / name).write_text(content)
    with pytest.raises(AudioError, match="not audio that can be decoded"):
        load(tmp_path / name)


def test_a_name_is_never_an_instruction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b.wav", 16_000)
    encode(tmp_path / "concat:b.m4a", "aac", 16_000)
    assert_is_the_tone(load(Path("concat:b.m4a")), slack=0.1)
