"""Joining the tokens of overlapping chunks: what both heard of the overlap is found and kept once.

Two neighbouring chunks are slid over each other token by token; where most tokens agree is where the end of one is the
beginning of the other. Left of the middle of that stretch the left chunk is trusted, right of it the right one: each
hears the middle of its own audio best.

Source: transformers' speech recognition pipeline, `_find_longest_common_sequence` of its Whisper tokenizer, which this
equals when it is given no times. With times, tokens agree only if they were also said at the same time, the seam is at
a token that agrees, and chunks that share nothing are cut between words in the middle of their overlap, where
transformers keeps all of both.

Where both chunks also say that a phrase ends at the same time, the seam is there and needs no common token: the phrase
before it is whole in the left chunk and the one after it in the right, while a chunk that begins or ends within a
phrase often makes up the rest of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_LEAST_COMMON = 2  # a single common token is a coincidence
SAME_END_S = 0.3  # two chunks time the end of the same phrase up to this far apart
_PREFER_LONG = 1e-4  # for each token of overlap: of two equal agreements the longer one counts


@dataclass(frozen=True, slots=True)
class Overlap:
    """Where two sequences lie over each other: `left[left_start:left_stop]` over `right[right_start:right_stop]`."""

    left_start: int
    left_stop: int
    right_start: int
    right_stop: int


@dataclass(frozen=True, slots=True)
class Timed:
    """The tokens of one chunk.

    Attributes:
        ids: Text tokens.
        times_s: When each is said, in seconds of the file; rising.
        starts_word: Whether a word starts with it, or might.
        ends: Of each phrase that was heard to its end, the index behind its last token and its end in seconds.
    """

    ids: Sequence[int]
    times_s: Sequence[float]
    starts_word: Sequence[bool]
    ends: Sequence[tuple[int, float]] = ()

    def word_after(self, time_s: float) -> int:
        """Return the index of the first word said at a time or later; behind the last token when there is none."""
        indices = range(len(self.ids))
        return next((i for i in indices if self.times_s[i] >= time_s and self.starts_word[i]), len(self.ids))


def find_overlap(left: Sequence[int], right: Sequence[int], near: np.ndarray | None = None) -> Overlap | None:
    """Find the overlap in which the largest share of tokens agrees.

    Args:
        left: Ids of the chunk before.
        right: Ids of the chunk after.
        near: `[len(left), len(right)]`, which tokens are said at the same time; None for all.

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
        if common >= _LEAST_COMMON and share > best:
            best = share
            stops = left_start + len(diagonal), right_start + len(diagonal)
            found = Overlap(left_start, stops[0], right_start, stops[1])
    return found


def stitch(sequences: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Tell which tokens of each chunk to keep, by the tokens alone.

    Args:
        sequences: Text tokens of each chunk, in order.

    Returns:
        For each chunk the first token to keep and the one behind the last.
    """
    kept = []
    start = 0
    for left, right in pairwise(sequences):
        overlap = find_overlap(left[start:], right)
        stop, following = (len(left), 0) if overlap is None else _middle(overlap, start)
        kept.append((start, stop))
        start = following
    return [*kept, (start, len(sequences[-1]))] if sequences else []


def stitch_timed(chunks: Sequence[Timed], middles_s: Sequence[float], tolerance_s: float) -> list[tuple[int, int]]:
    """Tell which tokens of each chunk to keep, by the tokens and when they were said.

    Args:
        chunks: The chunks, in order.
        middles_s: The middle of each two neighbours' overlap in seconds of the file; one less than chunks.
        tolerance_s: Up to how far apart two times may be the same.

    Returns:
        For each chunk the first token to keep and the one behind the last.
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


def _common_end(left: Timed, right: Timed, start: int, middle_s: float) -> tuple[int, int] | None:
    """Return the indices behind the phrase end that both have nearest to the middle of the overlap."""
    common = [
        (abs((left_s + right_s) / 2 - middle_s), left_at, right_at)
        for left_at, left_s in left.ends
        for right_at, right_s in right.ends
        if left_at > start and abs(left_s - right_s) <= SAME_END_S
    ]
    return min(common)[1:] if common else None


def _common_token(overlap: Overlap, left: Sequence[int], right: Sequence[int], near: np.ndarray) -> tuple[int, int]:
    """Return the place in both of the common token nearest to the middle of the overlap."""
    places = zip(
        range(overlap.left_start, overlap.left_stop), range(overlap.right_start, overlap.right_stop), strict=True
    )
    common = [(i, j) for i, j in places if left[i] == right[j] and near[i, j]]
    middle = (overlap.left_start + overlap.left_stop) // 2
    return min(common, key=lambda place: abs(place[0] - middle))


def _middle(overlap: Overlap, start: int) -> tuple[int, int]:
    """Return where the left chunk ends and the right one begins; `start` tokens of the left were gone before."""
    return start + (overlap.left_start + overlap.left_stop) // 2, (overlap.right_start + overlap.right_stop) // 2
