"""Actions as cells of a checkpoint's grid, whatever head predicts them, and back.

Grid tokens are such cells; the actions of other heads are put into them, so that a share of right
tokens means the same thing under every head.

Shape letters: B samples, N tokens of a sample (slots * chunk), K actions of a chunk, A numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..actions.grid import ActionGrid
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration


@torch.no_grad()
def predicted(
    model: SpatialVLAForConditionalGeneration, prompt: dict[str, Tensor], grid: ActionGrid
) -> tuple[np.ndarray, Float[np.ndarray, "B K A"]]:
    """(cells (B, N) as absolute ids, normalised actions) of prompts, as on the robot."""
    if model.action_head is None:
        ids = model.predict_action(prompt)
        return ids.cpu().numpy(), of_ids(ids, grid, model)
    actions = model.predict_actions(prompt).float().cpu().numpy()
    return ids_of(actions, grid, model).numpy(), actions


def of_ids(
    ids: Tensor, grid: ActionGrid, model: SpatialVLAForConditionalGeneration
) -> Float[np.ndarray, "B K A"]:
    """Normalised actions of absolute ids (B, N)."""
    relative = ids.cpu().numpy().reshape(-1, grid.tokens) - model.config.action_token_begin_idx
    return np.asarray(grid.decode(relative)).reshape(len(ids), -1, grid.dim)


def ids_of(
    actions: Float[np.ndarray, "B K A"], grid: ActionGrid, model: SpatialVLAForConditionalGeneration
) -> Tensor:
    """Absolute ids (B, N) of the cells of normalised actions; of the edge for those beyond it."""
    relative = grid.encode(np.clip(actions.reshape(-1, actions.shape[-1]), -1, 1))
    begin = model.config.action_token_begin_idx
    return torch.as_tensor(relative).reshape(len(actions), -1) + begin
