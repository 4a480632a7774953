"""The table of caches after the forced tokens: their mean over audio, estimated from the checkpoint's own modules.

All nodes of the tree of forced tokens go through the decoder together, as one sequence in which each attends to the
nodes on its own path. The layers are computed one after another for all windows. So only one layer's keys and values
of one window are held beside the table, whatever the number of languages and layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.compile_hints.context_prefill import ContextPrefill, ForcedTokens
from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.compile_hints.text_decoder import TextDecoder, TextDecoderLayer
from whisperkit_tools.conversion.components import one_window
from whisperkit_tools.errors import ConversionError

TASKS = ("transcribe", "translate")  # in the order of the package's input `task`
_OFF_PATH = -1e9  # zero after the softmax


@dataclass(frozen=True, slots=True)
class PrefillTable:
    """The caches of each node of the tree of forced tokens.

    Attributes:
        forced: The tree.
        keys: `[nodes, D * L]` float32.
        values: `[nodes, D * L]` float32.
    """

    forced: ForcedTokens
    keys: Tensor
    values: Tensor

    def caches(self, language: int, task: int) -> tuple[Tensor, Tensor]:
        """Return keys and values after one answer's forced tokens, each `[1, D * L, 1, n]`.

        Args:
            language: The language's token id, without meaning for an English-only model.
            task: Number of the task.
        """
        path = list(self.forced.path(language, task))
        keys, values = (part[path].t()[None, :, None].contiguous() for part in (self.keys, self.values))
        return keys, values

    def module(self) -> ContextPrefill:
        """Return the module that looks them up, in float16."""
        return ContextPrefill(self.forced, self.keys.half(), self.values.half())


def forced_tokens(generation: dict[str, Any]) -> ForcedTokens:
    """Read the tokens that every answer starts with from a generation config.

    Raises:
        ConversionError: The model is multilingual, but its vocabulary names no languages or no task to transcribe.
    """
    start = int(generation["decoder_start_token_id"])
    if not generation.get("is_multilingual"):
        return ForcedTokens(start)
    languages, tasks = generation.get("lang_to_id") or {}, generation.get("task_to_id") or {}
    lacking = [
        name for name, there in (("languages", languages), ("a task 'transcribe'", "transcribe" in tasks)) if not there
    ]
    if lacking:
        raise ConversionError(
            "there can be no prefill: the checkpoint is multilingual, but its vocabulary has no "
            f"{' and no '.join(lacking)}; complete lang_to_id and task_to_id in generation_config.json"
        )
    try:
        return ForcedTokens(
            start,
            tuple(int(token) for token in languages.values()),
            tuple(int(tasks[name]) for name in TASKS if name in tasks),
        )
    except ValueError as error:
        raise ConversionError(f"lang_to_id and task_to_id in generation_config.json make no sense: {error}") from error


def language_codes(generation: dict[str, Any]) -> dict[int, str]:
    """Return the code of each language by its token id."""
    names: dict[str, int] = generation.get("lang_to_id") or {}
    return {int(token): name.removeprefix("<|").removesuffix("|>") for name, token in names.items()}


def encode(checkpoint: Checkpoint, windows: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    """Return the audio embeddings `[1, D, 1, 1500]` of each window, rounded to float16 as the runtime hands them on.

    Args:
        checkpoint: The checkpoint. Its encoder is loaded and released.
        windows: Samples at 16 kHz, each cut to the encoder's length.
    """
    mel, encoder = MelSpectrogram(checkpoint.dims.n_mels), checkpoint.load_encoder(torch.float16).float()
    with torch.inference_mode():
        cut = [one_window(window, checkpoint.dims.n_samples) for window in windows]
        return [encoder(mel(torch.from_numpy(window)).half().float()).half() for window in cut]


def estimate(checkpoint: Checkpoint, forced: ForcedTokens, embeds: Sequence[Tensor]) -> PrefillTable:
    """Return the mean of the caches over windows.

    Args:
        checkpoint: The checkpoint.
        forced: The tree of tokens.
        embeds: Audio embeddings of each window, `[1, D, 1, 1500]`. At least one.
    """
    dims = checkpoint.dims
    shape = (len(forced.tokens), dims.d_model * dims.decoder_layers)
    keys, values = torch.zeros(shape), torch.zeros(shape)
    for layer, of_keys, of_values in forced_caches(checkpoint, forced, embeds):
        channels = slice(layer * dims.d_model, (layer + 1) * dims.d_model)
        keys[:, channels] += of_keys / len(embeds)
        values[:, channels] += of_values / len(embeds)
    return PrefillTable(forced, keys, values)


def forced_caches(
    checkpoint: Checkpoint, forced: ForcedTokens, embeds: Sequence[Tensor]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Compute the caches of all nodes, layer after layer, and within a layer window after window.

    The weights are those of the package, rounded to float16, and computed in float32. One layer at a time is widened.

    Args:
        checkpoint: The checkpoint. Its decoder is loaded and released.
        forced: The tree of tokens.
        embeds: Audio embeddings of each window, `[1, D, 1, 1500]`.

    Yields:
        The layer, and one window's keys and values there, each `[nodes, D]` float32.
    """
    decoder = checkpoint.load_decoder(checkpoint.dims.n_text_ctx, dtype=torch.float16)
    mask = _mask(forced)
    streams = [_embedded(decoder, forced)] * len(embeds)
    for index in range(checkpoint.dims.decoder_layers):
        layer = _Layer(decoder.layers[index].float())
        for window, encoded in enumerate(embeds):
            with torch.inference_mode():
                normalised, keys, values = layer.caches(streams[window])
                if index + 1 < checkpoint.dims.decoder_layers:  # the rest of the last layer is not needed
                    streams[window] = layer.rest(streams[window], normalised, keys, values, mask, encoded.float())
            yield index, keys[0, :, 0].t(), values[0, :, 0].t()
        decoder.layers[index] = torch.nn.Identity()  # releases the widened weights


class _Layer:
    """A decoder layer over all nodes at once: the nodes lie along the sequence axis."""

    def __init__(self, layer: Any) -> None:
        self._layer: TextDecoderLayer = layer

    def caches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised stream, keys and values, each `[1, D, 1, nodes]`."""
        normalised = self._layer.self_attn_layer_norm(x)
        return normalised, self._layer.self_attn.k_proj(normalised), self._layer.self_attn.v_proj(normalised)

    def rest(
        self, x: Tensor, normalised: Tensor, keys: Tensor, values: Tensor, mask: Tensor, encoded: Tensor
    ) -> Tensor:
        """Return the stream after the layer, `[1, D, 1, nodes]`."""
        layer = self._layer
        x = x + layer.self_attn.attend(normalised, keys, values, mask)[0]
        return layer.feed_forward(x + layer.encoder_attn(layer.encoder_attn_layer_norm(x), encoded)[0])


def _embedded(decoder: TextDecoder, forced: ForcedTokens) -> Tensor:
    """Return the nodes' tokens at their positions, embedded: `[1, D, 1, nodes]` float32."""
    tokens = decoder.embed_tokens.weight[list(forced.tokens)].float()
    return (tokens + decoder.embed_positions.weight[list(forced.positions)].float()).t()[None, :, None, :]


def _mask(forced: ForcedTokens) -> Tensor:
    """Return `[1, 1, nodes, nodes]`, to be added to the scores: 0 where the column's node is on the row's path."""
    paths = forced.paths
    mask = torch.full((len(paths), len(paths)), _OFF_PATH)
    for node, path in enumerate(paths):
        mask[node, list(path)] = 0.0
    return mask[None, None]
