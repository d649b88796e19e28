"""What is seen at a step of an episode: pictures, depth and cameras, by a card's slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from spatialvla_ft.data.camera_matrix import camera_matrix
from spatialvla_ft.data.card import Card
from spatialvla_ft.data.card_fields import Intrinsics
from spatialvla_ft.data.card_keys import check_keys
from spatialvla_ft.data.decode import to_metres
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.store import EpisodeStore
from spatialvla_ft.data.swaps import swap, swapped_slots

Camera = Intrinsics | Float64[np.ndarray, "3 3"]
"""Intrinsics with their image size, or K for the image as it is stored."""


@dataclass(frozen=True)
class View:
    """How the steps of a store are looked at.

    Attributes:
        store: the episodes on disk.
        card: how to read them.
        name: of the dataset, for messages.
        cameras: slots that are read and decoded; None for all of the card.
        depth: whether depth is read.
        intrinsics: cameras by slot, instead of those of the card.
    """

    store: EpisodeStore
    card: Card
    name: str
    cameras: tuple[str, ...] | None
    depth: bool
    intrinsics: Mapping[str, Camera]

    def at(self, episode: int, step: int) -> dict[str, Any]:
        """`images`, `depth`, `intrinsics` and `extrinsics` of an `Observation`."""
        places = swapped_slots(self.card, self.name, episode)
        images = {}
        for slot, term in (self.card.cameras or {}).items():
            if not self._wanted(slot, places):
                continue
            assert term.path is not None  # see check_card
            image = self.store.rgb(term.path, episode, step)
            if image is not None:
                images[slot] = image
        depth = self._depth(episode, step, places) if self.depth else None
        intrinsics = self._intrinsics(episode, step, images)
        extrinsics = self._extrinsics(episode, step, places)
        return {
            "images": swap(images, places),
            "depth": None if depth is None else swap(depth, places),
            "intrinsics": swap(intrinsics, places),
            "extrinsics": swap(extrinsics, places),
        }

    def points(self, episode: int, step: int) -> dict[str, Any]:
        """`target_point` and `reference_point` of a `Sample`, where the step has them.

        Raises:
            DatasetError: a column is not three numbers, or holds infinity.
        """
        found = {}
        for field, key in self.card.points.items():
            point = np.asarray(self.store.value(key, episode, step), np.float32).reshape(-1)
            if point.shape != (3,) or np.isinf(point).any():
                raise DatasetError(
                    f"{self.name}, episode {episode}, step {step}: {key!r} is {point.tolist()}, "
                    f"but {field} is x, y, z in metres in the robot's base frame, NaN for none"
                )
            if not np.isnan(point).any():
                found[field] = point
        return found

    def _wanted(self, slot: str, places: Mapping[str, str]) -> bool:
        """Whether a camera of the card is read, given the places that cameras take."""
        return self.cameras is None or places.get(slot, slot) in self.cameras

    def _depth(
        self, episode: int, step: int, places: Mapping[str, str]
    ) -> dict[str, Float32[np.ndarray, "H W"]]:
        depth = {}
        for slot, term in self.card.depth.items():
            if not self._wanted(slot, places):
                continue
            values = self.store.stored_depth(term.path, episode, step)
            if values is not None:
                depth[slot] = to_metres(values, self.card.depth_scale or 1.0)
        return depth

    def _intrinsics(
        self, episode: int, step: int, images: Mapping[str, np.ndarray]
    ) -> dict[str, Float64[np.ndarray, "3 3"]]:
        sources: dict[str, Any] = {**self.card.intrinsics, **self.intrinsics}
        matrices = {}
        for slot, source in sources.items():
            if slot not in images:
                continue
            if isinstance(source, Intrinsics):
                height, width = images[slot].shape[:2]
                matrices[slot] = source.matrix(width, height)
            else:
                stored = isinstance(source, str)
                value = self.store.value(source, episode, step) if stored else source
                matrices[slot] = camera_matrix(value, f"{self.name}, {slot}")
        return matrices

    def _extrinsics(
        self, episode: int, step: int, places: Mapping[str, str]
    ) -> dict[str, Float64[np.ndarray, "4 4"]]:
        """Camera-to-base transform per slot, metres; empty if the card names none."""
        return {
            slot: np.asarray(self.store.value(key, episode, step), np.float64).reshape(4, 4)
            for slot, key in self.card.extrinsics.items()
            if self._wanted(slot, places)
        }


def check_card(card: Card, store: EpisodeStore, view: View) -> None:
    """Every key of the card must exist, now rather than in the middle of a run.

    Raises:
        DatasetError: the store lacks what the card or the view names.
    """
    cameras = card.cameras or {}
    check_keys(card, store, given=view.intrinsics)
    absent = sorted(set(view.cameras or ()) - set(cameras))
    if absent:
        raise DatasetError(
            f"{view.name}: its card has no camera {absent}; it has {sorted(cameras)}"
        )
    unknown = set(view.intrinsics) - set(cameras)
    if unknown:
        raise DatasetError(
            f"intrinsics for {sorted(unknown)}, but card {card.name!r} has {sorted(cameras)}"
        )
    if view.depth and not card.depth:
        raise DatasetError(f"depth was asked for, but card {card.name!r} names none")
    if view.depth and card.depth_scale is None:
        raise DatasetError(
            f"card {card.name!r} has depth but no depth_scale; say how many metres one unit of "
            "the stored depth is, e.g. depth_scale: 0.001 for millimetres"
        )
