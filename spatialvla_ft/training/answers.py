"""What a model answers to a training batch, whatever head it has: losses, actions, grid cells.

Guesses of grid tokens are made along the recorded ones (teacher forcing); other heads predict as on
the robot. Their actions are put into the cells of the checkpoint's grid, so that shares of right
tokens, distinct tokens and changed tokens mean the same thing under every head.

Shape letters: B samples, N tokens of a sample (slots * chunk), K actions of a chunk, A numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..actions.grid import ActionGrid
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration, SpatialVLAOutput
from ..policy.cells import ids_of, of_ids
from .metrics import Tokens, action_tokens, sample_losses


@dataclass(frozen=True)
class Answers:
    """Answers to a batch.

    Attributes:
        tokens: cells of the grid, absolute ids.
        guess, wanted: normalised actions; those of grid tokens are decoded, both of them.
        valid: which steps count; None for all.
    """

    tokens: Tokens
    guess: Float[np.ndarray, "B K A"]
    wanted: Float[np.ndarray, "B K A"]
    valid: Bool[np.ndarray, "B K"] | None = None


@torch.no_grad()
def answers(
    model: SpatialVLAForConditionalGeneration,
    seen: SpatialVLAOutput,
    batch: dict[str, Tensor],
    grid: ActionGrid,
) -> Answers:
    """What a forward pass over a training batch says.

    Args:
        model: whose pass.
        seen: its outputs, of label rows (`logits_to_keep="labels"`).
        batch: as the collator makes it.
        grid: of the processor.
    """
    if model.action_head is None:
        tokens = action_tokens(seen.logits, batch["labels"], model.config)
        return Answers(
            tokens, *(of_ids(ids, grid, model) for ids in (tokens.guessed, tokens.wanted))
        )
    guess = model.action_head.predict(seen.states).actions.float().cpu().numpy()
    wanted = batch["actions"].float().cpu().numpy()
    tokens = Tokens(*(ids_of(actions, grid, model) for actions in (wanted, guess)))
    return Answers(tokens, guess, wanted, batch["valid"].all(-1).cpu().numpy())


@torch.no_grad()
def losses(
    model: SpatialVLAForConditionalGeneration, seen: SpatialVLAOutput, batch: dict[str, Tensor]
) -> Float[Tensor, " B"]:
    """The loss of each sample; whatever is drawn for it is drawn alike for all and every time."""
    head = model.action_head
    if head is None:
        return sample_losses(seen.logits, batch["labels"], model.config)
    found = []
    with torch.random.fork_rng(devices=_devices(seen.states)):
        for i in range(len(seen.states)):
            torch.manual_seed(0)
            row = slice(i, i + 1)
            found.append(head.loss(seen.states[row], batch["actions"][row], batch["valid"][row])[0])
    return torch.stack(found)


def _devices(like: Tensor) -> list[torch.device]:
    return [like.device] if like.is_cuda else []
