"""Text normalisers: the preparation of reference and hypothesis, so that spelling does not count as an error.

The normalisers are Whisper's, in transformers' edition, with two corrections: numbers keep what belongs to "one", and
marks that spell vowels stay. `openai-2025` gives Whisper's own of 2025 without them, as most published figures have it.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.metrics.transliterate import differ_in_script, to_latin
from whisperkit_tools.languages import base_language
from whisperkit_tools.strict_json import parse_json

SPELLINGS_FILE = "normalizer.json"
AUTO = "auto"
OPENAI_2025 = "openai-2025"
NORMALIZERS = (AUTO, "english", "basic", "letters", "none", OPENAI_2025)
NORMALIZER_EDITION = "2026-11"
"""Changes with any of the normalisers, so that runs of different rules are different runs."""
# Edition of each normaliser and its choice. Published figures move with them, so they stand in the report.
VERSIONS = {
    "english": "2026-08, one keeps its unit, minus signs count",
    "basic": "2026-11, marks kept but Arabic, Hebrew and Syriac points",
    "letters": "2026-11, marks kept with their letter",
    "none": "1",
    "english openai-2025": "20250625, as published",
    "basic openai-2025": "20250625, all marks dropped",
    "letters openai-2025": "20250625, all marks dropped",
}
# Languages written without spaces between words, or with spaces that mean something else. Letters are compared.
LETTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

Normalizer: TypeAlias = Callable[[str], str]
# Python refuses to read more digits as a number, and only a decoder caught in a loop produces them. The normaliser
# drops the commas between them before it counts.
_LONGEST_NUMBER = 4300
_LONG_DIGITS = re.compile(rf"(?:\d,?){{{_LONGEST_NUMBER + 1},}}")


# A minus sign directly before a number that begins a word. Whisper's normaliser drops it, but reads "minus".
_MINUS_SIGN = re.compile(r"(?<!\S)[-\u2212\u2013](?=[$£€¢]?\d)")


class EnglishTextNormalizer:
    """Whisper's English normaliser: contractions, numbers, currencies, British spellings, fillers.

    Args:
        spellings: British to American spellings. None for the table that ships with this package.
        edition: `OPENAI_2025` for Whisper's rules of 2025. Empty for the corrected ones.
    """

    def __init__(self, spellings: Mapping[str, str] | None = None, edition: str = "") -> None:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer as Original

        table = dict(spellings if spellings is not None else default_spellings())
        if table.get("mm") == "hmm":
            # Published checkpoints hold it, OpenAI's table has since dropped it. Both spellings are fillers.
            del table["mm"]
        self._normalize: Any = Original(table)
        self._is_corrected = edition != OPENAI_2025
        if self._is_corrected:
            self._normalize.standardize_numbers.postprocess = _finished_numbers

    def __call__(self, text: str) -> str:
        """Normalise one text."""
        if self._is_corrected:
            text = _MINUS_SIGN.sub("minus ", text)
        return str(self._normalize(_split_long_digits(text)))


_DOLLARS_AND_CENTS = re.compile(r"([€£$])(\d+) (?:and )?¢(\d{1,2})\b")
_ONLY_CENTS = re.compile(r"[€£$]0.(\d{1,2})\b")
_LONE_ONE = re.compile(r"(?<!\S)1(s?)(?!\S)")


def _finished_numbers(text: str) -> str:
    """Join dollars with cents, and write a lone 1 as "one".

    A 1 within a number is part of it: "three point one" is 3.1, "one dollar" is $1, "minus one" is -1.
    Source: openai/whisper, pull request 2836 of August 2026.
    """
    text = _DOLLARS_AND_CENTS.sub(lambda found: f"{found[1]}{found[2]}.{int(found[3]):02d}", text)
    text = _ONLY_CENTS.sub(lambda found: f"¢{int(found[1])}", text)
    return _LONE_ONE.sub(r"one\1", text)


class BasicTextNormalizer:
    """Whisper's normaliser for any language: lower case, no punctuation, no bracketed remarks.

    Args:
        remove_diacritics: Also turn é into e.
        split_letters: Put a space between letters, so that a word error rate counts letters.
        edition: `OPENAI_2025` for Whisper's rules of 2025, which replace all marks by spaces. Empty for rules that keep
            them, see `without_symbols`.
    """

    def __init__(self, remove_diacritics: bool = False, split_letters: bool = False, edition: str = "") -> None:
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer as Original

        self._normalize: Any = Original(remove_diacritics=remove_diacritics, split_letters=split_letters)
        if edition != OPENAI_2025 and not remove_diacritics:
            self._normalize.clean = without_symbols

    def __call__(self, text: str) -> str:
        """Normalise one text."""
        return str(self._normalize(text))


# Marks that readers add themselves, and that most texts omit: Arabic and Quranic, Hebrew and Syriac points. Variation
# selectors only choose a glyph.
_OPTIONAL_MARKS = re.compile(
    "[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08ff"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0711\u0730-\u074a\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def without_symbols(text: str) -> str:
    """Replace symbols and punctuation by spaces, and keep the marks that are a part of the spelling.

    In Brahmic scripts, Thai, Lao, Khmer, Burmese and Thaana the marks are vowels: without them words fall apart and
    differences vanish. Marks that are optional are dropped, not replaced by a space, as are marks that enclose.
    Source: Manohar et al. 2024, "What is lost in Normalization?", arXiv 2409.02449.
    """
    kept = _OPTIONAL_MARKS.sub("", unicodedata.normalize("NFKC", text))
    return "".join(map(_cleaned, kept))


def _cleaned(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Me":
        return ""
    return " " if category[0] in "SP" else character


def _split_long_digits(text: str) -> str:
    return _LONG_DIGITS.sub(lambda match: " ".join(_pieces(match.group())), text)


def _pieces(digits: str) -> list[str]:
    digits = digits.replace(",", "")
    return [digits[start : start + _LONGEST_NUMBER] for start in range(0, len(digits), _LONGEST_NUMBER)]


def read_spellings(path: Path) -> dict[str, str]:
    """Read a table of spellings, as checkpoints carry it in `normalizer.json`.

    Raises:
        DatasetError: Not readable, or not an object of strings.
    """
    return _parse_spellings(path, str(path))


@cache
def default_spellings() -> dict[str, str]:
    """Return the table that ships with this package in the embedded demo checkpoint, which is OpenAI's."""
    file = files("whisperkit_tools") / "demo" / "checkpoint" / SPELLINGS_FILE
    return _parse_spellings(file, str(file))


def _parse_spellings(file: Traversable, name: str) -> dict[str, str]:
    try:
        table = parse_json(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"{name}: {error.strerror}; expected a table of spellings") from error
    except ValueError as error:
        raise DatasetError(f"{name} is not JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise DatasetError(f"{name} is not a table of spellings: expected an object of words to words")
    return table


@dataclass(frozen=True, slots=True)
class Normalization:
    """The choice of normalisers by language. Picklable.

    Attributes:
        choice: One of `NORMALIZERS`. `auto` chooses by language: English, letter by letter for `LETTER_LANGUAGES`,
            and basic for all others and for an unknown language. `openai-2025` chooses alike among Whisper's of 2025.
        spellings: Table of the English normaliser. None for the table that ships with this package.

    Raises:
        OptionsError: No such normaliser.
    """

    choice: str = AUTO
    spellings: Mapping[str, str] | None = None
    _made: dict[str, Normalizer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.choice not in NORMALIZERS:
            raise OptionsError(f"no {option('normalizer')} {self.choice!r}; known: {', '.join(NORMALIZERS)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.choice, self.spellings))

    def kind(self, language: str | None) -> str:
        """Return the name of the normaliser for a language, to which `auto` and `openai-2025` resolve."""
        if self.choice not in (AUTO, OPENAI_2025):
            return self.choice
        code = base_language(language)
        if code == "en":
            return "english"
        return "letters" if code in LETTER_LANGUAGES else "basic"

    @property
    def edition(self) -> str:
        """`OPENAI_2025`, or empty for the present rules."""
        return OPENAI_2025 if self.choice == OPENAI_2025 else ""

    def described(self, language: str | None) -> str:
        """Return name and version of the normaliser for a language, for reports."""
        kind = self.kind(language)
        version = VERSIONS[f"{kind} {self.edition}".strip()]
        return f"{kind} ({version})"

    def text(self, text: str, language: str | None) -> str:
        """Normalise one text of a language."""
        kind = self.kind(language)
        if kind not in self._made:
            self._made[kind] = _make(kind, self.spellings, self.edition)
        return self._made[kind](text).strip()

    def pair(self, reference: str, hypothesis: str, language: str | None) -> tuple[str, str]:
        """Normalise a reference and a hypothesis for their comparison.

        Where only one side is written in Cyrillic, it is transliterated to Latin letters, because the word was
        recognised. `none` keeps the scripts.

        Returns:
            Reference and hypothesis.
        """
        if self.choice != "none" and differ_in_script(reference, hypothesis):
            code = base_language(language)
            reference, hypothesis = to_latin(reference, code), to_latin(hypothesis, code)
        return self.text(reference, language), self.text(hypothesis, language)


def _make(kind: str, spellings: Mapping[str, str] | None, edition: str) -> Normalizer:
    if kind == "english":
        return EnglishTextNormalizer(spellings, edition)
    if kind == "none":
        return _plain
    return BasicTextNormalizer(split_letters=kind == "letters", edition=edition)


def _plain(text: str) -> str:
    return " ".join(text.split())
