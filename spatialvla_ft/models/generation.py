"""Free generation with transformers' `generate`: what each of its steps hands to the model.

`predict_action` (see `decoding.py`) is what a robot wants; this is for everything else that
`generate` can do, such as sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin
from transformers.utils import ModelOutput

from .attention import attention_masks
from .configuration_spatialvla import SpatialVLAConfig

OBSERVATION_INPUTS = ("pixel_values", "intrinsics", "depth", "camera_poses", "proprio")
"""What goes in with the prompt, and never again."""


class PrefixGeneration(GenerationMixin):
    """The prompt with its picture is a prefix; every generated token is suffix."""

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one step of `generate`: the picture goes in with the prompt only."""
        cache = kwargs.get("past_key_values")
        first = cache is None or cache.get_seq_length() == 0
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        for name in OBSERVATION_INPUTS:
            if not first:
                inputs.pop(name, None)
            elif kwargs.get(name) is not None:
                inputs[name] = kwargs[name]
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + 1
        return inputs

    @staticmethod
    def create_masks_for_generate(
        config: SpatialVLAConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Masks of one step of `generate` with a static cache."""
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        if first and token_type_ids is None:
            token_type_ids = torch.zeros(
                inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device
            )
        return attention_masks(
            config,
            inputs_embeds,
            attention_mask,
            token_type_ids if first else None,
            past_key_values,
        )

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        types = model_kwargs.get("token_type_ids")
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if types is not None:
            updated["token_type_ids"] = torch.cat((types, types.new_ones(types.shape[0], 1)), -1)
        return updated
