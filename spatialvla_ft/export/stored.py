"""Stored inputs and answers: a checkpoint carries the proof that it still acts as it did."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from .inputs import Inputs
from .outputs import Outputs, run_model

STORED_FILE = "golden_outputs.safetensors"
ACTION_TOLERANCE = 1e-6
"""Largest difference of a decoded action, in the robot's units, that still counts as the same."""

_INPUT, _EXPECTED = "inputs.", "expected."


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
    decoded = _decode(processor, outputs.ids, inputs.keys)
    count = processor.grid.total
    tensors = {
        **{_INPUT + name: tensor for name, tensor in inputs.tensors.items()},
        _EXPECTED + "ids": outputs.ids,
        _EXPECTED + "actions": torch.from_numpy(decoded),
        _EXPECTED + "action_logits": outputs.logits[..., begin : begin + count],
    }
    about = {"keys": inputs.keys, "texts": inputs.texts, "origin": inputs.origin}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, str(folder / STORED_FILE), metadata={"format": "pt", **metadata})


def verify_export(path: str | Path) -> VerifyReport:
    """Load a checkpoint and compare its answers with the stored ones, in float32 on the CPU.

    Raises:
        ValueError: it carries no stored answers.
    """
    folder = Path(path)
    tensors, keys = _read(folder)
    model = SpatialVLAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SpatialVLAProcessor.from_pretrained(folder)
    prompts = {n.removeprefix(_INPUT): t for n, t in tensors.items() if n.startswith(_INPUT)}
    ids = tensors[_EXPECTED + "ids"]
    actions = tensors[_EXPECTED + "actions"].numpy()
    logits = tensors[_EXPECTED + "action_logits"]

    own = run_model(model, prompts)
    ids_equal = torch.equal(own.ids, ids)
    along = own if ids_equal else run_model(model, prompts, ids=ids)
    begin = model.config.action_token_begin_idx
    along_actions = along.logits[..., begin : begin + logits.shape[-1]]
    own_actions = _decode(processor, own.ids, keys)
    return VerifyReport(
        inputs=len(ids),
        ids_equal=ids_equal,
        max_action_difference=float(np.abs(own_actions - actions).max()),
        max_logit_difference=float((along_actions - logits).abs().max()),
    )


def _read(folder: Path) -> tuple[dict[str, Tensor], list[str | None]]:
    file = folder / STORED_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {STORED_FILE}, so there is nothing to compare with; write one with "
            f"`spatialvla-ft export {folder} --out DIR`"
        )
    with safe_open(str(file), "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["keys"])


def _decode(processor: SpatialVLAProcessor, ids: Tensor, keys: list[str | None]) -> np.ndarray:
    """(B, chunk, dim) float64 in the robot's units, or normalised without statistics."""
    if None in keys:
        grid = processor.grid
        flat = processor.action_tokenizer.decode(ids.cpu().numpy().reshape(-1, grid.tokens))
        return np.asarray(flat, np.float64).reshape(len(ids), -1, grid.dim)
    decoded = processor.decode_actions(ids, unnorm_key=[key for key in keys if key is not None])
    return np.asarray(decoded["actions"], np.float64)
