"""Depth Anything V2 (metric) as a depth estimator."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

from .frozen import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenEstimator,
    check_side,
    network_size,
    normalise_colours,
)

TRAINED_SIDE = 518


class DepthAnything(FrozenEstimator):
    """Metric depth up to the checkpoint's `max_depth` (20 m indoors, 80 m outdoors).

    Args:
        network: of a metric checkpoint; a relative one has no unit and is refused.
        resolution: pixels that the side nearer to it becomes before the network; None for 518,
            what it was trained at. A multiple of the patch (14).
    """

    name = "Depth Anything V2"

    def __init__(
        self, network: DepthAnythingForDepthEstimation, *, resolution: int | None = None
    ) -> None:
        _check_metric(network.config, "this checkpoint")
        patch = network.config.patch_size
        self_side = TRAINED_SIDE if resolution is None else resolution
        check_side(self_side, patch, 4 * patch, "Depth Anything")
        super().__init__(network, resolution=self_side)
        self.resolution, self.patch = self_side, patch

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resolution: int | None = None,
    ) -> DepthAnything:
        """Load a metric checkpoint.

        Args:
            checkpoint: folder, or OWNER/NAME on the Hub.
            dtype: of the weights.
            device: where they go.
            resolution: see the class.
        """
        _check_metric(DepthAnythingConfig.from_pretrained(checkpoint), str(checkpoint))
        network = DepthAnythingForDepthEstimation.from_pretrained(checkpoint, dtype=dtype)
        return cls(network.to(device), resolution=resolution)

    def network_input(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Bicubic with antialiasing, aspect kept, ImageNet's colours."""
        target = (self.resolution, self.resolution)
        size = network_size(pictures.shape[-2], pictures.shape[-1], target, self.patch)
        resized = F.interpolate(pictures, size, mode="bicubic", antialias=True)
        return normalise_colours(resized, IMAGENET_MEAN, IMAGENET_STD)

    def metres(
        self, pictures: Float[Tensor, "B 3 H W"], intrinsics: Float[Tensor, "B 3 3"] | None
    ) -> Float[Tensor, "B H W"]:
        """The network's metres, resized to the picture."""
        raw = self.network(self.network_input(pictures).to(self.dtype)).predicted_depth.float()
        return F.interpolate(raw[:, None], pictures.shape[-2:], mode="bicubic")[:, 0]


def _check_metric(config: DepthAnythingConfig, what: str) -> None:
    if config.depth_estimation_type != "metric":
        raise ValueError(
            f"{what} is a Depth Anything of type {config.depth_estimation_type!r}: its depth has "
            "no unit. Take a metric one (depth_estimation_type 'metric'; their names hold "
            "'Metric-Indoor' or 'Metric-Outdoor')"
        )
    if not config.max_depth or config.max_depth <= 0:
        raise ValueError(f"{what} has max_depth {config.max_depth}; it must be positive metres")
