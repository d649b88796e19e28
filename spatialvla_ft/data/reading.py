"""How a dataset is read: all that opening one asks for, handed on as one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spatialvla_ft.data.cards.card import Card
from spatialvla_ft.data.cards.standardise import ForwardKinematics
from spatialvla_ft.data.errors import DatasetError
from spatialvla_ft.data.view import Camera


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a dataset; `dataclasses.replace` makes another one of it.

    Attributes:
        card: how to read the dataset's columns; a file with one card, or with a card of the
            dataset's name; None for `card.yaml` in the dataset's directory. A LeRobot dataset
            without one is read by what its feature names say, where that is unambiguous.
        horizon: number of actions per sample, the one of the present step included; 1 or more.
        split: name of the split.
        intrinsics: cameras by slot, instead of those of the card: K (3, 3) in pixels of the stored
            picture, or `Intrinsics`. None for those of the card alone.
        depth: whether samples carry the dataset's depth, metres; None for where the card knows its
            scale.
        fast_dct: decode JPEG as TensorFlow does, see `decode_rgb`.
        window: observed steps per sample, the present one included; 1 or more.
        forward_kinematics: joints to the hand's pose, (T, joints) in the units of the recording ->
            (T, 4, 4) in the base frame, metres; joint actions become end-effector deltas then.
        cameras: slots that are read and decoded, with their depth and K; None for all of the card.

    Raises:
        DatasetError: a horizon or a window of less than 1.
    """

    card: Card | str | Path | None
    horizon: int = 4
    split: str = "train"
    intrinsics: Mapping[str, Camera] | None = None
    depth: bool | None = None
    fast_dct: bool = True
    window: int = 1
    forward_kinematics: ForwardKinematics | None = None
    cameras: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, value in {"horizon": self.horizon, "window": self.window}.items():
            if value < 1:
                raise DatasetError(f"{name} must be at least 1, got {value}")
