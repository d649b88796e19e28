"""What becomes of every feature of an RLDS dataset in LeRobot.

What becomes of what between RLDS and LeRobot, kept with a converted dataset.

A LeRobot dataset that came from RLDS has `meta/rlds.json`, so that the way back gives the same
features under the same names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spatialvla_ft.converters.report import Report
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.draft import depth_key, extrinsics_key, intrinsics_key
from spatialvla_ft.data.lerobot.info import BOOKKEEPING
from spatialvla_ft.data.lerobot.store import TASK
from spatialvla_ft.data.rlds.features import Leaf
from spatialvla_ft.data.rlds.index import FrameIndex

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


def plan(index: FrameIndex, card: Card, report: Report) -> list[Entry]:
    """What becomes of every feature; those that cannot go along are noted."""
    depth = {term.path: slot for slot, term in card.depth.items()}
    colour = {term.path: slot for slot, term in (card.cameras or {}).items()}
    names = _camera_names(index, list(colour))
    camera_of = {slot: names[path] for path, slot in colour.items()}
    sources: list[tuple[dict[str, Any], str, Callable[[str], str]]] = []
    sources += [(card.intrinsics, "intrinsics", intrinsics_key)]
    sources += [(card.extrinsics, "extrinsics", extrinsics_key)]
    calibration = {
        source: (how, name(camera_of[slot]))
        for slots, how, name in sources
        for slot, source in slots.items()
        if isinstance(source, str)
    }
    entries = []
    report.left_out |= {path: f"it cannot be read: {why}" for path, why in index.unread.items()}
    for path, leaf in index.leaves.items():
        how, target = "column", path
        if leaf.level == "episode":
            how, target = "episode", EPISODE + path.removeprefix(EPISODE)
        elif path in depth:
            how, target = "depth", depth_key(camera_of[depth[path]])
        elif leaf.kind == "image":
            how = "picture"
            target = f"observation.images.{names.get(path) or _camera(path)}"
        elif path in calibration and _fits(index, leaf, calibration[path][0]):
            how, target = calibration[path]
        elif path in card.language.keys[:1] and card.language.kind == "string":
            how, target = "task", TASK
        elif leaf.kind == "bytes":
            how = "text"
        if target in BOOKKEEPING:
            target = f"rlds.{target}"
        reason = _obstacle(leaf, how, card)
        if reason is not None:
            report.left_out[path] = reason
            continue
        wire = leaf.wire.split("/", 1)[1] if leaf.level == "step" else leaf.wire
        keys = _split_keys(wire, path)
        scale = card.depth_scale if how == "depth" else None
        entries.append(
            Entry(
                path,
                keys,
                target.replace("/", "_"),
                how,  # type: ignore[arg-type]
                leaf.dtype.name if leaf.kind != "bytes" else "string",
                leaf.shape,
                leaf.encoding,
                scale,
            )
        )
    targets = [entry.lerobot for entry in entries]
    twice = sorted({target for target in targets if targets.count(target) > 1})
    if twice:
        raise DatasetError(f"{index.name}: several features would be called {twice}")
    return entries


def _split_keys(wire: str, path: str) -> tuple[str, ...]:
    """The keys one by one: the wire joins them by '/', which a key may hold itself."""
    keys = []
    for part in path.split("."):
        if not wire.startswith(part):
            return tuple(wire.split("/"))
        keys.append(part)
        wire = wire[len(part) + 1 :]
    return tuple(keys)


def _obstacle(leaf: Leaf, how: str, card: Card) -> str | None:
    """Why a feature cannot go along, or None."""
    if leaf.ragged and leaf.level == "step":
        return "a sequence whose length varies from step to step"
    if leaf.kind == "image" and leaf.level == "episode":
        return "a picture of the whole episode"
    if leaf.kind != "image" and leaf.width < 0:
        return "its shape varies"
    if leaf.kind == "bytes" and leaf.shape and leaf.level == "step":
        named = leaf.path in card.language.keys
        return "an array of text" + (", of which `task` holds the first sentence" if named else "")
    if how == "depth" and card.depth_scale is None:
        return "the card has no depth_scale, so its unit is unknown"
    if how == "picture" and leaf.dtype != np.uint8:
        return "neither colour nor depth that the card names"
    return None


def _fits(index: FrameIndex, leaf: Leaf, how: str) -> bool:
    """Whether calibration per step is what LeRobot's column can hold without loss."""
    if how == "extrinsics":
        return leaf.width == 16
    if leaf.width != 9:
        return False
    for episode in range(index.num_episodes):
        K = np.asarray(index.column(leaf.path, episode)).reshape(-1, 9)
        if K[:, [1, 3, 6, 7]].any() or (K[:, 8] != 1).any():
            return False
    return True


def _camera_names(index: FrameIndex, paths: list[str]) -> dict[str, str]:
    """Path of a picture -> name of its camera, all different."""
    names = {path: _camera(path) for path in paths}
    if len(set(names.values())) < len(names):
        names = {path: path.replace(".", "_").replace("/", "_") for path in paths}
    return names


def _camera(path: str) -> str:
    """`observation.image_front` -> `front`; `observation.image` -> `image`."""
    last = path.replace("/", "_").split(".")[-1]
    return re.sub(r"^(image|rgb)_|_(image|rgb)$", "", last) or last
