"""Caches after the forced tokens, looked up in the bundle's prefill instead of decoded.

Only a transcript that begins at position 0 can use them, because a prompt puts other tokens there.
"""

from collections.abc import Sequence

import torch

from whisperkit_tools import contract
from whisperkit_tools.decoder.session import CacheColumns
from whisperkit_tools.errors import BundleError, option
from whisperkit_tools.mil.backend import TensorModel

PREFILL_OUTPUTS = (contract.KEY_PREFILL, contract.VALUE_PREFILL)


class PrefillLookup:
    """Caches by language and task, each looked up once.

    Attributes:
        length: Number of tokens whose caches it holds.
    """

    def __init__(
        self,
        model: TensorModel,
        channels: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take the package.

        Args:
            model: TextDecoderContextPrefill, or a stand-in for it.
            channels: Channels of the decoder's caches, `D * L`.
            device: Device of its tensors.
            dtype: Type of the caches.

        Raises:
            BundleError: It was not made for this decoder.
        """
        shapes = {name: list(model.outputs[name].shape) for name in PREFILL_OUTPUTS if name in model.outputs}
        lengths = {shape[-1] for shape in shapes.values() if shape[:3] == [1, channels, 1] and shape[3:]}
        if len(shapes) < len(PREFILL_OUTPUTS) or len(lengths) != 1 or None in lengths:
            raise BundleError(
                f"{contract.PREFILL} gives {shapes or 'other outputs'}, expected {' and '.join(PREFILL_OUTPUTS)} of "
                f"[1, {channels}, 1, n]: it does not belong to this {contract.DECODER}; convert the model again, or "
                f"set {option('prefill', False)}"
            )
        self.length = int(lengths.pop() or 0)
        self._model, self._device, self._dtype = model, device, dtype
        self._known: dict[tuple[int, int], CacheColumns] = {}

    def columns(self, language: int, task: int) -> CacheColumns:
        """Return the caches after the forced tokens, each `[1, D * L, 1, length]`.

        Args:
            language: Token id of the language. Any number for an English-only model.
            task: 0 to transcribe, 1 to translate.
        """
        if (language, task) not in self._known:
            inputs = {contract.TASK: task, contract.LANGUAGE: language}
            with torch.no_grad():
                outputs = self._model.run(
                    {name: torch.tensor([x], dtype=torch.int32, device=self._device) for name, x in inputs.items()}
                )
            keys, values = (outputs[name].to(self._device, self._dtype) for name in PREFILL_OUTPUTS)
            self._known[language, task] = CacheColumns(keys, values)
        return self._known[language, task]


def usable_positions(prefilled: CacheColumns | None, prefix: Sequence[int], start_of_transcript: int) -> int:
    """Return how many of the first positions of `prefix` may be looked up.

    The last given token is always decoded, because its logits are those of the first token of the answer.

    Args:
        prefilled: The caches, or None.
        prefix: Given ids: prompt, start of transcript, language, task.
        start_of_transcript: Index of that id in `prefix`.
    """
    if prefilled is None or start_of_transcript > 0:
        return 0
    return min(len(prefilled), len(prefix) - 1)
