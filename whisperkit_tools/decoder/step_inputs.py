"""Inputs of a decoding step that follow from its position: the position itself, and the two masks over the caches.

Source: the on-device runtime, argmaxinc/argmax-oss-swift, `TextDecoder`, v0.18.
"""

import torch
from torch import Tensor

from whisperkit_tools import contract


class StepInputs:
    """Tables of the inputs of all steps, made once, so that a step itself makes no mask."""

    def __init__(self, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Make the tables.

        Args:
            length: Positions of the caches, `S`.
            device: Device of the tensors.
            dtype: Type of the masks.
        """
        self.length = length
        # Row `i` belongs to the step at position `i`.
        self._positions = torch.arange(length, dtype=torch.int32, device=device)[:, None]  # [S, 1]
        self._update_masks = torch.eye(length, device=device, dtype=dtype)[:, None]  # [S, 1, S]
        masked = torch.full((length, length), contract.MASKED, device=device, dtype=dtype)
        self._padding_masks = masked.triu(1)[:, None]  # [S, 1, S]
        # Cut once: a step at one position hands over tensors that are ready.
        self._steps = [self._at(position, length) for position in range(length)]

    def step(self, position: int) -> dict[str, Tensor]:
        """Return the inputs of one step by name: `cache_length` `[1]`, and masks `[1, S]`.

        Args:
            position: Number of tokens before it.
        """
        return self._steps[position]

    def batch(self, positions: slice | Tensor, length: int) -> dict[str, Tensor]:
        """Return the inputs of several steps, stacked along a new first axis, as `torch.vmap` takes them.

        Args:
            positions: The positions of `n` steps, not necessarily in a row.
            length: Positions of the caches that are handed in, at most `S`.

        Returns:
            By name `cache_length` `[n, 1]`, and masks `[n, 1, length]`.
        """
        return self._at(positions, length)

    def _at(self, positions: int | slice | Tensor, length: int) -> dict[str, Tensor]:
        return {
            contract.CACHE_LENGTH: self._positions[positions],
            contract.UPDATE_MASK: self._update_masks[positions][..., :length],
            contract.PADDING_MASK: self._padding_masks[positions][..., :length],
        }
