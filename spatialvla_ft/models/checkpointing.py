"""Trade time for memory: recompute a layer's activations in the backward pass."""

from __future__ import annotations

from .modeling_spatialvla import SpatialVLAForConditionalGeneration


def checkpoint_activations(model: SpatialVLAForConditionalGeneration) -> None:
    """Keep only the inputs of each layer of the language model and the vision tower (in training).

    Losses and gradients stay what they are; a step takes about a third longer. ZoeDepth keeps
    nothing in any case, since it is not trained.
    """
    for part in (model.language_model, model.vision_tower):
        # transformers renamed the method; the old name warns where the new one exists.
        enable = getattr(part, "activation_checkpointing_enable", None)
        (enable or part.gradient_checkpointing_enable)({"use_reentrant": False})
