"""Word timestamps: which encoder positions the decoder attended to while it predicted each token.

A token's row is the attention of the step that predicted it, as in OpenAI's code. transformers takes the step after, in
which the token is read: on the demo's speech its words then start 0.2 s late, these on average where they are said.

Source: OpenAI Whisper's `timing.py`; transformers' `_extract_token_timestamps`, which normalises each head by itself
before their mean, where the package gives out the mean already.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Indices: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]

MEDIAN_FILTER_WIDTH = 7  # encoder positions
_DIAGONAL, _NEXT_ROW, _NEXT_COLUMN = 0, 1, 2


def row_starts(weights: Tensor, n_positions: int) -> Indices:
    """Find the encoder position at which each token's row begins.

    Args:
        weights: `[rows, n_audio_ctx]`, attention weights, one row a token.
        n_positions: Encoder positions with audio; what lies behind is left out.

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
    # One row, or a position that no token looks at more than another, carries no information.
    return torch.where(deviation > 0, (weights - mean) / deviation, torch.zeros_like(weights))


def median_filter(rows: Tensor, width: int) -> Tensor:
    """Median over `width` (odd) neighbours along the last axis, the edges mirrored.

    Args:
        rows: `[rows, positions]`.
        width: Odd; a row not longer than half of it is returned as it is.
    """
    half = width // 2
    if rows.shape[-1] <= half:
        return rows
    padded = F.pad(rows[None], (half, half), mode="reflect")[0]
    return padded.unfold(-1, width, 1).median(dim=-1).values


def dynamic_time_warping(cost: Matrix) -> tuple[Indices, Indices]:
    """Find the cheapest way through a matrix that goes only on to the next row, the next column, or both.

    Cells of one anti-diagonal do not depend on each other, so each is one operation on arrays.

    Args:
        cost: `[rows, columns]`.

    Returns:
        Row and column indices of the way's cells, from the first corner to the last.
    """
    n_rows, n_columns = cost.shape
    # transformers accumulates in float32; the same here, so that ties break the same way.
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
    way = []
    while row > 0 or column > 0:
        way.append((row - 1, column - 1))
        taken = step[row, column]
        row -= taken != _NEXT_COLUMN
        column -= taken != _NEXT_ROW
    path = np.array(way[::-1], dtype=np.intp)
    return path[:, 0], path[:, 1]
