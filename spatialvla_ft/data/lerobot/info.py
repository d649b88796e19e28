"""What a LeRobot dataset says of itself: `meta/info.json`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spatialvla_ft.data.errors import DatasetError

INFO = Path("meta/info.json")
VERSIONS = ("v2.1", "v3.0")
PICTURES = ("video", "image")
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that every LeRobot dataset has."""
TEXT = {"string": "string", "str": "string", "large_string": "string"}
"""Names of text in use."""


@dataclass(frozen=True)
class Feature:
    """One column, or one video per episode.

    Attributes:
        key: name, e.g. `observation.state`.
        dtype: `video`, `image`, `string`, a NumPy name, or what else the dataset calls it.
        shape: of one step; (height, width, channels) or (channels, height, width) of a picture.
        names: of the dimensions of a vector, or None where the dataset gives none.
        info: codec, pixel format and the like of a video.
        obstacle: why it cannot be read, or None; no harm unless a card names it.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    info: dict[str, Any]
    obstacle: str | None = None

    @property
    def is_picture(self) -> bool:
        """Whether it is an image or a video."""
        return self.dtype in PICTURES

    @property
    def is_number(self) -> bool:
        """Whether it is a column of numbers that can be read."""
        return self.obstacle is None and not self.is_picture and self.dtype != "string"

    @property
    def map_size(self) -> tuple[int, ...]:
        """Sides of more than one number of a column."""
        return tuple(side for side in self.shape if side != 1)

    @property
    def is_map(self) -> bool:
        """Whether it is a column of numbers that can be a depth map: a picture of one channel."""
        return self.is_number and len(self.map_size) == 2 and min(self.map_size) >= 8

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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not JSON ({error}); fetch it again") from None
    version = raw.get("codebase_version") if isinstance(raw, dict) else None
    if version not in VERSIONS:
        raise DatasetError(
            f"{path}: codebase_version {version!r} is not read, only {list(VERSIONS)}; convert the "
            "dataset with LeRobot's own converter"
        )
    missing = [k for k in ("fps", "features", "data_path", "total_episodes") if k not in raw]
    if missing:
        raise DatasetError(f"{path} lacks {missing}; fetch it again")
    if not isinstance(raw["features"], dict):
        raise DatasetError(f"{path}: features must be {{name: feature}}; fetch it again")
    return Info(
        version=version,
        fps=_positive(raw, "fps", path),
        chunks_size=int(_positive({"chunks_size": 1000, **raw}, "chunks_size", path)),
        data_path=str(raw["data_path"]),
        video_path=raw.get("video_path"),
        splits=_splits(raw.get("splits") or {}, int(_positive(raw, "total_episodes", path)), path),
        robot_type=raw.get("robot_type"),
        features={key: _feature(key, node, path) for key, node in raw["features"].items()},
    )


def _positive(raw: dict[str, Any], key: str, path: Path) -> float:
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DatasetError(f"{path}: {key} is {value!r}, it must be a number above 0; mend it")
    return float(value)


def _feature(key: str, node: Any, path: Path) -> Feature:
    """A feature; of a kind or shape that is not known here, with what is in the way."""
    if not isinstance(node, dict):
        raise DatasetError(f"{path}: feature {key!r} is {node!r}, not {{dtype, shape, names}}")
    dtype = node.get("dtype")
    dtype = TEXT.get(dtype, dtype) if isinstance(dtype, str) else str(dtype)
    obstacle, shape = None, _shape(node.get("shape"))
    if dtype not in (*PICTURES, "string") and not _is_number(dtype):
        obstacle = (
            f"its dtype {dtype!r} is not known here; read are video, image, string and NumPy's "
            "numbers"
        )
    elif shape is None and dtype not in PICTURES:
        obstacle = f"its shape is {node.get('shape')!r}; read are columns of a fixed shape"
    info = node.get("info") or node.get("video_info") or {}
    return Feature(
        key=key,
        dtype=dtype,
        shape=shape or (),
        names=_names(node.get("names")),
        info=info if isinstance(info, dict) else {},
        obstacle=obstacle,
    )


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except (TypeError, ValueError, SyntaxError):
        return False


def _shape(raw: Any) -> tuple[int, ...] | None:
    """Sides of one value, (1,) if the dataset gives none; None if they are no whole numbers."""
    if raw is None or raw == []:
        return (1,)
    sides = raw if isinstance(raw, list | tuple) else [raw]
    whole = all(isinstance(s, int | float) and s == s // 1 and s > 0 for s in sides)
    return tuple(int(side) for side in sides) if whole else None


def _names(raw: Any) -> tuple[str, ...] | None:
    """A plain list of names, which older datasets wrap as {"motors": [...]}."""
    if isinstance(raw, dict) and len(raw) == 1:
        (raw,) = raw.values()
    if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
        return tuple(raw)
    return None


def _splits(raw: Any, episodes: int, path: Path) -> dict[str, range]:
    """Episodes of every split; all are `train` where the dataset names none."""
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: splits is {raw!r}; write {{'train': '0:{episodes}'}}")
    splits = {}
    for name, text in raw.items():
        ends = str(text).split(":")
        if len(ends) != 2 or not all(end.isdecimal() for end in ends) or int(ends[1]) > episodes:
            raise DatasetError(
                f"{path}: split {name!r} is {text!r}; it must be FIRST:END of the {episodes} "
                "episodes, e.g. '0:50'"
            )
        splits[name] = range(int(ends[0]), int(ends[1]))
    return splits or {"train": range(episodes)}


def licence_of_readme(folder: Path) -> str | None:
    """`license` of the front matter of a dataset's page; None without one."""
    file = folder / "README.md"
    if not file.is_file():
        return None
    parts = file.read_text(encoding="utf-8").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return str(licence) if licence else None
