"""Many recordings at once, against the same recordings one at a time."""

import numpy as np
import pytest
import torch
from helpers.progress import SeenProgress

from whisperkit_tools.demo import demo_longform, demo_utterances, read_demo_audio
from whisperkit_tools.errors import AudioError, OptionsError, show_options
from whisperkit_tools.transcribe.many import TranscriptionRequest, is_out_of_memory
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

OPTIONS = {
    "defaults": TranscribeOptions(),
    "words": TranscribeOptions(word_timestamps=True, language="en"),
    # A threshold that no window passes, so that every temperature is tried.
    "fallback": TranscribeOptions(temperatures=(0.0, 0.4, 0.8), logprob_threshold=-0.001, max_new_tokens=12, seed=3),
}


@pytest.fixture(scope="module")
def clips():
    found = demo_utterances()
    chosen = [*found[:3], *[item for item in found if item.language == "es"][:2]]
    return [item.audio(read_demo_audio) for item in chosen]


def _approximately_equal(found, wanted):
    assert found.tokens == wanted.tokens
    assert found.text == wanted.text
    assert [word.text for word in found.words] == [word.text for word in wanted.words]
    for one, other in zip(found.words, wanted.words, strict=True):
        assert (one.start_s, one.end_s) == pytest.approx((other.start_s, other.end_s), abs=0.021)
    for name in ("windows", "decoder_steps", "tokens", "fallbacks"):
        assert getattr(found.timings, name) == getattr(wanted.timings, name)
    for one, other in zip(found.segments, wanted.segments, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-3)
        assert one.temperature == other.temperature


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_gives_the_tokens_of_each_recording_alone(transcriber, clips, name):
    results = list(transcriber.transcribe_many(clips, OPTIONS[name], batch_size=3))
    assert sorted(result.index for result in results) == list(range(len(clips)))
    for result in results:
        _approximately_equal(result.get(), transcriber.transcribe(clips[result.index], OPTIONS[name]))


def test_each_request_has_options_of_its_own_and_long_audio_shares_the_lanes(transcriber, clips):
    long = demo_longform()[0].audio(read_demo_audio)[: 40 * 16_000]
    spanish = TranscribeOptions(language="es", task="translate", timestamps=False)
    requests = [TranscriptionRequest(long), TranscriptionRequest(clips[3], spanish), TranscriptionRequest(clips[0])]
    found = {result.index: result.get() for result in transcriber.transcribe_many(iter(requests), batch_size=2)}
    for index, request in enumerate(requests):
        _approximately_equal(found[index], transcriber.transcribe(request.audio, request.options))
    assert found[0].timings.windows > 1
    assert (found[1].task, found[1].language) == ("translate", "es")


def test_a_recording_that_fails_fails_alone(transcriber, clips, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")

    def raises():
        raise ValueError("a bug of the caller")

    silent = np.zeros(0, np.float32)
    wrong = TranscriptionRequest(clips[0], TranscribeOptions(language="tlh"))
    given = [clips[0], silent, str(tmp_path / "broken.wav"), tmp_path / "missing.wav", raises, wrong, clips[1]]
    results = {result.index: result for result in transcriber.transcribe_many(given, batch_size=2)}
    assert [type(results[at].error) for at in range(7)] == [
        type(None), AudioError, AudioError, AudioError, ValueError, OptionsError, type(None)
    ]  # fmt: skip
    assert results[6].get().tokens == transcriber.transcribe(clips[1]).tokens
    with pytest.raises(AudioError, match="no samples"):
        results[1].get()


def test_a_stateful_decoder_and_one_lane_take_one_at_a_time(transcriber, stateful_bundle, clips):
    wanted = [transcriber.transcribe(clip).tokens for clip in clips[:2]]
    for one, size in ((Transcriber.load(stateful_bundle), 8), (transcriber, 1)):
        found = list(one.transcribe_many(clips[:2], batch_size=size))
        assert [result.index for result in found] == [0, 1]
        assert [result.get().tokens for result in found] == wanted


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "many", None])
def test_batch_sizes_that_are_none(transcriber, size):
    with pytest.raises(OptionsError, match="batch_size is"):
        transcriber.transcribe_many([], batch_size=size)


def test_options_are_checked_before_anything_is_read(transcriber):
    with pytest.raises(OptionsError, match="tlh"):
        transcriber.transcribe_many([], TranscribeOptions(language="tlh"))


def test_a_batch_beyond_memory_is_halved_and_that_is_said_once(transcriber, clips, monkeypatch):
    """Four lanes fail when they are made, two while they decode. What was running starts again."""
    from whisperkit_tools.decoder.lanes import DecoderLanes

    make, step = DecoderLanes.__init__, DecoderLanes.step
    calls = []

    def limited_make(self, decoder, capacity, dtype):
        if capacity > 4:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        make(self, decoder, capacity, dtype)

    def limited_step(self, *arguments):
        calls.append(self.capacity)
        if self.capacity > 1 and len(calls) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *arguments)

    monkeypatch.setattr(DecoderLanes, "__init__", limited_make)
    monkeypatch.setattr(DecoderLanes, "step", limited_step)
    progress = SeenProgress()
    recordings = [*clips, *clips[:4]]
    results = list(transcriber.transcribe_many(recordings, batch_size=8, progress=progress))
    assert sorted(result.index for result in results) == list(range(9))
    assert 4 in calls
    wanted = [transcriber.transcribe(clip).tokens for clip in clips]
    for result in results:
        assert result.get().tokens == wanted[result.index % len(clips)]
    assert [show_options(note) for note in progress.notes] == [
        "there is too little memory for 8 recordings at once (batch_size); going on with half as many"
    ]


def test_other_errors_of_the_decoder_are_not_taken_for_a_lack_of_memory(transcriber, clips, monkeypatch):
    from whisperkit_tools.decoder.lanes import DecoderLanes

    def broken(self, *arguments):
        raise RuntimeError("operation add 'x' failed")

    monkeypatch.setattr(DecoderLanes, "step", broken)
    with pytest.raises(RuntimeError, match="operation add"):
        list(transcriber.transcribe_many(clips[:2], batch_size=2))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("memory is fine"))


def test_times_are_each_recordings_share(transcriber, clips):
    results = [result.get() for result in transcriber.transcribe_many(clips, batch_size=3)]
    for found in results:
        times = found.timings
        assert 0 < times.time_to_first_token_s <= times.total_s
        assert times.mel_s + times.encoder_s + times.decoder_s <= times.total_s + 1e-4
