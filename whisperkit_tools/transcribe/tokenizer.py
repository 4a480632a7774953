"""Text and ids of a bundle's own vocabulary.

Every special id comes from the bundle's `generation_config.json`, or where that is silent from the names in its
`tokenizer.json`, because fine-tunes with other vocabularies have other ids than OpenAI's.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from whisperkit_tools.errors import BundleError, OptionsError, option
from whisperkit_tools.generation_config import check_generation_config
from whisperkit_tools.languages import LANGUAGE_CODES, LANGUAGE_NAMES, language_candidates
from whisperkit_tools.transcribe.options import TASKS

_LANGUAGE_NAME = re.compile(r"<\|([a-z]{2,3})\|>")
_NO_SPEECH_NAMES = ("<|nospeech|>", "<|nocaptions|>")
_ENGLISH_ONLY_VOCABULARY = 51864  # the on-device runtime's own rule for checkpoints whose config does not say


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids with a meaning for the decoding loop.

    Attributes:
        end_of_text: Ends a window.
        start_of_transcript: Begins the answer.
        start_of_previous: Begins the prompt. None when the vocabulary has no such token.
        no_speech: Its probability after `start_of_transcript` is that of a window without speech.
        no_timestamps: Asks for an answer without timestamps.
        timestamp_begin: `<|0.00|>`.
        timestamp_end: One past the last timestamp.
        languages: Code to id. Empty for an English-only model.
        tasks: Task to id. Empty for an English-only model.
        suppressed: Never generated.
        suppressed_at_begin: Never generated first.
        max_initial_timestamp_index: The first timestamp is at most this many steps after 0. None for no limit.
        has_timestamps: Whether the vocabulary holds a timestamp for each step of a window.
        default_language: Code of the language that the checkpoint was tuned for. None to detect it.
        default_task: The task that it was tuned for.
    """

    end_of_text: int
    start_of_transcript: int
    start_of_previous: int | None
    no_speech: int | None
    no_timestamps: int
    timestamp_begin: int
    timestamp_end: int
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    suppressed: tuple[int, ...]
    suppressed_at_begin: tuple[int, ...]
    max_initial_timestamp_index: int | None
    has_timestamps: bool = True
    default_language: str | None = None
    default_task: str = TASKS[0]

    @property
    def is_multilingual(self) -> bool:
        """Whether the model takes a language and a task."""
        return bool(self.languages)

    @property
    def forced(self) -> int:
        """Number of tokens that every answer starts with: the start, then the language and the task."""
        return 3 if self.is_multilingual else 1

    def is_timestamp(self, token: int) -> bool:
        """Whether the id is a timestamp."""
        return self.timestamp_begin <= token < self.timestamp_end

    def is_text(self, token: int) -> bool:
        """Whether the id is neither a timestamp nor another special one."""
        return token < self.end_of_text or token >= self.timestamp_end

    def language_id(self, language: str) -> int:
        """Return the id of a language as people and systems write it, see `languages.language_candidates`.

        Raises:
            OptionsError: Unknown, with the nearest ones, or the model knows only English.
        """
        if not self.is_multilingual:
            raise OptionsError(f"{option('language')} is {language!r}, but this model knows only English; omit it")
        written = language.strip().lower().removeprefix("<|").removesuffix("|>")
        for code in (written, *language_candidates(language)):
            if code in self.languages:
                return self.languages[code]
        meant = next((code for code in language_candidates(language) if code in LANGUAGE_NAMES), None)
        if meant is not None:
            raise OptionsError(
                f"{option('language')} {language!r} is {LANGUAGE_NAMES[meant]} ({meant}), which this model does not "
                f"know; known codes are {', '.join(sorted(self.languages))}"
            )
        known = [*self.languages, *(name for name, of in LANGUAGE_CODES.items() if of in self.languages)]
        near = difflib.get_close_matches(written, known, n=4, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known codes are {', '.join(sorted(self.languages))}"
        raise OptionsError(f"unknown {option('language')} {language!r}; {hint}")

    def language_of(self, token: int) -> str:
        """Return the code of a language's id."""
        return next(code for code, of in self.languages.items() if of == token)


class WhisperTokenizer:
    """The bundle's tokenizer and its special ids."""

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self.special = special

    @classmethod
    def load(
        cls, tokenizer_json: Path, generation_config: Mapping[str, Any], *, vocab_size: int, n_audio_ctx: int
    ) -> "WhisperTokenizer":
        """Read the tokenizer and find its special ids.

        Args:
            tokenizer_json: The file of the `tokenizers` library.
            generation_config: Content of `generation_config.json`, possibly empty.
            vocab_size: Size of the decoder's logits.
            n_audio_ctx: Encoder positions of a window. There is one timestamp more.

        Raises:
            BundleError: Not a tokenizer, or without the ids that decoding needs (all are named).
        """
        tokenizer = _read(tokenizer_json)
        special = special_tokens(
            tokenizer.get_vocab(with_added_tokens=True),
            generation_config,
            vocab_size=vocab_size,
            n_audio_ctx=n_audio_ctx,
        )
        return cls(tokenizer, special)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of the ids. Timestamps and special ids have none."""
        return str(self._tokenizer.decode([t for t in tokens if self.special.is_text(t)], skip_special_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with nothing added before or after them."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str, limit: int) -> tuple[tuple[int, ...], str | None]:
        """Return the ids of a prompt, without `start_of_previous`.

        Args:
            text: The text before the audio.
            limit: Maximum number of ids. The last ones are kept, because they are nearest to the audio.

        Returns:
            The ids, and a notice if some were cut.

        Raises:
            OptionsError: The text spells a special token, or the vocabulary has no prompts.
        """
        if self.special.start_of_previous is None:
            raise OptionsError(
                f"this model's vocabulary has no <|startofprev|>, so it takes no {option('prompt')}; omit it"
            )
        ids = self.encode(" " + text.strip())
        special = [token for token in ids if not self.special.is_text(token)]
        if special:
            names = ", ".join(sorted({str(self._tokenizer.id_to_token(token)) for token in special}))
            raise OptionsError(f"the {option('prompt')} spells special tokens ({names}); write it as plain text")
        if len(ids) <= limit:
            return tuple(ids), None
        return tuple(ids[-limit:]), f"the prompt has {len(ids)} tokens; the last {limit} are used"


def vocabulary(tokenizer_json: Path) -> dict[str, int]:
    """Return the ids of all tokens of a tokenizer, special ones included.

    Raises:
        BundleError: Not a tokenizer.
    """
    return dict(_read(tokenizer_json).get_vocab(with_added_tokens=True))


def _read(tokenizer_json: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{tokenizer_json} is not a tokenizer: {error}; convert the checkpoint again") from error


def special_tokens(
    vocabulary: Mapping[str, int], generation_config: Mapping[str, Any], *, vocab_size: int, n_audio_ctx: int
) -> SpecialTokens:
    """Find the special ids.

    Raises:
        BundleError: Ids that decoding needs are missing or outside of the logits. All are named.
    """
    check_generation_config(generation_config, vocab_size)
    found = {
        "<|endoftext|>": _first(generation_config.get("eos_token_id"), vocabulary.get("<|endoftext|>")),
        "<|startoftranscript|>": _first(
            generation_config.get("decoder_start_token_id"), vocabulary.get("<|startoftranscript|>")
        ),
        "<|notimestamps|>": _first(generation_config.get("no_timestamps_token_id"), vocabulary.get("<|notimestamps|>")),
    }
    ids = {name: token for name, token in found.items() if token is not None and 0 <= token < vocab_size}
    if len(ids) < len(found):
        wrong = ", ".join(f"{name} is {token}" for name, token in found.items() if name not in ids)
        raise BundleError(
            f"special tokens are missing or outside of the model's {vocab_size} logits: {wrong}; "
            "tokenizer.json or generation_config.json belongs to another model"
        )
    no_timestamps = ids["<|notimestamps|>"]
    multilingual = _is_multilingual(generation_config, vocab_size)
    languages = _languages(vocabulary, generation_config, no_timestamps) if multilingual else {}
    tasks = _tasks(vocabulary, generation_config) if multilingual else {}
    return SpecialTokens(
        end_of_text=ids["<|endoftext|>"],
        start_of_transcript=ids["<|startoftranscript|>"],
        start_of_previous=_first(generation_config.get("prev_sot_token_id"), vocabulary.get("<|startofprev|>")),
        no_speech=_first(*(vocabulary.get(name) for name in _NO_SPEECH_NAMES)),
        no_timestamps=no_timestamps,
        timestamp_begin=no_timestamps + 1,
        timestamp_end=min(no_timestamps + 1 + n_audio_ctx + 1, vocab_size),
        languages=languages,
        tasks=tasks,
        suppressed=_inside(generation_config.get("suppress_tokens"), vocab_size),
        suppressed_at_begin=_inside(generation_config.get("begin_suppress_tokens"), vocab_size),
        max_initial_timestamp_index=generation_config.get("max_initial_timestamp_index"),
        has_timestamps=vocab_size > no_timestamps + 1 + n_audio_ctx,
        default_language=_default_language(generation_config, languages),
        default_task=_default_task(generation_config, tasks),
    )


def _forced(generation_config: Mapping[str, Any], position: int) -> int | None:
    """Return the id that older generation configs force at a position of the answer."""
    for pair in generation_config.get("forced_decoder_ids") or ():
        if isinstance(pair, Sequence) and len(pair) == 2 and pair[0] == position:
            return pair[1] if isinstance(pair[1], int) else None
    return None


def _default_language(generation_config: Mapping[str, Any], languages: Mapping[str, int]) -> str | None:
    """Return the language that a fine-tune states, by code or name. One that the model does not know counts as none."""
    given = generation_config.get("language")
    if isinstance(given, str):
        return next((code for code in language_candidates(given) if code in languages), None)
    forced = _forced(generation_config, 1)
    return next((code for code, token in languages.items() if token == forced), None)


def _default_task(generation_config: Mapping[str, Any], tasks: Mapping[str, int]) -> str:
    given = generation_config.get("task")
    if given in tasks:
        return str(given)
    forced = _forced(generation_config, 2)
    return next((task for task, token in tasks.items() if token == forced), TASKS[0])


def _first(*values: int | Sequence[int] | None) -> int | None:
    """Return the first id that is given. Of a list of ids (several ends of text) that is its first."""
    for value in values:
        if isinstance(value, Sequence):
            value = value[0] if value else None
        if value is not None:
            return int(value)
    return None


def _inside(ids: Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    return tuple(sorted({int(token) for token in ids or () if 0 <= token < vocab_size}))


def _is_multilingual(generation_config: Mapping[str, Any], vocab_size: int) -> bool:
    flag = generation_config.get("is_multilingual")
    if flag is not None:
        return bool(flag)
    return "lang_to_id" in generation_config or vocab_size != _ENGLISH_ONLY_VOCABULARY


def _languages(
    vocabulary: Mapping[str, int], generation_config: Mapping[str, Any], no_timestamps: int
) -> dict[str, int]:
    given: Mapping[str, int] | None = generation_config.get("lang_to_id")
    if given:
        return {name.removeprefix("<|").removesuffix("|>"): int(token) for name, token in given.items()}
    matches = ((_LANGUAGE_NAME.fullmatch(name), token) for name, token in vocabulary.items())
    return {match[1]: token for match, token in matches if match and token < no_timestamps}


def _tasks(vocabulary: Mapping[str, int], generation_config: Mapping[str, Any]) -> dict[str, int]:
    given: Mapping[str, int] = generation_config.get("task_to_id") or {}
    found = {task: _first(given.get(task), vocabulary.get(f"<|{task}|>")) for task in TASKS}
    return {task: token for task, token in found.items() if token is not None}
