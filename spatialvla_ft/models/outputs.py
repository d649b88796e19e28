"""What a model answers to given inputs: token ids, and the logits behind every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from .modeling_spatialvla import SpatialVLAForConditionalGeneration


@dataclass(frozen=True)
class Outputs:
    """Answers to B prompts, N = slots * action_chunk_size tokens each.

    Attributes:
        ids: absolute token ids.
        logits: of the step that chose each token, over the whole vocabulary, float32.
    """

    ids: Int[Tensor, "B N"]
    logits: Float[Tensor, "B N V"]


@torch.no_grad()
def run_model(
    model: SpatialVLAForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    *,
    ids: Int[Tensor, "B N"] | None = None,
) -> Outputs:
    """Predict greedily, then read the logits along the predicted sequence.

    Prompts run one at a time, so that an answer does not depend on what is exported beside it.

    Args:
        model: in evaluation mode.
        inputs: prompts padded on the left.
        ids: tokens to read the logits along, instead of those predicted.
    """
    found, logits = [], []
    for i in range(len(inputs["input_ids"])):
        one = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        own = model.predict_action(one) if ids is None else ids[i : i + 1]
        count = own.shape[1]
        whole = {
            **one,
            "input_ids": torch.cat((one["input_ids"], own), dim=-1),
            "attention_mask": pad(one["attention_mask"], (0, count), value=1),
            "token_type_ids": pad(one["token_type_ids"], (0, count), value=1),
        }
        rows = model(**whole, logits_to_keep=count + 1).logits[:, :-1]
        found.append(own)
        logits.append(rows.float())
    return Outputs(torch.cat(found), torch.cat(logits))
