"""JSON from elsewhere: every flaw is one error of one line, and what is written is JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperkit_tools import limits
from whisperkit_tools.strict_json import JsonError, json_text, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_it_reads_what_the_standard_library_writes_and_the_other_way_round(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert json.loads(json_text(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_one_line(content):
    try:
        parse_json(content)
    except JsonError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64 levels"),
        ("1" * 5000, "an integer of 5000 digits"),
        ("-" + "1" * 20, "an integer of 21 digits"),
        ("NaN", "NaN is not a number in JSON"),
        ("[-Infinity]", "-Infinity is not a number in JSON"),
        ("1e999", "1e999 is too large"),
        (b"\xff", "not UTF-8 text: invalid start byte at byte 0"),
        ("", "Expecting value"),
        ('{"a"', "Expecting ':'"),
    ],
)
def test_flaws(content, reason):
    with pytest.raises(JsonError, match=reason):
        parse_json(content)


def test_the_deepest_document_is_read():
    parse_json("[" * 64 + "]" * 64)


def test_a_document_that_is_too_long(monkeypatch):
    monkeypatch.setattr(limits, "JSON_BYTES", 10)
    with pytest.raises(JsonError, match="12 bytes are more than the 10"):
        parse_json(b'"0123456789"')


def test_half_of_a_surrogate_pair_is_no_character():
    assert parse_json(r'{"\ud83d": ["\ud83d\ude00", "a\udc00"]}') == {"?": ["\U0001f600", "a?"]}
    assert json_text("a\udc80") == '"a?"'


def test_what_is_no_number_is_written_as_null():
    assert json.loads(json_text({"a": [math.nan, (math.inf, 1.5)]})) == {"a": [None, [None, 1.5]]}
