"""No text from a file steers a terminal, and none looks like a line of ours."""

import pytest

from whisperkit_tools.terminal_text import plain, plain_lines, printable


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "a\x07b", "\x9b2J", "a\rb", "a\x00", "a\u202eb", "a\u2028b", "a\udc80", "\x7f"]
)
def test_nothing_steers(text):
    for shown in (plain(text), printable(text), plain_lines(text)):
        assert "[U+" in shown
        assert shown.isprintable()


@pytest.mark.parametrize("text", ["می\u200cخواهم", "क्\u200dष", "東京\u3000大阪", "1\xa0000", "naïve – 5 €", "a\tb"])
def test_languages_stay_as_they_are_written(text):
    assert plain(text) == text


def test_line_breaks_of_data_are_shown():
    assert plain_lines("two problems:\n  first\n  second") == "two problems:\n  first\n  second"
    assert plain_lines("a\nwkt: error: fake") == "a[U+000A]wkt: error: fake"
