"""One window's decoding on a scripted decoder: fallback, no speech, limits, and what is fed to the package."""

import math
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from whisperkit_tools.decoder.session import CacheSession
from whisperkit_tools.errors import BundleError, OptionsError
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.decoding import WindowDecoder, compression_ratio

END, START, NO_SPEECH, VOCABULARY, LENGTH = 10, 11, 12, 30, 24
SPECIAL = SpecialTokens(
    end_of_text=END, start_of_transcript=START, start_of_previous=13, no_speech=NO_SPEECH, no_timestamps=14,
    timestamp_begin=15, timestamp_end=VOCABULARY, languages={}, tasks={}, suppressed=(), suppressed_at_begin=(),
    max_initial_timestamp_index=None,
)  # fmt: skip


class ScriptedDecoder:
    """Answers each position with the given logits, and notes what it was fed."""

    def __init__(self, answers, alignment=True):
        self.answers, self.alignment, self.calls = answers, alignment, []
        self.inputs = {"key_cache": TensorSpec("key_cache", (1, 2, 1, LENGTH), "float16")}

    def run(self, inputs, /):
        position = int(inputs["cache_length"])
        self.calls.append({name: value.clone() for name, value in inputs.items()} | {"object": inputs})
        outputs = {
            "logits": self.answers[min(position, len(self.answers) - 1)].view(1, 1, -1),
            "key_cache_updates": torch.full((1, 2, 1, 1), position + 1.0),
            "value_cache_updates": torch.full((1, 2, 1, 1), -position - 1.0),
        }
        if self.alignment:
            outputs["alignment_heads_weights"] = torch.full((1, 1500), float(position))
        return outputs


def favouring(token, strength=9.0, **others):
    logits = torch.zeros(VOCABULARY)
    logits[token] = strength
    for name, value in others.items():
        logits[int(name[1:])] = value
    return logits


def decode(answers, *, prefix=(START, 14), max_length=LENGTH, alignment=True, **options):
    decoder = ScriptedDecoder(answers, alignment)
    session = CacheSession(decoder)
    chosen = TranscribeOptions(**{"timestamps": False, "temperatures": (0.0,)} | options)
    windows = WindowDecoder(session, SPECIAL, chosen, max_length=max_length, vocab_size=VOCABULARY)
    embeds = torch.zeros(1, 1, 1, 1500)
    return session.perform(windows.decode(embeds, list(prefix), prefix.index(START))), decoder


def test_greedy_until_the_end_of_text():
    window, decoder = decode([favouring(0), favouring(3), favouring(4), favouring(END)])
    assert window.tokens == (3, 4)
    assert (window.temperature, window.attempts, window.generated) == (0.0, 1, 3)
    one = 9.0 - math.log(math.exp(9.0) + VOCABULARY - 1)
    assert window.avg_logprob == pytest.approx(one, abs=1e-5)
    assert [int(call["input_ids"]) for call in decoder.calls] == [START, 14, 3, 4]


def test_alignment_rows_are_those_of_the_step_that_predicted():
    window, _ = decode([favouring(0), favouring(3), favouring(4), favouring(END)])
    assert window.alignment[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert decode([favouring(END)], alignment=False)[0].alignment is None


def test_each_step_is_fed_as_the_runtime_does():
    _, decoder = decode([favouring(0), favouring(3), favouring(END)])
    for position, call in enumerate(decoder.calls):
        assert call["cache_length"].dtype == call["input_ids"].dtype == torch.int32
        assert call["kv_cache_update_mask"][0].tolist() == [float(i == position) for i in range(LENGTH)]
        assert call["decoder_key_padding_mask"][0].tolist() == [
            0.0 if i <= position else -10000.0 for i in range(LENGTH)
        ]
        expected = [i + 1.0 if i < position else 0.0 for i in range(LENGTH)]
        assert call["key_cache"][0, 0, 0].tolist() == expected
        assert call["value_cache"][0, 1, 0].tolist() == [-x for x in expected]
    embeds = {id(call["object"]["encoder_output_embeds"]) for call in decoder.calls}
    assert len(embeds) == 1  # the same object, so that the executor projects it once


def test_the_length_limit_counts_the_prefix():
    window, decoder = decode([favouring(3)], max_length=6)
    assert window.tokens == (3, 3, 3, 3)
    assert len(window.alignment) == 5
    assert len(decoder.calls) == 5


def test_fallback_goes_on_until_a_result_looks_right():
    flat = torch.zeros(VOCABULARY)
    flat[END] = 0.5
    window, decoder = decode(
        [flat], temperatures=(0.0, 0.2, 1.0), logprob_threshold=-1.0, no_speech_threshold=None, max_length=8
    )
    assert window.attempts == 3
    assert window.temperature == 1.0
    # The prefix is read once: later attempts start from the cache.
    assert [int(call["cache_length"]) for call in decoder.calls].count(0) == 1
    begins = [call for call in decoder.calls if int(call["cache_length"]) == 2]
    assert all(bool((call["key_cache"][..., 2:] == 0).all()) for call in begins)


def test_repetition_falls_back():
    sure = [favouring(3, 50.0)]
    kept = decode(sure, temperatures=(0.0, 0.2), compression_ratio_threshold=1.0, max_length=24)[0]
    assert (kept.attempts, kept.temperature) == (2, 0.2)
    assert kept.compression_ratio > 1.0
    once = decode(sure, temperatures=(0.0, 0.2), compression_ratio_threshold=None, max_length=24)[0]
    assert once.attempts == 1


@pytest.mark.parametrize(
    ("no_speech", "sure", "threshold", "logprob", "expected"),
    [
        (6.0, False, 0.6, -1.0, True),
        (6.0, True, 0.6, -1.0, False),  # sure of what it wrote
        (9.0, True, 0.6, -1.0, True),  # certain of silence
        (6.0, True, 0.6, None, True),
        (0.0, False, 0.6, -1.0, False),
        (9.0, False, None, -1.0, False),
    ],
)
def test_no_speech(no_speech, sure, threshold, logprob, expected):
    first = torch.zeros(VOCABULARY)
    first[NO_SPEECH] = no_speech
    answer = favouring(END) if sure else torch.zeros(VOCABULARY)
    window, _ = decode([first, answer], no_speech_threshold=threshold, logprob_threshold=logprob, max_length=6)
    assert window.has_no_speech is expected
    assert window.no_speech_prob == pytest.approx(float(first.softmax(0)[NO_SPEECH]))


def test_no_speech_ends_the_fallback():
    first = favouring(NO_SPEECH)
    window, _ = decode([first, torch.zeros(VOCABULARY)], temperatures=(0.0, 0.5, 1.0), max_length=6)
    assert (window.has_no_speech, window.attempts) == (True, 1)


def test_no_speech_is_read_at_the_start_of_the_transcript_not_of_the_prompt():
    answers = [favouring(0), favouring(0), favouring(NO_SPEECH), torch.zeros(VOCABULARY)]
    window, _ = decode(answers, prefix=(13, 5, START, 14), max_length=8)
    assert window.no_speech_prob > 0.9


def test_sampling_is_seeded():
    flat = torch.zeros(VOCABULARY)
    results = [decode([flat], temperatures=(1.0,), seed=seed)[0].tokens for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_logits_that_are_not_finite_are_an_error_not_silence():
    with pytest.raises(BundleError, match="not finite"):
        decode([torch.full((VOCABULARY,), math.nan)])


@given(
    tokens=st.lists(st.integers(0, 51_864), min_size=1, max_size=60), vocabulary=st.sampled_from([2248, 51865, 70000])
)
def test_compression_ratio_is_that_of_transformers(tokens, vocabulary):
    tokens = [token % vocabulary for token in tokens]
    expected = WhisperGenerationMixin._retrieve_compression_ratio(torch.tensor(tokens), vocabulary)
    assert compression_ratio(tokens, vocabulary) == expected


def test_compression_ratio_by_hand():
    data = bytes([7, 0] * 50)
    assert compression_ratio([7] * 50, 2248) == len(data) / len(zlib.compress(data))


def test_average_log_probability_is_that_of_transformers():
    generator = torch.Generator().manual_seed(0)
    answers = [torch.randn(VOCABULARY, generator=generator) for _ in range(LENGTH)]
    for position, row in enumerate(answers):
        row[END] = 9.0 if position == 6 else -9.0
    window, _ = decode(answers)
    ids = torch.tensor([int(row.argmax()) for row in answers[1:7]])
    assert list(window.tokens) == ids.tolist()[:-1]
    # Its end counts as well.
    expected = WhisperGenerationMixin._retrieve_avg_logprobs(answers[1:7], ids, 0.0)
    assert window.avg_logprob == pytest.approx(float(expected), abs=1e-5)


def test_all_wrong_options_are_named():
    with pytest.raises(OptionsError) as error:
        TranscribeOptions(task="sing", temperatures=(-1.0,), compression_ratio_threshold=0, no_speech_threshold=2)
    for part in ("'sing'", "[-1.0]", "compression_ratio_threshold is 0", "no_speech_threshold is 2"):
        assert part in str(error.value)
    with pytest.raises(OptionsError, match="temperatures is empty"):
        TranscribeOptions(temperatures=())
    with pytest.raises(OptionsError, match="logprob_threshold is 1"):
        TranscribeOptions(logprob_threshold=1)
    with pytest.raises(OptionsError, match="max_new_tokens is 0"):
        TranscribeOptions(max_new_tokens=0)


def test_an_answer_may_be_cut_short():
    answers = [favouring(token) for token in (3, 4, 5, END)]
    whole, _ = decode(answers, prefix=(START,))
    assert whole.tokens == (3, 4, 5)
    for most, expected in ((2, (3, 4)), (3, (3, 4, 5)), (9, (3, 4, 5))):
        window, decoder = decode(answers, prefix=(START,), max_new_tokens=most)
        assert window.tokens == expected
        assert len(decoder.calls) == len(expected) + (most > 3)


def test_sessions_are_used_for_window_after_window():
    decoder = ScriptedDecoder([favouring(END)])
    session = CacheSession(decoder)
    for _ in range(2):
        session.begin(torch.zeros(1, 1, 1, 1500))
        session.step(1, 0)
        session.step(2, 1)
    assert session.steps == 4
    assert bool((decoder.calls[2]["key_cache"] == 0).all())
    assert SimpleNamespace(**decoder.calls[3]).key_cache[0, 0, 0, :2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_number_that_is_none_at_any_step_is_an_error(step, wrong, temperature):
    answers = [favouring(3) for _ in range(5)]
    answers[step][5] = wrong
    with pytest.raises(BundleError, match=f"TextDecoder gave logits that are not finite at step {step} of a window"):
        decode(answers, temperatures=(temperature,))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_bundle_that_suppresses_every_token_is_an_error(monkeypatch, temperature):
    nothing = replace(SPECIAL, suppressed=tuple(range(VOCABULARY)))
    monkeypatch.setitem(globals(), "SPECIAL", nothing)
    with pytest.raises(BundleError, match="suppresses every token"):
        decode([favouring(3)], temperatures=(temperature,))
