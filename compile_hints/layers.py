"""The layers that the encoder and the decoder share, in `[B, C, 1, S]` layout.

Their parameters carry the names of the Hugging Face checkpoint. A state dict in the checkpoint's own shapes (linear
`[out, in]`, 1-D convolution `[out, in, k]`) is brought into the layout while it is loaded, as views without a copy.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _unsqueeze_on_load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Give the checkpoint's weight the missing axes of a 2-D convolution kernel."""
    weight = state_dict.get(prefix + "weight")
    if not isinstance(weight, Tensor):
        return
    if weight.ndim == 2:  # linear [out, in]
        state_dict[prefix + "weight"] = weight[:, :, None, None]
    elif weight.ndim == 3:  # 1-D convolution [out, in, k]
        state_dict[prefix + "weight"] = weight[:, :, None, :]


class SequenceConv(nn.Conv2d):
    """A convolution along the sequence: `[B, in, 1, S]` to `[B, out, 1, S / stride]`.

    A linear layer is a 1x1 convolution, so that the data stays channels first and sequence last.
    Source: Apple, "Deploying Transformers on the Apple Neural Engine", principle 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (1, kernel_size),
            stride=(1, stride),
            padding=(0, kernel_size // 2),
            bias=bias,
        )
        self.register_load_state_dict_pre_hook(_unsqueeze_on_load)  # type: ignore[no-untyped-call]


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channel axis: `[B, C, 1, S]` to the same shape.

    The order of the operations is the one that coremltools recognises and fuses to a single `layer_norm` over axis 1
    (its pass `fuse_layernorm_or_instancenorm`, pattern 5), with scale and shift as one `batch_norm` after it. That
    matters beyond speed: unfused, the mean of squares leaves float16's range once a channel exceeds about 256, and
    Whisper's residual stream has such channels.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position, then scale and shift each channel."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)  # `square` would not match the pattern
        normalised = centred * torch.rsqrt(variance + self.eps)
        return normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class FeedForward(nn.Module):
    """Base of the encoder's and the decoder's block: the feed-forward half, under the checkpoint's flat names."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.fc1 = SequenceConv(d_model, ffn_dim)
        self.fc2 = SequenceConv(ffn_dim, d_model)
        self.final_layer_norm = ChannelLayerNorm(d_model)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add `fc2(gelu(fc1(norm(x))))` to the residual stream `x` of shape `[B, C, 1, S]`."""
        hidden = F.gelu(self.fc1(self.final_layer_norm(x)))  # exact gelu, as Whisper was trained
        output: Tensor = x + self.fc2(hidden)
        return output


def split(x: Tensor, size: int, dim: int) -> list[Tensor]:
    """Split an axis into pieces of `size`. The last one may be shorter. A single piece costs no operation."""
    return [x] if x.shape[dim] <= size else list(torch.split(x, size, dim=dim))


def concatenated(pieces: Sequence[Tensor], dim: int) -> Tensor:
    """Undo `split`."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=dim)
