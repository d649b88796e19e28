"""Depth Pro as a depth estimator, with the camera's focal length where it is known."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import DepthProForDepthEstimation

from .frozen import FrozenEstimator

INVERSE_LIMITS = (1e-4, 1e4)


class DepthPro(FrozenEstimator):
    """Canonical inverse depth, made metric by the focal length.

    The network predicts inverse depth for a camera whose focal length is the picture's width; a
    camera with focal length f sees the same picture at f / width times the distance. A given K
    says f; without one, the network's own field of view does, if the checkpoint has that part.

    Args:
        network: the library's model.
        resolution: None; the multi-scale encoder has one input size (1536).
    """

    name = "Depth Pro"
    uses_intrinsics = True

    def __init__(
        self, network: DepthProForDepthEstimation, *, resolution: int | None = None
    ) -> None:
        config = network.config
        side = round(config.patch_size / min(config.scaled_images_ratios))
        if resolution not in (None, side):
            raise ValueError(
                f"resolution {resolution} does not fit Depth Pro: its encoder cuts pictures of "
                f"{side} into patches and takes no other size; leave resolution out, or use the "
                "cache or every n-th picture to make it cheap"
            )
        super().__init__(network, resolution=side)
        self.side = side

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resolution: int | None = None,
    ) -> DepthPro:
        """Load a Depth Pro checkpoint.

        Args:
            checkpoint: folder, or OWNER/NAME on the Hub.
            dtype: of the weights.
            device: where they go.
            resolution: see the class.
        """
        network = DepthProForDepthEstimation.from_pretrained(checkpoint, dtype=dtype)
        return cls(network.to(device), resolution=resolution)

    def network_input(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Normalise to [-1, 1], then squash bilinearly, without antialiasing, to the one size."""
        size = (self.side, self.side)
        return F.interpolate((pictures - 0.5) / 0.5, size, mode="bilinear")

    def metres(
        self, pictures: Float[Tensor, "B 3 H W"], intrinsics: Float[Tensor, "B 3 3"] | None
    ) -> Float[Tensor, "B H W"]:
        """F / (width * canonical inverse depth), resized as inverse depth."""
        width = pictures.shape[-1]
        outputs = self.network(self.network_input(pictures).to(self.dtype))
        if intrinsics is not None:
            focal = intrinsics[:, 0, 0]
            if bool((focal <= 0).any()):
                raise ValueError(f"focal lengths must be positive, got fx = {focal.tolist()}")
        elif outputs.field_of_view is not None:
            half = 0.5 * torch.deg2rad(outputs.field_of_view.float())
            focal = 0.5 * width / torch.tan(half)
        else:
            raise ValueError(
                "this Depth Pro checkpoint has no field-of-view part (use_fov_model false), so it "
                "needs the camera: pass intrinsics (B, 3, 3) in pixels of the pictures"
            )
        inverse = outputs.predicted_depth.float() * (width / focal)[:, None, None]
        inverse = F.interpolate(inverse[:, None], pictures.shape[-2:], mode="bilinear")[:, 0]
        return 1.0 / inverse.clamp(*INVERSE_LIMITS)
