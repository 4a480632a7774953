"""Columns of the token embedding made alike, so that one palette serves all of them.

The columns of Whisper's embedding differ in magnitude by a factor of 60, and a palette spends its entries on the large
ones. Each column is divided by a power of two. For the logits the decoder's last layer norm takes that factor over. For
the input one product with a constant does. Both are exact in float16, and so is every output.

The best factors minimise the error of the logits at an equal error of all stored values. For column `j` with the mean
square `v` and inputs of the mean square `p` that is `(v / p) ** (1/4)`. The inputs come from the layer norm, whose
weight and bias give their mean square.

Source: Lin et al., "AWQ", arXiv 2306.00978, section 3.2, with the optimum for palettes in place of a search.
"""

import torch
from torch import Tensor

from whisperkit_tools.compile_hints.text_decoder import TextDecoder

_TINY = 1e-12


def fold_column_scales(decoder: TextDecoder) -> None:
    """Divide the columns of the token embedding by powers of two, in place, where float16 rounds nothing."""
    table, norm = decoder.embed_tokens.weight, decoder.layer_norm
    with torch.no_grad():
        scale = _column_scales(table, norm.weight, norm.bias)
        if bool((scale == 1).all()):
            return
        table.div_(scale)
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
    decoder.embedding_scale = scale


def _column_scales(table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return a power of two for each column, of the table's type. 1 where another one would be rounded."""
    spread = table.float().square().mean(0)
    power = weight.float().square() + bias.float().square()
    ratio = ((spread + _TINY) / (power + _TINY)).pow(0.25)
    scale = torch.exp2(torch.round(torch.log2(ratio / ratio.median()))).to(table.dtype)
    exact = torch.isfinite(scale) & (scale > 0)
    for value, result in ((table, table / scale), (weight, weight * scale), (bias, bias * scale)):
        back = result * scale if value is table else result / scale
        exact &= (back == value).reshape(-1, len(scale)).all(0)
    return torch.where(exact, scale, torch.ones_like(scale))
