"""Text from files on its way to a terminal: no escape sequence gets through, no line break looks like one of ours."""

import unicodedata

# Directions: by them, a name can look like another one.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, halves of pairs, line and paragraph separators


def printable(text: str) -> str:
    """Return a name from outside for a terminal. Control and invisible characters are written out."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _code(one) for one in text)


def plain(text: str) -> str:
    """Return a text of any language for a terminal. What could steer the terminal is written out, line breaks too.

    Other than `printable` it keeps joiners and spaces, which Persian, Hindi or Japanese are written with.
    """
    return text if text.isprintable() else "".join(_code(one) if _steers(one) else one for one in text)


def plain_lines(text: str) -> str:
    """Return a message of several lines for a terminal. Its own lines after the first are indented by two spaces.

    A line break that is not followed by the indentation comes from data, and is written out.
    """
    own = "\n  "
    return own.join(plain(part) for part in text.split(own))


def _steers(character: str) -> bool:
    return character != "\t" and (unicodedata.category(character) in _CATEGORIES or character in _DIRECTIONS)


def _code(character: str) -> str:
    return f"[U+{ord(character):04X}]"
