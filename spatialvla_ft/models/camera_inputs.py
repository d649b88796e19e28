"""From a camera's picture, K and depth to those of the model's square input picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..geometry.backprojection import scale_intrinsics


def image_sides(image: Any) -> tuple[int, int]:
    """(height, width) in pixels of a PIL image, an (H, W, 3) array or a (3, H, W) tensor."""
    if hasattr(image, "height") and hasattr(image, "width"):
        return int(image.height), int(image.width)
    shape = tuple(image.shape)
    if len(shape) != 3:
        raise ValueError(f"an image must be (H, W, 3) or (3, H, W), got shape {shape}")
    return (shape[0], shape[1]) if shape[-1] in (1, 3) else (shape[1], shape[2])


def square_intrinsics(intrinsic: Any, height: int, width: int, size: int) -> Float[Tensor, "3 3"]:
    """K of the picture after it was squashed from (height, width) to (size, size)."""
    matrix = torch.as_tensor(np.asarray(intrinsic, dtype=np.float64))
    if matrix.shape != (3, 3) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            f"an intrinsic must be a finite (3, 3) matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            f"pixels, got {np.asarray(intrinsic).tolist()}"
        )
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(f"focal lengths must be positive, got K = {matrix.tolist()}")
    return scale_intrinsics(matrix, size / width, size / height).float()


def square_depth(depth: Any, height: int, width: int, size: int) -> Float[Tensor, "S S"]:
    """Depth squashed to (size, size) by nearest neighbour, which never mixes two surfaces.

    Values that are not finite or not positive become 0, 'unknown'.
    """
    metres = torch.as_tensor(np.asarray(depth, dtype=np.float32)).squeeze()
    if metres.shape != (height, width):
        raise ValueError(
            f"depth has shape {tuple(metres.shape)}, its picture is {height} x {width}; depth must "
            "be registered to the picture, in metres"
        )
    metres = torch.where(torch.isfinite(metres) & (metres > 0), metres, 0.0)
    if (height, width) == (size, size):
        return metres
    rows = ((torch.arange(size) + 0.5) * height / size).long()
    columns = ((torch.arange(size) + 0.5) * width / size).long()
    return metres[rows][:, columns]
