"""The generation config is checked field by field before anything is decoded with it."""

import pytest

from whisperkit_tools.errors import BundleError, CheckpointError
from whisperkit_tools.generation_config import check_generation_config

GOOD = {
    "eos_token_id": [1, 2],
    "decoder_start_token_id": 3,
    "suppress_tokens": [-1, 5],
    "begin_suppress_tokens": None,
    "lang_to_id": {"<|en|>": 4},
    "is_multilingual": True,
    "max_initial_timestamp_index": 50,
    "anything_else": {"a": [1]},
}


def test_a_good_one_passes():
    check_generation_config(GOOD, 10)


@pytest.mark.parametrize(
    "change",
    [
        {"lang_to_id": ["x"]},
        {"lang_to_id": {"<|en|>": {}}},
        {"lang_to_id": {"<|en|>": 10}},
        {"lang_to_id": {"<|en|>": True}},
        {"task_to_id": {"transcribe": -1}},
        {"eos_token_id": "a"},
        {"eos_token_id": []},
        {"eos_token_id": 1.0},
        {"no_timestamps_token_id": [5]},
        {"suppress_tokens": [{}]},
        {"suppress_tokens": 5},
        {"max_initial_timestamp_index": {}},
        {"max_initial_timestamp_index": 1.5},
        {"max_initial_timestamp_index": -1},
        {"is_multilingual": "yes"},
        {"max_length": 10**30},
    ],
)
def test_a_wrong_value_is_named(change):
    (name,) = change
    with pytest.raises(BundleError, match=f"generation_config.json: {name} is "):
        check_generation_config({**GOOD, **change}, 10)
    with pytest.raises(CheckpointError, match=f"mine: {name} is "):
        check_generation_config({**GOOD, **change}, 10, where="mine", error=CheckpointError)
