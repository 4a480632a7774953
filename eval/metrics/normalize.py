"""Text normalisers: the preparation of reference and hypothesis, so that spelling does not count as an error.

The normalisers are Whisper's, in transformers' edition, so that figures are comparable with published ones.
Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", appendix C.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.metrics.transliterate import differ_in_script, to_latin

SPELLINGS_FILE = "normalizer.json"
AUTO = "auto"
NORMALIZERS = (AUTO, "english", "basic", "letters", "none")
# Languages written without spaces between words, or with spaces that mean something else. Letters are compared.
LETTER_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

Normalizer: TypeAlias = Callable[[str], str]
# Python refuses to read more digits as a number, and only a decoder caught in a loop produces them. The normaliser
# drops the commas between them before it counts.
_LONGEST_NUMBER = 4300
_LONG_DIGITS = re.compile(rf"(?:\d,?){{{_LONGEST_NUMBER + 1},}}")


class EnglishTextNormalizer:
    """Whisper's English normaliser: contractions, numbers, currencies, British spellings, fillers.

    Args:
        spellings: British to American spellings. None for the table that ships with this package.
    """

    def __init__(self, spellings: Mapping[str, str] | None = None) -> None:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer as Original

        table = dict(spellings if spellings is not None else default_spellings())
        if table.get("mm") == "hmm":
            # Published checkpoints hold it, OpenAI's table has since dropped it. Both spellings are fillers.
            del table["mm"]
        self._normalize: Any = Original(table)

    def __call__(self, text: str) -> str:
        """Normalise one text."""
        return str(self._normalize(_split_long_digits(text)))


class BasicTextNormalizer:
    """Whisper's normaliser for any language: lower case, no punctuation, no bracketed remarks.

    Args:
        remove_diacritics: Also turn é into e.
        split_letters: Put a space between letters, so that a word error rate counts letters.
    """

    def __init__(self, remove_diacritics: bool = False, split_letters: bool = False) -> None:
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer as Original

        self._normalize: Any = Original(remove_diacritics=remove_diacritics, split_letters=split_letters)

    def __call__(self, text: str) -> str:
        """Normalise one text."""
        return str(self._normalize(text))


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
        table = json.loads(file.read_text(encoding="utf-8"))
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
            and basic for all others and for an unknown language.
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
        """Return the name of the normaliser for a language, to which `auto` resolves."""
        if self.choice != AUTO:
            return self.choice
        code = base_language(language)
        if code == "en":
            return "english"
        return "letters" if code in LETTER_LANGUAGES else "basic"

    def text(self, text: str, language: str | None) -> str:
        """Normalise one text of a language."""
        kind = self.kind(language)
        if kind not in self._made:
            self._made[kind] = _make(kind, self.spellings)
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


def base_language(language: str | None) -> str | None:
    """Return the language without region or script: `zh` of `zh-CN`, `en` of `en_US`."""
    return re.split(r"[-_]", language.lower())[0] if language else None


def _make(kind: str, spellings: Mapping[str, str] | None) -> Normalizer:
    if kind == "english":
        return EnglishTextNormalizer(spellings)
    if kind == "none":
        return _plain
    return BasicTextNormalizer(split_letters=kind == "letters")


def _plain(text: str) -> str:
    return " ".join(text.split())
