"""Answers that were stored with a checkpoint, read and compared with what it answers now.

`export` writes them (`export/stored.py`); whoever loads the checkpoint can tell by them whether it
still computes what it computed then.

What a model answers to given inputs: token ids and the logits behind every one of them, or all that
a head with weights of its own computes, and the actions that it decides on.
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
    """Answers to B prompts, N = slots * action_chunk_size tokens each; none of heads without them.

    Attributes:
        ids: absolute token ids.
        logits: of the step that chose each token, over the whole vocabulary, float32; of a head
            without tokens, all that it computes (`ActionHead.raw`), (B, n).
        normalised: actions of a head without tokens; None with tokens.
    """

    ids: Int[Tensor, "B N"]
    logits: Float[Tensor, "B N V"] | Float[Tensor, "B n"]
    normalised: Float[Tensor, "B K A"] | None = None


@torch.no_grad()
def run_model(
    model: SpatialVLAForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    *,
    ids: Int[Tensor, "B N"] | None = None,
) -> Outputs:
    """Predict greedily, then read the logits along the predicted sequence; or ask the head.

    Prompts run one at a time, so that an answer does not depend on what is exported beside it.

    Args:
        model: in evaluation mode.
        inputs: prompts padded on the left.
        ids: tokens to read the logits along, instead of those predicted.
    """
    if model.action_head is not None:
        return _of_head(model, inputs)
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


def _of_head(model: SpatialVLAForConditionalGeneration, inputs: Mapping[str, Tensor]) -> Outputs:
    head, raw, actions = model.action_head, [], []
    assert head is not None
    for i in range(len(inputs["input_ids"])):
        states = model.head_states({name: tensor[i : i + 1] for name, tensor in inputs.items()})
        raw.append(head.raw(states).float())
        actions.append(head.predict(states).actions.double())
    none = torch.zeros((len(raw), 0), dtype=torch.long)
    return Outputs(none, torch.cat(raw), torch.cat(actions))


STORED_FILE = "golden_outputs.safetensors"
INPUT, EXPECTED = "inputs.", "expected."

LOGIT_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Relative RMS deviation of the action logits, by dtype of the weights, that rounding explains."""
ACTION_TOLERANCE = 1e-6
"""Largest difference of a decoded action, in the robot's units, that still counts as the same."""
HEAD_TOLERANCE = 1e-3
"""The same of an action that a head computes rather than decodes, normalised: as `LOGIT_TOLERANCE`,
what other machines' rounding explains."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint answered when it was exported, in float32.

    Attributes:
        inputs: prompts, as model tensors.
        ids: absolute ids of the predicted tokens.
        actions: decoded, in the robot's units (normalised where there are no statistics).
        action_logits: of the step that chose each token, action tokens only; (B, n) of a head
            without tokens.
        keys: statistics each answer was decoded with.
        normalised: actions of a head without tokens; None with tokens.
    """

    inputs: dict[str, Tensor]
    ids: Int[Tensor, "B N"]
    actions: Float64[np.ndarray, "B T A"]
    action_logits: Float[Tensor, "B N V"]
    keys: list[str | None]
    normalised: Float[Tensor, "B T A"] | None = None


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
        normalised=tensors.get(EXPECTED + "normalised"),
    )


def decode_stored(
    processor: SpatialVLAProcessor, answers: Outputs | Stored, keys: list[str | None]
) -> Float64[np.ndarray, "B T A"]:
    """Actions in the robot's units, or normalised without statistics."""
    normalised, ids = answers.normalised, answers.ids
    if normalised is None:
        grid = processor.grid
        flat = processor.action_tokenizer.decode(ids.cpu().numpy().reshape(-1, grid.tokens))
        normalised = torch.as_tensor(np.asarray(flat)).reshape(len(ids), -1, grid.dim)
    if None in keys:
        return normalised.cpu().double().numpy()
    known = [key for key in keys if key is not None]
    return np.asarray(processor.to_robot_units(normalised, known), np.float64)


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
    logits = action_logits(model, run_model(model, inputs, ids=ids))
    own, then = logits.cpu().double().flatten(), stored.action_logits[:rows].double().flatten()
    centred = then - then.mean()
    deviation = (own - then).norm() / centred.norm().clamp_min(1e-12)
    shifted = own - own.mean()
    correlation = (shifted @ centred) / (shifted.norm() * centred.norm()).clamp_min(1e-12)
    decoded = decode_stored(processor, stored, stored.keys)
    return StoredComparison(
        inputs=rows,
        deviation=float(deviation),
        correlation=float(correlation),
        action_difference=float(np.abs(decoded - stored.actions).max()),
        tolerance=LOGIT_TOLERANCE.get(model.dtype, LOGIT_TOLERANCE[torch.bfloat16]),
    )


def action_logits(model: SpatialVLAForConditionalGeneration, answers: Outputs) -> Tensor:
    """Of the action tokens only; all of a head without tokens."""
    if answers.normalised is not None:
        return answers.logits
    begin, count = model.config.action_ids
    return answers.logits[..., begin : begin + count]


@dataclass(frozen=True)
class VerifyReport:
    """A checkpoint's answers beside the stored ones.

    Attributes:
        inputs: number of stored inputs.
        ids_equal: whether every predicted token is the stored one; True of heads without tokens.
        max_action_difference: largest difference of an action, in the robot's units.
        max_logit_difference: largest difference of an action token's logit along the stored
            sequence, or of what a head computes; for information, other machines and thread counts
            move it by about 1e-4.
        head: kind of the action head.
        max_normalised_difference: largest difference of a normalised action, of a head without
            tokens; None with tokens.
    """

    inputs: int
    ids_equal: bool
    max_action_difference: float
    max_logit_difference: float
    head: str = "grid_tokens"
    max_normalised_difference: float | None = None

    @property
    def same(self) -> bool:
        """Whether the checkpoint acts as it did when it was exported."""
        if self.max_normalised_difference is not None:
            return self.max_normalised_difference <= HEAD_TOLERANCE
        return self.ids_equal and self.max_action_difference <= ACTION_TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
