"""Constrained greedy decoding: translation, rotation, gripper, again and again.

Each step looks only at the head's rows of its slot, so an action can never hold a token of another
type, and exactly slots x chunk tokens come out (one arm has three slots, two arms have six).
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from .configuration_spatialvla import SpatialVLAConfig
    from .modeling_spatialvla import SpatialVLAForConditionalGeneration


def type_slices(config: SpatialVLAConfig) -> tuple[slice, ...]:
    """Rows of each slot's tokens, in the order of an action, counted from the first action token.

    One arm has three slots: translation, rotation, gripper. Their number is the number of tokens
    per action.
    """
    if config.action_token_counts is None:
        raise ValueError(
            f"the config does not say how its {config.spatial_token_num} action tokens divide into "
            "slots, such as translation, rotation and gripper; set action_token_counts"
        )
    ends = list(accumulate(config.action_token_counts, initial=0))
    return tuple(slice(start, stop) for start, stop in pairwise(ends))


@torch.no_grad()
def greedy_actions(
    model: SpatialVLAForConditionalGeneration, inputs: dict[str, Tensor]
) -> Int[Tensor, "B N"]:
    """Absolute ids of the most likely tokens, N = slots * action_chunk_size.

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
    for t in range(len(slices) * config.action_chunk_size):
        hidden = model.last_hidden(**step, past_key_values=cache)
        rows = slices[t % len(slices)]
        logits = model.soft_cap(F.linear(hidden, model.head_rows(rows)))
        token = logits.argmax(-1, keepdim=True) + rows.start + config.action_token_begin_idx
        ids.append(token)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        step = {"input_ids": token, "attention_mask": attention_mask}
    return torch.cat(ids, dim=-1)
