"""The language model's part of one prediction: a pass over the prompt, short passes for the chunk.

A slot of two tokens (the gripper) costs no pass of its own: the pass before it tries both, since a
pass of three tokens reads the weights once, like a pass of one.

Shape letters: B batch, T prompt tokens, t tokens of a pass, N tokens to predict, L layers, K key
and value heads, M room for tokens, C head size, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

from .gemma_layers import Masks, Rotation, TextLayers
from .grid_tokens import GridTokens

MAX_BRANCHES = 2
"""Slots of at most so many ids are tried in all of them; passes of 3 tokens cost what 1 costs."""


@dataclass(frozen=True)
class TokenWriter:
    """What of a model writes a chunk of action tokens.

    Attributes:
        tokens: tables of the action tokens.
        text: the language model without its head, in evaluation mode.
        slots: head rows of each token to predict, counted from the first action token.
        whole_prefix: whether the prompt's tokens see each other whole, rather than causally.
        kept: where a prediction leaves what the next one uses again: its cache, or its graphs.
    """

    tokens: GridTokens
    text: Gemma2Model
    slots: tuple[slice, ...]
    whole_prefix: bool
    kept: dict[str, Any]


def best_of_slot(
    tokens: GridTokens, hidden: Float[Tensor, "B D"], rows: slice
) -> Int[Tensor, " B"]:
    """Most likely token of a slot, counted from the first action token."""
    logits = tokens.soft_cap(F.linear(hidden, tokens.rows(rows)))
    return logits.argmax(-1) + rows.start


class ChunkDecoder:
    """What stays the same in one prediction, computed before its first pass.

    No pass asks a tensor for its value, so on a GPU the whole of `__call__` can be captured.

    Args:
        writer: what is to be written, and with which tables.
        layers: of its language model.
        length: of the prompt, pads included.
        like: a tensor of the model's dtype and device.
        attention_mask: 1 for real tokens, 0 for the pads on the left.
        padded: whether there is any pad.
    """

    def __init__(
        self,
        writer: TokenWriter,
        layers: TextLayers,
        length: int,
        like: Tensor,
        attention_mask: Int[Tensor, "B T"],
        padded: bool,
    ) -> None:
        self.tokens, self.slots = writer.tokens, writer.slots
        self.whole_prefix = writer.whole_prefix
        self.layers, self.length = layers, length
        total = length + len(self.slots)
        positions = torch.arange(1, total + 1, device=like.device)[None]
        pads = None
        if padded:
            leading = (attention_mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
            positions = (positions - leading).clamp_min(1)
            seen = F.pad(attention_mask, (0, len(self.slots) + MAX_BRANCHES), value=1)
            pads = as_bias(seen.bool()[:, None, None, None], like)
        self.rotation = layers.rotation(positions, like)
        self.pads = pads
        self.prompt_masks = self._prompt_masks(like)
        # Tokens at the same place must not see each other: the pass's row 0 is the token before.
        n = 1 + MAX_BRANCHES
        alone = torch.eye(n, dtype=torch.bool, device=like.device)
        alone[:, 0] = True
        self.branch_bias = as_bias(alone, like)
        windowed = any(layer.sliding for layer in layers.layers)
        self.may_branch = not windowed or total + MAX_BRANCHES <= layers.window

    def __call__(
        self, embeds: Float[Tensor, "B T D"], cache: Float[Tensor, "2 L B K M C"]
    ) -> Int[Tensor, "B N"]:
        """Absolute ids of the chunk."""
        return self.write_actions(self.read_prompt(embeds, cache), cache)

    def read_prompt(self, embeds: Float[Tensor, "B T D"], cache: Tensor) -> Float[Tensor, "B D"]:
        """Hidden state of the prompt's last token; its keys and values go into the cache."""
        rotation = self.rotation.at(slice(0, self.length))
        return self.layers(embeds, rotation, cache, 0, self.prompt_masks, last=1)[:, -1]

    def write_actions(self, hidden: Float[Tensor, "B D"], cache: Tensor) -> Int[Tensor, "B N"]:
        """Absolute ids of the chunk, from the hidden state and the cache of its prompt."""
        ids = [best_of_slot(self.tokens, hidden, self.slots[0])]
        while len(ids) < len(self.slots):
            place = self.length + len(ids) - 1
            rows = self.slots[len(ids)]
            if self.branches(len(ids)):
                ids += self._branch(ids[-1], rows, self.slots[len(ids) + 1], place, cache)
            else:
                x = self.tokens.embed_actions(ids[-1][:, None])
                hidden = self._pass(x, self.rotation.at(slice(place, place + 1)), cache, place)
                ids.append(best_of_slot(self.tokens, hidden[:, 0], rows))
        return torch.stack(ids, dim=-1) + self.tokens.begin

    def branches(self, slot: int) -> bool:
        """Whether this slot is tried in all its ids, so that the slot after it costs no pass."""
        rows = self.slots[slot]
        short = rows.stop - rows.start <= MAX_BRANCHES
        return self.may_branch and short and slot + 1 < len(self.slots)

    @property
    def passes(self) -> int:
        """Passes on the cache for a chunk, the prompt's not counted."""
        count, done = 0, 1
        while done < len(self.slots):
            done += 2 if self.branches(done) else 1
            count += 1
        return count

    def _branch(
        self, token: Int[Tensor, " B"], rows: slice, after: slice, place: int, cache: Tensor
    ) -> list[Tensor]:
        """The next two tokens in one pass: every id of the short slot stands behind `token`."""
        count = rows.stop - rows.start
        tries = torch.arange(rows.start, rows.stop, device=token.device).expand(len(token), -1)
        x = self.tokens.embed_actions(torch.cat((token[:, None], tries), dim=-1))
        ahead = self.rotation.at(slice(place + 1, place + 2))
        both = (
            torch.cat((here, there.expand(-1, -1, count, -1)), dim=2)
            for here, there in (
                (self.rotation.cos[:, :, place : place + 1], ahead.cos),
                (self.rotation.sin[:, :, place : place + 1], ahead.sin),
            )
        )
        bias = self.branch_bias[: 1 + count, : 1 + count]
        hidden = self._pass(x, Rotation(*both), cache, place, bias)
        short = best_of_slot(self.tokens, hidden[:, 0], rows)
        taken = short - rows.start
        # What stays in the cache behind `token` is the branch that was taken.
        room = cache[:, :, :, :, place + 1 : place + 1 + count]
        index = taken.view(1, 1, -1, 1, 1, 1).expand(*room.shape[:4], 1, room.shape[-1])
        cache[:, :, :, :, place + 1 : place + 2] = room.gather(4, index)
        chosen = hidden[:, 1:].gather(1, taken.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1]))
        return [short, best_of_slot(self.tokens, chosen[:, 0], after)]

    def _pass(
        self,
        x: Float[Tensor, "B t D"],
        rotation: Rotation,
        cache: Tensor,
        place: int,
        last: Tensor | None = None,
    ) -> Float[Tensor, "B t D"]:
        first = max(0, place + 1 - self.layers.window)
        masks = Masks(self.pads, self.pads, first, last)
        return self.layers(x, rotation, cache, place, masks)

    def _prompt_masks(self, like: Tensor) -> Masks:
        """The prefix sees itself whole, or causally; pads are seen by nobody."""
        if self.whole_prefix:
            return Masks(self.pads, self.pads)
        at = torch.arange(self.length, device=like.device)
        distance = at[:, None] - at
        full = as_bias(distance >= 0, like)
        sliding = as_bias((distance >= 0) & (distance < self.layers.window), like)
        if self.pads is not None:
            pads = self.pads[..., : self.length]
            # Not their sum: twice the most negative number is infinite.
            full, sliding = torch.minimum(full, pads), torch.minimum(sliding, pads)
        shape = (1, 1, 1, self.length, self.length) if self.pads is None else full.shape
        return Masks(full.view(shape), sliding.view(shape))


def as_bias(allowed: Tensor, like: Tensor) -> Tensor:
    """0 where a query may look, the most negative number where it may not."""
    lowest = torch.finfo(like.dtype).min
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill_(~allowed, lowest)
