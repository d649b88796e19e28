"""Constrained greedy decoding: translation, rotation, gripper, again and again.

Each step looks only at the head's rows of its token type, so an action can never hold a token of
another type, and exactly 3 x chunk tokens come out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from .configuration_spatialvla import SpatialVLAConfig
    from .modeling_spatialvla import SpatialVLAForConditionalGeneration


def type_slices(config: SpatialVLAConfig) -> tuple[slice, slice, slice]:
    """Rows of translation, rotation and gripper tokens, counted from the first action token."""
    if config.action_token_counts is None:
        raise ValueError(
            f"the config does not say how its {config.spatial_token_num} action tokens divide into "
            "translation, rotation and gripper; set action_token_counts"
        )
    translation, rotation, gripper = config.action_token_counts
    ends = (translation, translation + rotation, translation + rotation + gripper)
    return slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2])


@torch.no_grad()
def greedy_actions(
    model: SpatialVLAForConditionalGeneration, inputs: dict[str, Tensor]
) -> Int[Tensor, "B N"]:
    """Absolute ids of the most likely tokens, N = 3 * action_chunk_size.

    Args:
        model: in evaluation mode.
        inputs: a prompt batch, left-padded if lengths differ.
    """
    config = model.config
    if "labels" in inputs or bool((inputs["input_ids"] >= config.action_token_begin_idx).any()):
        raise ValueError(
            "predict_action got a sequence that already holds actions; call the processor without "
            "suffix_actions"
        )
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(inputs["input_ids"])
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("predict_action needs prompts padded on the left; this batch is not")
    slices = type_slices(config)
    cache = DynamicCache(config=config.text_config)
    step = {**inputs, "attention_mask": attention_mask}
    step.pop("actions", None)
    ids: list[Tensor] = []
    for t in range(3 * config.action_chunk_size):
        hidden = model.last_hidden(**step, past_key_values=cache)
        rows = slices[t % 3]
        logits = model.soft_cap(F.linear(hidden, model.head_rows(rows)))
        token = logits.argmax(-1, keepdim=True) + rows.start + config.action_token_begin_idx
        ids.append(token)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        step = {"input_ids": token, "attention_mask": attention_mask}
    return torch.cat(ids, dim=-1)
