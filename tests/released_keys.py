"""What weights are called in released files: the names of the golden checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import safe_open

KEYS = Path(__file__).parent / "golden" / "checkpoint_keys.json"


def keys_of(folder):
    """Names in the weight files of a folder, which its index must repeat where it has one."""
    names = []
    for file in sorted(Path(folder).glob("model*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            names += opened.keys()
    assert len(names) == len(set(names)) > 0
    index = Path(folder) / "model.safetensors.index.json"
    if index.exists():
        assert json.loads(index.read_text())["weight_map"].keys() == set(names)
    return set(names)


def families(names):
    """Names without the numbers of layers."""
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names}


def check_released(folder, *, beyond=(), without=()):
    """A folder's weights are called as in released files.

    Args:
        folder: a checkpoint with at least one layer in every tower.
        beyond: beginnings of names that released files do not have.
        without: beginnings of released names that this model has nothing for.
    """
    released = families(json.loads(KEYS.read_text()))
    found = families(n for n in keys_of(folder) if not n.startswith(tuple(beyond)))
    assert found <= released, sorted(found - released)[:3]
    absent = {name for name in released - found if not name.startswith(tuple(without))}
    parts = ("vision_tower.", "language_model.", "multi_modal_projector.", "spatial_embed_tokens.")
    assert not [name for name in absent if name.startswith(parts)], sorted(absent)[:3]
