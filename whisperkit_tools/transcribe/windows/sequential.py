"""Audio of any length, window after window, each from where the last complete phrase of the one before ended.

Source: section 3.8 of the Whisper paper, in the form of transformers' `WhisperGenerationMixin.generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow

SURE_ENOUGH_TO_CONDITION = 0.5  # a window decoded at this temperature or above does not prompt the next one


@dataclass(frozen=True, slots=True)
class Phrase:
    """Tokens between two timestamps.

    Attributes:
        start: Encoder positions (20 ms) from the window's start.
        end: Encoder positions from the window's start.
        tokens: Ids, timestamps included.
        first: Index of the first of them in the window's tokens.
    """

    start: float
    end: float
    tokens: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class WindowSplit:
    """A window's phrases, and the mel frames to the next window."""

    phrases: tuple[Phrase, ...]
    advance_frames: int


def split_window(
    tokens: Sequence[int], special: SpecialTokens, *, window_frames: int, frames_per_position: int
) -> WindowSplit:
    """Cut a window's tokens at its pairs of timestamps, and find where the next window starts.

    Args:
        tokens: Generated ids, without end-of-text.
        special: The bundle's special ids.
        window_frames: Mel frames of audio in this window.
        frames_per_position: Mel frames of one timestamp step.

    Returns:
        The phrases. A window that ends within a phrase leaves it to the next window. One that ends with a single
        timestamp is complete.
    """
    stamped = [special.is_timestamp(token) for token in tokens]
    cuts = [i + 1 for i in range(len(tokens) - 1) if stamped[i] and stamped[i + 1]]
    if not cuts:
        end = _last_position(tokens, stamped, special, window_frames / frames_per_position)
        return WindowSplit((Phrase(0, end, tuple(tokens), 0),), window_frames)
    ends_with_single = stamped[-2:] == [False, True]
    if ends_with_single:
        cuts.append(len(tokens))
    else:
        # The second timestamp of the last pair stays, as the sign that the window did not end by itself.
        cuts[-1] += 1
    phrases = []
    for first, cut in zip([0, *cuts], cuts, strict=False):
        piece = tuple(tokens[first:cut])
        closing = piece[-1] if cut != cuts[-1] or ends_with_single else piece[-2]
        phrases.append(Phrase(piece[0] - special.timestamp_begin, closing - special.timestamp_begin, piece, first))
    if ends_with_single:
        return WindowSplit(tuple(phrases), window_frames)
    advance = (tokens[cuts[-1] - 2] - special.timestamp_begin) * frames_per_position
    # A window that begins and ends at its start would be decoded forever.
    return WindowSplit(tuple(phrases), advance or window_frames)


def _last_position(
    tokens: Sequence[int], stamped: Sequence[bool], special: SpecialTokens, window_positions: float
) -> float:
    """Return the end of the only phrase: its last timestamp if that is not 0, else the window's end."""
    timestamps = [token for token, is_timestamp in zip(tokens, stamped, strict=True) if is_timestamp]
    if timestamps and timestamps[-1] != special.timestamp_begin:
        return timestamps[-1] - special.timestamp_begin
    return window_positions


class PromptContext:
    """The prompt of each window: the user's prompt, and the text before the window.

    As in transformers, a prompt without conditioning precedes every window. With conditioning it is the first piece of
    the text before.
    """

    def __init__(self, special: SpecialTokens, prompt: tuple[int, ...], *, condition: bool, limit: int) -> None:
        """Start with the prompt alone.

        Args:
            special: The bundle's special ids.
            prompt: Ids of the user's prompt, possibly none.
            condition: Whether windows are prompted with the text before.
            limit: Maximum number of ids of a prompt, without `start_of_previous`.
        """
        self._special = special
        self._prompt = prompt
        self._condition = condition
        self._limit = limit
        self._history: list[int] = list(prompt)
        self._sure = True

    def add(self, window: DecodedWindow, phrases: Sequence[Phrase]) -> None:
        """Add a decoded window. `phrases` is empty when it had no speech."""
        self._sure = window.temperature < SURE_ENOUGH_TO_CONDITION
        for phrase in phrases:
            self._history += self._without_second_of_pair(phrase.tokens)

    def prefix(self, start: Sequence[int]) -> tuple[list[int], int]:
        """Return the ids that are given to the next window.

        Args:
            start: Start of transcript, language, task.

        Returns:
            The prompt followed by `start`, and the index at which `start` begins.
        """
        before = self._before()
        if not before or self._special.start_of_previous is None:
            return list(start), 0
        return [self._special.start_of_previous, *before, *start], 1 + len(before)

    def _before(self) -> Sequence[int]:
        if self._condition and self._sure:
            return self._history[-self._limit :]
        return self._prompt

    def _without_second_of_pair(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Omit the timestamp that was kept only as a sign, see `split_window`."""
        if len(tokens) > 2 and self._special.is_timestamp(tokens[-2]):
            return tokens[:-1]
        return tokens
