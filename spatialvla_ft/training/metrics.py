"""What a step tells: accuracy of each token type, besides the loss."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from ..models.configuration_spatialvla import SpatialVLAConfig
from ..models.decoding import type_slices

TYPES = ("translation", "rotation", "gripper")


def token_accuracy(
    logits: Float[Tensor, "L V"], targets: Int[Tensor, " L"], config: SpatialVLAConfig
) -> dict[str, float]:
    """Share of label tokens whose most likely id is right, by type."""
    right = logits.argmax(-1) == targets
    relative = targets - config.action_token_begin_idx
    result = {}
    for name, where in zip(TYPES, type_slices(config), strict=True):
        of_type = (relative >= where.start) & (relative < where.stop)
        if bool(of_type.any()):
            result[f"accuracy/{name}"] = float(right[of_type].float().mean())
    return result
