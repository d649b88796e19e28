"""Stored inputs and answers: a checkpoint carries the proof that it still acts as it did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ..models.processing_spatialvla import SpatialVLAProcessor
from ..policy.stored import (
    EXPECTED,
    INPUT,
    STORED_FILE,
    Outputs,
    VerifyReport,
    action_logits,
    decode_stored,
    read_stored,
    run_model,
)
from .inputs import Inputs
from .source import load_source, unwrap


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
    decoded = decode_stored(processor, outputs, inputs.keys)
    count = processor.grid.total
    tensors = {
        **{INPUT + name: tensor for name, tensor in inputs.tensors.items()},
        EXPECTED + "ids": outputs.ids,
        EXPECTED + "actions": torch.from_numpy(decoded),
    }
    if outputs.normalised is None:
        tensors[EXPECTED + "action_logits"] = outputs.logits[..., begin : begin + count]
    else:
        tensors[EXPECTED + "action_logits"] = outputs.logits
        tensors[EXPECTED + "normalised"] = outputs.normalised
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
    difference = action_logits(model, along) - stored.action_logits
    apart = None
    if own.normalised is not None and stored.normalised is not None:
        apart = float((own.normalised - stored.normalised).abs().max())
    own_actions = decode_stored(processor, own, stored.keys)
    return VerifyReport(
        inputs=len(stored.ids),
        ids_equal=ids_equal,
        max_action_difference=float(np.abs(own_actions - stored.actions).max()),
        max_logit_difference=float(difference.abs().max()),
        head="grid_tokens" if model.action_head is None else model.action_head.kind,
        max_normalised_difference=apart,
    )
