"""Opening the raw side of a dataset of any format that is read here, and its own card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.dataset import CARD_FILE, open_index, own_card, pick_card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.inspection.findings import Finding
from spatialvla_ft.data.inspection.source import Field, Kind, RldsSource, Source
from spatialvla_ft.data.lerobot.checks import check_files, clip_troubles, row_troubles
from spatialvla_ft.data.lerobot.hub import HUB, fetch_dataset, parse_address
from spatialvla_ft.data.lerobot.info import Feature, is_lerobot
from spatialvla_ft.data.lerobot.store import TASK, LeRobotStore
from spatialvla_ft.data.rlds.index import FrameIndex


class LeRobotSource:
    """A LeRobot dataset, v2.1 or v3.0."""

    def __init__(self, store: LeRobotStore) -> None:
        self.store = store
        self.name, self.version = store.name, store.info.version
        self.format = "LeRobot"
        self.fps: float | None = store.info.fps
        self.robot = store.info.robot_type
        words = Field(TASK, "words", "string", (), "step")
        self.fields = (*map(_field, store.info.features.values()), words)

    @property
    def splits(self) -> Mapping[str, range]:
        """Name of a split to its episodes."""
        return self.store.splits

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " n"]:
        """Steps of every episode."""
        return self.store.episode_lengths

    def trajectory(self, episode: int, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """Columns of an episode."""
        return self.store.trajectory(episode, keys)

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""
        return self.store.value(key, episode, step)

    def rgb(self, key: str, episode: int, step: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """A picture, or None where an image column is empty."""
        return self.store.rgb(key, episode, step)

    def stored_depth(self, key: str, episode: int, step: int) -> NDArray[Any] | None:
        """(H, W) depth as it is stored, or None where an image column is empty."""
        return self.store.stored_depth(key, episode, step)


def _field(feature: Feature) -> Field:
    kind: Kind = "words" if feature.dtype == "string" else "numbers"
    if feature.obstacle is not None:
        kind = "other"
    elif feature.is_picture:
        kind = "depth" if feature.is_depth else "picture"
    elif feature.is_map and "depth" in feature.key.lower():
        kind = "depth"
    stored = str(feature.info.get("video.codec", feature.dtype)) if feature.is_picture else ""
    dtype = "uint8" if feature.is_picture and not feature.is_depth else feature.dtype
    shape = () if feature.shape == (1,) else feature.shape
    names, note = feature.names or (), feature.obstacle or ""
    return Field(feature.key, kind, dtype, shape, "step", stored, names, note)


def open_source(place: str | Path | FrameIndex) -> Source:
    """The raw side of the dataset in a folder, at a URL, or on the Hub."""
    if isinstance(place, str) and place.startswith(HUB):
        name, revision = parse_address(place)
        return LeRobotSource(LeRobotStore(fetch_dataset(name, revision=revision), name=name))
    if not isinstance(place, FrameIndex) and is_lerobot(Path(place)):
        return LeRobotSource(LeRobotStore(Path(place)))
    return RldsSource(open_index(place))


def findings_of_files(source: Source, card: Card) -> list[Finding]:
    """What is wrong with the files of a LeRobot dataset that a card reads, of all episodes.

    Where the frames lie, time stamps, frame numbers, numbers of tasks, missing files: nothing of it
    needs a picture decoded.
    """
    if not isinstance(source, LeRobotSource):
        return []
    store = source.store
    store.go_by(card.video)
    terms = [*(card.cameras or {}).values(), *card.depth.values()]
    keys = [term.path for term in terms if term.path in store.info.features]
    found = [
        Finding(
            rule="not read",
            severity="note",
            where=feature.key,
            evidence=feature.obstacle,
            cure="no harm unless a card names it",
        )
        for feature in store.info.features.values()
        if feature.obstacle is not None
    ]
    troubles = clip_troubles(store, keys)
    if any(trouble.serious for trouble in troubles):
        keys = []  # rows are looked at once their clips are right
    words = TASK in card.language.keys
    try:
        troubles += row_troubles(store, keys, words=words)
        check_files(store, keys, np.arange(len(store.episodes)))
    except DatasetError as error:
        found.append(
            Finding(
                rule="files",
                severity="error",
                where=store.name,
                evidence=str(error),
                cure="the dataset is not whole",
            )
        )
    return found + [
        Finding(
            rule=trouble.rule,
            severity="error" if trouble.serious else "warning",
            where=trouble.where,
            evidence=trouble.told,
            cure=trouble.cure,
        )
        for trouble in troubles
    ]


def find_card(source: Source) -> Card | None:
    """The card that a dataset brings, or None."""
    if isinstance(source, LeRobotSource):
        path = source.store.folder / CARD_FILE
        return pick_card(path, source.name) if path.exists() else None
    if isinstance(source, RldsSource):
        if source.index.store.stats([CARD_FILE])[0] is None:
            return None
        return pick_card(own_card(source.index), source.name)
    raise DatasetError(f"cards of {source.format} datasets are not read here")
