"""The scorer of the Open ASR Leaderboard: its pairs, kaldialign's counts, and an exhaustive search."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.open_asr import compound_counts, normalize, version, word_counts
from whisperkit_tools.eval.metrics.wer import word_counts as plain_counts

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab", "abab", "c"]), max_size=7)


def fewest_edits(reference, hypothesis):
    """Try every way to the end."""

    @cache
    def from_here(i, j):
        left, right = reference[i:], hypothesis[j:]
        if not left or not right:
            return len(left) + len(right)
        ways = [1 + from_here(i + 1, j), 1 + from_here(i, j + 1), (left[0] != right[0]) + from_here(i + 1, j + 1)]
        ways += [from_here(i + n, j + 1) for n in range(2, len(left) + 1) if "".join(left[:n]) == right[0]]
        ways += [from_here(i + 1, j + n) for n in range(2, len(right) + 1) if left[0] == "".join(right[:n])]
        return min(ways)

    return from_here(0, 0)


@given(WORDS, WORDS)
@settings(deadline=None, max_examples=300)
def test_the_fewest_edits_are_found(reference, hypothesis):
    found = compound_counts(reference, hypothesis)
    assert found.errors == fewest_edits(tuple(reference), tuple(hypothesis))
    assert found.reference == len(reference)


def test_edits_are_kaldialigns():
    kaldialign = pytest.importorskip("kaldialign")

    @given(WORDS, WORDS)
    @settings(deadline=None, max_examples=300)
    def same(reference, hypothesis):
        expected = kaldialign.edit_distance(reference, hypothesis, merge_compounds=True)
        assert compound_counts(reference, hypothesis).errors == expected["total"]

    same()


def test_pairs_from_the_field(shared):
    for line in (shared / "cases" / "19-compounds-and-fillers" / "pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        texts, language = (pair["reference"], pair["hypothesis"]), pair["language"]
        assert plain_counts(*Normalization().pair(*texts, language)).errors == pair["plain_errors"]
        assert word_counts(*texts, language).errors == pair["merged_errors"]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language", "errors"),
    [
        ("the white paper", "the whitepaper", "en", 0),
        ("the whitepaper", "the white paper", "en", 0),
        ("the white pages", "the whitepaper", "en", 2),
        ("it is o k", "it's okay", "en", 0),
        ("a i is a big topic", "a i is a big topic", "en", 0),
        ("Stephen met Catherine", "steven met kathryn", "en", 0),
        ("John's book", "Johns book", "en", 0),
        ("on 5 G", "on 5G", "en", 0),
        ("die Kranken Hausordnung", "die Krankenhaus Ordnung", "de", 0),
        ("l'homme", "l' homme", "fr", 0),
        ("मैं कल दिल्ली", "मैं कल दिल्ली", "hi", 0),
        ("", "thank you", "en", 2),
        ("uh um", "", "en", 0),
    ],
)
def test_what_is_forgiven_and_what_is_not(reference, hypothesis, language, errors):
    assert word_counts(reference, hypothesis, language).errors == errors


def test_what_stays_plain():
    assert normalize("John's here. What's up?", "en") == "john s here what is up"
    assert version().startswith("2026-06")
