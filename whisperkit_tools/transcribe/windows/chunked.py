"""Long audio as overlapping chunks of equal length, each decoded by itself, stitched by their common tokens.

No chunk needs another's result. The packages take one window at a time (their batch size is fixed), so the chunks are
still decoded one after the other. Independence has other merits: no mistake spreads, and a chunk can be shorter than a
window.

Two neighbouring chunks are slid over each other token by token. Where most tokens agree, the end of one is the
beginning of the other. Left of the middle of that stretch the left chunk is trusted, right of it the right one, because
each hears the middle of its own audio best. Tokens agree only if they were also said at the same time, the seam is at a
token that agrees, and chunks that share nothing are cut between words in the middle of their overlap.

Where both chunks also say that a phrase ends at the same time, the seam is there and needs no common token: the phrase
before it is whole in the left chunk and the one after it in the right, while a chunk that begins or ends within a
phrase often makes up the rest of it.

Source: transformers' speech recognition pipeline, `chunk_iter`, for where the chunks lie, and
`_find_longest_common_sequence` of its Whisper tokenizer for the overlap. transformers knows no times, cuts in the
middle of the overlap, and keeps all of chunks that share nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from whisperkit_tools.speech import Segment, Word
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow
from whisperkit_tools.transcribe.windows.words import WITHOUT_SPACES, Decode, split_words, token_times

AT_ITS_STOP_S = 0.2  # a phrase that ends so near the end of its chunk may go on after it
SAME_TIME_S = 1.0  # two chunks time the same token up to this far apart: attention is broad, chunk ends pull at it
_MIN_COMMON = 2  # a single common token is a coincidence
SAME_END_S = 0.3  # two chunks time the end of the same phrase up to this far apart
_PREFER_LONG = 1e-4  # for each token of overlap: of two equal agreements the longer one counts


# --- chunks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of audio, in samples."""

    start: int
    stop: int


def overlapping_chunks(n_samples: int, length: int, stride: int) -> list[Chunk]:
    """Cut audio into chunks that overlap by twice the stride.

    Args:
        n_samples: Samples of the audio.
        length: Samples of a chunk. The last one may be shorter.
        stride: Samples at each end of a chunk that its neighbour hears too and is trusted with.

    Returns:
        The chunks in order. The first starts with the audio, and the last ends with it.
    """
    chunks = []
    for start in range(0, n_samples, length - 2 * stride):
        stop = min(start + length, n_samples)
        # What a last chunk would hear beyond the overlap may be nothing.
        if not start or stop - start > stride:
            chunks.append(Chunk(start, stop))
        if start + length >= n_samples:
            break
    return chunks


@dataclass(frozen=True, slots=True)
class _Token:
    """One text token, with times in seconds of the file."""

    id: int
    start_s: float
    end_s: float
    phrase: int


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """The decoded tokens of a chunk, with times in seconds of the file.

    Attributes:
        start_s: Where the chunk starts.
        stop_s: Where it ends.
        window: The decoded window.
        tokens: Its text tokens.
        phrases: Start and end of each phrase.
        is_aligned: Whether the tokens' times come from the decoder's attention, not from their place in the phrase.
    """

    start_s: float
    stop_s: float
    window: DecodedWindow
    tokens: tuple[_Token, ...]
    phrases: tuple[tuple[float, float], ...]
    is_aligned: bool

    @classmethod
    def of(
        cls, window: DecodedWindow, special: SpecialTokens, start_s: float, stop_s: float, position_s: float
    ) -> "DecodedChunk":
        """Time the tokens of a chunk.

        Args:
            window: The decoded window.
            special: The bundle's special ids.
            start_s: Where the chunk starts in the file.
            stop_s: Where it ends.
            position_s: Seconds of an encoder position.
        """
        ids = () if window.has_no_speech else window.tokens
        n_positions = max(1, math.ceil((stop_s - start_s) / position_s))
        aligned: dict[int, tuple[float, float]] = {}
        if ids and window.alignment is not None:
            aligned = token_times(ids, window.alignment, special, n_positions, position_s)
        tokens, phrases = [], []
        for number, (begin, end, indices) in enumerate(_phrases(ids, special, n_positions)):
            phrase = (start_s + begin * position_s, min(start_s + end * position_s, stop_s))
            phrases.append(phrase)
            for at, index in enumerate(indices):
                evenly = tuple(begin + (end - begin) * (at + more) / len(indices) for more in (0, 1))
                times = aligned.get(index, tuple(position_s * position for position in evenly))
                within = [min(max(start_s + time, phrase[0]), phrase[1]) for time in times]
                tokens.append(_Token(ids[index], within[0], within[1], number))
        return cls(start_s, stop_s, window, tuple(tokens), tuple(phrases), bool(aligned))


def _phrases(
    ids: Sequence[int], special: SpecialTokens, n_positions: int
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Cut a chunk's tokens at its timestamps, unfinished phrases too, because no later window hears them again.

    Returns:
        For each phrase with text its start and end in encoder positions and the indices of its text tokens.
    """
    phrases = []
    begin, text = 0.0, list[int]()
    for index, token in enumerate(ids):
        if special.is_text(token):
            text.append(index)
        elif special.is_timestamp(token):
            position = float(min(token - special.timestamp_begin, n_positions))
            if text:
                phrases.append((begin, max(begin, position), tuple(text)))
                text = []
            begin = position
    if text:
        phrases.append((begin, float(max(begin, n_positions)), tuple(text)))
    return phrases


# --- seams ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overlap:
    """Where two sequences lie over each other: `left[left_start:left_stop]` over `right[right_start:right_stop]`."""

    left_start: int
    left_stop: int
    right_start: int
    right_stop: int


@dataclass(frozen=True, slots=True)
class TimedTokens:
    """The tokens of one chunk.

    Attributes:
        ids: Text tokens.
        times_s: When each is said, in seconds of the file, not decreasing.
        starts_word: Whether a word starts with it, or might.
        ends: For each phrase that was heard to its end, the index after its last token and its end in seconds.
    """

    ids: Sequence[int]
    times_s: Sequence[float]
    starts_word: Sequence[bool]
    ends: Sequence[tuple[int, float]] = ()

    def word_after(self, time_s: float) -> int:
        """Return the index of the first word said at a time or later, or the number of tokens when there is none."""
        indices = range(len(self.ids))
        return next((i for i in indices if self.times_s[i] >= time_s and self.starts_word[i]), len(self.ids))


def find_overlap(left: Sequence[int], right: Sequence[int], near: np.ndarray | None = None) -> Overlap | None:
    """Find the overlap in which the largest share of tokens agrees.

    Args:
        left: Ids of the chunk before.
        right: Ids of the chunk after.
        near: `[len(left), len(right)]`, whether two tokens are said at the same time. None if all are.

    Returns:
        The overlap, or None when no two tokens agree in any.
    """
    if not left or not right:
        return None
    agree = np.equal.outer(np.asarray(left), np.asarray(right))
    if near is not None:
        agree &= near
    best, found = 0.0, None
    for length in range(1, len(left) + len(right)):
        left_start, right_start = max(0, len(left) - length), max(0, length - len(left))
        # The tokens of one overlap are a diagonal of the table.
        diagonal = agree.diagonal(right_start - left_start)
        common = int(diagonal.sum())
        share = common / length + length * _PREFER_LONG
        if common >= _MIN_COMMON and share > best:
            best = share
            stops = left_start + len(diagonal), right_start + len(diagonal)
            found = Overlap(left_start, stops[0], right_start, stops[1])
    return found


def find_seams(chunks: Sequence[TimedTokens], middles_s: Sequence[float], tolerance_s: float) -> list[tuple[int, int]]:
    """Find which tokens of each chunk to keep, by the tokens and their times.

    Args:
        chunks: The chunks, in order.
        middles_s: The middle of the overlap of each pair of neighbours, in seconds of the file.
        tolerance_s: Maximum distance of two times that count as the same.

    Returns:
        For each chunk the index of the first token to keep, and the index after the last.
    """
    kept = []
    start = 0
    for (left, right), middle_s in zip(pairwise(chunks), middles_s, strict=True):
        common_end = _common_end(left, right, start, middle_s)
        if common_end is not None:
            kept.append((start, common_end[0]))
            start = common_end[1]
            continue
        far = np.subtract.outer(np.asarray(left.times_s[start:], float), np.asarray(right.times_s, float))
        near = np.abs(far) <= tolerance_s
        overlap = find_overlap(left.ids[start:], right.ids, near)
        if overlap is None:
            stop, following = max(start, left.word_after(middle_s)), right.word_after(middle_s)
        else:
            stop, following = _common_token(overlap, left.ids[start:], right.ids, near)
            stop += start
        kept.append((start, stop))
        start = following
    return [*kept, (start, len(chunks[-1].ids))] if chunks else []


def _common_end(left: TimedTokens, right: TimedTokens, start: int, middle_s: float) -> tuple[int, int] | None:
    """Return the indices after the phrase end that both share and that is nearest to the middle of the overlap."""
    common = [
        (abs((left_s + right_s) / 2 - middle_s), left_at, right_at)
        for left_at, left_s in left.ends
        for right_at, right_s in right.ends
        if left_at > start and abs(left_s - right_s) <= SAME_END_S
    ]
    return min(common)[1:] if common else None


def _common_token(overlap: Overlap, left: Sequence[int], right: Sequence[int], near: np.ndarray) -> tuple[int, int]:
    """Return the index in both of the common token nearest to the middle of the overlap."""
    places = zip(
        range(overlap.left_start, overlap.left_stop), range(overlap.right_start, overlap.right_stop), strict=True
    )
    common = [(i, j) for i, j in places if left[i] == right[j] and near[i, j]]
    middle = (overlap.left_start + overlap.left_stop) // 2
    return min(common, key=lambda place: abs(place[0] - middle))


# --- segments ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """Tokens that make a segment."""

    tokens: list[_Token]
    window: DecodedWindow
    start_s: float
    end_s: float
    is_cut: bool
    """Whether its last phrase goes on beyond its last token."""


def stitched_segments(
    chunks: Sequence[DecodedChunk], decode: Decode, language: str, *, timestamps: bool, words: bool
) -> list[Segment]:
    """Stitch the tokens of all chunks, and make segments of them.

    A phrase that a seam cuts goes on in the next chunk's phrase. Without timestamps each chunk makes one segment.

    Args:
        chunks: The decoded chunks, in order.
        decode: Ids to text.
        language: Code of the language that is written.
        timestamps: Whether the phrases were predicted.
        words: Whether the segments have words.

    Returns:
        The segments with text. They hold text tokens only.
    """
    middles = [(right.start_s + left.stop_s) / 2 for left, right in pairwise(chunks)]
    timed = [_timed(chunk, decode, language) for chunk in chunks]
    tolerance_s = SAME_TIME_S if all(chunk.is_aligned or not chunk.tokens for chunk in chunks) else math.inf
    runs: list[_Run] = []
    for chunk, kept in zip(chunks, find_seams(timed, middles, tolerance_s), strict=True):
        _add_runs(runs, chunk, *kept, joins=timestamps)
    _order(runs)
    return [segment for run in runs if (segment := _segment(run, decode, language, words)).text.strip()]


def _timed(chunk: DecodedChunk, decode: Decode, language: str) -> TimedTokens:
    """Return the chunk's tokens with their times, word starts and phrase ends."""
    ids = [token.id for token in chunk.tokens]
    starts_word = [language in WITHOUT_SPACES or decode([token]).startswith(" ") for token in ids]
    after = {token.phrase: index for index, token in enumerate(chunk.tokens, 1)}
    ends = [
        (after[number], end_s)
        for number, (_, end_s) in enumerate(chunk.phrases)
        if end_s < chunk.stop_s - AT_ITS_STOP_S
    ]
    return TimedTokens(ids, [token.start_s for token in chunk.tokens], starts_word, ends)


def _add_runs(runs: list[_Run], chunk: DecodedChunk, first: int, stop: int, *, joins: bool) -> None:
    """Add the kept tokens of a chunk, a run for each phrase. `joins` lets the first continue the run before."""
    for number, (start_s, end_s) in enumerate(chunk.phrases):
        all_of_it = [index for index, token in enumerate(chunk.tokens) if token.phrase == number]
        kept = [index for index in all_of_it if first <= index < stop]
        if not kept:
            continue
        tokens = [chunk.tokens[index] for index in kept]
        begins_within, ends_within = kept[0] > all_of_it[0], kept[-1] < all_of_it[-1]
        end_s = tokens[-1].end_s if ends_within else end_s
        if joins and begins_within and runs and runs[-1].is_cut:
            runs[-1].tokens += tokens
            runs[-1].end_s, runs[-1].is_cut = end_s, ends_within
        else:
            start_s = tokens[0].start_s if begins_within else start_s
            runs.append(_Run(tokens, chunk.window, start_s, end_s, ends_within))


def _order(runs: Sequence[_Run]) -> None:
    """Let no segment end after the next one starts, because each chunk times by itself."""
    for run, following in pairwise(runs):
        run.end_s = max(run.start_s, min(run.end_s, following.start_s))
        following.start_s = max(following.start_s, run.end_s)
        following.end_s = max(following.end_s, following.start_s)


def _segment(run: _Run, decode: Decode, language: str, words: bool) -> Segment:
    ids = tuple(token.id for token in run.tokens)
    spoken = _words(run, decode, language) if words else ()
    return run.window.segment(run.start_s, run.end_s, decode(ids), ids, spoken)


def _words(run: _Run, decode: Decode, language: str) -> tuple[Word, ...]:
    """Return the run's words, in order and within its times."""
    words = []
    so_far = run.start_s
    for text, of in split_words([token.id for token in run.tokens], decode, language):
        start_s = min(max(run.tokens[of[0]].start_s, so_far), run.end_s)
        end_s = min(max(run.tokens[of[-1]].end_s, start_s), run.end_s)
        words.append(Word(text, round(start_s, 3), round(end_s, 3)))
        so_far = end_s
    return tuple(words)
