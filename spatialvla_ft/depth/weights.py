"""Read a part of a checkpoint's weights without loading the rest."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def part_of_checkpoint(checkpoint: str | Path, prefix: str) -> dict[str, Tensor]:
    """Weights whose names begin with a prefix, without it.

    Args:
        checkpoint: folder or OWNER/NAME on the Hub, in one safetensors file or in shards.
        prefix: e.g. "vision_zoe_model.".

    Raises:
        ValueError: there are none.
    """
    index = cached_file(str(checkpoint), INDEX, _raise_exceptions_for_missing_entries=False)
    if index is None:
        files = {WHOLE}
    else:
        entries = json.loads(Path(index).read_text())["weight_map"]
        files = {file for key, file in entries.items() if key.startswith(prefix)}
    part: dict[str, Tensor] = {}
    for file in sorted(files):
        with safe_open(cached_file(str(checkpoint), file), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key.startswith(prefix):
                    part[key.removeprefix(prefix)] = tensors.get_tensor(key)
    if not part:
        raise ValueError(f"{checkpoint} holds no weights whose names begin with {prefix!r}")
    return part
