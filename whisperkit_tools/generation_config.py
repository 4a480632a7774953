"""The fields of `generation_config.json` that decide on tokens, checked once before anything is decoded with them."""

from collections.abc import Mapping
from typing import Any

from whisperkit_tools.errors import BundleError, WktError

_IDS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")  # of these, a list is allowed
_SINGLE_IDS = ("no_timestamps_token_id", "prev_sot_token_id")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_TABLES = ("lang_to_id", "task_to_id")
_FLAGS = ("is_multilingual",)
_HIGHEST = 1 << 31  # of an id that is compared with others and does not index the logits


def check_generation_config(
    content: Mapping[str, Any],
    vocab_size: int,
    *,
    where: str = "generation_config.json",
    error: type[WktError] = BundleError,
) -> None:
    """Check the types of the fields, and that ids which index the logits are among them.

    Args:
        content: The parsed file. A field that is missing or null is not set.
        vocab_size: Size of the decoder's logits.
        where: The file, for messages.
        error: Raised for a wrong value.

    Raises:
        WktError: Of type `error`. The message names file, field and value.
    """
    problems = [line for name in content if (line := _problem(name, content[name], vocab_size))]
    if problems:
        raise error(f"{where}: {'; '.join(problems)}; it is damaged or belongs to another model")


def _problem(name: str, value: Any, vocab_size: int) -> str:
    """Return what is wrong with a field; empty when nothing is."""
    if value is None:
        return ""
    if name in _IDS:
        ids = value if isinstance(value, list) else [value]
        return "" if ids and all(_is_integer(one, 0, _HIGHEST) for one in ids) else _wrong(name, value, "a token id")
    if name in _SINGLE_IDS:
        return "" if _is_integer(value, 0, _HIGHEST) else _wrong(name, value, "a token id")
    if name in _LISTS:
        fits = isinstance(value, list) and all(_is_integer(one, -1, _HIGHEST) for one in value)
        return "" if fits else _wrong(name, value, "a list of token ids")
    if name in _TABLES:
        fits = isinstance(value, dict) and all(_is_integer(one, 0, vocab_size) for one in value.values())
        return "" if fits else _wrong(name, value, f"an object of token ids below {vocab_size}")
    if name in _FLAGS:
        return "" if isinstance(value, bool) else _wrong(name, value, "true or false")
    if name in ("max_initial_timestamp_index", "max_length"):
        return "" if _is_integer(value, 0, _HIGHEST) else _wrong(name, value, "a count")
    return ""


def _is_integer(value: Any, low: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end


def _wrong(name: str, value: Any, expected: str) -> str:
    return f"{name} is {repr(value)[:80]}, expected {expected}"
