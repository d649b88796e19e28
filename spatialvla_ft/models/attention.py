"""The text tower's attention: which kernels it may run, and who may look at whom.

Gemma 2 bounds its attention scores with a soft cap. `eager` and `flex_attention` apply it; `sdpa`
cannot, and depending on the version transformers drops it without a word, which changes logits.

A sequence is prefix (image tokens, prompt) then suffix (action tokens), or then the placeholders of
a parallel head. The suffix is causal; placeholders see the prefix and one another. The prefix is
bidirectional in the published method; `prefix_mask="causal"` makes it causal, which is
what the released training scripts did by way of their attention kernel. The mask is explicit and
independent of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from ..heads.parallel import PLACEHOLDER
from .configuration_spatialvla import SpatialVLAConfig

TEXT_KERNELS = ("eager", "flex_attention")

SDPA_REFUSED = (
    "attn_implementation 'sdpa' is refused for the text tower: it cannot apply Gemma 2's soft cap "
    "on attention scores and would silently change the logits; use 'eager', or 'flex_attention'"
)


def text_kernel(asked: str | dict[str, Any] | None) -> str | None:
    """The text tower's kernel in an `attn_implementation`; None where it says nothing of it.

    A dict may name it under "text_config", there again under "", or for all towers under "".
    """
    if isinstance(asked, dict):
        return text_kernel(asked.get("text_config", asked.get("")))
    return asked


def refuse_kernel(kernel: str | None) -> None:
    """ValueError for a kernel that the text tower must not run."""
    if kernel == "sdpa":
        raise ValueError(SDPA_REFUSED)
    if kernel is not None and kernel not in TEXT_KERNELS:
        raise ValueError(
            f"attn_implementation {kernel!r} is not known to apply Gemma 2's soft cap and our "
            f"prefix mask; the text tower takes one of {list(TEXT_KERNELS)}"
        )


def check_kernel(language_model: nn.Module, inputs_embeds: Tensor) -> None:
    """ValueError if the kernel in use cannot run these inputs; asked before every pass.

    It also catches a kernel that was set behind the model's back, on the text tower itself.
    """
    kernel = language_model.config._attn_implementation
    refuse_kernel(kernel)
    if kernel != "flex_attention" or inputs_embeds.device.type != "cpu":
        return
    learns = inputs_embeds.requires_grad or any(
        parameter.requires_grad for parameter in language_model.parameters()
    )
    if torch.is_grad_enabled() and learns:
        raise ValueError(
            "flex_attention has no backward on the CPU: train with attn_implementation='eager' "
            "there (the numbers are the same), or on a GPU; to predict, use torch.no_grad()"
        )


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
        token_type_ids: 0 prefix, 1 suffix, 2 placeholders, for the present tokens; None when all
            are suffix (a decoding step).
        past_key_values: the cache, if any.
    """
    common: dict[str, Any] = {
        "config": config.text_config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "past_key_values": past_key_values,
    }
    asked = token_type_ids is not None and bool((token_type_ids == PLACEHOLDER).any())
    if token_type_ids is not None and (asked or config.prefix_mask == "bidirectional"):
        prefix: Bool[Tensor, "B T"] = token_type_ids == 0
        if asked:  # who has a block's number sees the whole block
            blocks = torch.where(token_type_ids == PLACEHOLDER, 1, -1)
            if config.prefix_mask == "bidirectional":
                blocks = torch.where(prefix, 0, blocks)
            common["block_sequence_ids"] = blocks
        elif config.compatibility == "released" and bool((token_type_ids == 1).any()):
            # The released training mask shows every 'type 0' position, pads included, to everyone.
            common["attention_mask"] = None
            common["or_mask_function"] = lambda b, h, q, kv: prefix[b, kv]
        else:
            common["block_sequence_ids"] = torch.where(prefix, 0, -1)
    return {
        "full_attention": create_causal_mask(**common),
        "sliding_attention": create_sliding_window_causal_mask(**common),
    }


def generation_masks(
    config: SpatialVLAConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Masks of one step of `generate` with a static cache: the prompt is prefix, all else suffix.

    Arguments are those of transformers' `create_masks_for_generate`.
    """
    types = token_type_ids
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        types = None
    elif types is None:
        shape, device = inputs_embeds.shape[:2], inputs_embeds.device
        types = torch.zeros(shape, dtype=torch.long, device=device)
    return attention_masks(config, inputs_embeds, attention_mask, types, past_key_values)


def masks_and_positions(
    config: SpatialVLAConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | dict[str, Any] | None,
    token_type_ids: Int[Tensor, "B T"] | None,
    past_key_values: Cache | None,
    position_ids: Int[Tensor, "B T"] | None,
) -> dict[str, Any]:
    """What Gemma 2 needs beside embeddings, where its caller has not worked it out already."""
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    if position_ids is None:
        position_ids = positions(inputs_embeds, attention_mask, past)
    if not isinstance(attention_mask, dict):
        types = None if past else token_type_ids
        attention_mask = attention_masks(
            config, inputs_embeds, attention_mask, types, past_key_values
        )
    return {"attention_mask": attention_mask, "position_ids": position_ids}


def positions(embeds: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    """Positions from 1 at the first real token, so that pads on the left do not shift a sample."""
    length = embeds.shape[1]
    positions = torch.arange(1 + past, 1 + past + length, device=embeds.device).unsqueeze(0)
    if attention_mask is None or isinstance(attention_mask, dict):
        return positions
    leading_pads = (attention_mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    return (positions - leading_pads).clamp_min(1)
