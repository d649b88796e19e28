"""A LeRobot dataset as samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.kinematics import ForwardKinematics
from spatialvla_ft.data.lerobot.checks import check_files, clip_troubles, row_troubles
from spatialvla_ft.data.lerobot.draft import draft_card
from spatialvla_ft.data.lerobot.pace import warn_where_slow
from spatialvla_ft.data.lerobot.store import TASK, LeRobotStore
from spatialvla_ft.data.lerobot.troubles import refuse
from spatialvla_ft.data.sample_dataset import SampleDataset
from spatialvla_ft.data.view import Camera

logger = logging.getLogger(__name__)


class LeRobotDataset(SampleDataset):
    """Samples of some episodes of a LeRobot dataset, v2.1 or v3.0."""

    store: LeRobotStore


def open_lerobot(
    folder: Path,
    *,
    card: Card | None,
    split: str = "train",
    horizon: int = 4,
    intrinsics: Mapping[str, Camera],
    depth: bool | None = None,
    fast_dct: bool = True,
    window: int = 1,
    forward_kinematics: ForwardKinematics | None = None,
    cameras: Sequence[str] | None = None,
    name: str | None = None,
) -> LeRobotDataset:
    """A split of the LeRobot dataset in a folder; without a card, by the names of its features.

    Where the clips of its cameras lie is checked for all episodes; where cameras are named, so that
    pictures will be read, every row is checked too.

    Raises:
        DatasetError: no such split, a card that does not fit, names that leave room for doubt, or
            pictures that would be other ones than the rows mean.
    """
    store = LeRobotStore(folder, name=name, fast_dct=fast_dct)
    if card is None:
        card = draft_card(store)
        logger.info("%s: no card, read by its feature names: %s", store.name, card.notes)
    store.go_by(card.video)
    if split not in store.splits:
        raise DatasetError(
            f"{store.name} has no split {split!r}; it has {list(store.splits)}. To hold out "
            "episodes of 'train' use holdout(dataset, fraction, seed)"
        )
    chosen = store.splits[split]
    dataset = LeRobotDataset(
        store,
        card,
        horizon=horizon,
        episodes=np.arange(chosen.start, chosen.stop),
        intrinsics=intrinsics,
        depth=depth,
        window=window,
        forward_kinematics=forward_kinematics,
        cameras=cameras,
    )
    slots = {slot: term.path for slot, term in (card.cameras or {}).items()}
    used = slots if cameras is None else cameras
    pictures = [path for slot in used if (path := slots[slot]) is not None]
    depths = [card.depth[slot].path for slot in used if dataset.depth and slot in card.depth]
    seen = [*pictures, *depths]
    refuse(store.name, clip_troubles(store, seen))
    if cameras is not None:  # pictures will be read, so a hole is told now and not hours later
        check_files(store, seen, dataset.episodes)
        words = TASK in card.language.keys
        refuse(store.name, row_troubles(store, seen, words=words))
    warn_where_slow(store, pictures)
    return dataset
