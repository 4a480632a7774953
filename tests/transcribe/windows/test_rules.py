"""The rules for the next token, against transformers' logits processors."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.rules import LogitRules

END, START, NO_TIMESTAMPS, FIRST_STAMP, N_STAMPS = 20, 21, 25, 26, 16
VOCABULARY = FIRST_STAMP + N_STAMPS


def special_tokens(**changes):
    values = {
        "end_of_text": END,
        "start_of_transcript": START,
        "start_of_previous": 23,
        "no_speech": 24,
        "no_timestamps": NO_TIMESTAMPS,
        "timestamp_begin": FIRST_STAMP,
        "timestamp_end": VOCABULARY,
        "languages": {},
        "tasks": {},
        "suppressed": (3, 21, 22),
        "suppressed_at_begin": (5, END),
        "max_initial_timestamp_index": 4,
    } | changes
    return SpecialTokens(**values)


def oracle(logits, generated, special, *, timestamps):
    begin = 3
    ids = torch.tensor([[START] * begin + generated])
    scores = logits[None].clone()
    processors = [
        SuppressTokensAtBeginLogitsProcessor(special.suppressed_at_begin, begin_index=begin),
        SuppressTokensLogitsProcessor(special.suppressed),
    ]
    if timestamps:
        config = SimpleNamespace(
            no_timestamps_token_id=special.no_timestamps,
            eos_token_id=special.end_of_text,
            bos_token_id=special.end_of_text,
            max_initial_timestamp_index=special.max_initial_timestamp_index,
        )
        processors.append(WhisperTimeStampLogitsProcessor(config, begin_index=begin))
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


logit_rows = st.lists(st.floats(-8, 8, width=32), min_size=VOCABULARY, max_size=VOCABULARY).map(torch.tensor)
text_ids = st.integers(0, END - 1)
stamp_ids = st.integers(FIRST_STAMP, VOCABULARY - 1)


@given(logits=logit_rows, generated=st.lists(text_ids | stamp_ids, max_size=8), timestamps=st.booleans())
@settings(max_examples=400, deadline=None)
def test_rules_are_those_of_transformers(logits, generated, timestamps):
    special = special_tokens()
    found = LogitRules(special, timestamps=timestamps).apply(logits, generated)
    assert torch.equal(found, oracle(logits, generated, special, timestamps=timestamps))


@pytest.mark.parametrize("limit", [None, 0, 1, 50])
def test_the_first_timestamp_keeps_the_models_limit(limit):
    special = special_tokens(max_initial_timestamp_index=limit)
    logits = torch.zeros(VOCABULARY)
    found = LogitRules(special, timestamps=True).apply(logits, [])
    assert torch.equal(found, oracle(logits, [], special, timestamps=True))
    allowed = N_STAMPS if limit is None else min(limit + 1, N_STAMPS)
    assert int(found.isfinite().sum()) == allowed


def test_the_logits_given_are_not_changed():
    logits = torch.zeros(VOCABULARY)
    LogitRules(special_tokens(), timestamps=True).apply(logits, [])
    assert torch.equal(logits, torch.zeros(VOCABULARY))


def test_tokens_behind_the_timestamps_are_text():
    """A fine-tune's added words lie behind the last timestamp; transformers takes them for timestamps."""
    special = special_tokens(timestamp_end=VOCABULARY - 2)
    logits = torch.zeros(VOCABULARY)
    logits[-1] = 9.0
    rules = LogitRules(special, timestamps=True)
    assert rules.apply(logits, [])[-1] == -math.inf
    assert int(rules.apply(logits, [FIRST_STAMP]).argmax()) == VOCABULARY - 1
    assert special.is_text(VOCABULARY - 1)


def test_all_timestamps_together_beat_the_likeliest_word():
    logits = torch.zeros(VOCABULARY)
    logits[7] = 1.0  # likelier than any one timestamp, not than all together
    found = LogitRules(special_tokens(), timestamps=True).apply(logits, [FIRST_STAMP, 7])
    assert found[7] == -math.inf
    assert bool(found[FIRST_STAMP + 1 :].isfinite().all())


@pytest.mark.parametrize("timestamps", [True, False])
def test_no_change_below_the_gap_changes_the_choice(timestamps):
    generator = torch.Generator().manual_seed(0)
    rules = LogitRules(special_tokens(), timestamps=timestamps)
    for turn in range(200):
        logits = 3 * torch.randn(VOCABULARY, generator=generator)
        generated = [[], [FIRST_STAMP], [FIRST_STAMP, 7]][turn % 3]
        gap = min(rules.gap(logits, generated), 100.0)
        chosen = int(rules.apply(logits, generated).argmax())
        change = (torch.rand(VOCABULARY, generator=generator) - 0.5) * 0.99 * gap
        assert int(rules.apply(logits + change, generated).argmax()) == chosen
