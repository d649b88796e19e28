"""What becomes of what between RLDS and LeRobot, kept with a converted dataset.

A LeRobot dataset that came from RLDS has `meta/rlds.json`, so that the way back gives the same
features under the same names.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spatialvla_ft.data.errors import DatasetError

MAPPING = Path("meta/rlds.json")
FORMAT = 1
EPISODE = "episode_metadata."
"""What the columns of `meta/episodes` that came from RLDS begin with."""

How = Literal["column", "text", "picture", "depth", "intrinsics", "extrinsics", "task", "episode"]


@dataclass(frozen=True)
class Entry:
    """One feature on both sides.

    Attributes:
        rlds: its keys from the step (from the episode for `episode`), joined by `.` with dots
            inside a key impossible.
        keys: the same, one by one.
        lerobot: name of the feature, or of the column of `meta/episodes`.
        how: what has to be done.
        dtype: of the RLDS feature.
        shape: of the RLDS feature, -1 where it varies.
        encoding: of the RLDS feature.
        scale: metres per unit of RLDS depth.
    """

    rlds: str
    keys: tuple[str, ...]
    lerobot: str
    how: How
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    scale: float | None = None


@dataclass(frozen=True)
class Mapping:
    """All features, and what else the way back needs.

    Attributes:
        name: of the RLDS dataset.
        version: of the RLDS dataset.
        card: its card, as YAML would hold it.
        entries: its features.
    """

    name: str
    version: str
    card: dict[str, Any]
    entries: tuple[Entry, ...]


def write_mapping(folder: Path, mapping: Mapping) -> None:
    """Keep it beside `info.json`."""
    content = {"format": FORMAT, **asdict(mapping)}
    (folder / MAPPING).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_mapping(folder: Path) -> Mapping | None:
    """What is kept, or None for a dataset that did not come from RLDS."""
    path = folder / MAPPING
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.pop("format", None) != FORMAT:
        raise DatasetError(
            f"{path} is of a format this program does not read; convert without it: remove the file"
        )
    entries = tuple(
        Entry(**{**e, "shape": tuple(e["shape"]), "keys": tuple(e["keys"])})
        for e in raw.pop("entries")
    )
    return Mapping(**raw, entries=entries)
