"""Several channels to one: their mean, unless they cancel each other out in it.

A cable wired the wrong way round, or a microphone turned to the other side, inverts a channel. The mean of such
channels is silence although each of them is speech.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.speech import Samples

BLOCK_S = 30  # channels are compared over this much audio
# The energy of the mean, in parts of what independent channels would give it. Two equal channels of which one is
# inverted give 0, equal ones 2, and a single channel with sound among silent ones 1.
_CANCELLED = 0.25
_SHOWN_TIMES = 3


class Mixer:
    """Mixes the blocks of one file, and remembers where channels cancelled out."""

    def __init__(self, rate_hz: int) -> None:
        """Start a file of `rate_hz`."""
        self._rate_hz = rate_hz
        self._read = 0
        self._blocks = 0
        self._cancelled: list[tuple[int, int]] = []  # the sample at which a block starts, and the channel taken

    def mono(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[Samples]:
        """Yield mono blocks `[n]` of blocks `[n, channels]` of any length."""
        for block in _of_equal_length(blocks, BLOCK_S * self._rate_hz):
            yield self._mixed(block)
            self._read += len(block)
            self._blocks += 1

    @property
    def note(self) -> str | None:
        """Where a single channel was taken, or None."""
        if not self._cancelled:
            return None
        taken = ", ".join(str(channel + 1) for channel in sorted({channel for _, channel in self._cancelled}))
        told = f"the channels cancel each other out; channel {taken}, the stronger one, is taken instead of their mean"
        if len(self._cancelled) == self._blocks:
            return told
        times = ", ".join(f"{start / self._rate_hz:.0f} s" for start, _ in self._cancelled[:_SHOWN_TIMES])
        more = len(self._cancelled) - _SHOWN_TIMES
        return f"{told}, for {BLOCK_S} s each from {times}" + (f" and {more} more times" if more > 0 else "")

    def _mixed(self, block: NDArray[np.float32]) -> Samples:
        channels = block.shape[1]
        mean: Samples = block.mean(axis=1, dtype=np.float32)
        if channels == 1:
            return mean
        energy = np.einsum("nc,nc->c", block, block, dtype=np.float64)
        of_independent = energy.sum() / channels**2
        if not np.isfinite(of_independent) or float(mean @ mean.astype(np.float64)) >= _CANCELLED * of_independent:
            return mean
        strongest = int(energy.argmax())
        self._cancelled.append((self._read, strongest))
        return np.ascontiguousarray(block[:, strongest])


def _of_equal_length(blocks: Iterable[NDArray[np.float32]], length: int) -> Iterator[NDArray[np.float32]]:
    """Join short blocks to blocks of `length`. The last one may be shorter."""
    waiting: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        while count >= length:
            joined = np.concatenate(waiting)
            yield joined[:length]
            waiting, count = [joined[length:]], count - length
    if count:
        yield np.concatenate(waiting)
