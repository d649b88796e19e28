"""A tiny random checkpoint of every kind of depth estimator, for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
)

GOLDEN_CHECKPOINT = Path(__file__).parents[1] / "golden" / "checkpoint"
SIDES = {"zoedepth": 64, "spatialvla": 64, "depth_anything": 70, "depth_pro": None}
"""Resolution that keeps the tests fast; what it may be depends on the kind."""


def zoedepth(**changes):
    config = ZoeDepthConfig(
        backbone_config=BeitConfig(
            image_size=64,
            patch_size=16,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=24,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
            use_relative_position_bias=True,
            drop_path_rate=0.3,
            layer_scale_init_value=0.5,
            initializer_range=0.4,
        ),
        neck_hidden_sizes=[8, 12, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        bin_embedding_dim=8,
        num_relative_features=8,
        num_attractors=[16, 8, 4, 1],
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=32,
        patch_transformer_num_attention_heads=2,
        num_patch_transformer_layers=4,
        bin_configurations=[
            {"name": "nyu", "n_bins": 16, "min_depth": 1e-3, "max_depth": 10.0},
            {"name": "kitti", "n_bins": 16, "min_depth": 1e-3, "max_depth": 80.0},
        ],
        initializer_range=0.1,
        **changes,
    )
    return ZoeDepthForDepthEstimation(config)


def _dinov2(image_size, patch_size, **changes):
    return Dinov2Config(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        layerscale_value=0.5,
        initializer_range=0.3,
        **changes,
    )


def depth_anything(**changes):
    config = DepthAnythingConfig(
        backbone_config=_dinov2(
            70, 14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, drop_path_rate=0.3
        ),
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 8, 12, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        initializer_range=0.2,
        **{"depth_estimation_type": "metric", "max_depth": 20, **changes},
    )
    return DepthAnythingForDepthEstimation(config)


def depth_pro(**changes):
    config = DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[16, 16, 8],
        num_fov_head_layers=1,
        image_model_config=_dinov2(32, 8),
        patch_model_config=_dinov2(32, 8),
        fov_model_config=_dinov2(32, 8),
        initializer_range=0.2,
        **{"use_fov_model": True, **changes},
    )
    return DepthProForDepthEstimation(config)


MAKERS = {"zoedepth": zoedepth, "depth_anything": depth_anything, "depth_pro": depth_pro}
NOISE = {"zoedepth": 0.2, "depth_anything": 0.02, "depth_pro": 0.02}


def write(kind, folder, **changes):
    """A checkpoint of that `model_type`; the weights are random but the same every time."""
    if kind == "spatialvla":
        (folder / kind).symlink_to(GOLDEN_CHECKPOINT)
        return folder / kind
    torch.manual_seed(7)
    model = MAKERS[kind](**changes)
    with torch.no_grad():  # zeros and ones at the start would hide what is not loaded
        for parameter in model.parameters():
            parameter.add_(NOISE[kind] * torch.randn_like(parameter))
        if kind == "depth_pro":  # keep inverse depth between 0 and a few, the view near 50 degrees
            last = model.head.layers[-2]
            last.weight.mul_(0.2 / (last.weight.norm() * 10))
            last.bias.fill_(2.0)
            if model.fov_model is not None:
                model.fov_model.head.layers[-1].weight.mul_(0.1)
                model.fov_model.head.layers[-1].bias.fill_(50.0)
    model.save_pretrained(folder / kind)
    return folder / kind
