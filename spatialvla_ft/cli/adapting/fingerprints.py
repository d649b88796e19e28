"""Short hashes of what a job is given: a checkpoint, a file, a card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel

from spatialvla_ft.data.cards.card import Card

WHOLE = 4 * 2**20
"""Files up to so many bytes are read whole, ..."""
LATER = ("video", "recorded")
LATER_OF_LANGUAGE = ("several", "encoding", "errors")
"""Fields that cards did not always have: they count where they say something."""
CHUNKS, CHUNK = 64, 64 * 2**10
"""... of larger ones so many pieces of so many bytes, evenly spread."""


def of_file(path: Path) -> str:
    """Of the content of a file, a large one by its size and pieces of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
        else:
            for i in range(CHUNKS):
                file.seek((size - CHUNK) * i // (CHUNKS - 1))
                digest.update(file.read(CHUNK))
    return digest.hexdigest()[:16]


def of_checkpoint(folder: Path) -> str:
    """Of all files of a checkpoint folder, wherever it lies; a few MiB of each are read."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    parts = [(p.name, of_file(p)) for p in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def of_card(card: Card) -> str:
    """Of what a card says; comments and the order of its lines count for nothing."""
    content = card.model_dump(exclude={"source_hash", "name"})
    for model, values, names in (
        (type(card), content, LATER),
        (type(card.language), content["language"], LATER_OF_LANGUAGE),
    ):
        for name in names:
            default = getattr(model.model_construct(), name)
            plain = default.model_dump() if isinstance(default, BaseModel) else default
            if values[name] == plain:  # as before, so that earlier jobs hold
                del values[name]
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
