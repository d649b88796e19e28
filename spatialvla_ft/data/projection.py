"""Where a point of the robot's base frame lies in a camera's picture.

Shape letter: N points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.fields import Intrinsics
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.geometry.intrinsics import camera_matrix


class Values(Protocol):
    """What can be asked for calibration: every `EpisodeStore` and every `Source`."""

    def value(self, key: str, episode: int, step: int) -> Any:
        """A column at one step."""


def stored_matrix(value: Any, where: str) -> Float64[np.ndarray, "3 3"]:
    """K as a dataset stores it; DatasetError, naming `where`, if it is none."""
    try:
        return camera_matrix(value, where)
    except ValueError as error:
        raise DatasetError(str(error)) from None


@dataclass(frozen=True)
class Placed:
    """A camera at one step: K of its picture, its pose in the base, and the picture's size.

    Attributes:
        K: (3, 3) pixels, centres at +0.5.
        pose: (4, 4) camera (OpenCV axes) to robot base, metres.
        size: (width, height).
    """

    K: Float64[np.ndarray, "3 3"]
    pose: Float64[np.ndarray, "4 4"]
    size: tuple[int, int]


def placed(
    values: Values, card: Card, slot: str, size: tuple[int, int], episode: int, step: int
) -> Placed | None:
    """A camera of the card at a step; None where the card lacks its K or its pose."""
    camera, key = card.intrinsics.get(slot), card.extrinsics.get(slot)
    if camera is None or key is None:
        return None
    if isinstance(camera, Intrinsics):
        K = camera.matrix(*size)
    else:
        K = stored_matrix(values.value(camera, episode, step), f"card {card.name!r}, {slot}")
    pose = np.asarray(values.value(key, episode, step), np.float64).reshape(4, 4)
    return Placed(K, pose, size)


def pixels(
    points: Float64[np.ndarray, "N 3"], cameras: Sequence[Placed]
) -> Float64[np.ndarray, "N 2"]:
    """(u, v) of each point in the camera beside it, centres at +0.5; NaN for those behind it.

    Args:
        points: base frame, metres.
        cameras: one per point.
    """
    found = np.full((len(points), 2), np.nan)
    for i, (point, camera) in enumerate(zip(points, cameras, strict=True)):
        u, v, depth = camera.K @ camera.pose[:3, :3].T @ (point - camera.pose[:3, 3])
        if depth > 0:
            found[i] = u / depth, v / depth
    return found


def in_picture(
    points: Float64[np.ndarray, "N 3"], cameras: Sequence[Placed]
) -> Bool[np.ndarray, " N"]:
    """Which points lie inside the picture of the camera beside them; what hides them is ignored."""
    uv = pixels(points, cameras)
    size = np.array([camera.size for camera in cameras], np.float64).reshape(-1, 2)
    return np.asarray(((uv >= 0) & (uv < size)).all(axis=1))
