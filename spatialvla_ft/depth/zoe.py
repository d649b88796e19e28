"""Metric depth from one picture: ZoeDepth, image by image.

The library's model picks its indoor (nyu) or outdoor (kitti) head by a vote over the whole batch,
so one picture's depth depends on its neighbours. `PerImageZoeDepth` runs the backbone on the batch
and decides per image. Depth estimation is never trained here, so the model stays in evaluation
mode: its drop path moves depth by 5 % otherwise.

Shape letters: B batch, S side of the square picture, Z side of ZoeDepth's input (384).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ZoeDepthForDepthEstimation
from transformers.models.zoedepth.modeling_zoedepth import (
    ZoeDepthMultipleMetricDepthEstimationHeads,
)

PAD_FACTOR = 3.0


class PerImageMetricHeads(ZoeDepthMultipleMetricDepthEstimationHeads):
    """The two metric heads, chosen for each image by its own domain logits."""

    vote_over_batch = False

    def forward(
        self,
        outconv_activation: Tensor,
        bottleneck: Tensor,
        feature_blocks: list[Tensor],
        relative_depth: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the library's head on one image at a time."""
        if self.vote_over_batch:
            return super().forward(outconv_activation, bottleneck, feature_blocks, relative_depth)
        depths, logits = [], []
        for i in range(outconv_activation.shape[0]):
            one = slice(i, i + 1)
            depth, domain = super().forward(
                outconv_activation[one],
                bottleneck[one],
                [block[one] for block in feature_blocks],
                relative_depth[one],
            )
            depths.append(depth)
            logits.append(domain)
        return torch.cat(depths), torch.cat(logits)


class PerImageZoeDepth(ZoeDepthForDepthEstimation):
    """ZoeDepth that is independent of the batch and always in evaluation mode."""

    def __init__(self, config, vote_over_batch: bool = False) -> None:
        super().__init__(config)
        if isinstance(self.metric_head, ZoeDepthMultipleMetricDepthEstimationHeads):
            self.metric_head = PerImageMetricHeads(config)
            self.metric_head.vote_over_batch = vote_over_batch
            self.post_init()
        super().train(False)

    def train(self, mode: bool = True) -> PerImageZoeDepth:
        """Stay in evaluation mode whatever is asked for."""
        return super().train(False)


def pad_width(side: int) -> int:
    """Reflected border, in pixels, that ZoeDepth adds on each side of a picture of that side."""
    return int(math.sqrt(side / 2) * PAD_FACTOR)


def zoe_input(pixels: Float[Tensor, "B 3 S S"], zoe_side: int) -> Float[Tensor, "B 3 Z Z"]:
    """Reflect-pad, resize (bicubic, aligned corners) and normalise pictures in [0, 1]."""
    pad = pad_width(pixels.shape[-1])
    padded = F.pad(pixels, (pad, pad, pad, pad), mode="reflect")
    resized = F.interpolate(padded, (zoe_side, zoe_side), mode="bicubic", align_corners=True)
    return (resized - 0.5) / 0.5


def unpad_depth(raw: Float[Tensor, "B h w"], side: int) -> Float[Tensor, "B S S"]:
    """Bring ZoeDepth's output back to the picture: resize to the padded size, crop the border."""
    pad = pad_width(side)
    padded = side + 2 * pad
    depth = F.interpolate(raw[:, None], (padded, padded), mode="bicubic", align_corners=True)[:, 0]
    return depth[:, pad : pad + side, pad : pad + side]


@torch.no_grad()
def estimate_depth(
    zoe: ZoeDepthForDepthEstimation,
    pixels: Float[Tensor, "B 3 S S"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B S S"]:
    """Metres along the optical axis for pictures in [0, 1]; `dtype` is that of the resampling."""
    zoe_side = zoe.config.backbone_config.image_size
    if isinstance(zoe_side, (list, tuple)):
        zoe_side = zoe_side[0]
    raw = zoe(pixel_values=zoe_input(pixels.to(dtype), zoe_side).to(zoe.dtype)).predicted_depth
    return unpad_depth(raw.to(dtype), pixels.shape[-1])


# ---------------------------------------------------------------- beside the vision tower


def mark(tensor: Tensor) -> torch.cuda.Event | None:
    """The moment until which a tensor's stream has got, on a GPU."""
    return torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None


def beside(since: torch.cuda.Event | None, work: Callable[[], Tensor]) -> Tensor:
    """What `work` makes, started at `since` rather than after what was launched in the meantime.

    It runs on a stream of its own, which the present stream then waits for. Without a GPU (None)
    it simply runs.
    """
    if since is None:
        return work()
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_event(since)
    with torch.cuda.stream(side):
        made = work()
    main.wait_stream(side)
    made.record_stream(main)
    return made
