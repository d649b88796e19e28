"""What one prediction looks at: cameras, past steps and proprioception, in the prompt's order.

The prompt begins with one `<image>` token per observation feature. Steps follow each other oldest
first; within a step come the patches of each camera, in the order of the layout, then one token of
proprioception where the layout has it. The released model is one camera, one step, none.

Shape letters: B batch, W steps of the window, C cameras, N = W * C views, P patches of a view,
T = W * (C * P + one if there is proprioception) observation tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .configuration_spatialvla import SpatialVLAConfig

OBSERVATION_INPUTS = ("pixel_values", "intrinsics", "depth", "camera_poses", "proprio")
"""What goes into the model with the prompt, and never again."""


@dataclass(frozen=True)
class ObservationLayout:
    """Which observations make one prompt.

    Attributes:
        cameras: names of the views of a step; the first one's frame is the reference frame.
        window: steps that are seen, the present one included.
        proprio_dim: numbers of proprioception per step; None for none.
    """

    cameras: tuple[str, ...] = ("primary",)
    window: int = 1
    proprio_dim: int | None = None

    def __post_init__(self) -> None:
        """ValueError for a layout that shows nothing."""
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must be one or more different names, got {self.cameras}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1 (the present step), got {self.window}")
        if self.proprio_dim is not None and self.proprio_dim < 1:
            raise ValueError(f"proprio_dim must be at least 1, or None, got {self.proprio_dim}")

    @property
    def num_views(self) -> int:
        """Pictures of one prompt."""
        return self.window * len(self.cameras)

    def num_tokens(self, patches: int) -> int:
        """Observation tokens of one prompt whose pictures have `patches` each."""
        return self.window * (len(self.cameras) * patches + (self.proprio_dim is not None))

    @property
    def is_released(self) -> bool:
        """Whether this is the released form: one picture and nothing else."""
        return self.num_views == 1 and self.proprio_dim is None

    def to_dict(self) -> dict[str, Any]:
        """For processor_config.json."""
        return {
            "cameras": list(self.cameras),
            "window": self.window,
            "proprio_dim": self.proprio_dim,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any] | None) -> ObservationLayout:
        """From processor_config.json; a file without an entry is the released form."""
        if entry is None:
            return cls()
        return cls(tuple(entry["cameras"]), int(entry["window"]), entry["proprio_dim"])


class ObservationTokens(nn.Module):
    """Features of every view, and proprioception, as one sequence of tokens.

    Each view has an embedding of its own, zero at first, so that a model which learnt from one
    picture starts from what it knows. Proprioception goes through an MLP to one token per step.
    """

    def __init__(
        self, num_cameras: int, window: int, proprio_dim: int | None, hidden_size: int
    ) -> None:
        super().__init__()
        self.num_cameras, self.window = num_cameras, window
        if num_cameras * window > 1:
            self.view_embedding = nn.Parameter(torch.zeros(num_cameras * window, hidden_size))
        if proprio_dim is not None:
            self.proprio_projector = nn.Sequential(
                nn.Linear(proprio_dim, hidden_size),
                nn.GELU(),
                nn.Linear(hidden_size, hidden_size),
            )

    def forward(
        self, features: Float[Tensor, "BN P D"], proprio: Float[Tensor, "B W K"] | None
    ) -> Float[Tensor, "B T D"]:
        """Tokens in the prompt's order.

        Args:
            features: projected image features of all views, a sample's views in a row.
            proprio: normalised to [-1, 1]; needed where the layout has it.
        """
        views = self.num_cameras * self.window
        features_BNPD = features.unflatten(0, (-1, views))
        if views > 1:
            features_BNPD = features_BNPD + self.view_embedding[:, None]
        tokens_BWTD = features_BNPD.unflatten(1, (self.window, self.num_cameras)).flatten(2, 3)
        if hasattr(self, "proprio_projector"):
            if proprio is None:
                raise ValueError(
                    f"this model reads proprioception: pass proprio (B, {self.window}, "
                    f"{self.proprio_projector[0].in_features}), as the processor returns it"
                )
            state = proprio.to(self.proprio_projector[0].weight.dtype)
            token_BW1D = self.proprio_projector(state).unsqueeze(2)
            tokens_BWTD = torch.cat((tokens_BWTD, token_BW1D.to(tokens_BWTD.dtype)), dim=2)
        return tokens_BWTD.flatten(1, 2)


def single_views(
    config: SpatialVLAConfig,
    pixel_values: Float[Tensor, "B 3 S S"] | Float[Tensor, "B N 3 S S"],
    intrinsics: Float[Tensor, "B 3 3"] | Float[Tensor, "B N 3 3"] | None,
    depth: Float[Tensor, "B S S"] | Float[Tensor, "B N S S"] | None,
    camera_poses: Float[Tensor, "B N 4 4"] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Pictures, K, depth and poses with a batch's views in a row.

    ValueError for bytes, for depth in whole numbers, and for other views than the model takes.
    """
    for name, given, meant in (
        ("pixel_values", pixel_values, "floats in [0, 1]"),
        ("depth", depth, "metres, floats"),
    ):
        if given is not None and not given.is_floating_point():
            raise ValueError(
                f"{name} must be {meant}, as the processor returns them, got {given.dtype}"
            )
    views = config.num_views
    if pixel_values.ndim == 5:
        if pixel_values.shape[1] != views:
            raise ValueError(
                f"pixel_values have {pixel_values.shape[1]} views, the model takes {views} "
                f"({config.observation_window} steps of {config.num_cameras} cameras)"
            )
        pixel_values = pixel_values.flatten(0, 1)
    elif views > 1:
        raise ValueError(
            f"this model takes {views} views per prompt: pixel_values must be (B, {views}, 3, "
            f"S, S), got {tuple(pixel_values.shape)}"
        )
    return (
        pixel_values,
        None if intrinsics is None else intrinsics.reshape(-1, 3, 3),
        None if depth is None else depth.flatten(0, -3),
        None if camera_poses is None else camera_poses.reshape(-1, 4, 4),
    )


class ConvStem(nn.Conv2d):
    """Picture to patch embeddings through log2(patch_size) convolutions of stride 2.

    For vision towers that start from random weights: SigLIP cuts a picture into patches with one
    large convolution, which trained from nothing on a few thousand pictures hardly learns. A stack
    of small ones sees edges first and learns quickly (Xiao et al. 2021, 'Early convolutions help
    transformers see better').

    It takes the place of SigLIP's `patch_embedding` and is, like it, a Conv2d: the last of the
    stack, whose weight tells the tower its dtype.
    """

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        depth = int(math.log2(patch_size))
        if 2**depth != patch_size or depth < 2:
            raise ValueError(
                f"the convolutional stem needs a patch size that is a power of 2 and at least 4, "
                f"got {patch_size}"
            )
        widths = [max(hidden_size >> (depth - 1 - i), 16) for i in range(depth)]
        super().__init__(widths[-2], hidden_size, kernel_size=3, stride=2, padding=1)
        layers: list[nn.Module] = []
        for width_in, width in zip([in_channels, *widths[:-2]], widths[:-1], strict=True):
            layers += [
                nn.Conv2d(width_in, width, kernel_size=3, stride=2, padding=1),
                nn.GroupNorm(1, width),
                nn.GELU(),
            ]
        self.stages = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Patch embeddings, one per patch."""
        return super().forward(self.stages(pixels))


class MultiModalProjector(nn.Module):
    """One linear layer from the vision tower to the language model."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_size, hidden_size)

    def forward(self, features: Float[Tensor, "B P C"]) -> Float[Tensor, "B P D"]:
        """Projected features."""
        return self.linear(features)


def merged(
    embeds: Float[Tensor, "B T D"], features: Float[Tensor, "B P D"], is_image: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """Embeddings with features in the places of `<image>` tokens; ValueError unless they fit."""
    have, need = int(is_image.sum()), features.shape[0] * features.shape[1]
    if have != need:
        raise ValueError(
            f"the prompt holds {have} <image> tokens, the observations make {need} features "
            f"({features.shape[0]} x {features.shape[1]}); build the inputs with the processor"
        )
    return embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))
