"""Opening a dataset on disk, whatever its format: as samples, or its raw side, and its own card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.files import load_cards
from spatialvla_ft.data.cards.standardise import ForwardKinematics
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.lerobot.checks import check_files, clip_troubles, row_troubles
from spatialvla_ft.data.lerobot.draft import draft_card
from spatialvla_ft.data.lerobot.hub import HUB, fetch_dataset, parse_address
from spatialvla_ft.data.lerobot.info import is_lerobot
from spatialvla_ft.data.lerobot.pace import warn_where_slow
from spatialvla_ft.data.lerobot.store import TASK, LeRobotSource, LeRobotStore
from spatialvla_ft.data.lerobot.troubles import refuse
from spatialvla_ft.data.reading import Reading
from spatialvla_ft.data.rlds.episodes import RldsSource, RldsStore
from spatialvla_ft.data.rlds.index import FrameIndex, build_index
from spatialvla_ft.data.rlds.places import is_url
from spatialvla_ft.data.samples import SampleDataset, holdout
from spatialvla_ft.data.store import Source
from spatialvla_ft.data.view import Camera
from spatialvla_ft.files import whole_file

__all__ = [
    "CARD_FILE",
    "Camera",
    "LeRobotDataset",
    "Reading",
    "RldsDataset",
    "SampleDataset",
    "holdout",
    "open_as",
    "open_dataset",
    "read_card",
]

logger = logging.getLogger(__name__)

CARD_FILE = "card.yaml"


class LeRobotDataset(SampleDataset):
    """Samples of some episodes of a LeRobot dataset, v2.1 or v3.0."""

    store: LeRobotStore


class RldsDataset(SampleDataset):
    """Samples of some episodes of an RLDS dataset."""

    store: RldsStore

    @property
    def frame_index(self) -> FrameIndex:
        """The frame index."""
        return self.store.index

    @property
    def fast_dct(self) -> bool:
        """Whether JPEG is decoded as TensorFlow does."""
        return self.store.fast_dct


def open_dataset(
    dir_or_index: str | Path | FrameIndex,
    *,
    card: Card | str | Path | None,
    horizon: int = 4,
    split: str = "train",
    intrinsics: Mapping[str, Camera] | None = None,
    depth: bool | None = None,
    fast_dct: bool = True,
    window: int = 1,
    forward_kinematics: ForwardKinematics | None = None,
    cameras: Sequence[str] | None = None,
) -> RldsDataset | LeRobotDataset:
    """A split of a dataset as samples; an RLDS dataset is indexed if it is not yet.

    `open_as(dir_or_index, Reading(card=..., ...))`, which see, with the fields of the `Reading` as
    keywords.
    """
    reading = Reading(
        card=card,
        horizon=horizon,
        split=split,
        intrinsics=intrinsics,
        depth=depth,
        fast_dct=fast_dct,
        window=window,
        forward_kinematics=forward_kinematics,
        cameras=cameras,
    )
    return open_as(dir_or_index, reading)


def open_as(
    dir_or_index: str | Path | FrameIndex, reading: Reading
) -> RldsDataset | LeRobotDataset:
    """A split of a dataset as samples; an RLDS dataset is indexed if it is not yet.

    Args:
        dir_or_index: version directory or fsspec URL of an RLDS dataset, directory of its index or
            an opened index; folder of a LeRobot dataset, or `hf://datasets/OWNER/NAME[@REVISION]`.
        reading: how to read it.

    Raises:
        DatasetError: no such split, a stale index, a card that does not fit.
    """
    name = None
    if isinstance(dir_or_index, str) and dir_or_index.startswith(HUB):
        name, revision = parse_address(dir_or_index)
        dir_or_index = fetch_dataset(name, revision=revision)
    if not isinstance(dir_or_index, FrameIndex) and not is_url(dir_or_index):
        folder = Path(dir_or_index)
        if is_lerobot(folder):
            return _open_lerobot(folder, reading, name)
    return _open_rlds(open_index(dir_or_index), reading)


def _open_rlds(index: FrameIndex, reading: Reading) -> RldsDataset:
    if index.incomplete:
        logger.warning("%s", index.incomplete)
    card = reading.card
    if not isinstance(card, Card):
        card = read_card(Path(card) if card is not None else own_card(index), index)
    episodes = _episodes(index.name, index.splits, reading.split)
    store = RldsStore(index, fast_dct=reading.fast_dct)
    return RldsDataset(store, card, reading, episodes=episodes)


def _open_lerobot(folder: Path, reading: Reading, name: str | None) -> LeRobotDataset:
    """A split of the LeRobot dataset in a folder; without a card, by the names of its features.

    Where the clips of its cameras lie is checked for all episodes; where cameras are named, so that
    pictures will be read, every row is checked too.

    Raises:
        DatasetError: no such split, a card that does not fit, names that leave room for doubt, or
            pictures that would be other ones than the rows mean.
    """
    card = _card_of(reading.card, folder, name or folder.name)
    store = LeRobotStore(folder, name=name, fast_dct=reading.fast_dct)
    if card is None:
        card = draft_card(store)
        logger.info("%s: no card, read by its feature names: %s", store.name, card.notes)
    store.go_by(card.video)
    episodes = _episodes(store.name, store.splits, reading.split)
    dataset = LeRobotDataset(store, card, reading, episodes=episodes)
    slots = {slot: term.path for slot, term in (card.cameras or {}).items()}
    used = slots if reading.cameras is None else reading.cameras
    pictures = [path for slot in used if (path := slots[slot]) is not None]
    depths = [card.depth[slot].path for slot in used if dataset.depth and slot in card.depth]
    seen = [*pictures, *depths]
    refuse(store.name, clip_troubles(store, seen))
    if reading.cameras is not None:  # pictures will be read: a hole is told now, not hours later
        check_files(store, seen, dataset.episodes)
        words = TASK in card.language.keys
        refuse(store.name, row_troubles(store, seen, words=words))
    warn_where_slow(store, pictures)
    return dataset


def _episodes(name: str, splits: Mapping[str, range], split: str) -> Int64[np.ndarray, " n"]:
    """The numbers of a split's episodes."""
    if split not in splits:
        raise DatasetError(
            f"{name} has no split {split!r}; it has {list(splits)}. To hold out "
            "episodes of 'train' use holdout(dataset, fraction, seed)"
        )
    return np.arange(splits[split].start, splits[split].stop)


def _card_of(card: Card | str | Path | None, folder: Path, name: str) -> Card | None:
    """The card given, the folder's own, or None to go by the names of the features."""
    if isinstance(card, Card):
        return card
    if card is None and not (folder / CARD_FILE).exists():
        return None
    return pick_card(Path(card) if card is not None else folder / CARD_FILE, name)


def open_index(place: str | Path | FrameIndex) -> FrameIndex:
    """The index of an RLDS dataset, built if there is none."""
    if isinstance(place, FrameIndex):
        return place
    if not is_url(place):
        place = Path(place)
        if (place / "meta.json").exists() and not (place / "features.json").exists():
            return FrameIndex(place)
    return build_index(place, on_bad_column="skip")


def own_card(index: FrameIndex) -> Path:
    """The card that lies beside the data; that of a URL is copied beside the index."""
    try:
        text = index.store.read(CARD_FILE)
    except FileNotFoundError:
        raise DatasetError(
            f"{index.name} brings no card: {index.store.path(CARD_FILE)} is missing; write one "
            "(data_mixtures/README.md), or pass a card file"
        ) from None
    if index.store.local:
        return index.dataset_dir / CARD_FILE
    copy = index.path / CARD_FILE
    if not copy.exists() or copy.read_bytes() != text:
        with whole_file(copy) as scratch:
            scratch.write_bytes(text)
    return copy


def read_card(path: Path, index: FrameIndex) -> Card:
    """The only card of a file, or the one with the dataset's name."""
    return pick_card(path, index.name)


def pick_card(path: Path, name: str) -> Card:
    """The card called `name` of a card file, or its only one."""
    cards = load_cards(path)
    if name in cards:
        return cards[name]
    if len(cards) != 1:
        raise DatasetError(
            f"{path} has no card {name!r} but {len(cards)} others; pass the card itself: "
            f"card=load_cards({str(path)!r})[NAME], NAME being one of {sorted(cards)}"
        )
    return next(iter(cards.values()))


def open_source(place: str | Path | FrameIndex) -> Source:
    """The raw side of the dataset in a folder, at a URL, or on the Hub."""
    if isinstance(place, str) and place.startswith(HUB):
        name, revision = parse_address(place)
        return LeRobotSource(LeRobotStore(fetch_dataset(name, revision=revision), name=name))
    if not isinstance(place, FrameIndex) and is_lerobot(Path(place)):
        return LeRobotSource(LeRobotStore(Path(place)))
    return RldsSource(open_index(place))


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
