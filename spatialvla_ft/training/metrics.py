"""What a step tells: accuracy of each token type, besides the loss."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from ..actions.layout import Slot
from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.decoding import type_slices


def token_accuracy(
    logits: Float[Tensor, "L V"],
    targets: Int[Tensor, " L"],
    config: SpatialVLAConfig,
    slots: Sequence[Slot],
) -> dict[str, float]:
    """Share of label tokens whose most likely id is right, by slot of the grid."""
    right = logits.argmax(-1) == targets
    relative = targets - config.action_token_begin_idx
    result = {}
    for slot, where in zip(slots, type_slices(config), strict=True):
        of_type = (relative >= where.start) & (relative < where.stop)
        if bool(of_type.any()):
            result[f"accuracy/{slot.name}"] = float(right[of_type].float().mean())
    return result
