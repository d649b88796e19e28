"""Models to time: random weights, and sizes that keep the real model's proportions.

A figure of one of these says how fast the code is, never how good a policy is. All three see a
picture of 224 x 224 as 256 tokens and have 8,194 action tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models.configuration_spatialvla import RELEASED_ACTION_TOKENS, SpatialVLAConfig
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration

ACTION_TOKENS = sum(RELEASED_ACTION_TOKENS)
PROMPT_TOKENS = 16
"""Words of the random instruction, begin and newline included; real ones have 10 to 25."""

TINY_ZOE: dict[str, Any] = {
    "backbone_config": {
        "model_type": "beit",
        "image_size": 384,
        "patch_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "use_relative_position_bias": True,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
        "reshape_hidden_states": False,
    },
    "backbone_hidden_size": 32,
    "neck_hidden_sizes": [16, 24, 32, 32],
    "fusion_hidden_size": 16,
    "bottleneck_features": 16,
    "bin_configurations": [
        {"n_bins": 64, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"},
        {"n_bins": 64, "min_depth": 0.001, "max_depth": 80.0, "name": "kitti"},
    ],
    "bin_embedding_dim": 16,
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 32,
    "patch_transformer_num_attention_heads": 4,
}

LARGE_ZOE: dict[str, Any] = {
    "backbone_config": {
        "model_type": "beit",
        "image_size": 384,
        "patch_size": 16,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "use_relative_position_bias": True,
        "out_features": ["stage6", "stage12", "stage18", "stage24"],
        "reshape_hidden_states": False,
    },
    "backbone_hidden_size": 1024,
    "neck_hidden_sizes": [256, 512, 1024, 1024],
    "bin_configurations": TINY_ZOE["bin_configurations"],
    "num_patch_transformer_layers": 4,
    "patch_transformer_hidden_size": 128,
    "patch_transformer_intermediate_size": 1024,
    "patch_transformer_num_attention_heads": 4,
}

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text_config": {
            "vocab_size": 9930,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
        },
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "vision_zoe_config": TINY_ZOE,
    },
    "100m": {
        "text_config": {
            "vocab_size": 28672,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 14,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
        },
        "vision_config": {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
        },
        "vision_zoe_config": TINY_ZOE,
    },
    "4b": {
        "text_config": {
            "vocab_size": 257153 + ACTION_TOKENS,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
        },
        "vision_zoe_config": LARGE_ZOE,
    },
}


def check_size(size: str, device: str) -> None:
    """ValueError unless this size can be built on this device."""
    if size not in SIZES:
        raise ValueError(f"size {size!r} is not known; use one of {', '.join(SIZES)}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is not known; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch can see; there is none")
    if size == "4b" and device != "cuda":
        raise ValueError(
            "size 4b needs a GPU (8 GiB of bfloat16 weights and a decode step of milliseconds are "
            "no figure of a CPU); use --device cuda, or --size 100m here"
        )


def bench_config(size: str, *, chunk: int = 4) -> SpatialVLAConfig:
    """Configuration of one of the sizes; `chunk` actions per prediction."""
    fields = SIZES[size]
    text = {**fields["text_config"], "tie_word_embeddings": False, "sliding_window": 4096}
    begin = text["vocab_size"] - ACTION_TOKENS
    return SpatialVLAConfig(
        text_config=text,
        vision_config={"image_size": 224, "patch_size": 14, **fields["vision_config"]},
        vision_zoe_config=fields["vision_zoe_config"],
        image_token_index=begin - 1,
        action_token_begin_idx=begin,
        spatial_token_num=ACTION_TOKENS,
        action_chunk_size=chunk,
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New parameters in this dtype, so that a model never exists in float32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def bench_model(
    size: str, *, device: str = "cpu", chunk: int = 4, seed: int = 0
) -> SpatialVLAForConditionalGeneration:
    """A random model in evaluation mode: float32 on a CPU, bfloat16 on a GPU."""
    check_size(size, device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(seed)
    with default_dtype(dtype), torch.device(device):
        model = SpatialVLAForConditionalGeneration(bench_config(size, chunk=chunk))
    return model.eval()


def bench_inputs(
    config: SpatialVLAConfig, *, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """A random picture, a camera and an instruction, as the processor would return them."""
    generator = torch.Generator().manual_seed(seed)
    side = config.vision_config.image_size
    words = torch.randint(3, config.image_token_index, (1, PROMPT_TOKENS), generator=generator)
    image = torch.full((1, config.num_image_tokens), config.image_token_index)
    ids = torch.cat((image, words), dim=1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": torch.rand((1, 3, side, side), generator=generator),
        "intrinsic": torch.tensor([[[210.0, 0, side / 2], [0, 210.0, side / 2], [0, 0, 1]]]),
        "depth": 0.5 + torch.rand((1, side, side), generator=generator),
    }
    inputs["intrinsics"] = inputs.pop("intrinsic")
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def parameters(model: SpatialVLAForConditionalGeneration) -> dict[str, int]:
    """Parameters by part: depth, vision, text_layers, tables (embeddings and head), rest."""
    counts = dict.fromkeys(("depth", "vision", "text_layers", "tables", "rest"), 0)
    parts = (
        ("vision_zoe_model.", "depth"),
        ("vision_tower.", "vision"),
        ("language_model.model.layers.", "text_layers"),
        ("language_model.model.embed_tokens", "tables"),
        ("language_model.lm_head", "tables"),
        ("spatial_embed_tokens", "tables"),
    )
    for name, parameter in model.named_parameters():
        part = next((part for prefix, part in parts if name.startswith(prefix)), "rest")
        counts[part] += parameter.numel()
    return counts
