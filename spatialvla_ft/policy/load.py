"""Loading what is to act: a checkpoint or an adapter, checked by what it answers."""

from __future__ import annotations

from pathlib import Path

import torch

from ..models.checkpoint_files import refuse_out_of_reach
from ..models.lora import is_adapter, load_with_adapter, refuse_base_of_whole
from ..models.modeling_spatialvla import SpatialVLAForConditionalGeneration
from ..models.processing_spatialvla import SpatialVLAProcessor
from .canary import BlindModelError, check_sight
from .stored import read_stored


def load_policy_model(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    canary: bool = True,
) -> tuple[SpatialVLAForConditionalGeneration, SpatialVLAProcessor]:
    """Model in evaluation mode and its processor, from a checkpoint or an adapter folder.

    Args:
        path: checkpoint or adapter folder.
        base: where an adapter's base lies now, if it moved.
        dtype: of the loaded weights.
        canary: check that the model sees and that its stored answers hold; see `canary.py`.

    Raises:
        BlindModelError: it does not, or weights were missing and would be random.
        ValueError: an adapter's base is missing or another, or a whole checkpoint is given one.
    """
    refuse_out_of_reach(path)
    processor = SpatialVLAProcessor.from_pretrained(path)
    if is_adapter(path):
        model = load_with_adapter(Path(path), base=base, dtype=dtype).get_base_model()
    else:
        refuse_base_of_whole(path, base)
        model, info = SpatialVLAForConditionalGeneration.from_pretrained(
            path, dtype=dtype, output_loading_info=True, allow_incomplete=True
        )
        missing = sorted(info["missing_keys"])
        if canary and missing:
            raise BlindModelError(
                f"{path} lacks {len(missing)} weights ({missing[0]}, ...), which would be random: "
                "the file is incomplete, or its names do not fit this transformers version "
                "(5.17 to 5.23 were tested); canary=False loads it all the same"
            )
    model = model.eval()
    if canary:
        check_sight(model, processor, stored=read_stored(path))
    return model, processor
