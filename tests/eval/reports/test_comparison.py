"""Comparing runs: figures that are counted by hand, a bootstrap with known answers, and runs that do not fit."""

import math

import jiwer
import numpy as np
import pytest

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.reports.comparison import ComparisonOptions, compare
from whisperkit_tools.eval.reports.read import read_run
from whisperkit_tools.eval.schema import Metrics

TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
def two(write_run):
    def build(old, new, **options):
        references = [TEXT] * len(old)
        first = write_run("base", list(zip(references, old, strict=True)), key="aaaaaaaa")
        second = write_run("small", list(zip(references, new, strict=True)), key="bbbbbbbb")
        return compare(read_run(first), read_run(second), ComparisonOptions(**options))

    return build


def test_figures_counted_by_hand(two):
    worse, better = TEXT.replace("fox", "box").replace("lazy", "hazy"), TEXT
    found = two([TEXT, worse, TEXT, TEXT], [worse, better, TEXT, TEXT.replace("dog", "dogs")])
    assert found.examples == 4
    assert found.baseline_wer == 2 / 36
    assert found.candidate_wer == 3 / 36
    assert found.wer_difference == 1 / 36
    assert [(change.id, change.errors) for change in found.regressed] == [("utt-0000", 2), ("utt-0003", 1)]
    assert [(change.id, change.errors) for change in found.improved] == [("utt-0001", -2)]
    assert (found.qoi, found.qoi_reverse) == (2 / 4, 3 / 4)
    assert found.qoi_interval[0] < 0.5 < found.qoi_interval[1]


def test_word_error_rates_are_jiwers(two):
    old, new = [TEXT, "quick brown foxes jumps"], ["the the quick brown", TEXT]
    found = two(old, new)
    assert found.baseline_wer == jiwer.wer([TEXT, TEXT], old)
    assert found.candidate_wer == jiwer.wer([TEXT, TEXT], new)


def test_the_same_hypotheses_differ_by_nothing(two):
    found = two([TEXT, "a"], [TEXT, "a"])
    assert found.wer_difference == 0
    assert found.wer_difference_interval == (0, 0)
    assert found.worse_probability == 0.5
    assert (found.qoi, found.qoi_reverse) == (1, 1)
    assert found.regressed == found.improved == ()


def test_the_interval_is_the_normal_one_for_many_examples(two):
    """With equally long references the bootstrap of a mean has the well-known normal limit."""
    generator = np.random.default_rng(5)
    more = generator.integers(0, 2, size=400)
    new = [TEXT.replace("fox", "box") if one else TEXT for one in more]
    found = two([TEXT] * 400, new, samples=4000)
    mean, error = more.mean() / 9, more.std() / 9 / math.sqrt(400)
    expected = (mean - 1.96 * error, mean + 1.96 * error)
    assert np.allclose(found.wer_difference_interval, expected, atol=0.15 * error)
    assert found.worse_probability == 1


def test_the_pairing_narrows_the_interval(two):
    """Both runs fail on the same hard examples: what varies is the examples, not the difference."""
    old = [TEXT if i % 2 else "nothing of the kind" for i in range(60)]
    new = [TEXT.replace("fox", "box") if i == 1 else text for i, text in enumerate(old)]
    low, high = two(old, new).wer_difference_interval
    assert 0 <= low <= 1 / (60 * 9) <= high < 0.01


def test_a_seed_repeats_and_another_does_not(write_run):
    new = [TEXT.replace("fox", "box") if i % 3 == 0 else TEXT for i in range(30)]
    old = [TEXT.replace("fox", "box") if i % 3 == 1 else TEXT for i in range(30)]
    runs = [
        read_run(write_run(name, [(TEXT, text) for text in texts], key=key))
        for name, texts, key in (("old", old, "aaaaaaaa"), ("new", new, "bbbbbbbb"))
    ]
    found = [compare(*runs, ComparisonOptions(samples=200, seed=seed)).worse_probability for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_empty_references_count_their_insertions(write_run):
    old = write_run("old", [("", ""), (TEXT, TEXT)], key="aaaaaaaa")
    new = write_run("new", [("", "thank you"), (TEXT, TEXT)], key="bbbbbbbb")
    found = compare(read_run(old), read_run(new))
    assert found.wer_difference == 2 / 9
    assert [(it.id, it.errors, it.candidate_wer) for it in found.regressed] == [("utt-0000", 2, None)]
    assert found.qoi == 0.5


def test_without_any_reference_words_there_is_no_rate(write_run):
    """The only example with words failed, so silence is all that is compared."""
    failed = {1: {"error": "broken", "alignment": (), "wer": None}}
    pairs, metrics = [("", "you"), (TEXT, TEXT)], Metrics(None, None, 0, 0, 1, 0)
    old = write_run("old", pairs, key="aaaaaaaa", rows=failed, metrics=metrics)
    new = write_run("new", pairs, key="bbbbbbbb", rows=failed, metrics=metrics)
    found = compare(read_run(old), read_run(new))
    assert (found.wer_difference, found.wer_difference_interval, found.worse_probability) == (None, None, None)
    assert found.qoi == 1


def test_failed_examples_are_left_out_and_counted(write_run):
    pairs = [(TEXT, TEXT), (TEXT, TEXT)]
    old = write_run("old", pairs, key="aaaaaaaa")
    new = write_run("new", pairs, key="bbbbbbbb", rows={0: {"error": "broken", "alignment": (), "wer": None}})
    found = compare(read_run(old), read_run(new))
    assert (found.examples, found.left_out_failed, found.wer_difference) == (1, 1, 0)


def test_other_examples_are_refused_by_name_unless_common_ones_are_asked_for(write_run):
    old = write_run("old", [(TEXT, TEXT)] * 3, key="aaaaaaaa")
    new = write_run("new", [(TEXT, TEXT)] * 3, key="bbbbbbbb", rows={0: {"id": "x-1"}, 2: {"id": "x-2"}})
    runs = read_run(old), read_run(new)
    with pytest.raises(OptionsError, match=r"1 in common, 2 \(utt-0000, utt-0002\) only in the first") as error:
        compare(*runs)
    assert error.value.options == ("common",)
    found = compare(*runs, ComparisonOptions(common=True))
    assert (found.examples, found.left_out_unpaired) == (1, 4)


def test_nothing_in_common_is_refused_even_then(write_run):
    old = write_run("old", [(TEXT, TEXT)], key="aaaaaaaa")
    new = write_run("new", [(TEXT, TEXT)], key="bbbbbbbb", rows={0: {"id": "other"}})
    with pytest.raises(OptionsError, match="no example in common"):
        compare(read_run(old), read_run(new), ComparisonOptions(common=True))


def test_other_references_are_refused(write_run):
    old = write_run("old", [(TEXT, TEXT)], key="aaaaaaaa")
    new = write_run("new", [(TEXT + " again", TEXT)], key="bbbbbbbb")
    with pytest.raises(OptionsError, match=r"other references for 1 \(utt-0000\).*another normalizer"):
        compare(read_run(old), read_run(new))


def test_only_failures_are_refused(write_run):
    failed = {0: {"error": "broken", "alignment": ()}}
    old = write_run("old", [(TEXT, TEXT), (TEXT, TEXT)], key="aaaaaaaa", rows=failed)
    new = write_run("new", [(TEXT, TEXT), (TEXT, TEXT)], key="bbbbbbbb", rows={1: failed[0]})
    with pytest.raises(DatasetError, match="no example that both transcribed"):
        compare(read_run(old), read_run(new))


def test_too_few_samples_are_refused():
    with pytest.raises(OptionsError, match="samples is 10; the minimum for an interval is 100"):
        ComparisonOptions(samples=10)
