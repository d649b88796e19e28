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


def project(
    points: Float[Tensor, "B 3"], intrinsics: Float[Tensor, "B 3 3"]
) -> Float[Tensor, "B 2"]:
    """Pixels (u, v), centres at +0.5, of points in front of the camera; NaN for those behind it.

    Args:
        points: camera frame, metres.
        intrinsics: K of each image.
    """
    u_v_w = torch.einsum("bij,bj->bi", intrinsics.double(), points.double())
    depth = u_v_w[:, 2:]
    return torch.where(depth > 0, u_v_w[:, :2] / depth, torch.nan).to(points.dtype)


def patch_weights(
    uv: Float[Tensor, "B 2"], image_size: int, patch_size: int
) -> Float[Tensor, "B P"]:
    """A pixel spread bilinearly over the four nearest patches; all 0 outside the picture.

    Args:
        uv: pixels, centres at +0.5; NaN counts as outside.
        image_size: side of the square picture, pixels.
        patch_size: side of a patch, pixels.
    """
    side = image_size // patch_size
    inside = ((uv >= 0) & (uv < image_size)).all(-1)  # False for NaN
    place = (torch.nan_to_num(uv) / patch_size - 0.5).clamp(0, side - 1)
    ticks = torch.arange(side, dtype=uv.dtype, device=uv.device)
    near_B2S = (1 - (place.unsqueeze(-1) - ticks).abs()).clamp_min(0)
    weights_BRC = near_B2S[:, 1].unsqueeze(-1) * near_B2S[:, 0].unsqueeze(-2)
    return weights_BRC.flatten(1) * inside.unsqueeze(-1)
