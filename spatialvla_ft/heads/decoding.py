"""Constrained greedy decoding: each step looks only at the head's rows of its slot's type.

So an action can never hold a token of another type, and exactly slots x chunk tokens come out.
One prediction is a pass over the prompt, then short passes on a cache that the next prediction
uses again (`chunk_decoder.py`).

Shape letters: B batch, T prompt tokens, N tokens to predict, L layers, K key and value heads, M
room for tokens, C head size, D hidden size.
"""

from __future__ import annotations

import logging
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..models.attention import refuse_kernel
from .chunk_decoder import MAX_BRANCHES, ChunkDecoder, best_of_slot
from .cuda_graphs import can_capture, graphed_greedy
from .gemma_layers import TextLayers, why_not_direct

if TYPE_CHECKING:
    from ..models.configuration_spatialvla import SpatialVLAConfig
    from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration

logger = logging.getLogger(__name__)

ROOM_STEP = 64
"""Caches come in multiples of so many tokens, so that prompts of other lengths reuse them."""


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
    """Absolute ids of the most likely tokens, N = slots of an action * action_chunk_size.

    Args:
        model: in evaluation mode.
        inputs: a prompt batch, left-padded if lengths differ.
    """
    refuse_kernel(model.language_model.config._attn_implementation)
    prompt = _checked_prompt(model.config, inputs)
    slots = list(type_slices(model.config)) * model.config.action_chunk_size
    reason = why_not_direct(model.language_model.model)
    if reason is not None:
        # A model that is being trained in shares knows it; anyone else may want to change it.
        sharded = any(base.__name__ == "FSDPModule" for base in type(model).__mro__)
        level = logging.DEBUG if sharded else logging.WARNING
        logger.log(level, "predict_action runs the library's slower forward, since %s", reason)
        return library_greedy(model, prompt, slots)
    attention_mask = prompt.pop("attention_mask")
    embeds, _ = model.embed_inputs(**prompt)
    return text_greedy(model, embeds, attention_mask, slots)


def _checked_prompt(config: SpatialVLAConfig, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with an attention mask and without what prediction does not take."""
    types = inputs.get("token_type_ids")
    holds_actions = bool((inputs["input_ids"] >= config.action_token_begin_idx).any())
    if "labels" in inputs or holds_actions or (types is not None and bool(types.any())):
        raise ValueError(
            "predict_action got a sequence that already holds actions; call the processor without "
            "suffix_actions"
        )
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        attention_mask = torch.ones_like(inputs["input_ids"])
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("predict_action needs prompts padded on the left; this batch is not")
    prompt = {**inputs, "attention_mask": attention_mask}
    for name in ("actions", "token_type_ids"):
        prompt.pop(name, None)
    return prompt


def library_greedy(
    model: SpatialVLAForConditionalGeneration, prompt: dict[str, Tensor], slots: list[slice]
) -> Int[Tensor, "B N"]:
    """Token by token through the library's own forward: for models that are sharded or hooked."""
    cache = DynamicCache(config=model.config.text_config)
    attention_mask, step = prompt["attention_mask"], prompt
    ids: list[Tensor] = []
    for rows in slots:
        hidden = model.last_hidden(**step, past_key_values=cache)
        token = best_of_slot(model, hidden, rows)[:, None] + model.config.action_token_begin_idx
        ids.append(token)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        step = {"input_ids": token, "attention_mask": attention_mask}
    return torch.cat(ids, dim=-1)


def text_greedy(
    model: SpatialVLAForConditionalGeneration,
    embeds: Float[Tensor, "B T D"],
    attention_mask: Int[Tensor, "B T"],
    slots: list[slice],
) -> Int[Tensor, "B N"]:
    """The language model's part of a prediction, from the prompt's embeddings on."""
    if can_capture(model, embeds):
        ids = graphed_greedy(model, embeds, attention_mask, slots)
        if ids is not None:
            return ids.clone()
    with torch.inference_mode():
        layers = TextLayers(model.language_model.model)
        padded = not bool(attention_mask.all())
        length = embeds.shape[1]
        cache = borrow_cache(model, layers, embeds, length + len(slots) + MAX_BRANCHES)
        decoder = ChunkDecoder(model, layers, slots, length, embeds, attention_mask, padded)
        ids = decoder(embeds, cache)
        give_back_cache(model, cache)
    return ids.clone()  # an ordinary tensor, which autograd may save


def borrow_cache(
    model: SpatialVLAForConditionalGeneration, layers: TextLayers, like: Tensor, room: int
) -> Float[Tensor, "2 L B K M C"]:
    """The cache of the model's last prediction if it fits, else a new one.

    It is taken off the model while in use, so that two threads never share one.
    """
    room = -(-room // ROOM_STEP) * ROOM_STEP
    cache = model.__dict__.pop("_last_cache", None)
    wanted = (2, len(layers.layers), like.shape[0], layers.kv_heads, room, layers.head_dim)
    fits = cache is not None and cache.shape == wanted
    if fits and cache.dtype == like.dtype and cache.device == like.device:
        return cache
    return layers.empty_cache(like.shape[0], room, like)


def give_back_cache(model: SpatialVLAForConditionalGeneration, cache: Tensor) -> None:
    """Leave the cache for the next prediction."""
    model.__dict__["_last_cache"] = cache
