"""Whisper's audio encoder in Neural Engine layout."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisperkit_tools.compile_hints.attention import AttentionImplementation, Cat, MultiHeadAttention
from whisperkit_tools.compile_hints.layers import ChannelLayerNorm, FeedForward, SequenceConv
from whisperkit_tools.dimensions import ModelDimensions


class AudioEncoderLayer(FeedForward):
    """One encoder block: self-attention over all frames, then the feed-forward half."""

    def __init__(self, dims: ModelDimensions, implementation: AttentionImplementation) -> None:
        super().__init__(dims.d_model, dims.encoder_ffn_dim)
        self.self_attn = MultiHeadAttention(dims.d_model, dims.encoder_attention_heads, implementation)
        self.self_attn_layer_norm = ChannelLayerNorm(dims.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Transform the residual stream `[B, D, 1, T]`."""
        normalised = self.self_attn_layer_norm(x)
        attended, _ = self.self_attn(normalised, normalised)
        return self.feed_forward(x + attended)


def _transpose_on_load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Bring the checkpoint's table `[T, D]` into the layout."""
    weight = state_dict.get(prefix + "weight")
    if isinstance(weight, Tensor) and weight.ndim == 2:
        state_dict[prefix + "weight"] = weight.t()[None, :, None, :]


class FramePositions(nn.Module):
    """The encoder's position table, held as `[1, D, 1, T]` so that adding it needs no transpose."""

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, channels, 1, frames))
        self.register_load_state_dict_pre_hook(_transpose_on_load)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to `x` `[B, D, 1, T]`."""
        return x + self.weight


class AudioEncoder(nn.Module):
    """Mel features to audio embeddings.

    Parameter names are the checkpoint's below `model.encoder.`.
    """

    def __init__(self, dims: ModelDimensions, attention: AttentionImplementation | None = None) -> None:
        """Build the encoder. `attention` is its attention implementation, `Cat` unless given."""
        super().__init__()
        implementation = attention or Cat()
        self.dims = dims
        self.conv1 = SequenceConv(dims.n_mels, dims.d_model, 3)
        self.conv2 = SequenceConv(dims.d_model, dims.d_model, 3, stride=2)
        self.embed_positions = FramePositions(dims.n_audio_ctx, dims.d_model)
        self.layers = nn.ModuleList(AudioEncoderLayer(dims, implementation) for _ in range(dims.encoder_layers))
        self.layer_norm = ChannelLayerNorm(dims.d_model)

    def forward(self, melspectrogram_features: Tensor) -> Tensor:
        """Encode one window.

        Args:
            melspectrogram_features: `[B, n_mels, 1, 3000]`.

        Returns:
            `encoder_output_embeds`, `[B, D, 1, 1500]`.
        """
        x = F.gelu(self.conv1(melspectrogram_features))
        x = F.gelu(self.conv2(x))
        x = self.embed_positions(x)
        for layer in self.layers:
            x = layer(x)
        embeds: Tensor = self.layer_norm(x)
        return embeds
