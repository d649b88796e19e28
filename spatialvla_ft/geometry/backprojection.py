"""From pixels and depth to points: the pinhole camera in OpenCV axes.

Camera frame: x right, y down, z forward, metres. Pixel centres lie at +0.5, so the first pixel of
an image is (0.5, 0.5). Everything here computes in float32 whatever the model's dtype is: bfloat16
moves the pixel grid by up to half a pixel.

Shape letters: B batch, H rows, W columns, N points = H * W in row-major order.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def cell_centres(
    image_size: int, cell: float, device: torch.device | None = None
) -> Float[Tensor, "N 2"]:
    """Centres (u, v), in pixels, of the square cells that tile a square image, row by row.

    Args:
        image_size: side of the image in pixels.
        cell: side of one cell in pixels; image_size must be a multiple of it.
        device: where the result lives.
    """
    ticks = torch.arange(0, image_size, cell, dtype=torch.float32, device=device) + cell / 2
    v, u = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack((u, v), dim=-1).reshape(-1, 2)


def backproject(
    uv: Float[Tensor, "N 2"], depth: Float[Tensor, "B N"], intrinsics: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B N 3"]:
    """Points in the camera frame, metres: depth * K^-1 (u, v, 1).

    Args:
        uv: pixel coordinates, centres at +0.5.
        depth: metres along the optical axis.
        intrinsics: K of each image, in pixels of the image that `uv` refers to.
    """
    with torch.autocast(depth.device.type, enabled=False):  # mixed precision stops here
        uv1_N3 = torch.cat((uv, torch.ones_like(uv[:, :1])), dim=-1).float()
        rays_BN3 = uv1_N3 @ torch.linalg.inv(intrinsics.float()).transpose(-1, -2)
        points_BN3: Tensor = rays_BN3 * depth.float().unsqueeze(-1)
    return points_BN3


def scale_intrinsics(
    intrinsics: Float[Tensor, "*B 3 3"], scale_x: float, scale_y: float
) -> Float[Tensor, "*B 3 3"]:
    """K of the image after it was resized by (scale_x, scale_y): the first two rows scale."""
    factors = torch.tensor([scale_x, scale_y, 1.0], dtype=torch.float64)
    return (intrinsics.double() * factors[:, None]).to(intrinsics.dtype)
