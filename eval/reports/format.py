"""Formatting of numbers and hostile text, the same in HTML, Markdown and on the terminal."""

import re
from collections.abc import Mapping
from typing import Any

NOTHING = "–"
# Embeddings, overrides and isolates would reorder the text around them. Control characters are not text.
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")


def percent(fraction: float | None, digits: int = 2) -> str:
    """Return `0.0421` as `4.21`. The heading has the unit."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}"


def interval(bounds: tuple[float, float] | None, digits: int = 2) -> str:
    """Return a confidence interval in percent, such as `3.92–4.51`. Empty without one."""
    return "" if bounds is None else f"{percent(bounds[0], digits)}–{percent(bounds[1], digits)}"


def points(fraction: float | None, digits: int = 2) -> str:
    """Return a difference in percentage points with its sign, such as `+0.31`. Zero has none."""
    if fraction is None:
        return NOTHING
    text = f"{100 * fraction:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def points_interval(bounds: tuple[float, float] | None, digits: int = 2) -> str:
    """Return the interval of a difference in points, such as `−0.10 to +0.42`."""
    return "" if bounds is None else f"{points(bounds[0], digits)} to {points(bounds[1], digits)}"


def megabytes(size_bytes: int | None) -> str:
    """Return bytes as decimal megabytes: `0.84`, `14.2`, `945`."""
    if size_bytes is None:
        return NOTHING
    value = size_bytes / 1e6
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with thousands separated, or a dash."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds with a minimum of three significant digits."""
    if seconds is None:
        return NOTHING
    value = 1000 * seconds
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def duration(seconds: float | None) -> str:
    """Return a length of audio in a suitable unit: `12.4 s`, `8.1 min`, `5.4 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(value: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 example`, `2,620 examples`."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def fact(value: Any) -> str:
    """Return a setting in readable form: `yes`, `20, 10, 5`, `torch 2.9, numpy 2.4`."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        parts = ((str(name).replace("_", " "), part) for name, part in value.items() if part not in (None, "", {}, []))
        return ", ".join(
            f"{name} ({fact(part)})" if isinstance(part, Mapping) else f"{name} {fact(part)}" for name, part in parts
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(map(fact, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def time_of(iso: str) -> str:
    """Return an ISO 8601 time without fractions of a second: `2026-11-21 16:09:24 UTC`."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)?", iso)
    if found is None:
        return iso
    day, clock, zone = found.groups()
    return f"{day} {clock} {'UTC' if zone in (None, 'Z', '+00:00') else zone}"


def visible(text: object) -> str:
    """Return text with direction overrides and control characters written out, so that it cannot disguise itself."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match.group()):04X}]", str(text))


def markdown_text(text: object) -> str:
    """Return text escaped for Markdown and the HTML inside it, on one line."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(str(text).split())))
