"""Word timestamps: warping and filtering against transformers and SciPy, words against transformers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import medfilt
from transformers import WhisperTokenizerFast
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.models.whisper.generation_whisper import (
    WhisperGenerationMixin,
    _dynamic_time_warping,
    _median_filter,
)
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words

from whisperkit_tools.transcribe.tokenizer import WhisperTokenizer
from whisperkit_tools.transcribe.windows.sequential import Phrase
from whisperkit_tools.transcribe.windows.words import (
    WordAligner,
    dynamic_time_warping,
    median_filter,
    normalise,
    row_starts,
    shifted,
    split_words,
)

sizes = st.tuples(st.integers(1, 12), st.integers(1, 30))


@given(size=sizes, seed=st.integers(0, 2**31), ties=st.booleans())
@settings(max_examples=100, deadline=None)
def test_warping_is_that_of_transformers(size, seed, ties):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 3, size).astype(float) if ties else rng.normal(size=size)
    expected, found = _dynamic_time_warping(cost), dynamic_time_warping(cost)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def all_ways(rows, columns):
    if (rows, columns) == (1, 1):
        yield [(0, 0)]
        return
    for back in ((1, 1), (1, 0), (0, 1)):
        if rows - back[0] > 0 and columns - back[1] > 0:
            for way in all_ways(rows - back[0], columns - back[1]):
                yield [*way, (rows - 1, columns - 1)]


@given(size=st.tuples(st.integers(1, 4), st.integers(1, 5)), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_warping_finds_the_cheapest_of_all_ways(size, seed):
    cost = np.random.default_rng(seed).normal(size=size)
    rows, columns = dynamic_time_warping(cost)
    cheapest = min(sum(cost[cell] for cell in way) for way in all_ways(*size))
    assert cost[rows, columns].sum() == pytest.approx(cheapest, abs=1e-5)


@given(rows=st.integers(1, 4), width=st.sampled_from([3, 5, 7]), length=st.integers(8, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_median_filter_is_that_of_transformers_and_scipy(rows, width, length, seed):
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, length)))
    found = median_filter(values, width)
    assert torch.equal(found, _median_filter(values[None, None], width)[0, 0])
    inner = slice(width // 2, length - width // 2)  # SciPy fills the edges with zeros
    assert np.array_equal(found[:, inner].numpy(), medfilt(values.numpy(), (1, width))[:, inner])


def test_median_filter_leaves_short_rows_alone():
    values = torch.tensor([[3.0, 1.0, 2.0]])
    assert torch.equal(median_filter(values, 7), values)


def test_normalise_leaves_no_nan_where_nothing_varies():
    assert torch.equal(normalise(torch.full((3, 4), 0.25)), torch.zeros(3, 4))
    assert torch.equal(normalise(torch.rand(1, 4)), torch.zeros(1, 4))


@given(rows=st.integers(2, 20), positions=st.integers(10, 60), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_row_starts_are_transformers_token_timestamps(rows, positions, seed):
    """The same weights as those of one layer with one head, no ids given in front."""
    weights = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(60), size=rows)).float()
    model = SimpleNamespace(config=SimpleNamespace(decoder_layers=1, median_filter_width=7))
    outputs = GenerateEncoderDecoderOutput(
        cross_attentions=[(weights[None, None],)], sequences=torch.zeros(1, rows + 1, dtype=torch.long)
    )
    expected = WhisperGenerationMixin._extract_token_timestamps(
        model, outputs, [(0, 0)], num_frames=2 * positions, num_input_ids=0
    )
    assert row_starts(weights, positions) * 0.02 == pytest.approx(expected[0, :-1].numpy(), abs=1e-6)


@pytest.fixture(scope="module")
def real_tokenizer(shared):
    return WhisperTokenizerFast.from_pretrained(shared / "checkpoints" / "whisper-tiny")


@pytest.mark.parametrize(
    ("language", "name", "text"),
    [
        ("en", "english", " \"Well,\" she said (quietly): it's 4.5 % - isn't it?"),
        ("es", "spanish", " ¿Qué pasó? ¡Nada! «Así», dijo él."),
        ("zh", "chinese", "我们今天去北京，好吗？好。"),
        ("ja", "japanese", "今日は、いい天気ですね。🎉"),
        ("th", "thai", "สวัสดีครับ"),
        ("en", "english", " naïve café 🎉🎉 中 ok"),
        ("de", "german", ""),
    ],
)
def test_words_are_those_of_transformers(real_tokenizer, language, name, text):
    tokens = real_tokenizer(text, add_special_tokens=False).input_ids
    words, _, indices = _combine_tokens_into_words(real_tokenizer, tokens, name)
    found = split_words(tokens, real_tokenizer.decode, language)
    assert [word for word, _ in found] == words
    assert [list(of) for _, of in found] == indices
    assert "".join(word for word, _ in found) == text


@given(text=st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_words_of_any_text_are_those_of_transformers(real_tokenizer, text):
    tokens = real_tokenizer(" " + text, add_special_tokens=False).input_ids
    for language, name in (("en", "english"), ("zh", "chinese")):
        words, _, _ = _combine_tokens_into_words(real_tokenizer, list(tokens), name)
        assert [word for word, _ in split_words(tokens, real_tokenizer.decode, language)] == words


def test_words_follow_the_attention_and_stay_in_their_phrase():
    special = SimpleNamespace(is_text=lambda token: token < 10)
    tokens = [20, 1, 2, 25]
    attended = torch.full((5, 50), 0.001)
    for row, positions in ((1, slice(4, 12)), (2, slice(12, 30)), (4, slice(30, 50))):
        attended[row, positions] = 1.0
    aligner = WordAligner(special, lambda ids: "".join(f" w{i}" for i in ids), "en", 0.02)
    phrase = Phrase(start=2, end=40, tokens=tuple(tokens), first=0)
    (words,) = aligner.align(tokens, attended, [phrase], 50)
    assert [word for word, _, _ in words] == [" w1", " w2"]
    assert words[0][1] == pytest.approx(0.04)  # where the phrase starts, not where the window does
    assert words[0][2] == words[1][1] == pytest.approx(0.24, abs=0.03)
    assert words[1][2] == pytest.approx(0.60, abs=0.03)


def test_words_are_counted_from_the_start_of_the_audio_and_end_with_it():
    (word,) = shifted([(" yes", 1.0, 2.5)], 30.0, 32.0)
    assert (word.start_s, word.end_s) == (31.0, 32.0)


def test_words_from_the_field_are_whole(shared):
    """No replacement characters, words of Danish and Korean whole, no sentence of an unspaced script as one word."""
    folder = shared / "checkpoints" / "whisper-tiny"
    generation = json.loads((folder / "generation_config.json").read_text())
    tokenizer = WhisperTokenizer.load(folder / "tokenizer.json", generation, vocab_size=51865, n_audio_ctx=1500)
    lines = (shared / "cases" / "24-word-times-across-bytes" / "words.jsonl").read_text(encoding="utf-8").splitlines()
    more = [{"language": code, "text": text, "words_at_least": 3} for code, text in (("km", "ខ្ញុំទៅ"), ("bo", "བཀྲ་ཤིས"))]
    for row in (*map(json.loads, lines), *more):
        ids = tokenizer.encode(" " + row["text"])
        words = split_words(ids, tokenizer.decode, row["language"])
        assert "".join(text for text, _ in words).strip() == row["text"]
        assert [index for _, of in words for index in of] == list(range(len(ids)))
        assert not any("\ufffd" in text for text, _ in words)
        assert len(words) >= row.get("words_at_least", 0)
        if "words" in row:
            assert [text.strip() for text, _ in words] == row["words"]
