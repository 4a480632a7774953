"""Long audio as overlapping chunks of equal length, each decoded by itself, stitched by what they have in common.

No chunk needs another's result. The packages take one window at a time (their batch size is fixed), so the chunks are
decoded one after the other all the same; what independence buys is that no mistake spreads and that a chunk can be
shorter than a window.

Source: transformers' speech recognition pipeline, `chunk_iter`, for where the chunks lie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from whisperkit_tools.speech import Segment, Word
from whisperkit_tools.transcribe.tokenizer import SpecialTokens
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow
from whisperkit_tools.transcribe.windows.stitching import Timed, stitch_timed
from whisperkit_tools.transcribe.windows.words import WITHOUT_SPACES, Decode, split_words, token_times

AT_ITS_STOP_S = 0.2  # a phrase that ends so near the end of its chunk may go on behind it
SAME_TIME_S = 1.0  # two chunks time the same token up to this far apart: attention is broad, chunk ends pull at it


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of audio, in samples."""

    start: int
    stop: int


def overlapping_chunks(n_samples: int, length: int, stride: int) -> list[Chunk]:
    """Cut audio into chunks that overlap by twice the stride.

    Args:
        n_samples: Samples of the audio.
        length: Samples of a chunk; the last one may be shorter.
        stride: Samples at each end of a chunk that its neighbour hears as well and is trusted with.

    Returns:
        The chunks in order; the first starts with the audio and the last ends with it.
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
    """One token of text; times in seconds of the file."""

    id: int
    start_s: float
    end_s: float
    phrase: int


@dataclass(frozen=True, slots=True)
class HeardChunk:
    """What was decoded of a chunk; times in seconds of the file.

    Attributes:
        start_s: Where the chunk starts.
        stop_s: Where it ends.
        window: The decoded window.
        tokens: Its text, token by token.
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
    ) -> "HeardChunk":
        """Time the tokens of a chunk.

        Args:
            window: What was decoded.
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
    """Cut a chunk's tokens at its timestamps, whole or not: no later window will hear an unfinished phrase again.

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
    chunks: Sequence[HeardChunk], decode: Decode, language: str, *, timestamps: bool, words: bool
) -> list[Segment]:
    """Join the chunks' tokens, and make segments of them.

    A phrase that a seam cuts goes on in the next chunk's phrase. Without timestamps each chunk makes one segment.

    Args:
        chunks: What was decoded, in order.
        decode: Ids to text.
        language: Code of the language that is written.
        timestamps: Whether the phrases were predicted.
        words: Whether the segments tell their words.

    Returns:
        Segments with text; their tokens are those of text only.
    """
    middles = [(right.start_s + left.stop_s) / 2 for left, right in pairwise(chunks)]
    timed = [_timed(chunk, decode, language) for chunk in chunks]
    tolerance_s = SAME_TIME_S if all(chunk.is_aligned or not chunk.tokens for chunk in chunks) else math.inf
    runs: list[_Run] = []
    for chunk, kept in zip(chunks, stitch_timed(timed, middles, tolerance_s), strict=True):
        _add_runs(runs, chunk, *kept, joins=timestamps)
    _order(runs)
    return [segment for run in runs if (segment := _segment(run, decode, language, words)).text.strip()]


def _timed(chunk: HeardChunk, decode: Decode, language: str) -> Timed:
    """The chunk's tokens, with what is known of their words."""
    ids = [token.id for token in chunk.tokens]
    starts_word = [language in WITHOUT_SPACES or decode([token]).startswith(" ") for token in ids]
    behind = {token.phrase: index for index, token in enumerate(chunk.tokens, 1)}
    ends = [
        (behind[number], end_s)
        for number, (_, end_s) in enumerate(chunk.phrases)
        if end_s < chunk.stop_s - AT_ITS_STOP_S
    ]
    return Timed(ids, [token.start_s for token in chunk.tokens], starts_word, ends)


def _add_runs(runs: list[_Run], chunk: HeardChunk, first: int, stop: int, *, joins: bool) -> None:
    """Add the kept tokens of a chunk, a run for each phrase; `joins` lets the first go on with the run before."""
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
    """Let no segment end after the next one starts, nor start before the one before: chunks time by themselves."""
    for run, following in pairwise(runs):
        run.end_s = max(run.start_s, min(run.end_s, following.start_s))
        following.start_s = max(following.start_s, run.end_s)
        following.end_s = max(following.end_s, following.start_s)


def _segment(run: _Run, decode: Decode, language: str, words: bool) -> Segment:
    ids = tuple(token.id for token in run.tokens)
    window = run.window
    return Segment(
        start_s=round(run.start_s, 3),
        end_s=round(run.end_s, 3),
        text=decode(ids),
        tokens=ids,
        temperature=window.temperature,
        avg_logprob=round(window.avg_logprob, 6),
        compression_ratio=round(window.compression_ratio, 6),
        no_speech_prob=None if window.no_speech_prob is None else round(window.no_speech_prob, 6),
        words=_words(run, decode, language) if words else (),
    )


def _words(run: _Run, decode: Decode, language: str) -> tuple[Word, ...]:
    """The run's words, in order and within its times."""
    words = []
    so_far = run.start_s
    for text, of in split_words([token.id for token in run.tokens], decode, language):
        start_s = min(max(run.tokens[of[0]].start_s, so_far), run.end_s)
        end_s = min(max(run.tokens[of[-1]].end_s, start_s), run.end_s)
        words.append(Word(text, round(start_s, 3), round(end_s, 3)))
        so_far = end_s
    return tuple(words)
