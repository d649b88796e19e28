"""Ego3D position encoding: where, in the camera's own 3-D frame, each image patch looks.

Every patch holds `reso x reso` points. Depth is averaged over the cell of each point, the point is
back-projected, shifted and scaled to about [-1, 1], encoded with sines and cosines, and an MLP
turns the encoding of one patch into a term that is added to its visual feature (SpatialVLA,
section 3.1).

Shape letters: B batch, G patches per side, P = G * G patches, R points per patch side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig

from ..geometry.backprojection import backproject, cell_centres
from ..geometry.frequency import frequency_encoding
from ..geometry.holes import pool_depth

CENTRE_METRES = (0.0, 0.0, 2.0)
HALF_RANGE_METRES = 2.0


def patch_points(
    depth: Float[Tensor, "B H W"],
    intrinsics: Float[Tensor, "B 3 3"],
    image_size: int,
    patch_size: int,
    reso: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B P C"]:
    """Points of every patch, metres in the camera frame, ordered (row, column, xyz).

    C = 3 * reso * reso. `dtype` is what pixel grid, K and depth are rounded to before they meet in
    float32; only the reproduction of a released model in half precision wants it other than that.
    """
    grid = image_size // patch_size
    uv = cell_centres(image_size, patch_size / reso, device=depth.device)
    depth_BCC = pool_depth(depth.to(dtype), grid * reso).to(dtype)
    xyz = backproject(uv.to(dtype).float(), depth_BCC.flatten(1), intrinsics.to(dtype))
    xyz = xyz.view(-1, grid, reso, grid, reso, 3).transpose(2, 3)
    return xyz.reshape(-1, grid * grid, 3 * reso * reso)


def in_reference_frame(
    points: Float[Tensor, "B P C"], poses: Float[Tensor, "B 4 4"]
) -> Float[Tensor, "B P C"]:
    """Patch points of each view in the reference camera's frame, metres, float32.

    Args:
        points: as `patch_points` gives them, in each camera's own frame.
        poses: camera to reference frame; the identity keeps a view in its own.
    """
    with torch.autocast(points.device.type, enabled=False):
        xyz = points.float().unflatten(-1, (-1, 3))
        poses = poses.float()
        turned = torch.einsum("bij,bpkj->bpki", poses[:, :3, :3], xyz)
        return (turned + poses[:, None, None, :3, 3]).flatten(-2)


class Ego3DPositionEmbedding(nn.Module):
    """Frequency encoding of patch points, then Linear, LayerNorm, ReLU, Linear."""

    def __init__(self, reso: int, num_freqs: int, vision: SiglipVisionConfig) -> None:
        super().__init__()
        self.num_freqs = num_freqs
        self.cells = (vision.image_size, vision.patch_size, reso)
        points_per_patch, hidden_size = reso**2, vision.hidden_size
        self.position_embedding_head = nn.Sequential(
            nn.Linear(points_per_patch * 3 * (2 * num_freqs + 1), hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def of_depth(
        self,
        depth: Float[Tensor, "B H W"],
        intrinsics: Float[Tensor, "B 3 3"] | None,
        poses: Float[Tensor, "B 4 4"] | None,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B P C"]]:
        """The term of every patch, and its points; see `patch_points` and `in_reference_frame`.

        ValueError without intrinsics.
        """
        if intrinsics is None:
            raise ValueError(
                "Ego3D needs the camera's intrinsics: pass intrinsics (B, 3, 3), in pixels of "
                "the model's input picture, as the processor returns them"
            )
        points = patch_points(depth, intrinsics, *self.cells, dtype)
        if poses is not None:
            points = in_reference_frame(points, poses)
        return self(points, dtype), points

    def forward(
        self, points: Float[Tensor, "B P C"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "B P D"]:
        """One vector per patch from its points, in metres.

        The points are shifted by (0, 0, 2) m and halved, which takes a tabletop to about [-1, 1],
        and encoded in `dtype`; the MLP runs in its own.
        """
        centre = points.new_tensor(CENTRE_METRES).repeat(points.shape[-1] // 3)
        scaled = (points - centre) / HALF_RANGE_METRES
        encoding = frequency_encoding(scaled, self.num_freqs, dtype)
        return self.position_embedding_head(
            encoding.to(self.position_embedding_head[0].weight.dtype)
        )
