"""Cutting windows at timestamps and prompting the next one, against transformers."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from whisperkit_tools.transcribe.windows.sequential import Phrase, PromptContext, split_window

BEGIN = 100
SPECIAL = SimpleNamespace(timestamp_begin=BEGIN, start_of_previous=90, is_timestamp=lambda token: token >= BEGIN)


def split(tokens, frames=3000):
    return split_window(tokens, SPECIAL, window_frames=frames, frames_per_position=2)


def oracle(tokens, frames):
    return WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.tensor(tokens, dtype=torch.long),
        seek_outputs=[None],
        time_offset=torch.zeros(1, dtype=torch.float64),
        timestamp_begin=BEGIN,
        seek_num_frames=torch.tensor([frames]),
        time_precision=0.02,
        time_precision_features=0.01,
        input_stride=2,
        prev_idx=0,
        idx=0,
        return_token_timestamps=False,
        decoder_input_ids=torch.zeros(1, 0),
    )


@given(
    tokens=st.lists(st.integers(0, 50) | st.integers(BEGIN, BEGIN + 1500), max_size=12),
    frames=st.integers(1, 3000),
)
@settings(max_examples=400, deadline=None)
def test_windows_are_cut_as_in_transformers(tokens, frames):
    segments, offset = oracle(tokens, frames)
    found = split(tokens, frames)
    assert found.advance_frames == (int(offset) or frames)
    assert [list(phrase.tokens) for phrase in found.phrases] == [s["tokens"].tolist() for s in segments]
    for phrase, segment in zip(found.phrases, segments, strict=True):
        assert phrase.start * 0.02 == pytest.approx(float(segment["start"]))
        # A window without timestamps ends a step early there where its division in floating point comes out short.
        assert phrase.end * 0.02 == pytest.approx(float(segment["end"]), abs=0.0201)
        assert phrase.first == segment["idxs"][0]


def test_a_window_that_ends_within_a_phrase_leaves_it_to_the_next():
    found = split([BEGIN, 1, BEGIN + 50, BEGIN + 60, 2])
    assert [phrase.tokens for phrase in found.phrases] == [(BEGIN, 1, BEGIN + 50, BEGIN + 60)]
    assert found.advance_frames == 100


def test_a_window_that_would_not_go_on_is_passed_whole():
    assert split([BEGIN, BEGIN], 500).advance_frames == 500


def window(temperature=0.0):
    return SimpleNamespace(temperature=temperature)


def phrases(*pieces):
    return [Phrase(0, 0, tuple(tokens), 0) for tokens in pieces]


def test_without_a_prompt_only_the_start_is_given():
    context = PromptContext(SPECIAL, (), condition=False, limit=5)
    context.add(window(), phrases([1, 2]))
    assert context.prefix([91, 92]) == ([91, 92], 0)


def test_a_prompt_stands_before_every_window():
    context = PromptContext(SPECIAL, (7, 8), condition=False, limit=5)
    context.add(window(), phrases([1, 2]))
    assert context.prefix([91]) == ([90, 7, 8, 91], 3)


def test_conditioning_gives_the_prompt_and_the_last_of_the_text_before():
    context = PromptContext(SPECIAL, (7, 8), condition=True, limit=5)
    context.add(window(), phrases([BEGIN, 1, BEGIN + 2, BEGIN + 2], [BEGIN + 2, 3]))
    assert context.prefix([91]) == ([90, BEGIN, 1, BEGIN + 2, BEGIN + 2, 3, 91], 6)


def test_an_unsure_window_does_not_prompt_the_next():
    context = PromptContext(SPECIAL, (), condition=True, limit=5)
    context.add(window(0.6), phrases([1]))
    assert context.prefix([91]) == ([91], 0)
    context.add(window(0.2), phrases([2]))
    assert context.prefix([91]) == ([90, 1, 2, 91], 3)


@given(
    pieces=st.lists(st.lists(st.integers(0, 50) | st.integers(BEGIN, 130), min_size=1, max_size=9), max_size=4),
    prompt=st.lists(st.integers(0, 50), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_prefixes_are_those_of_transformers(pieces, prompt):
    """With conditioning, from the segments so far; the prompt is the first of them."""
    before = [{"tokens": torch.tensor(tokens)} for tokens in ([prompt] if prompt else []) + pieces]
    expected, _ = WhisperGenerationMixin._prepare_decoder_input_ids(
        cur_bsz=1,
        init_tokens=torch.tensor([[91, 92]]),
        current_segments=[before],
        batch_idx_map=[0],
        do_condition_on_prev_tokens=[True],
        prompt_ids=torch.tensor([90, *prompt]) if prompt else None,
        generation_config=SimpleNamespace(
            prev_sot_token_id=90, prompt_condition_type="first-segment", cache_implementation=None, pad_token_id=95
        ),
        config=SimpleNamespace(max_target_positions=22),
        device="cpu",
        suppress_tokens=None,
        timestamp_begin=BEGIN,
        kwargs={},
    )
    context = PromptContext(SPECIAL, tuple(prompt), condition=True, limit=10)
    context.add(window(), phrases(*pieces))
    ids, at = context.prefix([91, 92])
    assert ids == expected[0].tolist()
    assert ids[at] == 91
