"""Words with times: tokens to words, and tokens to the encoder positions that the decoder attended to.

A token's row of attention is that of the step that predicted it, as in OpenAI's code. transformers takes the step
after, in which the token is read: on the demo's speech its words then start 0.2 s late, these on average where they are
said.

Source: OpenAI Whisper's `timing.py`, `split_to_word_tokens` and `merge_punctuations`; transformers'
`_combine_tokens_into_words` and `_extract_token_timestamps`, which normalises each head by itself before their mean,
where the package returns the mean already.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.speech import Word
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.sequential import Phrase

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Indices: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]
Decode: TypeAlias = Callable[[Sequence[int]], str]

WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue", "km", "bo"})
PREPENDED = "\"'“¡¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
_REPLACEMENT = "\ufffd"
MEDIAN_FILTER_WIDTH = 7  # encoder positions
_DIAGONAL, _NEXT_ROW, _NEXT_COLUMN = 0, 1, 2


# --- tokens to words --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Piece:
    """Consecutive tokens that may grow into a word: text, and indices of the tokens in the phrase."""

    text: str
    indices: list[int]


def split_words(tokens: Sequence[int], decode: Decode, language: str) -> list[tuple[str, tuple[int, ...]]]:
    """Cut text tokens into words.

    Args:
        tokens: Ids of text only.
        decode: Ids to text.
        language: Code. In languages that write no spaces every character is a word.

    Returns:
        The text of each word, with the space before it and the punctuation around it, and the indices of its tokens.
    """
    pieces = _split_at_characters(tokens, decode)
    if language not in WITHOUT_SPACES:
        pieces = _join_without_space(pieces)
    return [(piece.text, tuple(piece.indices)) for piece in _merge_punctuation(pieces) if piece.text]


def _split_at_characters(tokens: Sequence[int], decode: Decode) -> list[_Piece]:
    """Cut wherever the tokens so far make whole characters, because the bytes of one may span tokens."""
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
    """Begin a word at a space or a punctuation mark. Anything else continues the word before."""
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
    """Attach opening marks to the word after them and closing marks to the word before them."""
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
            # The path through the window starts and ends at its edges, and the next word may come after a pause. Within
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
    # Timestamps attend to where they point, not to sound. Only text and the end after it are warped.
    text = [i for i, token in enumerate(tokens) if special.is_text(token)]
    starts = row_starts(alignment[[*text, len(tokens)]], n_positions) * position_s
    return {index: (float(starts[row]), float(starts[row + 1])) for row, index in enumerate(text)}


def shifted(words: Sequence[tuple[str, float, float]], offset_s: float, limit_s: float) -> tuple[Word, ...]:
    """Return words in seconds of the whole audio, which ends at `limit_s`."""
    return tuple(
        Word(text, round(min(start_s + offset_s, limit_s), 3), round(min(end_s + offset_s, limit_s), 3))
        for text, start_s, end_s in words
    )


# --- attention to times -----------------------------------------------------------------------------------------------


def row_starts(weights: Tensor, n_positions: int) -> Indices:
    """Find the encoder position at which each token's row begins.

    Args:
        weights: `[rows, n_audio_ctx]`, attention weights, one row per token.
        n_positions: Encoder positions with audio. Those after them are omitted.

    Returns:
        `[rows]`, not decreasing.
    """
    if weights.shape[0] == 0:
        return np.zeros(0, dtype=np.intp)
    normalised = median_filter(normalise(weights[:, : max(1, n_positions)]), MEDIAN_FILTER_WIDTH)
    rows, columns = dynamic_time_warping(-normalised.double().numpy())
    first = np.diff(rows, prepend=-1).astype(bool)
    starts: Indices = columns[first]
    return starts


def normalise(weights: Tensor) -> Tensor:
    """Subtract each position's mean over the rows and divide by its standard deviation."""
    deviation, mean = torch.std_mean(weights, dim=0, keepdim=True, correction=0)
    # A single row, or a position that all tokens attend to equally, carries no information.
    return torch.where(deviation > 0, (weights - mean) / deviation, torch.zeros_like(weights))


def median_filter(rows: Tensor, width: int) -> Tensor:
    """Return the median over `width` neighbours along the last axis, the edges mirrored.

    Args:
        rows: `[rows, positions]`.
        width: Odd. A row not longer than half of it is returned as it is.
    """
    half = width // 2
    if rows.shape[-1] <= half:
        return rows
    padded = F.pad(rows[None], (half, half), mode="reflect")[0]
    return padded.unfold(-1, width, 1).median(dim=-1).values


def dynamic_time_warping(cost: Matrix) -> tuple[Indices, Indices]:
    """Find the cheapest path through a matrix that only goes to the next row, the next column, or both.

    Cells of one anti-diagonal do not depend on each other, so each is one operation on arrays.

    Args:
        cost: `[rows, columns]`.

    Returns:
        Row and column indices of the path's cells, from the first corner to the last.
    """
    n_rows, n_columns = cost.shape
    # transformers accumulates in float32. So does this, so that ties break the same way.
    total = np.full((n_rows + 1, n_columns + 1), np.inf, dtype=np.float32)
    total[0, 0] = 0
    step = np.full((n_rows + 1, n_columns + 1), _NEXT_COLUMN, dtype=np.int8)
    for diagonal in range(2, n_rows + n_columns + 1):
        row = np.arange(max(1, diagonal - n_columns), min(n_rows, diagonal - 1) + 1)
        column = diagonal - row
        both, down, along = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        choice = np.where((down < both) & (down < along), _NEXT_ROW, _NEXT_COLUMN)
        choice[(both < down) & (both < along)] = _DIAGONAL
        step[row, column] = choice
        total[row, column] = cost[row - 1, column - 1] + np.choose(choice, [both, down, along])
    return _walk_back(step)


def _walk_back(step: np.ndarray[Any, np.dtype[np.int8]]) -> tuple[Indices, Indices]:
    """Follow the chosen steps from the last corner to the first."""
    row, column = step.shape[0] - 1, step.shape[1] - 1
    step[0, :] = _NEXT_COLUMN
    step[:, 0] = _NEXT_ROW
    backwards = []
    while row > 0 or column > 0:
        backwards.append((row - 1, column - 1))
        taken = step[row, column]
        row -= taken != _NEXT_COLUMN
        column -= taken != _NEXT_ROW
    path = np.array(backwards[::-1], dtype=np.intp)
    return path[:, 0], path[:, 1]
