"""The head's rows of action tokens as a module of their own, for as long as they are trained.

An untied head is one matrix over the whole vocabulary, of which adaptation wants only the action
rows. Separated, they are a small trainable table beside a head that stays as it is; what is saved
has them joined again, in the released layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_spatialvla import SpatialVLAConfig
    from .modeling_spatialvla import SpatialVLAForConditionalGeneration

ACTION_HEAD = "action_head_rows"
"""Name of the module, for `lora.train_whole` and `train.only`."""

_ROWS = f"{ACTION_HEAD}.weight"
_HEAD = "language_model.lm_head.weight"


@torch.no_grad()
def separate_action_head(model: SpatialVLAForConditionalGeneration) -> None:
    """Copy the head's action rows into `model.action_head_rows`, which the head reads from now on.

    Raises:
        ValueError: the head has none of its own, since they are tied to the spatial table.
    """
    if model.config.tie_action_head:
        raise ValueError(
            f"{ACTION_HEAD}: the head of this model has no action rows of its own, they are the "
            f"spatial table itself (tie_action_head); leave {ACTION_HEAD} out and train "
            "spatial_embed_tokens"
        )
    assert model.action_head_rows is None, "the action rows are separated already"
    rows = model.head_rows(slice(0, model.config.spatial_token_num))
    model.action_head_rows = nn.Embedding.from_pretrained(rows.clone(), freeze=False)


@torch.no_grad()
def join_action_head(model: SpatialVLAForConditionalGeneration) -> None:
    """Write separated action rows back into the head (in place); nothing where there are none."""
    if model.action_head_rows is None:
        return
    begin = model.config.action_token_begin_idx
    rows = model.action_head_rows.weight
    head = model.language_model.lm_head.weight
    head[begin : begin + len(rows)] = rows.to(head)
    model.action_head_rows = None


def joined_weights(config: SpatialVLAConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with separated action rows in their place in the head."""
    if _ROWS not in weights:
        return weights
    begin = config.action_token_begin_idx
    joined = {name: tensor for name, tensor in weights.items() if name != _ROWS}
    rows, head = weights[_ROWS], weights[_HEAD]
    joined[_HEAD] = torch.cat((head[:begin], rows.to(head), head[begin + len(rows) :]))
    return joined
