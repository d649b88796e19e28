"""A convolutional stem for vision towers that start from random weights.

SigLIP cuts a picture into patches with one large convolution; trained from nothing on a few
thousand pictures it hardly learns. A stack of stride-2 convolutions sees edges first and learns
quickly (Xiao et al. 2021, 'Early convolutions help transformers see better').
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn


class ConvStem(nn.Conv2d):
    """Picture to patch embeddings through log2(patch_size) convolutions of stride 2.

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
