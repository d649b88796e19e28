"""What is exported: an adapter, which is merged into its base, or a checkpoint that is whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor

from ..models.base_place import BASE_FILE
from ..models.lora import (
    ROWS_FILE,
    is_adapter,
    load_with_adapter,
    merge_adapter,
    refuse_base_of_whole,
)
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from ..near import near_path
from ..policy.stored import run_model

MERGE_TOLERANCE = 1e-3
"""Largest change of a logit that merging may cause; float32 rounding makes about 1e-5."""

Loaded = PeftModel | SpatialVLAForConditionalGeneration


@dataclass
class Source:
    """A whole model in float32, ready to be written.

    Attributes:
        model: merged, in evaluation mode.
        processor: with the grid, statistics and intrinsics.
        kind: "adapter" if LoRA weights were merged, "checkpoint" if there was nothing to merge.
        merge_difference: largest change of any logit by merging; None for a checkpoint.
    """

    model: SpatialVLAForConditionalGeneration
    processor: SpatialVLAProcessor
    kind: Literal["adapter", "checkpoint"]
    merge_difference: float | None = None


def find_source(path: str | Path) -> Path:
    """The adapter or checkpoint folder that `path` means: itself, or `final` of a training run.

    Raises:
        ValueError: it holds neither, or both at once.
    """
    path = Path(path)
    candidates = [path, path / "final"]
    for folder in candidates:
        whole = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
        if is_adapter(folder) and whole:
            raise ValueError(
                f"{folder} holds an adapter (adapter_config.json) beside whole weights "
                "(model.safetensors): it looks merged already, and merging twice would apply the "
                "adapter twice. Pass the folder that training wrote, or remove adapter_* to "
                "rewrite the whole weights as they are"
            )
        if is_adapter(folder):
            absent = [n for n in (BASE_FILE, ROWS_FILE) if not (folder / n).is_file()]
            if absent:
                raise ValueError(
                    f"{folder} is an adapter without {' and '.join(absent)}, so its base cannot be "
                    "checked; export an adapter that `spatialvla-ft train` wrote"
                )
            return folder
        if whole:
            return folder
    if (path / "checkpoints").is_dir():
        raise ValueError(
            f"{path} is a training run without a result ({path / 'final'} is missing): it has not "
            "finished. Continue it with `spatialvla-ft train RECIPE`, then export"
        )
    raise ValueError(
        f"{path} holds neither an adapter (adapter_config.json) nor a checkpoint (config.json and "
        "model.safetensors); pass the output folder of a training run, or its `final`"
        + near_path(path)
    )


def load_source(folder: Path, *, base: str | None = None) -> tuple[Loaded, SpatialVLAProcessor]:
    """Unmerged model (a PeftModel for an adapter) in float32 and its processor."""
    processor = SpatialVLAProcessor.from_pretrained(folder)
    if is_adapter(folder):
        return load_with_adapter(folder, base=base).eval(), processor
    refuse_base_of_whole(folder, base)
    model = SpatialVLAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor


def unwrap(loaded: Loaded) -> SpatialVLAForConditionalGeneration:
    """The model itself, inside or without adapters."""
    model = loaded.get_base_model() if isinstance(loaded, PeftModel) else loaded
    assert isinstance(model, SpatialVLAForConditionalGeneration)
    return model


@torch.no_grad()
def merge(loaded: Loaded, processor: SpatialVLAProcessor, inputs: Mapping[str, Tensor]) -> Source:
    """Merge adapters in float32, and compare logits before and after on `inputs`.

    The logits are those over the whole vocabulary at every step of the predicted actions.

    Args:
        loaded: from `load_source`.
        processor: of the model.
        inputs: prompts, as model tensors.

    Raises:
        ValueError: a logit moved by more than `MERGE_TOLERANCE`.
    """
    if not isinstance(loaded, PeftModel):
        return Source(loaded, processor, "checkpoint")
    before = run_model(unwrap(loaded), inputs)
    model = merge_adapter(loaded)
    after = run_model(model, inputs, ids=before.ids)
    difference = float((after.logits - before.logits).abs().max())
    if not math.isfinite(difference) or difference > MERGE_TOLERANCE:
        raise ValueError(
            f"merging the adapter moved a logit by {difference:.3g}, more than the "
            f"{MERGE_TOLERANCE:g} that rounding can explain; the merged model would act "
            "differently. Check the adapter's weights for very large or non-finite values"
        )
    return Source(model, processor, "adapter", difference)


@torch.no_grad()
def untie_head(model: SpatialVLAForConditionalGeneration) -> None:
    """Give the head its own action rows, equal to the spatial table: the released form (in place).

    Raises:
        ValueError: they are its own already.
    """
    config = model.config
    if not config.tie_action_head:
        raise ValueError(
            "--untie: the head of this model has action rows of its own already "
            "(tie_action_head is false); leave --untie out"
        )
    begin = config.action_token_begin_idx
    rows = model.language_model.lm_head.weight[begin : begin + config.spatial_token_num]
    rows.copy_(model.spatial_embed_tokens.weight)
    config.tie_action_head = False
