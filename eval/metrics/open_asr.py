"""Word errors as the Open ASR Leaderboard counts them since June 2026: compounds, acronyms, names and fillers.

A second scorer beside the plain one. It forgives spellings: words written together or apart, acronyms written letter
by letter, other spellings of the same name, and hesitations. It is lower by construction, so its figures are compared
with the leaderboard's and not with plain ones.

Source: huggingface/open_asr_leaderboard, `normalizer/` as of August 2026 (pull requests 135, 142 and 188), and
kaldialign's `merge_compounds`. The leaderboard also writes digits as words in languages other than English, with
num2words: that is done where the package is installed.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.eval.metrics.normalize import (
    OPENAI_2025,
    BasicTextNormalizer,
    default_spellings,
)
from whisperkit_tools.eval.metrics.wer import Counts
from whisperkit_tools.languages import base_language
from whisperkit_tools.strict_json import parse_json

NAME = "open-asr"
VERSION = "2026-06"
_FILLERS = "hmm|mm|mhm|mmm|uh|um|ah|aha|ahh|ahm|eh|ehehe|em|hm|huh|hum|mhum|uhm|umm|uhuh"
_FILLER = re.compile(rf"\b({_FILLERS})\b")
# After other words, 's is a possessive.
_IS = r"\b(it|he|she|what|that|who|here|there|how|when|where|why|this)'s\b"
_TOGETHER = {
    "et cetera": "etc", "al right": "alright", "all right": "alright", "how ever": "however", "wi fi": "wifi",
    "hi fi": "hifi", "lo fi": "lofi", "sci fi": "scifi", "e mail": "email", "e book": "ebook",
    "e commerce": "ecommerce", "x ray": "xray", "t shirt": "tshirt", "a m": "am", "p m": "pm", "o k": "okay",
}  # fmt: skip
# Where its table of spellings differs from Whisper's.
_SPELLINGS = {
    "ok": "okay", "kay": "okay", "etcetera": "etc", "archaeology": "archeology", "archaeological": "archeological",
    "archeological": "archeological", "cancellation": "cancelation", "cancellations": "cancelations",
    "cancelation": "cancelation", "cancelations": "cancelations", "flyer": "flier", "pummelled": "pummeled",
    "pummelling": "pummeling", "snowploughs": "snowplows", "travelogue": "travelog", "travelogues": "travelogs",
    "travelog": "travelog", "travelogs": "travelogs", "mm": "mm",
}  # fmt: skip
# The leaderboard's other languages. For all others its rules would drop the marks that spell vowels.
_LANGUAGES = frozenset({"de", "fr", "it", "es", "pt"})
_MATCH, _SUBSTITUTION, _DELETION, _INSERTION = 0, 1, 2, 3


def version() -> str:
    """Return the version of the rules, and how digits are treated in languages other than English."""
    return VERSION if find_spec("num2words") else f"{VERSION}, digits outside English as they are (no num2words)"


def word_counts(reference: str, hypothesis: str, language: str | None) -> Counts:
    """Return the word edits between two texts that are not normalised yet."""
    code = base_language(language)
    expected, heard = (normalize(text, code).split() for text in (reference, hypothesis))
    if code != "en":
        expected, heard = _joined_alike(expected, heard)
    return compound_counts(expected, heard)


# --- normalisation ----------------------------------------------------------------------------------------------------


def normalize(text: str, language: str | None) -> str:
    """Normalise one text of a language as the leaderboard does."""
    if language == "en":
        return str(_english()(text)).strip()
    if language not in _LANGUAGES:
        return BasicTextNormalizer()(text).strip()
    plain = BasicTextNormalizer(edition=OPENAI_2025)(text)
    return _digits_as_words(" ".join(re.sub(r"[^\w\s]", "", plain).split()), language)


@cache
def _english() -> Any:
    """Return Whisper's English normaliser with the leaderboard's additions."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    made: Any = EnglishTextNormalizer({**default_spellings(), **_SPELLINGS})
    made.ignore_patterns = _FILLER
    made.replacers = {
        (_IS if pattern == r"'s\b" else pattern): (r"\1 is" if pattern == r"'s\b" else with_what)
        for pattern, with_what in made.replacers.items()
    }
    numbers, spellings = made.standardize_numbers, made.standardize_spellings
    made.standardize_numbers = lambda text: numbers(_together(text))
    made.standardize_spellings = lambda text: _acronyms(_names_unified(spellings(text)))
    return made


def _together(text: str) -> str:
    for apart, joined in _TOGETHER.items():
        text = re.sub(rf"\b{apart.replace(' ', chr(92) + 's+')}\b", joined, text)
    return text


@cache
def _names() -> dict[str, str]:
    """Return the one spelling of each name by its other spellings."""
    file = files("whisperkit_tools") / "eval" / "metrics" / "open_asr_names.json"
    table = parse_json(file.read_bytes())["names"]
    return {other: name for name, others in table.items() for other in others.split()}


def _names_unified(text: str) -> str:
    return " ".join(_names().get(word, word) for word in text.split())


def _acronyms(text: str) -> str:
    """Join single letters and digits that follow each other: two, or three where "a" or "i" may be a word."""
    words: list[str] = []
    run: list[str] = []
    for word in [*text.split(), ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        is_acronym = len(run) >= (3 if {"a", "i"} & set(run) else 2)
        words += ["".join(run)] if is_acronym else run
        run = []
        words.append(word)
    return " ".join(words).rstrip()


def _digits_as_words(text: str, language: str) -> str:
    if find_spec("num2words") is None:
        return text
    from num2words import num2words  # type: ignore[import-not-found,unused-ignore]

    text = re.sub(r"(\d)\s+(\d{3})\b", r"\1\2", text)
    return re.sub(r"\d+", lambda found: str(num2words(int(found.group()), lang=language)), text)


# --- alignment --------------------------------------------------------------------------------------------------------


def _joined_alike(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[str], list[str]]:
    """Join stretches that differ but have the same letters, as the leaderboard does in languages of compounds."""
    expected, heard = list[str](), list[str]()
    for _, i, i_end, j, j_end in SequenceMatcher(None, reference, hypothesis).get_opcodes():
        left, right = list(reference[i:i_end]), list(hypothesis[j:j_end])
        if left != right and "".join(left) == "".join(right):
            left = right = ["".join(left)]
        expected += left
        heard += right
    return expected, heard


def compound_counts(reference: Sequence[str], hypothesis: Sequence[str]) -> Counts:
    """Return the fewest edits when several words may match one that joins them, without an error.

    Args:
        reference: Words.
        hypothesis: Words.

    Returns:
        The edits. The words of the reference keep their number: a joined match has as many hits as reference words.
    """
    by_row = _joins(reference, hypothesis)
    cost, moves = _table(reference, hypothesis, by_row)
    found = [0, 0, 0, 0]
    row, column = len(reference), len(hypothesis)
    while row or column:
        rows, columns, kind = _step(row, column, cost, moves, by_row)
        found[kind] += rows if kind == _MATCH else 1
        row, column = row - rows, column - columns
    return Counts(found[_MATCH], found[_SUBSTITUTION], found[_DELETION], found[_INSERTION])


_Joins = dict[int, list[tuple[int, int, int]]]


def _joins(reference: Sequence[str], hypothesis: Sequence[str]) -> _Joins:
    """Return the places at which several words of one side are one word of the other.

    Returns:
        By the number of reference words up to the end of a match: the number of hypothesis words up to there, and how
        many words of each side it takes.
    """
    found: _Joins = defaultdict(list)
    for joined, single, swap in ((reference, hypothesis, False), (hypothesis, reference, True)):
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(single, 1):
            places[word].append(place)
        longest = max(map(len, single), default=0)
        for start in range(len(joined)):
            text, stop = joined[start], start + 1
            while stop < len(joined) and len(text) + len(joined[stop]) <= longest:
                text, stop = text + joined[stop], stop + 1
                for place in places.get(text, ()):
                    row, column = (place, stop) if swap else (stop, place)
                    found[row].append((column, 1, stop - start) if swap else (column, stop - start, 1))
    return found


def _table(
    reference: Sequence[str], hypothesis: Sequence[str], joins: _Joins
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the fewest edits of all pairs of beginnings, `[rows + 1, columns + 1]`, and which words are equal."""
    number = {word: at for at, word in enumerate({*reference, *hypothesis})}
    left, right = (np.array([number[word] for word in words], np.int64) for words in (reference, hypothesis))
    equal = np.equal.outer(left, right)
    steps = np.arange(len(right) + 1, dtype=np.int32)
    cost = np.empty((len(left) + 1, len(right) + 1), np.int32)
    cost[0] = steps
    for row in range(1, len(left) + 1):
        best = cost[row - 1] + 1
        np.minimum(best[1:], cost[row - 1, :-1] + ~equal[row - 1], out=best[1:])
        for column, rows, columns in joins.get(row, ()):
            best[column] = min(best[column], cost[row - rows, column - columns])
        # An insertion costs one more than its neighbour to the left.
        cost[row] = np.minimum.accumulate(best - steps) + steps
    return cost, equal


def _step(
    row: int, column: int, cost: NDArray[np.int32], equal: NDArray[np.bool_], joins: _Joins
) -> tuple[int, int, int]:
    """Return how many words of each side the last edit of a cheapest alignment takes, and its kind."""
    here = int(cost[row, column])
    if row and column and equal[row - 1, column - 1] and cost[row - 1, column - 1] == here:
        return 1, 1, _MATCH
    for at, rows, columns in joins.get(row, ()):
        if at == column and cost[row - rows, column - columns] == here:
            return rows, columns, _MATCH
    if row and column and cost[row - 1, column - 1] + 1 == here:
        return 1, 1, _SUBSTITUTION
    if row and cost[row - 1, column] + 1 == here:
        return 1, 0, _DELETION
    return 0, 1, _INSERTION
