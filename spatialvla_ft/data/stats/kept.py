"""What was computed from a dataset, kept on disk under a hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spatialvla_ft.files import whole_file

if TYPE_CHECKING:
    from spatialvla_ft.data.samples import SampleDataset


KEPT_FORMAT = 2
"""Goes up when what is kept changes its meaning, so that what was kept before counts no more."""


def content_key(dataset: SampleDataset, *more: Any) -> str | None:
    """Hash of card, data, filters, episodes and `more`; None if something cannot be hashed.

    A card that was made in code has no text, and a user's function for kinematics none either.
    """
    if not dataset.card.source_hash or dataset.forward_kinematics is not None:
        return None
    rows = dataset.rows.key if dataset.rows is not None else ""
    parts = [KEPT_FORMAT, dataset.card.source_hash, dataset.store.content_hash, rows, *more]
    digest = hashlib.sha256(json.dumps(parts, default=str).encode())
    digest.update(dataset.episodes.astype(np.int64).tobytes())
    return digest.hexdigest()[:24]


def kept_json(folder: Path, name: str, key: str | None, make: Callable[[], Any]) -> Any:
    """The JSON kept as `<folder>/<key>.<name>.json`, or what `make` gives, kept from now on.

    Without a key, or where nothing can be written, it is made each time.
    """
    if key is None:
        return make()
    path = folder / f"{key}.{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    content = make()
    _keep(path, lambda scratch: scratch.write_text(json.dumps(content)))
    return content


def is_kept(folder: Path, name: str, key: str | None) -> bool:
    """Whether `kept_json` would find what was kept."""
    return key is not None and (folder / f"{key}.{name}.json").exists()


def kept_array(
    folder: Path, name: str, key: str | None, make: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """As `kept_json` for an array, which is memory-mapped and so takes no memory of the process."""
    if key is None:
        return make()
    path = folder / f"{key}.{name}.npy"
    if not path.exists():
        array = make()
        if not _keep(path, lambda scratch: _save(scratch, array)):
            return array
    found: NDArray[Any] = np.load(path, mmap_mode="r")
    return found


def _save(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _keep(path: Path, write: Callable[[Path], Any]) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as scratch:
            write(scratch)
    except OSError:
        return False
    return True
