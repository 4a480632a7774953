"""The bundle's table of caches after the forced tokens, as the decoding loop uses it: a look-up for the first passes.

Only an answer that begins at position 0 can use it: a prompt puts other tokens there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.tensor_spec import TensorSpec

OUTPUTS = (contract.KEY_PREFILL, contract.VALUE_PREFILL)


class Table(Protocol):
    """Something that runs the package TextDecoderContextPrefill, or stands in for it."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Declared outputs by name."""
        ...

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Compute the outputs from the inputs."""
        ...


@dataclass(frozen=True, slots=True)
class PrefilledCaches:
    """What the forced tokens leave in the caches.

    Attributes:
        keys: `[1, D * L, 1, n]`.
        values: `[1, D * L, 1, n]`.
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        """The number of positions."""
        return int(self.keys.shape[3])


class ContextPrefill:
    """Looks caches up, each language and task once."""

    def __init__(self, table: Table, channels: int, device: torch.device, dtype: torch.dtype) -> None:
        """Take the package.

        Args:
            table: The package, or what stands in for it.
            channels: Channels of the decoder's caches, `D * L`.
            device: Where its tensors live.
            dtype: Of the caches.

        Raises:
            BundleError: It was not made for this decoder.
        """
        shapes = {name: list(table.outputs[name].shape) for name in OUTPUTS if name in table.outputs}
        lengths = {shape[-1] for shape in shapes.values() if shape[:3] == [1, channels, 1] and shape[3:]}
        if len(shapes) < len(OUTPUTS) or len(lengths) != 1 or None in lengths:
            raise BundleError(
                f"TextDecoderContextPrefill gives {shapes or 'other outputs'}, expected {' and '.join(OUTPUTS)} of "
                f"[1, {channels}, 1, n]: it does not belong to this TextDecoder; convert the model again, or use "
                "--no-prefill"
            )
        self.length = int(lengths.pop() or 0)
        self._table, self._device, self._dtype = table, device, dtype
        self._known: dict[tuple[int, int], PrefilledCaches] = {}

    def caches(self, language: int, task: int) -> PrefilledCaches:
        """Look up.

        Args:
            language: Token id of the language; any for an English-only model.
            task: 0 to transcribe, 1 to translate.
        """
        if (language, task) not in self._known:
            inputs = {"task": task, "language": language}
            with torch.no_grad():
                outputs = self._table.run(
                    {name: torch.tensor([x], dtype=torch.int32, device=self._device) for name, x in inputs.items()}
                )
            keys, values = (outputs[name].to(self._device, self._dtype) for name in OUTPUTS)
            self._known[language, task] = PrefilledCaches(keys, values)
        return self._known[language, task]


def usable(prefilled: PrefilledCaches | None, prefix: Sequence[int], start_of_transcript: int) -> int:
    """How many of the first positions of `prefix` may be looked up.

    The last token given is always decoded, for its logits are those of the first token of the answer.

    Args:
        prefilled: The caches, or None.
        prefix: Ids that are given: prompt, start of transcript, language, task.
        start_of_transcript: Index of that id in `prefix`.
    """
    if prefilled is None or start_of_transcript > 0:
        return 0
    return min(len(prefilled), len(prefix) - 1)
