"""Tokens to words with times.

Source: OpenAI Whisper's `split_to_word_tokens` and `merge_punctuations`; transformers' `_combine_tokens_into_words`.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from whisperkit_tools.speech import Word
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.alignment import row_starts
from whisperkit_tools.transcribe.windows.sequential import Phrase

WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
PREPENDED = "\"'“¡¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
_REPLACEMENT = "\ufffd"

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class _Piece:
    """A run of tokens that may grow: text, and indices of the tokens in the phrase."""

    text: str
    indices: list[int]


def split_words(tokens: Sequence[int], decode: Decode, language: str) -> list[tuple[str, tuple[int, ...]]]:
    """Cut text tokens into words.

    Args:
        tokens: Ids of text only.
        decode: Ids to text.
        language: Code; some languages write no spaces, there every character is a word.

    Returns:
        Each word's text, with the space before it and the punctuation around it, and the indices of its tokens.
    """
    pieces = _split_at_characters(tokens, decode)
    if language not in WITHOUT_SPACES:
        pieces = _join_without_space(pieces)
    return [(piece.text, tuple(piece.indices)) for piece in _merge_punctuation(pieces) if piece.text]


def _split_at_characters(tokens: Sequence[int], decode: Decode) -> list[_Piece]:
    """Cut wherever the tokens so far make whole characters: one character's bytes may span tokens."""
    whole = decode(tokens)
    pieces: list[_Piece] = []
    begin = offset = 0
    for end in range(1, len(tokens) + 1):
        text = decode(tokens[begin:end])
        broken = text.find(_REPLACEMENT)
        # A replacement character that is also in the whole text is the model's, not the cut's.
        if broken < 0 or offset + broken >= len(whole) or whole[offset + broken] == _REPLACEMENT:
            pieces.append(_Piece(text, list(range(begin, end))))
            offset += len(text)
            begin = end
    if begin < len(tokens) and pieces:
        pieces[-1].indices += range(begin, len(tokens))
    return pieces


def _join_without_space(pieces: list[_Piece]) -> list[_Piece]:
    """Begin a word at a space or a punctuation mark; anything else goes on with the word before."""
    words: list[_Piece] = []
    for piece in pieces:
        is_punctuation = piece.text.strip() in string.punctuation
        if piece.text.startswith(" ") or is_punctuation or not words:
            words.append(piece)
        else:
            words[-1].text += piece.text
            words[-1].indices += piece.indices
    return words


def _merge_punctuation(words: list[_Piece]) -> list[_Piece]:
    """Give opening marks to the word behind them and closing marks to the word before them."""
    following = len(words) - 1
    for i in range(len(words) - 2, -1, -1):
        if words[i].text.startswith(" ") and words[i].text.strip() in PREPENDED:
            words[following] = _Piece(
                words[i].text + words[following].text, words[i].indices + words[following].indices
            )
            words[i] = _Piece("", [])
        else:
            following = i
    previous = 0
    for i in range(1, len(words)):
        if not words[previous].text.endswith(" ") and words[i].text in APPENDED:
            words[previous].text += words[i].text
            words[previous].indices += words[i].indices
            words[i] = _Piece("", [])
        else:
            previous = i
    return [word for word in words if word.text]


class WordAligner:
    """Times the words of one window's phrases."""

    def __init__(self, special: SpecialTokens, decode: Decode, language: str, position_s: float) -> None:
        """Prepare.

        Args:
            special: The bundle's special ids.
            decode: Ids to text.
            language: Code of the language that is written.
            position_s: Seconds of an encoder position.
        """
        self._special = special
        self._decode = decode
        self._language = language
        self._position_s = position_s

    def align(
        self, tokens: Sequence[int], alignment: Tensor, phrases: Sequence[Phrase], n_positions: int
    ) -> list[list[tuple[str, float, float]]]:
        """Time the words of each phrase.

        Args:
            tokens: The window's ids.
            alignment: `[len(tokens) + 1, n_audio_ctx]`, see `DecodedWindow.alignment`.
            phrases: The window's phrases.
            n_positions: Encoder positions with audio.

        Returns:
            For each phrase its words with start and end, in seconds from the window's start.
        """
        times = token_times(tokens, alignment, self._special, n_positions, self._position_s)
        begin = {index: start for index, (start, _) in times.items()}
        end = {index: stop for index, (_, stop) in times.items()}
        return [self._phrase_words(phrase, begin, end) for phrase in phrases]

    def _phrase_words(
        self, phrase: Phrase, begin: dict[int, float], end: dict[int, float]
    ) -> list[tuple[str, float, float]]:
        indices = [phrase.first + i for i, token in enumerate(phrase.tokens) if self._special.is_text(token)]
        tokens = [phrase.tokens[i - phrase.first] for i in indices]
        phrase_start_s, phrase_end_s = phrase.start * self._position_s, phrase.end * self._position_s
        words = []
        for text, of in split_words(tokens, self._decode, self._language):
            # The way through the window starts and ends at its edges, and the next word may come after a pause: within
            # the phrase's own times the words are nearer to where they were said.
            start_s = min(max(begin[indices[of[0]]], phrase_start_s), phrase_end_s)
            end_s = min(max(end[indices[of[-1]]], start_s), phrase_end_s)
            words.append((text, start_s, end_s))
        return words


def token_times(
    tokens: Sequence[int], alignment: Tensor, special: SpecialTokens, n_positions: int, position_s: float
) -> dict[int, tuple[float, float]]:
    """Time the text tokens of a window.

    Args:
        tokens: The window's ids.
        alignment: `[len(tokens) + 1, n_audio_ctx]`, see `DecodedWindow.alignment`.
        special: The bundle's special ids.
        n_positions: Encoder positions with audio.
        position_s: Seconds of an encoder position.

    Returns:
        Start and end of each text token by its index, in seconds from the window's start.
    """
    # Timestamps attend to where they point, not to sound; only text and the end behind it are warped.
    text = [i for i, token in enumerate(tokens) if special.is_text(token)]
    starts = row_starts(alignment[[*text, len(tokens)]], n_positions) * position_s
    return {index: (float(starts[row]), float(starts[row + 1])) for row, index in enumerate(text)}


def shifted(words: Sequence[tuple[str, float, float]], offset_s: float, limit_s: float) -> tuple[Word, ...]:
    """Words in seconds of the whole audio, which ends at `limit_s`."""
    return tuple(
        Word(text, round(min(start_s + offset_s, limit_s), 3), round(min(end_s + offset_s, limit_s), 3))
        for text, start_s, end_s in words
    )
