"""Answers that were stored with a checkpoint, read and compared with what it answers now.

`export` writes them (`export/stored.py`); whoever loads the checkpoint can tell by them whether it
still computes what it computed then.

What a model answers to given inputs: token ids, and the logits behind every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import pad

from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor


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


pass
pass

STORED_FILE = "golden_outputs.safetensors"
INPUT, EXPECTED = "inputs.", "expected."

LOGIT_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Relative RMS deviation of the action logits, by dtype of the weights, that rounding explains."""
ACTION_TOLERANCE = 1e-6
"""Largest difference of a decoded action, in the robot's units, that still counts as the same."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint answered when it was exported, in float32.

    Attributes:
        inputs: prompts, as model tensors.
        ids: absolute ids of the predicted tokens.
        actions: decoded, in the robot's units (normalised where there are no statistics).
        action_logits: of the step that chose each token, action tokens only.
        keys: statistics each answer was decoded with.
    """

    inputs: dict[str, Tensor]
    ids: Int[Tensor, "B N"]
    actions: Float64[np.ndarray, "B T A"]
    action_logits: Float[Tensor, "B N V"]
    keys: list[str | None]


@dataclass(frozen=True)
class StoredComparison:
    """A model's logits and a processor's actions beside the stored ones.

    Attributes:
        inputs: number of stored inputs compared.
        deviation: RMS difference of the action logits over the RMS of the stored ones about their
            mean: 0 for the same numbers, about 1.4 for unrelated ones.
        correlation: of the action logits with the stored ones, between -1 and 1.
        action_difference: largest difference of an action decoded from the stored tokens.
        tolerance: what `deviation` may be in this dtype.
    """

    inputs: int
    deviation: float
    correlation: float
    action_difference: float
    tolerance: float


def read_stored(folder: str | Path) -> Stored | None:
    """The stored answers in a checkpoint folder; None if it carries none."""
    file = Path(folder) / STORED_FILE
    if not file.is_file():
        return None
    with safe_open(str(file), "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        keys = json.loads(opened.metadata()["keys"])
    return Stored(
        inputs={n.removeprefix(INPUT): t for n, t in tensors.items() if n.startswith(INPUT)},
        ids=tensors[EXPECTED + "ids"],
        actions=tensors[EXPECTED + "actions"].numpy(),
        action_logits=tensors[EXPECTED + "action_logits"],
        keys=keys,
    )


def decode_stored(
    processor: SpatialVLAProcessor, ids: Tensor, keys: list[str | None]
) -> Float64[np.ndarray, "B T A"]:
    """Actions in the robot's units, or normalised without statistics."""
    if None in keys:
        grid = processor.grid
        flat = processor.action_tokenizer.decode(ids.cpu().numpy().reshape(-1, grid.tokens))
        return np.asarray(flat, np.float64).reshape(len(ids), -1, grid.dim)
    decoded = processor.decode_actions(ids, unnorm_key=[key for key in keys if key is not None])
    return np.asarray(decoded["actions"], np.float64)


def compare_stored(
    model: SpatialVLAForConditionalGeneration,
    processor: SpatialVLAProcessor,
    stored: Stored,
    *,
    rows: int = 2,
) -> StoredComparison:
    """Read the logits along the stored tokens of the first `rows` inputs: one pass each."""
    rows = min(rows, len(stored.ids))
    inputs = {name: tensor[:rows].to(model.device) for name, tensor in stored.inputs.items()}
    ids = stored.ids[:rows].to(model.device)
    begin, count = model.config.action_token_begin_idx, stored.action_logits.shape[-1]
    logits = run_model(model, inputs, ids=ids).logits[..., begin : begin + count]
    own, then = logits.cpu().double().flatten(), stored.action_logits[:rows].double().flatten()
    centred = then - then.mean()
    deviation = (own - then).norm() / centred.norm().clamp_min(1e-12)
    shifted = own - own.mean()
    correlation = (shifted @ centred) / (shifted.norm() * centred.norm()).clamp_min(1e-12)
    decoded = decode_stored(processor, stored.ids, stored.keys)
    return StoredComparison(
        inputs=rows,
        deviation=float(deviation),
        correlation=float(correlation),
        action_difference=float(np.abs(decoded - stored.actions).max()),
        tolerance=LOGIT_TOLERANCE.get(model.dtype, LOGIT_TOLERANCE[torch.bfloat16]),
    )


@dataclass(frozen=True)
class VerifyReport:
    """A checkpoint's answers beside the stored ones.

    Attributes:
        inputs: number of stored inputs.
        ids_equal: whether every predicted token is the stored one.
        max_action_difference: largest difference of a decoded action, in the robot's units.
        max_logit_difference: largest difference of an action token's logit along the stored
            sequence; for information, other machines and thread counts move it by about 1e-4.
    """

    inputs: int
    ids_equal: bool
    max_action_difference: float
    max_logit_difference: float

    @property
    def same(self) -> bool:
        """Whether the checkpoint acts as it did when it was exported."""
        return self.ids_equal and self.max_action_difference <= ACTION_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
