"""A dataset once more, with a column of points and a card that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float32

from spatialvla_ft.converters.annotate import segments
from spatialvla_ft.converters.lerobot_column import add_column as add_to_lerobot
from spatialvla_ft.converters.mapping import Mapping, read_mapping, write_mapping
from spatialvla_ft.converters.rlds_column import add_column as add_to_rlds
from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.files import SCHEMA_VERSION
from spatialvla_ft.data.errors import DatasetError, refuse_within
from spatialvla_ft.data.lerobot.store import LeRobotStore
from spatialvla_ft.data.opening import CARD_FILE
from spatialvla_ft.data.projection import Placed, in_picture, placed
from spatialvla_ft.data.rlds.episodes import RldsStore
from spatialvla_ft.data.rlds.index import FrameIndex
from spatialvla_ft.inspection.points import out_of_view

Points = Sequence[Float32[np.ndarray, "T 3"]]
MEANING = "x, y, z in the robot's base frame, metres, found in hindsight; NaN for none"


def place_of(store: RldsStore | LeRobotStore, out: Path, name: str | None) -> Path:
    """Where the new dataset will lie: `out` of LeRobot, `out/NAME/VERSION` of RLDS.

    Raises:
        DatasetError: something is there already, or it would lie within the old dataset.
    """
    if isinstance(store, LeRobotStore):
        target, taken, old = out, out, store.folder
    else:
        index: FrameIndex = store.index
        taken = out / (name or index.name)
        target = taken / index.version
        old = index.dataset_dir if index.store.local else Path("/nowhere")
    if taken.exists() and (not taken.is_dir() or any(taken.iterdir())):
        cure = "" if isinstance(store, LeRobotStore) else " or --name"
        raise DatasetError(
            f"{taken} exists and is not empty; remove it, or give another --out{cure}"
        )
    refuse_within(target, old)
    return target


def check_column(store: RldsStore | LeRobotStore, column: str) -> None:
    """DatasetError if the dataset has the column already, or it cannot be called so."""
    have = store.index.leaves if isinstance(store, RldsStore) else store.info.features
    if column in have or any(key.startswith(f"{column}.") for key in have):
        raise DatasetError(
            f"{store.label} has a column {column!r} already, and nothing is overwritten; give the "
            f"new one another name, e.g. --column {column}_hindsight"
        )
    if not column or not all(part and part == part.strip() for part in column.split(".")):
        raise DatasetError(f"--column: {column!r} is no name; e.g. target_point_hindsight")


def write_annotated(
    store: RldsStore | LeRobotStore,
    raw_card: dict[str, Any],
    points: Points,
    target: Path,
    *,
    name: str,
    column: str,
    note: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the new dataset, whole or not at all.

    Args:
        store: the dataset as it is.
        raw_card: its card as YAML holds it.
        points: of every episode.
        target: see `place_of`.
        name: of the new dataset.
        column: of the points.
        note: how they were found, for the card.
        progress: called with the number of episodes done.
    """
    scratch = target.with_name(f"incomplete.{target.name}")
    if scratch.exists():
        raise DatasetError(f"{scratch} is left from a run that was stopped; remove it")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        if isinstance(store, LeRobotStore):
            add_to_lerobot(
                store, scratch, column=column, names=("x", "y", "z"), values=points,
                progress=progress,
            )  # fmt: skip
            _tell_mapping(scratch, column, note)
        else:
            add_to_rlds(
                store.index, scratch, name=name, column=column, values=points, meaning=MEANING,
                progress=progress,
            )  # fmt: skip
        content = {
            "schema_version": SCHEMA_VERSION,
            "cards": {name: _named(raw_card, column, note)},
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (scratch / CARD_FILE).write_text(text, encoding="utf-8")
        if target.exists():  # empty, see place_of
            target.rmdir()
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _named(raw: dict[str, Any], column: str, note: str) -> dict[str, Any]:
    """The card with the column as target point."""
    return {**raw, "target_point": column, "notes": [*(raw.get("notes") or []), note]}


def _tell_mapping(folder: Path, column: str, note: str) -> None:
    """The card that goes back to RLDS names the column too."""
    kept = read_mapping(folder)
    if kept is not None:
        card = _named(kept.card, column, note)
        write_mapping(folder, Mapping(kept.name, kept.version, card, kept.entries))


def seen_by_cameras(
    store: RldsStore | LeRobotStore, card: Card, points: Points
) -> tuple[dict[str, float], list[str]]:
    """(camera with K and pose -> share of the points in its picture, warnings).

    Every point is looked for once, at the first step that has it.
    """
    sizes = {}
    for slot, term in (card.cameras or {}).items():
        picture = store.rgb(term.path, 0, 0) if len(points) and len(points[0]) else None
        if picture is not None:
            sizes[slot] = (picture.shape[1], picture.shape[0])
    views: dict[str, list[Placed]] = {}
    looked = []
    for episode, part in enumerate(points):
        for step in segments(part):
            looked.append(part[step].astype(np.float64))
            for slot, size in sizes.items():
                camera = placed(store, card, slot, size, episode, step)
                if camera is not None:
                    views.setdefault(slot, []).append(camera)
    if not views:
        return {}, []
    joined = np.array(looked)
    shares = {slot: float(in_picture(joined, cameras).mean()) for slot, cameras in views.items()}
    told = out_of_view("the points found", joined, views)
    return shares, [f"{finding.evidence}; {finding.cure}" for finding in told]
