"""Answers that were stored with a checkpoint, read and compared with what it answers now.

`export` writes them (`export/stored.py`); whoever loads the checkpoint can tell by them whether it
still computes what it computed then.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from safetensors import safe_open
from torch import Tensor

from .modeling_spatialvla import SpatialVLAForConditionalGeneration
from .outputs import run_model
from .processing_spatialvla import SpatialVLAProcessor

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
