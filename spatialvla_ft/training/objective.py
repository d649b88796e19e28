"""The loss of the tokens where not all kinds of them count alike.

Half of the tokens of an arm say rotation and gripper, which in some tasks hardly matter:
`train.slot_weights` says what each kind counts. The mean is over the weights, so the learning rate
keeps its meaning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.processing_spatialvla import SpatialVLAProcessor
from .metrics import label_rows
from .recipe import RecipeError, SlotWeights


def label_weights(
    settings: SlotWeights | None, processor: SpatialVLAProcessor
) -> Float[Tensor, " n"] | None:
    """What each of a sample's n labels counts (slots of every step, then the end); None for alike.

    Raises:
        RecipeError: nothing that this action space has would count.
    """
    if settings is None:
        return None
    of_step = [float(getattr(settings, slot.role)) for slot in processor.grid.slots]
    if not any(of_step):
        roles = sorted({slot.role for slot in processor.grid.slots})
        raise RecipeError(
            f"train.slot_weights: this action space has {', '.join(roles)}, and all of them weigh "
            "0; give one of them a weight"
        )
    return torch.tensor([*of_step * processor.action_chunk_size, settings.end])


def weighted_loss(
    logits: Float[Tensor, "L V"],
    labels: Int[Tensor, "B T"],
    weights: Float[Tensor, " n"],
    config: SpatialVLAConfig,
) -> Float[Tensor, ""]:
    """Weighted mean cross entropy of the labels behind the label rows of a batch."""
    rows_BnV, wanted_Bn = label_rows(logits, labels, config)
    losses = F.cross_entropy(rows_BnV.flatten(0, 1).float(), wanted_Bn.flatten(), reduction="none")
    weights = weights.to(losses).expand(wanted_Bn.shape).flatten()
    return (losses * weights).sum() / weights.sum()
