"""Gemma 2's layers as inference runs them: the library's weights, without its bookkeeping.

A decoding step of one token is a hundred small operations, and around each of them the library
builds masks, passes caches about and repeats keys. Here the cache is a preallocated tensor, keys
are not repeated, masks and rotations are computed once per prediction, and the last layer of the
prompt is computed for the tokens that are read only. Linear layers are called as modules, so that
LoRA adapters act; every number equals the library's up to float rounding (tests compare them).

Shape letters: B batch, T tokens of this pass, S tokens so far, M room for tokens, H heads, K key
and value heads, G = H / K, C head size, D hidden size, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2Model

CAPTURE_HOOKS = "transformers.utils.output_capturing"


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the rotary embedding, ready for `turn`.

    Attributes:
        cos: (B or 1, 1, T, C).
        sin: the same shape; the first half of the channels has its sign turned.
    """

    cos: Float[Tensor, "b 1 T C"]
    sin: Float[Tensor, "b 1 T C"]

    def at(self, tokens: slice | Tensor) -> Rotation:
        """Of some tokens only."""
        return Rotation(self.cos[:, :, tokens], self.sin[:, :, tokens])

    def turn(self, x: Float[Tensor, "B h T C"]) -> Float[Tensor, "B h T C"]:
        """Queries or keys, rotated by their positions."""
        half = x.shape[-1] // 2
        return x * self.cos + torch.roll(x, half, -1) * self.sin


@dataclass(frozen=True)
class Masks:
    """What the queries of a pass may not see, per kind of layer; None hides nothing.

    Attributes:
        full: added to the scores of layers that see everything, (B or 1, 1, 1, T or 1, S).
        sliding: the same for layers with a window.
        first: the first key that layers with a window see.
        last: added to the scores of the pass's own keys, in every layer, (T, T).
    """

    full: Tensor | None = None
    sliding: Tensor | None = None
    first: int = 0
    last: Tensor | None = None


@dataclass(frozen=True)
class _Layer:
    """Modules of one layer, looked up once per prediction, and its norms' weights plus one."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    mlp: nn.Module
    norms: tuple[Tensor, Tensor, Tensor, Tensor]
    sliding: bool


class TextLayers:
    """The layers and the final norm of a Gemma 2, for inference.

    Args:
        text: the language model without its head, in evaluation mode.

    Raises:
        ValueError: something hangs on its layers that only the library's own forward would run
            (see `why_not_direct`).
    """

    def __init__(self, text: Gemma2Model) -> None:
        reason = why_not_direct(text)
        if reason is not None:
            raise ValueError(reason)
        config = text.config
        self.rotary = text.rotary_emb
        self.layers = [_look_up(layer) for layer in text.layers[: config.num_hidden_layers]]
        self.final_norm = text.norm.weight.float() + 1.0
        self.eps = config.rms_norm_eps
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = text.layers[0].self_attn.head_dim
        self.cap = config.attn_logit_softcapping
        scale = config.query_pre_attn_scalar**-0.5
        self.scale = scale if self.cap is None else scale / self.cap
        self.window = config.sliding_window

    def empty_cache(self, batch: int, room: int, like: Tensor) -> Float[Tensor, "2 L B K M C"]:
        """Room for keys and values."""
        shape = (2, len(self.layers), batch, self.kv_heads, room, self.head_dim)
        return like.new_zeros(shape)

    def rotation(self, positions: Tensor, like: Tensor) -> Rotation:
        """Rotary embedding of positions (b, T), in the dtype of `like`."""
        cos, sin = self.rotary(like, positions)
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return Rotation(cos.unsqueeze(1), signed.unsqueeze(1))

    def __call__(
        self,
        x: Float[Tensor, "B T D"],
        rotation: Rotation,
        cache: Float[Tensor, "2 L B K M C"],
        start: int,
        masks: Masks,
        *,
        last: int | None = None,
    ) -> Float[Tensor, "B R D"]:
        """Hidden states after the final norm, of all T tokens or of the last R.

        Args:
            x: embeddings as the first layer gets them.
            rotation: of the T tokens.
            cache: holds the keys and values of `start` tokens; those of x are written behind.
            start: tokens before x.
            masks: what x may not see.
            last: compute the last layer for so many of the last tokens only; None for all.
        """
        final = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            rows = last if last is not None and i == final else x.shape[1]
            keys, values = cache[0, i], cache[1, i]
            normed = self._norm(x, layer.norms[0])
            seen = self._attend(layer, normed, rotation, keys, values, start, masks, rows)
            x = x[:, -rows:] + self._norm(seen, layer.norms[1])
            x = x + self._norm(layer.mlp(self._norm(x, layer.norms[2])), layer.norms[3])
        return self._norm(x, self.final_norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).type_as(x)

    def _attend(
        self,
        layer: _Layer,
        x: Float[Tensor, "B T D"],
        rotation: Rotation,
        keys: Float[Tensor, "B K M C"],
        values: Float[Tensor, "B K M C"],
        start: int,
        masks: Masks,
        rows: int,
    ) -> Float[Tensor, "B R D"]:
        batch, length, _ = x.shape
        stop = start + length
        kv_shape = (batch, length, self.kv_heads, self.head_dim)
        keys[:, :, start:stop] = rotation.turn(layer.k(x).view(kv_shape).transpose(1, 2))
        values[:, :, start:stop] = layer.v(x).view(kv_shape).transpose(1, 2)
        if rows < length:
            x, rotation = x[:, -rows:], rotation.at(slice(length - rows, length))
        q_BHTC = layer.q(x).view(batch, rows, self.heads, self.head_dim).transpose(1, 2)
        q_BHTC = rotation.turn(q_BHTC) * self.scale
        q_BKGC = q_BHTC.reshape(batch, self.kv_heads, -1, self.head_dim)

        first = masks.first if layer.sliding else 0
        scores = q_BKGC @ keys[:, :, first:stop].transpose(-1, -2)
        if self.cap is not None:
            scores = scores.tanh_().mul_(self.cap)
        scores_BKGTS = scores.view(batch, self.kv_heads, -1, rows, stop - first)
        bias = masks.sliding if layer.sliding else masks.full
        if bias is not None:
            bias = bias[..., -rows:, first:stop] if bias.shape[-2] > 1 else bias[..., first:stop]
            scores_BKGTS.add_(bias)
        if masks.last is not None:
            scores_BKGTS[..., -length:].add_(masks.last)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
        seen_BKGC = weights @ values[:, :, first:stop]
        seen_BHTC = seen_BKGC.view(batch, self.heads, rows, self.head_dim)
        return layer.o(seen_BHTC.transpose(1, 2).reshape(batch, rows, -1))


def _look_up(layer: Gemma2DecoderLayer) -> _Layer:
    attention = layer.self_attn
    return _Layer(
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        layer.mlp,
        tuple(norm.weight.float() + 1.0 for norm in _norms(layer)),
        attention.sliding_window is not None,
    )


def why_not_direct(text: Any) -> str | None:
    """Why `TextLayers` cannot stand for this language model; None if it can.

    Sharded and offloaded models move weights in hooks around each layer's own forward, which
    `TextLayers` does not call; neither would it run somebody's own layer class.
    """
    if _hooked(text) or _hooked(text.norm):
        return "a hook hangs on the language model"
    for i, layer in enumerate(text.layers):
        if type(layer) is not Gemma2DecoderLayer:
            return f"layer {i} of the language model is a {type(layer).__name__}"
        if any(_hooked(module) for module in (layer, layer.self_attn, *_norms(layer))):
            return f"a hook hangs on layer {i} of the language model"
    return None


def _norms(layer: Gemma2DecoderLayer) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    return (
        layer.input_layernorm,
        layer.post_attention_layernorm,
        layer.pre_feedforward_layernorm,
        layer.post_feedforward_layernorm,
    )


def _hooked(module: nn.Module) -> bool:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if any(getattr(hook, "__module__", None) != CAPTURE_HOOKS for hook in hooks):
        return True  # the library's own hooks are inert here: nobody asks for what they record
    return hasattr(module, "_hf_hook")
