"""What a LeRobot dataset says of itself: `meta/info.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatialvla_ft.data.errors import DatasetError

INFO = Path("meta/info.json")
VERSIONS = ("v2.1", "v3.0")
PICTURES = ("video", "image")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every LeRobot dataset has."""


@dataclass(frozen=True)
class Feature:
    """One column, or one video per episode.

    Attributes:
        key: name, e.g. `observation.state`.
        dtype: `video`, `image`, `string`, or a NumPy name.
        shape: of one step; (height, width, channels) or (channels, height, width) of a picture.
        names: of the dimensions of a vector, or None where the dataset gives none.
        info: codec, pixel format and the like of a video.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    info: dict[str, Any]

    @property
    def is_picture(self) -> bool:
        """Whether it is an image or a video."""
        return self.dtype in PICTURES

    @property
    def is_depth(self) -> bool:
        """Whether it is a depth map, by its name or by what the dataset says."""
        marked = any(self.info.get(k) for k in ("is_depth_map", "video.is_depth_map"))
        return self.is_picture and (marked or self.key.split(".")[0] == "depth")


@dataclass(frozen=True)
class Info:
    """`meta/info.json`: version, rate, path templates and features."""

    version: str
    fps: float
    chunks_size: int
    data_path: str
    video_path: str | None
    splits: dict[str, range]
    robot_type: str | None
    features: dict[str, Feature]


def is_lerobot(folder: Path) -> bool:
    """Whether a folder holds a LeRobot dataset."""
    return (folder / INFO).is_file()


def read_info(folder: Path) -> Info:
    """Read and check `meta/info.json`.

    Raises:
        DatasetError: it is missing, damaged, or of a version that is not read.
    """
    path = folder / INFO
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing; give the folder of a LeRobot dataset, the one with meta/ and data/"
        ) from None
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not JSON ({error}); fetch it again") from None
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: codebase_version {version!r} is not read, only {list(VERSIONS)}; convert the "
            "dataset with LeRobot's own converter"
        )
    missing = [k for k in ("fps", "features", "data_path", "total_episodes") if k not in raw]
    if missing:
        raise DatasetError(f"{path} lacks {missing}; fetch it again")
    features = {key: _feature(key, node, path) for key, node in raw["features"].items()}
    return Info(
        version=version,
        fps=float(raw["fps"]),
        chunks_size=int(raw.get("chunks_size", 1000)),
        data_path=raw["data_path"],
        video_path=raw.get("video_path"),
        splits=_splits(raw.get("splits") or {}, int(raw["total_episodes"]), path),
        robot_type=raw.get("robot_type"),
        features=features,
    )


def _feature(key: str, node: dict[str, Any], path: Path) -> Feature:
    dtype = node.get("dtype")
    if dtype not in (*PICTURES, "string"):
        try:
            np.dtype(dtype)
        except TypeError:
            raise DatasetError(
                f"{path}: feature {key!r} has dtype {dtype!r}; allowed are video, image, string "
                "and the names of NumPy's numbers"
            ) from None
    info = node.get("info") or node.get("video_info") or {}
    return Feature(
        key=key,
        dtype=str(dtype),
        shape=tuple(int(size) for size in node.get("shape") or (1,)),
        names=_names(node.get("names")),
        info=info,
    )


def _names(raw: Any) -> tuple[str, ...] | None:
    """A plain list of names, which older datasets wrap as {"motors": [...]}."""
    if isinstance(raw, dict) and len(raw) == 1:
        (raw,) = raw.values()
    if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
        return tuple(raw)
    return None


def _splits(raw: dict[str, Any], episodes: int, path: Path) -> dict[str, range]:
    """Episodes of every split; all are `train` where the dataset names none."""
    splits = {}
    for name, text in raw.items():
        start, colon, stop = str(text).partition(":")
        if not colon or not (start + stop).isdigit() or int(stop) > episodes:
            raise DatasetError(
                f"{path}: split {name!r} is {text!r}; it must be FIRST:END of the {episodes} "
                "episodes, e.g. '0:50'"
            )
        splits[name] = range(int(start), int(stop))
    return splits or {"train": range(episodes)}
