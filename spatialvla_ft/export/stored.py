"""Stored inputs and answers: a checkpoint carries the proof that it still acts as it did."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..models.outputs import Outputs, run_model
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..models.stored import (
    ACTION_TOLERANCE,
    EXPECTED,
    INPUT,
    STORED_FILE,
    decode_stored,
    read_stored,
)
from .inputs import Inputs
from .source import load_source, unwrap


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


def write_stored(
    folder: Path, inputs: Inputs, outputs: Outputs, processor: SpatialVLAProcessor, begin: int
) -> None:
    """Write inputs and answers into a checkpoint folder.

    Args:
        folder: the checkpoint.
        inputs: prompts.
        outputs: what the exported model answers to them.
        processor: decodes the answers.
        begin: id of the first action token; logits from there on are stored.
    """
    decoded = decode_stored(processor, outputs.ids, inputs.keys)
    count = processor.grid.total
    tensors = {
        **{INPUT + name: tensor for name, tensor in inputs.tensors.items()},
        EXPECTED + "ids": outputs.ids,
        EXPECTED + "actions": torch.from_numpy(decoded),
        EXPECTED + "action_logits": outputs.logits[..., begin : begin + count],
    }
    about = {"keys": inputs.keys, "texts": inputs.texts, "origin": inputs.origin}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, str(folder / STORED_FILE), metadata={"format": "pt", **metadata})


def verify_export(path: str | Path, *, base: str | None = None) -> VerifyReport:
    """Load an export and compare its answers with the stored ones, in float32 on the CPU.

    Args:
        path: checkpoint, or adapter folder.
        base: where an adapter's base lies now, if it moved.

    Raises:
        ValueError: it carries no stored answers.
    """
    folder = Path(path)
    stored = read_stored(folder)
    if stored is None:
        raise ValueError(
            f"{folder} has no {STORED_FILE}, so there is nothing to compare with; write one with "
            f"`spatialvla-ft export {folder} --out DIR`"
        )
    loaded, processor = load_source(folder, base=base)
    model = unwrap(loaded)
    own = run_model(model, stored.inputs)
    ids_equal = torch.equal(own.ids, stored.ids)
    along = own if ids_equal else run_model(model, stored.inputs, ids=stored.ids)
    begin, count = model.config.action_token_begin_idx, stored.action_logits.shape[-1]
    difference = along.logits[..., begin : begin + count] - stored.action_logits
    own_actions = decode_stored(processor, own.ids, stored.keys)
    return VerifyReport(
        inputs=len(stored.ids),
        ids_equal=ids_equal,
        max_action_difference=float(np.abs(own_actions - stored.actions).max()),
        max_logit_difference=float(difference.abs().max()),
    )
