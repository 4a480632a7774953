"""Enlarging images."""

import math

import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.mil.kernels import limited, operation


@operation("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, *, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """`[B, C, H, W]` enlarged by repeating its nearest element."""
    limited(x.numel(), math.ceil(scale_factor_height), math.ceil(scale_factor_width))
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)), mode="nearest")


@operation("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    *,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """`[B, C, H, W]` enlarged by interpolation, with corners aligned or with centres of pixels at halves."""
    limited(x.numel(), math.ceil(scale_factor_height), math.ceil(scale_factor_width))
    factors = (float(scale_factor_height), float(scale_factor_width))
    return F.interpolate(
        x, scale_factor=factors, mode="bilinear", align_corners=align_corners, recompute_scale_factor=False
    )
