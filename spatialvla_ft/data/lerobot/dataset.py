"""A LeRobot dataset as samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spatialvla_ft.data.card import Card
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.kinematics import ForwardKinematics
from spatialvla_ft.data.lerobot.draft import draft_card
from spatialvla_ft.data.lerobot.pace import warn_where_slow
from spatialvla_ft.data.lerobot.store import LeRobotStore
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

    Raises:
        DatasetError: no such split, a card that does not fit, or names that leave room for doubt.
    """
    store = LeRobotStore(folder, name=name, fast_dct=fast_dct)
    if card is None:
        card = draft_card(store)
        logger.info("%s: no card, read by its feature names: %s", store.name, card.notes)
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
    if cameras is not None:  # pictures will be read, so a hole is told now and not hours later
        depths = [card.depth[slot].path for slot in used if dataset.depth and slot in card.depth]
        store.check_files([*pictures, *(d for d in depths if d)], dataset.episodes.tolist())
    warn_where_slow(store, pictures)
    return dataset
