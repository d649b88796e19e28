"""The rule for bad pixels, second half: what stands in for unknown depth (docs/decisions/0009).

Unknown pixels are marked 0 as early as possible, stay out of every mean, and only what has no
known pixel at all takes the median of its picture.

Shape letters: B batch, H and W picture, C cells a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .depth_maps import usable


def mark_unknown(depth: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Depth with 0 in every pixel that is not usable."""
    return torch.where(usable(depth), depth, 0.0)


def pool_depth(depth: Float[Tensor, "B H W"], cells: int) -> Float[Tensor, "B C C"]:
    """Mean depth of each of cells x cells areas, over its known pixels.

    A cell without a known pixel takes the median of the picture's known pixels; a picture without
    any raises ValueError.
    """
    return _pool(depth, (cells, cells))


def fill_holes(depth: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Depth without holes: the rule of `pool_depth` with every pixel a cell of its own.

    Fill last: a mean over filled pixels mixes the stand-in with what was measured.
    """
    return _pool(depth, (depth.shape[-2], depth.shape[-1]))


def _pool(depth: Tensor, size: tuple[int, int]) -> Tensor:
    depth = depth.float()
    known = usable(depth)
    if bool(known.all()):
        return F.interpolate(depth[:, None], size, mode="area")[:, 0]
    if not bool(known.flatten(1).any(1).all()):
        empty = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
        raise ValueError(
            f"depth of image(s) {empty} of the batch has no valid pixel (finite and above 0 m); "
            "check the sensor's unit and mask, or leave depth out to estimate it from the picture"
        )
    filled = mark_unknown(depth)
    total = F.interpolate(filled[:, None], size, mode="area")[:, 0]
    share = F.interpolate(known[:, None].float(), size, mode="area")[:, 0]
    medians = torch.stack([d[k].median() for d, k in zip(depth, known, strict=True)])
    return torch.where(share > 0, total / share.clamp_min(1e-12), medians[:, None, None])
