"""One pass over a prompt and the placeholders behind it, for heads that predict in parallel.

The layers of `gemma_layers.py`, with the mask of `models/attention.py`: the prompt sees itself,
placeholders see the prompt and one another. The last layer is computed for the placeholders only.

Shape letters: B batch, T tokens of the prompt, R placeholders, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

from .chunk_decoder import as_bias
from .decoding import borrow_cache, give_back_cache
from .gemma_layers import Masks, TextLayers


@torch.inference_mode()
def placeholder_states(
    text: Gemma2Model,
    embeds: Float[Tensor, "B T+R D"],
    attention_mask: Int[Tensor, "B T+R"],
    count: int,
    whole_prefix: bool,
    kept: dict[str, Any],
) -> Float[Tensor, "B R D"]:
    """Hidden states of the placeholders.

    Args:
        text: the language model without its head; see `why_not_direct`.
        embeds: of prompts that are padded on the left, and of the placeholders.
        attention_mask: 1 for real tokens, 0 for pads.
        count: R.
        whole_prefix: whether the prompt's tokens see each other whole, rather than causally.
        kept: where the cache of one prediction lies for the next.
    """
    layers, length = TextLayers(text), embeds.shape[1]
    positions = torch.arange(1, length + 1, device=embeds.device)[None]
    pads = None
    if not bool(attention_mask.all()):
        leading = (attention_mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
        positions = (positions - leading).clamp_min(1)
        pads = as_bias(attention_mask.bool()[:, None, None, None], embeds)
    full, sliding = (
        as_bias(allowed, embeds).view(1, 1, 1, length, length)
        for allowed in who_sees_whom(
            length - count, count, layers.window, whole_prefix, embeds.device
        )
    )
    if pads is not None:  # not their sum: twice the most negative number is infinite
        full, sliding = torch.minimum(full, pads), torch.minimum(sliding, pads)
    cache = borrow_cache(kept, layers, embeds, length)
    rotation = layers.rotation(positions, embeds)
    hidden = layers(embeds, rotation, cache, 0, Masks(full, sliding), last=count)
    give_back_cache(kept, cache)
    return hidden


def who_sees_whom(
    prompt: int, count: int, window: int, whole_prefix: bool, device: torch.device
) -> tuple[Bool[Tensor, "T+R T+R"], Bool[Tensor, "T+R T+R"]]:
    """(in layers that see everything, in layers with a window); rows look at columns."""
    at = torch.arange(prompt + count, device=device)
    row, column = at[:, None], at[None]
    distance = row - column
    block = (row >= prompt) & (column >= prompt)
    if whole_prefix:
        block = block | ((row < prompt) & (column < prompt))
    return block | (distance >= 0), block | ((distance >= 0) & (distance < window))
