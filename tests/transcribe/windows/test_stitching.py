"""Stitching chunks by their common tokens, against transformers and on made-up speech."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence

from whisperkit_tools.transcribe.windows.stitching import Overlap, Timed, find_overlap, stitch, stitch_timed


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
    return Timed(ids, [start + step * i for i in range(len(ids))], [True] * len(ids))


def test_a_repeated_phrase_is_matched_where_it_was_said():
    """The same two words are said in seconds 0, 6 and 10; the chunks overlap from 8 to 12."""
    speech = [7, 8, 1, 2, 3, 4, 7, 8, 5, 6, 7, 8, 9, 10, 11, 12]
    left, right = timed(speech[:12], 0), timed(speech[8:], 8)
    assert joined([left.ids, right.ids], stitch_timed([left, right], [10], 0.5)) == speech
    # Shifted by a word, and by the tokens alone "7 8" of the beginning of the right chunk would be that at the end.
    left, right = timed(speech[:8], 0), timed(speech[6:], 6)
    assert joined([left.ids, right.ids], stitch_timed([left, right], [7], 0.5)) == speech


def test_chunks_that_share_nothing_are_cut_in_the_middle_of_the_overlap():
    left, right = timed([1, 2, 3, 20], 0), timed([30, 4, 5], 3)
    assert joined([left.ids, right.ids], stitch_timed([left, right], [3.0], 0.5)) == [1, 2, 3, 30, 4, 5]
    assert joined([left.ids, right.ids], stitch([left.ids, right.ids])) == [1, 2, 3, 20, 30, 4, 5]


def test_the_cut_in_the_middle_spares_words():
    """Words of two tokens, of which the cuts at both chunks' ends spoilt one each."""
    left = Timed([1, 2, 3, 4, 20], [0, 0.5, 1, 1.5, 2], [True, False, True, False, True])
    right = Timed([30, 31, 5, 6], [1.2, 1.8, 2.2, 2.6], [True, False, True, False])
    assert joined([left.ids, right.ids], stitch_timed([left, right], [1.7], 0.3)) == [1, 2, 3, 4, 5, 6]


def test_the_seam_is_at_a_token_that_both_heard():
    left = timed([1, 2, 3, 40, 41, 6], 0)
    right = timed([30, 3, 4, 5, 6, 7], 1)
    assert joined([left.ids, right.ids], stitch([left.ids, right.ids])) == [1, 2, 3, 4, 5, 6, 7]
    left, right = timed([1, 2, 3, 4, 40], 0), timed([30, 3, 4, 5], 1)
    assert joined([left.ids, right.ids], stitch_timed([left, right], [2.5], 0.5)) == [1, 2, 3, 4, 5]


def test_equal_words_at_other_times_are_not_the_same():
    left, right = timed([1, 2, 5, 6], 0), timed([5, 6, 3, 4], 3)
    assert find_overlap(left.ids, right.ids) == Overlap(2, 4, 0, 2)
    assert joined([left.ids, right.ids], stitch_timed([left, right], [3.5], 0.5)) == [1, 2, 5, 6, 6, 3, 4]
    assert joined([left.ids, right.ids], stitch_timed([left, right], [3.5], 1.0)) == [1, 2, 5, 6, 3, 4]


def test_the_seam_is_where_both_say_that_a_phrase_ends():
    """Each chunk makes up what it heard only a part of, here with words that the other one has at the same time."""
    left = Timed([1, 2, 3, 4, 5, 60, 61], [0, 1, 2, 3, 4, 5, 6], [True] * 7, [(3, 2.9), (5, 4.9)])
    right = Timed([4, 5, 71, 6, 7, 8], [3.2, 3.9, 4.5, 5.2, 6.0, 7], [True] * 6, [(3, 5.1), (6, 8.0)])
    assert joined([left.ids, right.ids], stitch_timed([left, right], [5.0], 1.0)) == [1, 2, 3, 4, 5, 6, 7, 8]
    without = [replace(chunk, ends=()) for chunk in (left, right)]
    assert joined([left.ids, right.ids], stitch_timed(without, [5.0], 1.0)) == [1, 2, 3, 4, 5, 71, 6, 7, 8]


def test_of_several_common_ends_the_middle_one_is_taken_and_distant_ends_are_not_common():
    speech = list(range(12))
    ends = [(at, at - 0.2) for at in (2, 4, 6, 8, 10)]
    left = Timed(speech[:10], list(map(float, speech[:10])), [True] * 10, ends[:4])
    right = Timed(speech[2:], [float(at) for at in speech[2:]], [True] * 10, [(at - 2, s + 0.1) for at, s in ends[1:]])
    assert stitch_timed([left, right], [6.0], 0.1) == [(0, 6), (4, 10)]
    late = replace(right, ends=[(at, end_s + 0.5) for at, end_s in right.ends])
    assert joined([left.ids, late.ids], stitch_timed([left, late], [6.0], 0.1)) == speech


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2]], [[], [1, 2], []], [[1, 2], [], [3]]])
def test_little_to_join(sequences):
    kept = stitch(sequences)
    assert joined(sequences, kept) == [token for ids in sequences for token in ids]
    assert (
        stitch_timed(
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
    assert joined([c.ids for c in chunks], stitch_timed(jittered, middles, 1.0)) == speech
