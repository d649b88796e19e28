"""Sizes and normalisation of what depth networks take."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def network_size(
    height: int, width: int, target: tuple[int, int], multiple: int
) -> tuple[int, int]:
    """(height, width) a picture is resized to before a network.

    The aspect ratio is kept as far as multiples allow; of the two factors that reach the target's
    height or width, the one nearer to 1 is taken, as the networks were trained (DPT, ZoeDepth and
    Depth Anything share this rule).
    """
    by_height, by_width = target[0] / height, target[1] / width
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    sides = (round(scale * side / multiple) * multiple for side in (height, width))
    new_height, new_width = (max(side, multiple) for side in sides)
    return new_height, new_width


def normalise_colours(
    pictures: Float[Tensor, "B 3 H W"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Tensor, "B 3 H W"]:
    """(pictures - mean) / std, per channel."""
    like = {"dtype": pictures.dtype, "device": pictures.device}
    return (pictures - torch.tensor(mean, **like).view(3, 1, 1)) / torch.tensor(std, **like).view(
        3, 1, 1
    )


def check_side(side: int, multiple: int, least: int, network: str) -> None:
    """Raise ValueError unless a network's input side fits its patches."""
    if side < least or side % multiple:
        below = max(least, side // multiple * multiple)
        raise ValueError(
            f"resolution {side} does not fit {network}: it must be a multiple of {multiple} of at "
            f"least {least}, e.g. {below} or {below + multiple}"
        )
