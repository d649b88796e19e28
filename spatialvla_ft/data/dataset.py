"""Opening a dataset on disk, whatever its format, as samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Int64

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.cards import load_cards
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.holdout import holdout
from spatialvla_ft.data.kinematics import ForwardKinematics
from spatialvla_ft.data.lerobot.dataset import LeRobotDataset, open_lerobot
from spatialvla_ft.data.lerobot.hub import HUB, fetch_dataset, parse_address
from spatialvla_ft.data.lerobot.info import is_lerobot
from spatialvla_ft.data.rlds.index import FrameIndex, build_index
from spatialvla_ft.data.rlds.store import is_url
from spatialvla_ft.data.rlds_store import RldsStore
from spatialvla_ft.data.sample_dataset import SampleDataset
from spatialvla_ft.data.view import Camera

__all__ = [
    "CARD_FILE",
    "Camera",
    "LeRobotDataset",
    "RldsDataset",
    "SampleDataset",
    "holdout",
    "open_dataset",
    "read_card",
]

logger = logging.getLogger(__name__)

CARD_FILE = "card.yaml"


class RldsDataset(SampleDataset):
    """Samples of some episodes of an RLDS dataset; see `SampleDataset` for the other arguments.

    Args:
        index: the frame index.
        card: how to read it.
        fast_dct: decode JPEG as TensorFlow does.
    """

    store: RldsStore

    def __init__(
        self,
        index: FrameIndex,
        card: Card,
        *,
        horizon: int,
        episodes: Int64[np.ndarray, " n"],
        intrinsics: Mapping[str, Camera],
        depth: bool | None,
        fast_dct: bool,
        window: int = 1,
        forward_kinematics: ForwardKinematics | None = None,
        cameras: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            RldsStore(index, fast_dct=fast_dct),
            card,
            horizon=horizon,
            episodes=episodes,
            intrinsics=intrinsics,
            depth=depth,
            window=window,
            forward_kinematics=forward_kinematics,
            cameras=cameras,
        )

    @property
    def frame_index(self) -> FrameIndex:
        """The frame index."""
        return self.store.index

    @property
    def fast_dct(self) -> bool:
        """Whether JPEG is decoded as TensorFlow does."""
        return self.store.fast_dct


@overload
def open_dataset(
    dir_or_index: FrameIndex,
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
) -> RldsDataset: ...
@overload
def open_dataset(
    dir_or_index: str | Path,
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
) -> RldsDataset | LeRobotDataset: ...
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

    Args:
        dir_or_index: version directory or fsspec URL of an RLDS dataset, directory of its index or
            an opened index; folder of a LeRobot dataset, or `hf://datasets/OWNER/NAME[@REVISION]`.
        card: how to read the dataset; a file with one card, or with a card of the dataset's name;
            None for `card.yaml` in the dataset's directory. A LeRobot dataset without one is read
            by what its feature names say, where that is unambiguous.
        horizon: number of actions per sample.
        split: name of the split.
        intrinsics: cameras by slot, instead of those of the card.
        depth: whether samples carry the dataset's depth; None for where the card knows its scale.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.
        window: observed steps per sample, the present one included.
        forward_kinematics: joints to the hand's pose, (T, joints) -> (T, 4, 4); joint actions
            become end-effector deltas then.
        cameras: slots that are read and decoded, with their depth and K; None for all of the card.

    Raises:
        DatasetError: no such split, a stale index, a card that does not fit.
    """
    common: dict[str, Any] = {
        "horizon": horizon,
        "intrinsics": intrinsics or {},
        "depth": depth,
        "window": window,
        "forward_kinematics": forward_kinematics,
        "cameras": cameras,
    }
    name = None
    if isinstance(dir_or_index, str) and dir_or_index.startswith(HUB):
        name, revision = parse_address(dir_or_index)
        dir_or_index = fetch_dataset(name, revision=revision)
    folder = None
    if not isinstance(dir_or_index, FrameIndex) and not is_url(dir_or_index):
        folder = Path(dir_or_index)
    if folder is not None and is_lerobot(folder):
        return open_lerobot(
            folder,
            card=_card_of(card, folder, name or folder.name),
            split=split,
            fast_dct=fast_dct,
            name=name,
            **common,
        )
    index = open_index(dir_or_index)
    if index.incomplete:
        logger.warning("%s", index.incomplete)
    if not isinstance(card, Card):
        card = read_card(Path(card) if card is not None else own_card(index), index)
    if split not in index.splits:
        raise DatasetError(
            f"{index.name} has no split {split!r}; it has {list(index.splits)}. To hold out "
            "episodes of 'train' use holdout(dataset, fraction, seed)"
        )
    chosen = index.splits[split]
    episodes = np.arange(chosen.start, chosen.stop)
    return RldsDataset(index, card, episodes=episodes, fast_dct=fast_dct, **common)


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
        fresh = index.path / f".{CARD_FILE}-{os.getpid()}"
        fresh.write_bytes(text)
        fresh.replace(copy)
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
