"""ZoeDepth as a depth estimator, at its own resolution or a lower one.

Read a part of a checkpoint's weights without loading the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, ZoeDepthForDepthEstimation
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import cached_file

from .frozen import FrozenEstimator, check_side, network_size
from .zoe import PerImageMetricHeads, PerImageZoeDepth, pad_width

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def part_of_checkpoint(checkpoint: str | Path, prefix: str) -> dict[str, Tensor]:
    """Weights whose names begin with a prefix, without it.

    Args:
        checkpoint: folder or OWNER/NAME on the Hub, in one safetensors file or in shards.
        prefix: e.g. "vision_zoe_model.".

    Raises:
        ValueError: there are none.
    """
    index = cached_file(str(checkpoint), INDEX, _raise_exceptions_for_missing_entries=False)
    if index is None:
        files = {WHOLE}
    else:
        entries = json.loads(Path(index).read_text())["weight_map"]
        files = {file for key, file in entries.items() if key.startswith(prefix)}
    part: dict[str, Tensor] = {}
    for file in sorted(files):
        with safe_open(cached_file(str(checkpoint), file), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key.startswith(prefix):
                    part[key.removeprefix(prefix)] = tensors.get_tensor(key)
    if not part:
        raise ValueError(f"{checkpoint} holds no weights whose names begin with {prefix!r}")
    return part


PREFIX = "vision_zoe_model."
LEAST_SIDE = 64


class ZoeDepth(FrozenEstimator):
    """Metric depth of ZoeDepth, each picture's indoor or outdoor head chosen by itself.

    Args:
        network: a `PerImageZoeDepth`, also one inside a SpatialVLA model.
        resolution: pixels of the shorter target side before the network; None for what it was
            trained at (384). The target is 3:4, the aspect ratio is kept, so a square picture
            becomes resolution x resolution. BEiT interpolates its table of relative positions to
            the grid; the grid must be even (multiples of 32 pixels for patches of 16), since the
            neck halves it, and the library drops the rest of any other side without a word.
        resample: "bicubic" as SpatialVLA was trained, "bilinear" as the library's own processor.
    """

    name = "ZoeDepth"

    def __init__(
        self,
        network: PerImageZoeDepth,
        *,
        resolution: int | None = None,
        resample: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> None:
        _check_per_image(network)
        backbone = network.config.backbone_config
        trained = backbone.image_size
        trained = trained if isinstance(trained, int) else trained[0]
        side = trained if resolution is None else resolution
        self_multiple = 2 * backbone.patch_size
        check_side(side, self_multiple, LEAST_SIDE, "ZoeDepth's BEiT")
        super().__init__(network, resolution=side, resample=resample)
        self.resolution, self.resample, self.multiple = side, resample, self_multiple

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        resolution: int | None = None,
        resample: Literal["bicubic", "bilinear"] = "bicubic",
    ) -> ZoeDepth:
        """Load a ZoeDepth checkpoint, or the ZoeDepth inside a SpatialVLA checkpoint.

        Args:
            checkpoint: folder, or OWNER/NAME on the Hub.
            dtype: of the weights.
            device: where they go.
            resolution: see the class.
            resample: see the class.
        """
        config, _ = PretrainedConfig.get_config_dict(str(checkpoint))
        if config.get("model_type") != "spatialvla":
            network = PerImageZoeDepth.from_pretrained(checkpoint, dtype=dtype)
        elif not config.get("vision_zoe_config"):
            raise ValueError(
                f"{checkpoint} is a SpatialVLA checkpoint without a depth estimator (depth_source "
                "'sensor'); name the checkpoint of an estimator"
            )
        else:
            network = PerImageZoeDepth.from_pretrained(
                None,
                config=AutoConfig.for_model(**config["vision_zoe_config"]),
                state_dict=part_of_checkpoint(checkpoint, PREFIX),
                dtype=dtype,
            )
        return cls(network.to(device), resolution=resolution, resample=resample)

    def network_input(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Reflect-pad, resize with aligned corners, normalise to [-1, 1]."""
        height, width = pictures.shape[-2:]
        rows, columns = pad_width(height), pad_width(width)
        padded = F.pad(pictures, (columns, columns, rows, rows), mode="reflect")
        tall, wide = padded.shape[-2:]
        # The library's 3:4 target would give a square larger than the target a larger side.
        ratio = 1 if tall == wide else 4 / 3
        target = (self.resolution, round(self.resolution * ratio))
        size = network_size(tall, wide, target, self.multiple)
        resized = F.interpolate(padded, size, mode=self.resample, align_corners=True)
        return (resized - 0.5) / 0.5

    def metres(
        self, pictures: Float[Tensor, "B 3 H W"], intrinsics: Float[Tensor, "B 3 3"] | None
    ) -> Float[Tensor, "B H W"]:
        """Depth of the padded pictures, resized back, without the border."""
        height, width = pictures.shape[-2:]
        rows, columns = pad_width(height), pad_width(width)
        raw = self.network(self.network_input(pictures).to(self.dtype)).predicted_depth.float()
        size = (height + 2 * rows, width + 2 * columns)
        depth = F.interpolate(raw[:, None], size, mode="bicubic", align_corners=True)[:, 0]
        return depth[:, rows : rows + height, columns : columns + width]


def _check_per_image(network: ZoeDepthForDepthEstimation) -> None:
    heads = network.metric_head
    several = len(network.config.bin_configurations) > 1
    if several and (not isinstance(heads, PerImageMetricHeads) or heads.vote_over_batch):
        raise ValueError(
            "this ZoeDepth votes over the batch for its indoor or outdoor head, so a picture's "
            "depth would depend on its neighbours; load it as PerImageZoeDepth (a SpatialVLA "
            "model: with compatibility='ours')"
        )
