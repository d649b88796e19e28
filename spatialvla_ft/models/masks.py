"""Who may look at whom: the prefix mask, explicit and independent of the attention kernel.

A sequence is prefix (image tokens, prompt) then suffix (action tokens). The suffix is causal. The
prefix is bidirectional in the published method; `prefix_mask="causal"` makes it causal, which is
what the released training scripts did by way of their attention kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .configuration_spatialvla import SpatialVLAConfig


def suffix_from_ids(input_ids: Int[Tensor, "B T"], begin: int, count: int) -> Int[Tensor, "B T"]:
    """Token types read off the ids: 0 up to the first action token, 1 from there on."""
    is_action = (input_ids >= begin) & (input_ids < begin + count)
    return (is_action.cumsum(-1) > 0).long()


def attention_masks(
    config: SpatialVLAConfig,
    inputs_embeds: Tensor,
    attention_mask: Int[Tensor, "B T"] | None,
    token_type_ids: Int[Tensor, "B T"] | None,
    past_key_values: Cache | None,
) -> dict[str, Any]:
    """Masks for Gemma 2's full and sliding layers, in the form its attention kernel takes.

    Args:
        config: decides on `prefix_mask` and `compatibility`.
        inputs_embeds: for batch, length and dtype.
        attention_mask: 1 for real tokens, 0 for pads, over past and present.
        token_type_ids: 0 prefix, 1 suffix, for the present tokens; None when all are suffix (a
            decoding step).
        past_key_values: the cache, if any.
    """
    common: dict[str, Any] = {
        "config": config.text_config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    if token_type_ids is not None and config.prefix_mask == "bidirectional":
        prefix: Bool[Tensor, "B T"] = token_type_ids == 0
        if config.compatibility == "released" and bool((token_type_ids == 1).any()):
            # The released training mask shows every 'type 0' position, pads included, to everyone.
            common["attention_mask"] = None
            common["or_mask_function"] = lambda b, h, q, kv: prefix[b, kv]
        else:
            common["block_sequence_ids"] = torch.where(prefix, 0, -1)
    return {
        "full_attention": create_causal_mask(**common),
        "sliding_attention": create_sliding_window_causal_mask(**common),
    }
