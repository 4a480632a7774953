"""Chunked and pause-cut transcription: cuts, seams by common tokens and times, and the text against transformers."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import jiwer
import numpy as np
import pytest
import torch
from helpers.progress import SeenProgress
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence
from transformers.pipelines.automatic_speech_recognition import chunk_iter

from whisperkit_tools.demo import demo_checkpoint_dir, demo_longform
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.transcribe import run as module
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.windows.chunked import (
    DecodedChunk,
    Overlap,
    TimedTokens,
    find_overlap,
    find_seams,
    overlapping_chunks,
    stitched_segments,
)
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow

BEGIN = 1000
SPECIAL = SimpleNamespace(
    timestamp_begin=BEGIN, is_text=lambda token: token < 900, is_timestamp=lambda token: token >= BEGIN
)


@pytest.fixture(scope="module")
def recording():
    return demo_longform()[0]


@pytest.fixture(scope="module")
def audio(recording):
    return load_audio(AudioInput(str(recording.path), recording.path))


@given(n_samples=st.integers(1, 500), length=st.integers(2, 120), data=st.data())
@settings(max_examples=300, deadline=None)
def test_chunks_lie_where_transformers_puts_them(n_samples, length, data):
    stride = data.draw(st.integers(0, (length - 1) // 2))
    found = overlapping_chunks(n_samples, length, stride)
    items = chunk_iter(np.arange(n_samples), _Extractor(), length, stride, stride)
    expected = [(int(item["chunk"][0]), len(item["chunk"])) for item in items]
    assert [(chunk.start, chunk.stop - chunk.start) for chunk in found] == expected


def stitch(sequences):
    """Which tokens of each chunk transformers keeps: by the tokens alone, cut in the middle of the overlap."""
    kept, start = [], 0
    for left, right in pairwise(sequences):
        overlap = find_overlap(left[start:], right)
        stop, following = len(left), 0
        if overlap is not None:
            stop = start + (overlap.left_start + overlap.left_stop) // 2
            following = (overlap.right_start + overlap.right_stop) // 2
        kept.append((start, stop))
        start = following
    return [*kept, (start, len(sequences[-1]))] if sequences else []


class _Extractor:
    sampling_rate = 16_000

    def __call__(self, chunk, **_):
        return {"chunk": chunk}


def window(*tokens):
    return DecodedWindow(tokens, 0.0, -0.1, 1.0, 0.0, False, 1, len(tokens), None, 0.0)


def heard(start_s, stop_s, *tokens):
    return DecodedChunk.of(window(*tokens), SPECIAL, start_s, stop_s, 0.02)


def letters(ids):
    return "".join(f" w{token}" for token in ids)


def stitched(*chunks, timestamps=True):
    return stitched_segments(chunks, letters, "en", timestamps=timestamps, words=True)


def test_a_phrase_that_the_seam_cuts_goes_on():
    left = heard(0, 15, BEGIN, 1, 2, BEGIN + 500, BEGIN + 500, 3, 4, 5, BEGIN + 750)
    right = heard(10, 25, BEGIN, 4, 5, 6, BEGIN + 400, BEGIN + 400, 7, BEGIN + 750)
    found = stitched(left, right)
    assert [segment.text for segment in found] == [" w1 w2", " w3 w4 w5 w6", " w7"]
    assert [(segment.start_s, segment.end_s) for segment in found] == [(0, 10), (10, 18), (18, 25)]
    assert [segment.tokens for segment in found] == [(1, 2), (3, 4, 5, 6), (7,)]


def test_a_phrase_that_both_end_at_the_same_time_is_the_left_ones():
    left = heard(0, 15, BEGIN, 1, 2, BEGIN + 600, BEGIN + 620, 3, BEGIN + 750)
    right = heard(10, 25, BEGIN, 9, 2, 8, BEGIN + 105, BEGIN + 120, 3, 4, BEGIN + 400)
    found = stitched(left, right)
    assert [(segment.text, segment.start_s, segment.end_s) for segment in found] == [
        (" w1 w2", 0, 12),
        (" w3 w4", 12.4, 18),
    ]


def test_a_phrase_that_ends_with_its_chunk_is_not_finished():
    left = heard(0, 15, BEGIN, 1, BEGIN + 500, BEGIN + 500, 2, 3, 4, BEGIN + 745)
    right = heard(10, 25, BEGIN, 3, 4, 5, BEGIN + 245, BEGIN + 300, 6, BEGIN + 400)
    assert [segment.text for segment in stitched(left, right)] == [" w1", " w2 w3 w4 w5", " w6"]


def test_an_unfinished_phrase_counts_as_no_later_window_hears_it():
    found = stitched(heard(0, 15, BEGIN, 1, BEGIN + 500, BEGIN + 500, 2, 3), heard(10, 20))
    assert [(s.text, s.start_s, s.end_s) for s in found] == [(" w1", 0, 10), (" w2", 10, 12.5)]
    assert [(s.text, s.end_s) for s in stitched(heard(0, 15, BEGIN, 1, 2))] == [(" w1 w2", 15)]


def test_without_timestamps_each_chunk_is_a_segment():
    found = stitched(heard(0, 15, 1, 2, 3, 4), heard(10, 25, 3, 4, 5, 6), timestamps=False)
    assert [segment.text for segment in found] == [" w1 w2 w3", " w4 w5 w6"]
    assert found[0].end_s <= found[1].start_s
    assert (found[0].start_s, found[1].end_s) == (0, 25)


def test_no_speech_leaves_a_gap():
    silent = DecodedChunk.of(replace(window(BEGIN, 9, BEGIN + 10), has_no_speech=True), SPECIAL, 10, 25, 0.02)
    found = stitched(heard(0, 15, BEGIN, 1, BEGIN + 100), silent, heard(20, 30, BEGIN + 250, 2, BEGIN + 300))
    assert [(s.text, s.start_s, s.end_s) for s in found] == [(" w1", 0, 2), (" w2", 25, 26)]


STRATEGIES = {
    "chunked": TranscribeOptions(long_form="chunked", word_timestamps=True, temperatures=(0.0,)),
    "chunked without timestamps": TranscribeOptions(
        long_form="chunked", word_timestamps=True, timestamps=False, temperatures=(0.0,)
    ),
    "vad": TranscribeOptions(long_form="vad", chunk_length_s=12, word_timestamps=True, temperatures=(0.0,)),
}


@pytest.fixture(scope="module", params=STRATEGIES)
def result(request, transcriber, audio):
    return transcriber.transcribe(audio, STRATEGIES[request.param])


def test_times_are_those_of_the_file(result, recording):
    assert result.long_form in ("chunked", "vad")
    assert json.loads(json.dumps(result.to_dict()))["long_form"] == result.long_form
    times = [time for segment in result.segments for time in (segment.start_s, segment.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= result.audio_duration_s
    words = [word for segment in result.segments for word in segment.words]
    assert "".join(word.text for word in words).strip() == result.text
    starts = [word.start_s for word in words]
    assert starts == sorted(starts)
    for segment in result.segments:
        assert all(segment.start_s <= w.start_s <= w.end_s <= segment.end_s + 1e-6 for w in segment.words)


def test_sentences_begin_where_they_are_said(result, recording):
    """Whatever the words: each sentence of the transcript begins with a capital letter, and near one of the speech."""
    said = np.array([phrase.start_s for phrase in recording.phrases])
    words = [word for segment in result.segments for word in segment.words]
    begins = [w.start_s for before, w in pairwise(words) if before.text.endswith((".", "?"))]
    assert len(begins) > 0.6 * len(said)
    assert np.median([np.abs(said - begin).min() for begin in begins]) < 0.4


def test_no_sentence_is_lost_or_doubled_at_a_seam(result, request, recording):
    """Each sentence of the recording has one segment, in chunks that begin and end in the middle of sentences too."""
    if request.node.callspec.params["result"] == "chunked without timestamps":
        pytest.skip("without timestamps a segment is no sentence")
    said = np.array([phrase.start_s for phrase in recording.phrases])
    found = np.array([segment.start_s for segment in result.segments])
    missed = [start for start in said if np.abs(found - start).min() > 0.5]
    beside = [start for start in found if np.abs(said - start).min() > 0.5]
    assert len(missed) <= 1
    assert len(beside) <= 1
    words = len(recording.text.split())
    assert abs(len(result.text.split()) - words) <= 0.04 * words


def test_the_text_equals_that_of_transformers_on_the_same_tokens(transcriber, audio, monkeypatch):
    """By the tokens alone; with their times the product does better than that."""
    kept = []
    monkeypatch.setattr(module, "stitched_segments", lambda chunks, *_, **__: kept.extend(chunks) or [])
    transcriber.transcribe(audio, STRATEGIES["chunked without timestamps"])
    ids = [[token.id for token in chunk.tokens] for chunk in kept]
    assert len(ids) == math.ceil((len(audio) / 16_000 - 15) / 10) + 1
    outputs = [
        {
            "tokens": torch.tensor([tokens]),
            "stride": (chunk.stop_s - chunk.start_s, 2.5 if chunk.start_s else 0.0, 2.5),
        }
        for tokens, chunk in zip(ids, kept, strict=True)
    ]
    tokenizer = WhisperTokenizer.from_pretrained(demo_checkpoint_dir())
    expected, _ = tokenizer._decode_asr(outputs, return_timestamps=False, return_language=None, time_precision=0.02)
    joined = [token for tokens, (start, stop) in zip(ids, stitch(ids), strict=True) for token in tokens[start:stop]]
    assert transcriber.tokenizer.decode(joined).strip() == expected.strip()


@pytest.mark.parametrize("long_form", ["chunked", "vad"])
def test_short_audio_is_one_window(transcriber, audio, long_form):
    short = audio[: 8 * 16_000]
    assert transcriber.transcribe(short, TranscribeOptions(long_form=long_form)).text == (
        transcriber.transcribe(short).text
    )


@pytest.mark.parametrize("long_form", ["chunked", "vad"])
def test_long_silence_gives_no_text(transcriber, long_form):
    result = transcriber.transcribe(np.zeros(35 * 16_000, np.float32), TranscribeOptions(long_form=long_form))
    assert (result.text, result.segments) == ("", ())


def test_progress_goes_on_to_the_end(transcriber, audio):
    progress = SeenProgress()
    transcriber.transcribe(audio, STRATEGIES["vad"], progress=progress, label="talk")
    assert progress.seen == sorted(progress.seen)
    assert progress.seen[-1] == ("talk", round(len(audio) / 16_000, 1), round(len(audio) / 16_000, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_form": "parallel"}, "long_form is 'parallel', allowed are sequential, chunked, vad"),
        ({"vad": "loud"}, "vad is 'loud', allowed are energy, silero"),
        ({"long_form": "chunked", "chunk_length_s": 31}, "chunk_length_s is 31, allowed are 1 to 30 seconds"),
        ({"long_form": "chunked", "stride_s": 7.5}, "stride_s is 7.5, allowed is 0 to below half of a chunk's 15"),
        ({"long_form": "chunked", "condition_on_previous_text": True}, "cannot be conditioned"),
        ({"long_form": "vad", "features": "file"}, "sequential windows only, not with vad"),
    ],
)
def test_options_that_do_not_go_together(changes, message):
    with pytest.raises(OptionsError, match=message):
        TranscribeOptions(**changes)


def test_features_from_elsewhere_cannot_be_cut(transcriber):
    with pytest.raises(OptionsError, match="long_form is 'vad'"):
        transcriber.transcribe_features(np.zeros((80, 3000), np.float32), TranscribeOptions(long_form="vad"))


def test_the_command_passes_the_strategy_on(wkt, demo_bundle, recording):
    options = ("--long-form", "chunked", "--chunk-length", "12", "--stride", "2", "--temperature", "0", "--json")
    code, out, err = wkt("transcribe", recording.path, "--bundle", demo_bundle, *options)
    assert code == 0, err
    assert json.loads(out)["long_form"] == "chunked"
    assert json.loads(out)["timings"]["windows"] == math.ceil((recording.duration_s - 12) / 8) + 1


def _word_error_rates(transcriber, recordings):
    """In percent by strategy, on texts as `wkt evaluate` normalises them; recordings are (samples, text, language)."""
    normalization, found = Normalization(), {}
    for long_form in ("sequential", "chunked", "vad"):
        pairs = []
        for samples, text, language in recordings:
            result = transcriber.transcribe(samples, TranscribeOptions(language=language, long_form=long_form))
            pairs.append(normalization.pair(text, result.text, language))
        found[long_form] = 100 * jiwer.wer([reference for reference, _ in pairs], [heard for _, heard in pairs])
    return found


def test_strategies_are_at_most_a_point_worse_than_sequential_on_the_demos_recordings(transcriber):
    recordings = [(load_audio(AudioInput(item.id, item.path)), item.text, item.language) for item in demo_longform()]
    found = _word_error_rates(transcriber, recordings)
    assert found["sequential"] < 12
    assert max(found.values()) <= found["sequential"] + 1


def test_strategies_are_at_most_a_point_worse_than_sequential_on_real_speech(transcriber, shared):
    """The demo model knows few of these words: what is compared is how many it hears, and none twice."""
    folder = shared / "audio" / "longform"
    entries = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    recordings = [
        (load_audio(AudioInput(entry["audio"], folder / entry["audio"])), entry["text"], entry["language"])
        for entry in entries
    ]
    found = _word_error_rates(transcriber, recordings)
    assert max(found.values()) <= found["sequential"] + 1


# --- seams -----------------------------------------------------------------------------------------------------------


def joined(sequences, kept):
    return [token for ids, (start, stop) in zip(sequences, kept, strict=True) for token in ids[start:stop]]


@given(st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=5))
@settings(max_examples=500, deadline=None)
def test_any_sequences_are_joined_as_in_transformers(sequences):
    assert joined(sequences, stitch(sequences)) == list(_find_longest_common_sequence(sequences))


@given(
    words=st.lists(st.integers(0, 30), min_size=8, max_size=60),
    cuts=st.lists(st.integers(0, 59), min_size=1, max_size=4),
    noise=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_overlapping_speech_with_mistakes_is_joined_as_in_transformers(words, cuts, noise):
    bounds = [0, *sorted(cut % len(words) for cut in cuts), len(words)]
    sequences = [words[max(0, a - 4) : b + 4] for a, b in pairwise(bounds)]
    sequences = [[token if noise.random() < 0.9 else 99 for token in ids] for ids in sequences]
    assert joined(sequences, stitch(sequences)) == list(_find_longest_common_sequence(sequences))


def test_what_both_heard_is_kept_once():
    assert find_overlap([1, 2, 3, 4], [3, 4, 5]) == Overlap(2, 4, 0, 2)
    sequences = [[1, 2, 3, 4, 9], [8, 3, 4, 5, 6]]
    # The words that the cuts spoilt, 9 and 8, lie on the far side of the middle.
    assert joined([[1, 2, 3, 4, 5, 9], [8, 3, 4, 5, 6, 7]], stitch([[1, 2, 3, 4, 5, 9], [8, 3, 4, 5, 6, 7]])) == [
        *(1, 2, 3, 4, 5, 6, 7)
    ]
    assert joined(sequences, stitch(sequences)) == list(_find_longest_common_sequence(sequences))


def timed(ids, start, step=1.0):
    return TimedTokens(ids, [start + step * i for i in range(len(ids))], [True] * len(ids))


def test_a_repeated_phrase_is_matched_where_it_was_said():
    """The same two words are said in seconds 0, 6 and 10; the chunks overlap from 8 to 12."""
    speech = [7, 8, 1, 2, 3, 4, 7, 8, 5, 6, 7, 8, 9, 10, 11, 12]
    left, right = timed(speech[:12], 0), timed(speech[8:], 8)
    assert joined([left.ids, right.ids], find_seams([left, right], [10], 0.5)) == speech
    # Shifted by a word, and by the tokens alone "7 8" of the beginning of the right chunk would be that at the end.
    left, right = timed(speech[:8], 0), timed(speech[6:], 6)
    assert joined([left.ids, right.ids], find_seams([left, right], [7], 0.5)) == speech


def test_chunks_that_share_nothing_are_cut_in_the_middle_of_the_overlap():
    left, right = timed([1, 2, 3, 20], 0), timed([30, 4, 5], 3)
    assert joined([left.ids, right.ids], find_seams([left, right], [3.0], 0.5)) == [1, 2, 3, 30, 4, 5]
    assert joined([left.ids, right.ids], stitch([left.ids, right.ids])) == [1, 2, 3, 20, 30, 4, 5]


def test_the_cut_in_the_middle_spares_words():
    """Words of two tokens, of which the cuts at both chunks' ends spoilt one each."""
    left = TimedTokens([1, 2, 3, 4, 20], [0, 0.5, 1, 1.5, 2], [True, False, True, False, True])
    right = TimedTokens([30, 31, 5, 6], [1.2, 1.8, 2.2, 2.6], [True, False, True, False])
    assert joined([left.ids, right.ids], find_seams([left, right], [1.7], 0.3)) == [1, 2, 3, 4, 5, 6]


def test_the_seam_is_at_a_token_that_both_heard():
    left = timed([1, 2, 3, 40, 41, 6], 0)
    right = timed([30, 3, 4, 5, 6, 7], 1)
    assert joined([left.ids, right.ids], stitch([left.ids, right.ids])) == [1, 2, 3, 4, 5, 6, 7]
    left, right = timed([1, 2, 3, 4, 40], 0), timed([30, 3, 4, 5], 1)
    assert joined([left.ids, right.ids], find_seams([left, right], [2.5], 0.5)) == [1, 2, 3, 4, 5]


def test_equal_words_at_other_times_are_not_the_same():
    left, right = timed([1, 2, 5, 6], 0), timed([5, 6, 3, 4], 3)
    assert find_overlap(left.ids, right.ids) == Overlap(2, 4, 0, 2)
    assert joined([left.ids, right.ids], find_seams([left, right], [3.5], 0.5)) == [1, 2, 5, 6, 6, 3, 4]
    assert joined([left.ids, right.ids], find_seams([left, right], [3.5], 1.0)) == [1, 2, 5, 6, 3, 4]


def test_the_seam_is_where_both_say_that_a_phrase_ends():
    """Each chunk makes up what it heard only a part of, here with words that the other one has at the same time."""
    left = TimedTokens([1, 2, 3, 4, 5, 60, 61], [0, 1, 2, 3, 4, 5, 6], [True] * 7, [(3, 2.9), (5, 4.9)])
    right = TimedTokens([4, 5, 71, 6, 7, 8], [3.2, 3.9, 4.5, 5.2, 6.0, 7], [True] * 6, [(3, 5.1), (6, 8.0)])
    assert joined([left.ids, right.ids], find_seams([left, right], [5.0], 1.0)) == [1, 2, 3, 4, 5, 6, 7, 8]
    without = [replace(chunk, ends=()) for chunk in (left, right)]
    assert joined([left.ids, right.ids], find_seams(without, [5.0], 1.0)) == [1, 2, 3, 4, 5, 71, 6, 7, 8]


def test_of_several_common_ends_the_middle_one_is_taken_and_distant_ends_are_not_common():
    speech = list(range(12))
    ends = [(at, at - 0.2) for at in (2, 4, 6, 8, 10)]
    left = TimedTokens(speech[:10], list(map(float, speech[:10])), [True] * 10, ends[:4])
    right = TimedTokens(
        speech[2:], [float(at) for at in speech[2:]], [True] * 10, [(at - 2, s + 0.1) for at, s in ends[1:]]
    )
    assert find_seams([left, right], [6.0], 0.1) == [(0, 6), (4, 10)]
    late = replace(right, ends=[(at, end_s + 0.5) for at, end_s in right.ends])
    assert joined([left.ids, late.ids], find_seams([left, late], [6.0], 0.1)) == speech


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2]], [[], [1, 2], []], [[1, 2], [], [3]]])
def test_little_to_join(sequences):
    kept = stitch(sequences)
    assert joined(sequences, kept) == [token for ids in sequences for token in ids]
    assert (
        find_seams(
            [timed(ids, 10 * at) for at, ids in enumerate(sequences)],
            [10.0 * at + 9 for at in range(len(sequences) - 1)],
            1.0,
        )
        == kept
    )


def test_nothing_is_lost_or_doubled_at_many_seams():
    rng = np.random.default_rng(0)
    speech = rng.integers(0, 40, 400).tolist()
    chunks = [timed(speech[max(0, at - 8) : at + 24], max(0, at - 8)) for at in range(0, 400, 16)]
    middles = list(range(16, 400, 16))
    jittered = [replace(c, times_s=sorted(c.times_s + rng.uniform(-0.4, 0.4, len(c.ids)))) for c in chunks]
    assert joined([c.ids for c in chunks], find_seams(jittered, middles, 1.0)) == speech
