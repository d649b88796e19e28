"""Heads that predict a whole chunk in one pass, from placeholders behind the prompt.

A chunk of K actions with S slots each (translation, rotation, gripper; every joint) is asked for by
K x S learnt embeddings. They see the prompt and one another; the prompt does not see them, so its
states are those of the base. Their last hidden states are what a head of this kind reads, after a
trunk that is shared by the slots of a step: LayerNorm, a linear layer, and residual blocks.

The parallel decoding of OpenVLA-OFT (arXiv 2502.19645), with one placeholder for each slot rather
than each number. Shape letters: B batch, T tokens of the prompt, R placeholders (K * S), D hidden
size, K actions of a chunk, S slots, A numbers of an action, G grippers, W width of the trunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..actions.layout import Slot, slots_of
from .protocol import ActionHead, HeadSizes

PLACEHOLDER = 2
"""Token type of placeholders; 0 is the prompt, 1 what is written one after the other."""

WIDEST = 4096
"""Width of the trunk where it is not said: as wide as what it reads, and at most this."""


class ParallelHead(ActionHead):
    """A head that reads a placeholder for every slot of every action of the chunk.

    Args:
        sizes: what it must fit.
        width: of the trunk, W; None for S * D, at most 4096.
        blocks: residual blocks of the trunk.
    """

    parallel = True

    def __init__(self, sizes: HeadSizes, width: int | None = None, blocks: int = 2) -> None:
        super().__init__(sizes)
        self.slots: tuple[Slot, ...] = slots_of(sizes.space)
        count = len(self.slots)
        self.reads = sizes.chunk * count
        self.width = min(WIDEST, count * sizes.hidden) if width is None else width
        if self.width < 1 or blocks < 0:
            raise ValueError(f"width must be 1 or more and blocks 0 or more, got {width}, {blocks}")
        self.placeholders = nn.Embedding(self.reads, sizes.hidden)
        nn.init.normal_(self.placeholders.weight, std=0.02)
        self.trunk = Trunk(count * sizes.hidden, self.width, blocks)
        self.grippers = [slot.start for slot in self.slots if slot.shape == "switch"]
        self.moves = [i for i in range(sizes.space.dim) if i not in self.grippers]

    def lengthened(
        self,
        embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"] | None,
        token_type_ids: Int[Tensor, "B T"] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prompt with the placeholders behind it.

        Raises:
            ValueError: prompts that are padded on the right, or that hold actions.
        """
        shape = (len(embeds), embeds.shape[1])
        if attention_mask is None:
            attention_mask = torch.ones(shape, dtype=torch.long, device=embeds.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(shape, dtype=torch.long, device=embeds.device)
        if not bool(attention_mask[:, -1].all()):
            raise ValueError(
                f"head {self.kind!r} needs prompts padded on the left; this batch is not "
                '(processor(..., padding_side="left"))'
            )
        if bool(token_type_ids.any()):
            raise ValueError(
                f"head {self.kind!r} reads prompts, and these sequences hold action tokens: call "
                "the processor without suffix_actions, and pass actions to the model"
            )
        scale = torch.tensor(self.sizes.hidden**0.5, dtype=embeds.dtype)
        asked = (self.placeholders.weight.to(embeds.dtype) * scale).expand(len(embeds), -1, -1)
        return (
            torch.cat((embeds, asked), 1),
            F.pad(attention_mask, (0, self.reads), value=1),
            F.pad(token_type_ids, (0, self.reads), value=PLACEHOLDER),
        )

    def states(
        self,
        hidden: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"] | None,
        token_type_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B R D"]:
        """Those of the placeholders, which are last."""
        return hidden[:, -self.reads :]

    def features(self, hidden: Float[Tensor, "B R D"]) -> Float[Tensor, "B K W"]:
        """What the trunk makes of the placeholders of each step."""
        steps = hidden.unflatten(1, (self.sizes.chunk, len(self.slots))).flatten(2)
        return self.trunk(steps.to(self.trunk.enter.weight.dtype))

    # ---------------------------------------------------------------- sums over what counts

    def gripper_loss(
        self,
        logits: Float[Tensor, "B K G"],
        actions: Float[Tensor, "B K A"],
        valid: Bool[Tensor, "B K A"] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean binary cross entropy, nats, and the share of grippers that are right."""
        if not self.grippers:
            return logits.sum() * 0.0, {}
        wanted = actions[..., self.grippers].float().clamp(0, 1)
        counts = None if valid is None else valid[..., self.grippers]
        if counts is not None:  # what does not count may hold anything
            wanted = torch.where(counts, wanted, 0.0)
        logits = logits.float()
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        right = ((logits > 0) == (wanted > 0.5)).float()
        return mean_of(losses, counts), {"gripper_right": mean_of(right, counts).detach()}

    def whole(
        self, moves: Float[Tensor, "B K M"], gripper_logits: Float[Tensor, "B K G"]
    ) -> Float[Tensor, "B K A"]:
        """Moves and grippers in the order of the action, float32; grippers 0 or 1.

        Moves are within [-1, 1], as all that was learnt from is: beyond lies no recorded action.
        """
        found = moves.new_empty(*moves.shape[:2], self.sizes.space.dim, dtype=torch.float32)
        found[..., self.moves] = moves.float().clamp(-1, 1)
        found[..., self.grippers] = (gripper_logits > 0).float()
        return found

    def whole_spread(
        self, moves: Float[Tensor, "B K M"], gripper_logits: Float[Tensor, "B K G"]
    ) -> Float[Tensor, "B K A"]:
        """Standard deviations in the order of the action; of a gripper's switch 0.5 at most."""
        found = moves.new_empty(*moves.shape[:2], self.sizes.space.dim, dtype=torch.float32)
        found[..., self.moves] = moves.float()
        chance = gripper_logits.float().sigmoid()
        found[..., self.grippers] = (chance * (1 - chance)).sqrt()
        return found


class Trunk(nn.Module):
    """LayerNorm, linear, ReLU, then blocks x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, reads: int, width: int, blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(reads)
        self.enter = nn.Linear(reads, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
            for _ in range(blocks)
        )

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B W"]:
        """Features of a step."""
        x = self.enter(self.norm(x)).relu()
        for block in self.blocks:
            x = x + block(x)
        return x


def mean_of(values: Tensor, counts: Bool[Tensor, ...] | None) -> Float[Tensor, ""]:
    """Mean over what counts; 0 where nothing does."""
    if counts is None:
        return values.mean()
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)
