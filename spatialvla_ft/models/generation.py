"""What transformers' own `generate` needs to know: the picture goes in once, and who sees whom.

`predict_action` does not need it; it is for those who sample, beam-search or stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from .attention import generation_masks
from .observation import OBSERVATION_INPUTS


class TokenGenerationMixin(GenerationMixin):
    """`generate` over a prompt with pictures and a causal suffix.

    transformers finds out by the name of a base whether a model generates: it must end so.
    """

    create_masks_for_generate = staticmethod(generation_masks)

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
