"""The table of caches: which row it gives for which language and task."""

import pytest
import torch

from whisperkit_tools.compile_hints.context_prefill import ContextPrefill, ForcedTokens

CHANNELS = 6


def integer(value):
    return torch.tensor([value], dtype=torch.int32)


def table(forced):
    """A row is its node's number everywhere in the keys, and its negative in the values."""
    numbers = torch.arange(len(forced.tokens), dtype=torch.float32)[:, None].expand(-1, CHANNELS)
    return ContextPrefill(forced, numbers.contiguous(), -numbers.contiguous())


def test_the_tokens_form_a_tree_with_the_start_once():
    forced = ForcedTokens(1, (50, 9, 70), (101, 100))
    assert forced.length == 3
    assert len(forced.tokens) == 1 + 3 + 3 * 2
    answers = {tuple(forced.tokens[node] for node in path) for path in forced.paths if len(path) == 3}
    assert answers == {(1, language, task) for language in (50, 9, 70) for task in (101, 100)}
    for node, path in enumerate(forced.paths):
        assert path[-1] == node
        assert [forced.positions[step] for step in path] == list(range(len(path)))


@pytest.mark.parametrize("tasks", [(101, 100), (101,)])
@pytest.mark.parametrize("languages", [(50, 9, 70), (51, 52), (50_259,)])
def test_each_language_and_task_finds_its_own_caches(languages, tasks):
    forced = ForcedTokens(1, languages, tasks)
    module = table(forced)
    for at, language in enumerate(languages):
        for task, token in enumerate(tasks):
            keys, values = module(integer(task), integer(language))
            assert keys.shape == values.shape == (1, CHANNELS, 1, 3)
            nodes = keys[0, 0, 0].int().tolist()
            assert [forced.tokens[node] for node in nodes] == [1, language, token]
            assert nodes[1] == 1 + at
            assert torch.equal(values, -keys)
            assert all(torch.equal(keys[:, channel], keys[:, 0]) for channel in range(CHANNELS))


def test_an_english_only_model_has_the_start_alone():
    forced = ForcedTokens(7)
    assert (forced.length, forced.tokens, forced.paths) == (1, (7,), ((0,),))
    keys, values = table(forced)(integer(0), integer(50_259))
    assert keys.shape == values.shape == (1, CHANNELS, 1, 1)


def test_what_the_table_does_not_know_stays_inside_it():
    forced = ForcedTokens(1, (50, 9), (101,))
    assert torch.equal(table(forced)(integer(1), integer(9))[0], table(forced)(integer(0), integer(9))[0])
    assert torch.equal(table(forced)(integer(0), integer(777))[0], table(forced)(integer(0), integer(50))[0])
    with pytest.raises(ValueError, match="no language 777 with task 0"):
        forced.path(777, 0)
    with pytest.raises(ValueError, match="no language 50 with task 1"):
        forced.path(50, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, (2,), ()), "1 languages and 0 tasks"),
        ((1, (), (3,)), "0 languages and 1 tasks"),
        ((1, (2, 2), (3,)), "stands for two languages"),
    ],
)
def test_impossible_tokens_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForcedTokens(*arguments)


def test_a_table_of_another_height_is_refused():
    with pytest.raises(ValueError, match=r"expected a row for each of 3 nodes"):
        ContextPrefill(ForcedTokens(1, (2,), (3,)), torch.zeros(4, 2), torch.zeros(4, 2))
