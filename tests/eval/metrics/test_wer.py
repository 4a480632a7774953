"""Error rates against jiwer, intervals against their definition, and the signs of hallucination."""

import jiwer
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.eval.metrics.alignment import align, word_start_distances, word_timestamp_error
from whisperkit_tools.eval.metrics.wer import (
    Counts,
    character_counts,
    minimum_errors,
    repeated_ngrams,
    score,
    total,
    wer_interval,
    word_counts,
    word_error_rate,
)
from whisperkit_tools.speech import ReferenceWord, Word

TEXT = st.lists(st.sampled_from(["a", "b", "c", "d", "ee", "十", "naïve"]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_counts_are_those_of_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    words, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    scores = [score(*pair) for pair in pairs]
    corpus = total(item.words for item in scores)
    assert corpus == Counts(words.hits, words.substitutions, words.deletions, words.insertions)
    if corpus.reference:
        assert corpus.rate == words.wer
        assert total(item.characters for item in scores).rate == characters.cer


@given(TEXT, TEXT)
@settings(deadline=None, max_examples=100)
def test_an_alignment_holds_all_words_in_order(reference, hypothesis):
    pieces = align(reference.split(), hypothesis.split())
    assert [word for piece in pieces for word in piece.reference] == reference.split()
    assert [word for piece in pieces for word in piece.hypothesis] == hypothesis.split()
    for piece in pieces:
        lengths = len(piece.reference), len(piece.hypothesis)
        expected = {"equal": piece.reference == piece.hypothesis, "substitute": lengths[0] == lengths[1] > 0}
        assert expected.get(piece.type, min(lengths) == 0)


def test_one_example_by_hand():
    found = score("a b c d e f g h", "a x c d f g h i")
    assert found.words == Counts(hits=6, substitutions=1, deletions=1, insertions=1)
    assert found.words.rate == 3 / 8
    assert found.words.insertion_rate == 1 / 8
    assert [piece.type for piece in found.alignment] == [
        "equal",
        "substitute",
        "equal",
        "delete",
        "equal",
        "insert",
    ]


def test_without_reference_words_there_is_no_rate():
    assert score("", "made up").words == Counts(insertions=2)
    assert score("", "made up").words.rate is None
    assert score("", "").words.insertion_rate is None
    assert score("", "made up").characters == Counts(insertions=7)
    assert score("gone", "").characters.rate == 1
    assert character_counts(" ", "") == Counts()


def test_corpus_rates_weigh_words_and_not_examples():
    corpus = total([score("a b c d e f g h i j", "a b c d e f g h i j").words, score("x", "y").words])
    assert corpus.rate == pytest.approx(1 / 11)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_the_word_error_rate_is_jiwers_after_the_normaliser(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    upper = [text.upper() + " " for text in references], [text.upper() for text in hypotheses]
    assert word_error_rate(references, hypotheses, str.upper) == jiwer.wer(*upper)
    assert word_counts(references[0], hypotheses[0]) == score(references[0], hypotheses[0]).words


@settings(max_examples=60, deadline=None)
@given(TEXT.filter(bool), TEXT.filter(bool), TEXT)
def test_no_continuation_has_fewer_errors_than_the_minimum(reference, begun, continuation):
    least = minimum_errors(reference.split(), begun.split())
    assert least <= word_counts(reference, f"{begun} {continuation}").errors
    rests = [" ".join(reference.split()[at:]) for at in range(len(reference.split()) + 1)]
    assert least == min(word_counts(reference, f"{begun} {rest}").errors for rest in rests)


def test_texts_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="zip"):
        word_error_rate(["a", "b"], ["a"], str)


# Intervals


def test_the_interval_is_that_of_scipy_for_equally_long_examples():
    generator = np.random.default_rng(3)
    errors = generator.binomial(10, 0.1, size=400)
    low, high = wer_interval(errors, [10] * 400, seed=1, draws=4000)
    exact = scipy.stats.bootstrap((errors / 10,), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert (low, high) == pytest.approx(tuple(exact.confidence_interval), abs=0.002)
    assert low < errors.mean() / 10 < high


def test_the_interval_weighs_words():
    # The long example dominates: an interval over unweighted rates would reach 0.5.
    low, high = wer_interval([10, 1], [100, 1], draws=500)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(1.0)  # both draws are the short one
    assert wer_interval([0, 0], [0, 0]) is None


def test_intervals_are_seeded():
    errors, words = [0, 1, 2, 3, 0, 1], [10, 12, 9, 11, 8, 10]
    assert wer_interval(errors, words, seed=5) == wer_interval(errors, words, seed=5)
    assert wer_interval(errors, words, seed=5) != wer_interval(errors, words, seed=6)


# Hallucination


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a b c d", 0),
        ("a b c d e", 0),
        ("a b c d e a b c d e", 1),  # six 5-grams, of which the first comes twice
        ("so so so so so so so so", 3),
        ("thank you " * 10, 14),  # sixteen 5-grams, two of them different
    ],
)
def test_repeated_5grams(text, count):
    assert repeated_ngrams(text) == count


# Word times


def words(*timed):
    return [ReferenceWord(text, start) for text, start in timed]


def heard(*timed):
    return [Word(text, start, start + 0.1) for text, start in timed]


def test_only_recognised_words_are_measured():
    reference = words(("Tell", 0.1), ("Clara", 0.5), ("that", 0.9), ("it's", 1.2), ("ready.", 1.6))
    hypothesis = heard((" tell", 0.15), (" Klara", 0.5), (" that", 0.8), (" so", 1.0), (" it's", 1.2), (" ready", 1.9))
    distances = word_start_distances(reference, hypothesis)
    assert distances == pytest.approx([0.05, -0.1, 0.0, 0.3])
    found = word_timestamp_error(distances)
    assert found.words == 4
    assert found.mean_s == pytest.approx(0.1125)
    assert found.median_s == pytest.approx(0.075)
    assert found.p90_s == pytest.approx(0.24)
    assert found.within_100ms == pytest.approx(0.75)  # 0.1 itself is within
    assert found.within_200ms == pytest.approx(0.75)


def test_no_matched_word_is_no_error():
    assert word_start_distances(words(("a", 0.0)), heard(("b", 0.0))) == []
    assert word_start_distances(words(("...", 0.0), ("a", 1.0)), heard(("a", 1.5), ("-", 9.0))) == [0.5]
    assert word_timestamp_error([]) is None
