"""Constrained greedy decoding: each step looks only at the head's rows of its slot's type.

So an action can never hold a token of another type, and exactly slots x chunk tokens come out.
One prediction is a pass over the prompt, then short passes on a cache that the next prediction
uses again (`chunk_decoder.py`).

Shape letters: B batch, T prompt tokens, N tokens to predict, L layers, K key and value heads, M
room for tokens, C head size, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from .chunk_decoder import MAX_BRANCHES, ChunkDecoder, TokenWriter, best_of_slot
from .cuda_graphs import can_capture, graphed_greedy
from .gemma_layers import TextLayers, why_not_direct

logger = logging.getLogger(__name__)

ROOM_STEP = 64
"""Caches come in multiples of so many tokens, so that prompts of other lengths reuse them."""


def greedy(
    writer: TokenWriter,
    inputs: dict[str, Tensor],
    embed: Callable[..., tuple[Tensor, Any]],
    hidden_states: Callable[..., Tensor],
    warn: bool = True,
) -> Int[Tensor, "B N"]:
    """Absolute ids of the most likely tokens, each among those of its slot.

    Args:
        writer: what is to be written.
        inputs: a prompt batch, left-padded if lengths differ.
        embed: the inputs, without their mask, to the embeddings that the language model gets.
        hidden_states: see `library_greedy`, which runs where somebody hooked into the layers.
        warn: of that, since it is slower.
    """
    prompt = checked_prompt(inputs, writer.tokens.begin)
    reason = why_not_direct(writer.text)
    if reason is not None:
        level = logging.WARNING if warn else logging.DEBUG
        logger.log(level, "predict_action runs the library's slower forward, since %s", reason)
        return library_greedy(writer, prompt, hidden_states)
    attention_mask = prompt.pop("attention_mask")
    embeds, _ = embed(**prompt)
    return text_greedy(writer, embeds, attention_mask)


def checked_prompt(inputs: dict[str, Tensor], begin: int) -> dict[str, Tensor]:
    """The inputs with an attention mask and without what prediction does not take.

    Args:
        inputs: a prompt batch, left-padded if lengths differ.
        begin: id of the first action token.

    Raises:
        ValueError: the sequences hold actions already, or are padded on the right.
    """
    types = inputs.get("token_type_ids")
    holds_actions = bool((inputs["input_ids"] >= begin).any())
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
    writer: TokenWriter, prompt: dict[str, Tensor], hidden_states: Callable[..., Tensor]
) -> Int[Tensor, "B N"]:
    """Token by token through the library's own forward: for models that are sharded or hooked.

    Args:
        writer: what is to be written.
        prompt: as `checked_prompt` gives it.
        hidden_states: of inputs (B, T, D), behind a cache `past`.
    """
    cache = DynamicCache(config=writer.text.config)
    attention_mask, step = prompt["attention_mask"], prompt
    ids: list[Tensor] = []
    for rows in writer.slots:
        hidden = hidden_states(**step, past=cache)[:, -1]
        token = best_of_slot(writer.tokens, hidden, rows)[:, None] + writer.tokens.begin
        ids.append(token)
        attention_mask = F.pad(attention_mask, (0, 1), value=1)
        step = {"input_ids": token, "attention_mask": attention_mask}
    return torch.cat(ids, dim=-1)


def text_greedy(
    writer: TokenWriter,
    embeds: Float[Tensor, "B T D"],
    attention_mask: Int[Tensor, "B T"],
) -> Int[Tensor, "B N"]:
    """The language model's part of a prediction, from the prompt's embeddings on."""
    if can_capture(writer, embeds):
        ids = graphed_greedy(writer, embeds, attention_mask)
        if ids is not None:
            return ids.clone()
    with torch.inference_mode():
        layers = TextLayers(writer.text)
        padded = not bool(attention_mask.all())
        length = embeds.shape[1]
        cache = borrow_cache(writer.kept, layers, embeds, length + len(writer.slots) + MAX_BRANCHES)
        decoder = ChunkDecoder(writer, layers, length, embeds, attention_mask, padded)
        ids = decoder(embeds, cache)
        give_back_cache(writer.kept, cache)
    return ids.clone()  # an ordinary tensor, which autograd may save


def borrow_cache(
    kept: dict[str, Any], layers: TextLayers, like: Tensor, room: int
) -> Float[Tensor, "2 L B K M C"]:
    """The cache of the last prediction if it fits, else a new one.

    It is taken away while in use, so that two threads never share one.
    """
    room = -(-room // ROOM_STEP) * ROOM_STEP
    cache = kept.pop("_last_cache", None)
    wanted = (2, len(layers.layers), like.shape[0], layers.kv_heads, room, layers.head_dim)
    fits = cache is not None and cache.shape == wanted
    if fits and cache.dtype == like.dtype and cache.device == like.device:
        return cache
    return layers.empty_cache(like.shape[0], room, like)


def give_back_cache(kept: dict[str, Any], cache: Tensor) -> None:
    """Leave the cache for the next prediction."""
    kept["_last_cache"] = cache
